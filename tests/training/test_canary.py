from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from layerwise.core.sites import Sites
from layerwise.errors import SiteError
from layerwise.methods import FGSMRS, SLAT
from layerwise.training.canary import check_hooks, compiling
from tests.networks import DeadBranch, TinyConv, TinyMLP, ZeroBranch, batch
from tests.training.fakes import apart, cheap, pictures, same, train, weights


def inputs(size: int = 4) -> tuple[Tensor, Tensor]:
    return batch(size, dtype=torch.float32)


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="aot_eager")


def test_a_sound_network_is_left_as_it_was() -> None:
    net = TinyConv()
    before, random = weights(net), torch.get_rng_state()
    x, y = inputs()
    sites = Sites(net, ["conv1", "bn2"], example=x)
    assert check_hooks(net, net, [sites], x, y) == []
    assert same(before, weights(net))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_branch_that_starts_at_zero_is_a_warning() -> None:
    net = ZeroBranch()
    x, y = inputs()
    sites = Sites(net, ["stem", "branch.0"], example=x)
    assert check_hooks(net, net, [sites], x, y) == [
        "noise at 'branch.0' changes nothing yet: a branch there starts at zero"
    ]


def test_a_dead_site_is_an_error_before_anything_trains() -> None:
    with pytest.raises(SiteError, match=r"site 'dead' is dead"):
        train(DeadBranch(), SLAT(sites=["conv", "dead"], eta=0.01), cheap())


def test_hooks_that_came_after_the_first_compiled_call_are_an_error() -> None:
    torch._dynamo.reset()
    net = TinyMLP()
    x, y = inputs()
    # Without the setting of `compiling`, as PyTorch has it: hooks are not looked at again.
    model = compiled(net)
    model(x)
    sites = Sites(net, ["fc1"], example=x)
    with pytest.raises(SiteError, match=r"site 'fc1' was not reached .* compiled before the sites were attached"):
        check_hooks(model, net, [sites], x, y)
    torch._dynamo.reset()


def test_a_model_that_swallows_the_noise_is_an_error() -> None:
    class Deaf(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.known = net, None

        def forward(self, x: Tensor) -> Any:
            out = self.net(x)
            if self.known is None:
                self.known = out
            return self.known

    net = TinyMLP()
    x, y = inputs()
    sites = Sites(net, ["fc1"], example=x)
    with pytest.raises(SiteError, match="noise at the sites fc1 changes the bare network and not the compiled one"):
        check_hooks(Deaf(net), net, [sites], x, y)


def test_compiled_training_equals_eager_training() -> None:
    nets = [TinyConv(), TinyConv()]
    for net, options in zip(nets, ({}, {"compile": True, "compile_backend": "aot_eager"}), strict=True):
        torch._dynamo.reset()
        method = SLAT(sites=["conv1", "bn2"], eta=0.05, base=FGSMRS(eps=0.05))
        train(net, method, cheap(precision="64-true", eval_every=1, **options), pictures(28))
    assert apart(weights(nets[0]), weights(nets[1])) < 1e-10


def test_nothing_is_compiled_again_after_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiles: list[int] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        compiles.append(len(graph.graph.nodes))
        return graph.forward

    counts: list[int] = []
    module = importlib.import_module("layerwise.training.fit")
    original = module.end_epoch

    def counted(*args: Any) -> None:
        counts.append(len(compiles))
        original(*args)

    monkeypatch.setattr(module, "end_epoch", counted)
    torch._dynamo.register_backend(backend, name="counting")
    method = SLAT(sites=["conv1", "bn2"], eta=0.05)
    train(TinyConv(), method, cheap(epochs=3, compile=True, compile_backend="counting", eval_every=1), pictures(28))
    assert counts[0] == counts[1] == counts[2] > 0
    assert not counters["graph_break"]


def test_the_settings_of_the_compiler_hold_for_the_duration() -> None:
    from torch._dynamo import config

    before = config.recompile_limit
    with compiling(True):
        assert config.recompile_limit == 64
        assert not config.skip_nnmodule_hook_guards
    assert config.recompile_limit == before
    assert config.skip_nnmodule_hook_guards
