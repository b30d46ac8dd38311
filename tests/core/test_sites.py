"""The key fact dL/dr = dL/dz at every site of every odd network, and that sites which are off leave no trace."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.calling import logits
from layerwise.core.sites import Sites, has_sites
from layerwise.core.tracing import trace
from layerwise.errors import SiteError
from tests.networks import (
    NETWORKS,
    AuxiliaryHead,
    Checkpointed,
    DeadBranch,
    Skipping,
    TinyConv,
    TinyMLP,
    TinyResNet,
    TokenClassifier,
    Windows,
    batch,
    tokens,
)

X, Y = batch(4)
ALL = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.__name__))


def loss_of(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="sum")


def names_of(model: nn.Module) -> list[str]:
    return [str(c.site) for c in trace(model, X)]


class Tap(torch.autograd.Function):
    """A copy whose backward writes down what autograd passes through it: the oracle."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, seen: dict[str, Tensor], name: str) -> Tensor:
        ctx.seen, ctx.name = seen, name
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.seen[ctx.name] = gradients[0].clone()
        return gradients[0], None, None


def tapped(model: nn.Module) -> dict[str, Tensor]:
    """{name: dL/dz} of every value that enters or leaves a module, by taps in a copy of the model."""
    seen: dict[str, Tensor] = {}
    model, calls = copy.deepcopy(model), dict.fromkeys(dict(model.named_modules()), -1)
    total = trace(model, X).calls

    def tap(value: Any, name: str, form: str) -> Any:
        if isinstance(value, Tensor):
            tensor: Tensor = Tap.apply(value, seen, name + form.format(""))  # type: ignore[no-untyped-call]
            return tensor
        if isinstance(value, dict):
            return {k: tap(v, name, form.format(f'["{k}"]')) for k, v in value.items()}
        if isinstance(value, tuple):
            return tuple(tap(v, name, form.format(f"[{i}]")) for i, v in enumerate(value))
        return value

    def place(module_name: str) -> str:
        return (module_name or "model") + (f"#{calls[module_name]}" if total[module_name] > 1 else "")

    for module_name, module in model.named_modules():

        def before(m: nn.Module, args: Any, kwargs: Any, n: str = module_name) -> tuple[Any, Any]:
            calls[n] += 1
            name = "input" if n == "" else place(n) + ":input"
            return tuple(tap(v, name, "") for v in args), {k: tap(v, name, "") for k, v in kwargs.items()}

        def after(m: nn.Module, args: Any, output: Any, n: str = module_name) -> Any:
            return tap(output, place(n), "" if isinstance(output, Tensor) else ":output{}")

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    torch.autograd.backward(loss_of(model, X.clone().requires_grad_()))
    return seen


@ALL
def test_the_gradient_of_the_noise_is_that_of_the_activation(network: type[nn.Module]) -> None:
    """All sites in one pass, with the parameters frozen and not."""
    options = {"enabled": False} if network is Checkpointed else {}
    model = network(**options).double()
    expected = tapped(model)
    alive = [name for name in names_of(model) if name in expected]
    dead = {"dead", "dead:input"} if network is DeadBranch else set()
    assert set(names_of(model)) - set(alive) == dead
    assert len(alive) >= 6
    sites = Sites(model, alive, example=X)
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with sites.record(X) as recorder:
            torch.autograd.backward(loss_of(model))
        found = {str(site): g for site, g in recorder.gradients().items()}
        assert list(found) == alive
        for name, g in found.items():
            assert g.shape == expected[name].shape
            torch.testing.assert_close(g, expected[name], rtol=1e-12, atol=1e-15)


@ALL
def test_the_gradient_is_the_slope_of_the_loss_in_the_noise(network: type[nn.Module]) -> None:
    """Central differences through `perturb`, a random direction at each output of a module that is called once."""
    model = network().double()
    dead = ("dead", "dead:input")
    chosen = [n for n in names_of(model) if "#" not in n and not n.endswith(":input") and n not in dead][::2]
    sites = Sites(model, chosen, example=X)
    with sites.record(X) as recorder:
        torch.autograd.backward(loss_of(model))
    stream = torch.Generator().manual_seed(0)
    for site, g in recorder.gradients().items():
        v = torch.randn(g.shape, generator=stream, dtype=g.dtype)
        losses = []
        for h in (1e-6, -1e-6):
            with sites.perturb({site: h * v}):
                losses.append(loss_of(model).item())
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(float((g * v).sum()), rel=1e-5, abs=1e-8), str(site)


def test_a_checkpointed_block_records_as_the_plain_one_does() -> None:
    found = []
    for enabled in (True, False):
        model = Checkpointed(enabled=enabled).double()
        sites = Sites(model, [n for n in names_of(model) if "#" not in n], example=X)
        with sites.record(X) as recorder:
            torch.autograd.backward(loss_of(model))
        found.append(recorder.gradients())
    assert all(torch.equal(found[0][site], g) for site, g in found[1].items())
    assert len(found[0]) == 12


@ALL
def test_recording_and_zero_noise_leave_the_loss_and_the_weights_gradients_alone(network: type[nn.Module]) -> None:
    plain = network().double()
    model = copy.deepcopy(plain)
    sites = Sites(model, [n for n in names_of(model) if "#" not in n or network is not Checkpointed], example=X)
    expected = loss_of(plain)
    torch.autograd.backward(expected)
    with sites.record(X, {site: torch.zeros(4, *sites.shape(site)).double() for site in sites}):
        found = loss_of(model)
        torch.autograd.backward(found)
    assert torch.equal(found, expected)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or q.grad is None or torch.equal(p.grad, q.grad), name


# Off


def hooks_of(model: nn.Module) -> list[Any]:
    """Every table of hooks that a module has."""
    tables = [name for name in vars(nn.Module()) if "hooks" in name]
    return [list(getattr(m, table).items()) for m in model.modules() for table in tables if hasattr(m, table)]


def step(model: nn.Module) -> dict[str, Tensor]:
    """One training step with dropout: state, gradients, random state afterwards."""
    torch.manual_seed(7)
    model.zero_grad()
    torch.autograd.backward(loss_of(model))
    gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    kept = {**model.state_dict(), **gradients, "random state": torch.get_rng_state()}
    return {name: value.clone() for name, value in kept.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(v, b[k]) for k, v in a.items())


def with_dropout(model: nn.Module) -> nn.Module:
    model = model.double()
    model.register_forward_hook(lambda module, args, output: F.dropout(output, 0.3))
    return model


@ALL
def test_sites_that_are_off_leave_the_model_bitwise_the_same(network: type[nn.Module]) -> None:
    """Attached and idle, after use, and after removal; other people's hooks stay and go on firing."""
    plain, model = with_dropout(network()), with_dropout(network())
    fired: list[str] = []
    theirs = [m.register_forward_hook(lambda m, a, o: fired.append("theirs")) for m in model.children()]
    keys, hooks, draws = list(model.state_dict()), hooks_of(model), torch.get_rng_state()
    sites = Sites(model, [n for n in names_of(model) if network is not Checkpointed or "#" not in n], example=X)
    assert torch.equal(torch.get_rng_state(), draws)
    assert list(model.state_dict()) == keys
    assert hooks_of(model) != hooks
    assert same(step(plain), step(model))
    with sites.record(X) as recorder:
        torch.autograd.backward(loss_of(model))
    torch.autograd.backward(loss_of(plain))
    fired.clear()
    assert same(step(plain), step(model))
    assert fired
    del recorder
    sites.remove()
    assert hooks_of(model) == hooks
    assert same(step(plain), step(model))
    for handle in theirs:
        handle.remove()


def test_a_with_block_removes_the_sites() -> None:
    model = TinyConv().double()
    model.fc.register_forward_hook(lambda module, args, output: None)
    before = hooks_of(model)
    with Sites(model, ["relu#1", "conv1:input"], example=X) as sites:
        assert len(sites) == 2
        assert hooks_of(model) != before
        assert has_sites(model)
    assert hooks_of(model) == before
    assert not has_sites(model)
    assert len(sites) == 0


def test_removed_sites_attach_again_when_they_are_used_again() -> None:
    model = TinyMLP().double()
    sites = Sites(model, ["fc1"], example=X)
    sites.remove()
    with sites.record(X) as recorder:
        torch.autograd.backward(loss_of(model))
    assert [str(site) for site in recorder.gradients()] == ["fc1"]


def test_two_sets_of_sites_on_one_model_do_not_meet() -> None:
    """A hook of one set gives back what the other made."""
    model = TinyConv().double()
    one, two = Sites(model, ["conv1", "fc"], example=X), Sites(model, ["conv1"], example=X)
    with one.record(X) as outer, two.record(X) as inner:
        torch.autograd.backward(loss_of(model))
    [conv, _], [again] = outer.gradients().values(), inner.gradients().values()
    assert torch.equal(conv, again)
    one.remove()
    with two.record(X) as inner:
        torch.autograd.backward(loss_of(model))
    assert torch.allclose(next(iter(inner.gradients().values())), conv, rtol=1e-12, atol=0)


def test_sites_follow_a_new_shape_of_input() -> None:
    model = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 2, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    ).double()
    sites = Sites(model, ["conv", "flat"], example=X)
    hooks = hooks_of(model)
    assert [tuple(sites.shape(s)) for s in sites] == [(2, 6, 6), (2,)]
    with sites.record(torch.rand(2, 3, 5, 5).double()) as recorder:
        torch.autograd.backward(model(torch.rand(2, 3, 5, 5).double()).sum())
    assert [tuple(g.shape) for g in recorder.gradients().values()] == [(2, 2, 3, 3), (2, 2)]
    assert hooks_of(model) == hooks
    sites.resolve(torch.rand(2, 3, 5, 5).double())
    assert [tuple(sites.shape(s)) for s in sites] == [(2, 3, 3), (2,)]
    sites.resolve(X)
    assert [tuple(sites.shape(s)) for s in sites] == [(2, 6, 6), (2,)]


@pytest.mark.parametrize("noisy", [False, True])
def test_a_new_length_costs_no_pass_and_is_recorded_as_the_known_one(noisy: bool) -> None:
    model = TokenClassifier().double()
    sites = Sites(model, ["embed", "encoder.0"], example=tokens(4, 6)[0])
    forwards: list[int] = []
    model.register_forward_hook(lambda module, args, output: forwards.append(1))
    found = []
    for again in (sites, Sites(model, ["embed", "encoder.0"], example=tokens(4, 9)[0])):
        forwards.clear()
        x, y = tokens(4, 9)
        noise = {site: torch.full((4, 9, 8), 0.1, dtype=torch.float64) for site in again} if noisy else {}
        with again.record(x, noise) as recorder:
            torch.autograd.backward(F.cross_entropy(model(**x).logits, y, reduction="sum"))
        found.append(recorder.gradients())
        assert len(forwards) == 1
    assert all(torch.equal(g, found[1][site]) for site, g in found[0].items())
    assert all(g.shape == (4, 9, 8) for g in found[0].values())


def test_a_pass_that_sees_two_shapes_says_so() -> None:
    model = TokenClassifier().double()
    one, two = tokens(4, 6)[0], tokens(4, 9)[0]
    sites = Sites(model, ["embed"], example=one)
    message = (
        r"^site 'embed' has shape \(4, 9, 8\) where it had \(4, 6, 8\) before in the same pass, which records one shape; "
        r"open a context for each$"
    )
    with sites.record(one):
        model(**one)
        with pytest.raises(SiteError, match=message):
            model(**two)


def test_a_site_whose_first_dimension_is_not_the_batch_is_refused_by_name() -> None:
    for size in (1, 2, 5):
        model = Windows().double()
        message = r"^site 'mix' has shape \(4, 4, 8, 4\) for a batch of 2: its first dimension is not the batch$"
        with pytest.raises(SiteError, match=message):
            Sites(model, ["mix"], example=batch(size)[0])


def test_a_site_that_has_lost_its_rows_in_a_pass_is_refused_by_name() -> None:
    """Two rows are what a trace takes: the first two tokens of each sentence look like a batch there."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x.flatten(0, 1)[:2])
            return out

    x = torch.rand(4, 5, 2)
    sites = Sites(Flat(), ["fc"], example=x)
    message = r"^site 'fc' has shape \(2, 3\) for a batch of 4: its first dimension is not the batch$"
    with pytest.raises(SiteError, match=message), sites.record(x):
        sites.model(x)


# Modes


def test_sites_are_those_of_the_mode_in_which_they_are_used() -> None:
    """A module that training calls twice and evaluation once would get its noise twice."""
    model = AuxiliaryHead().double()
    model.eval()
    sites = Sites(model, ["relu"], example=X)
    [site] = sites
    r = torch.ones(4, 4).double()
    with sites.record(X) as recorder:
        torch.autograd.backward(logits(model, X).sum())
    assert recorder.gradients()[site].shape == (4, 4)
    model.train()
    message = "site 'relu' is called 2 times in one forward pass; name the call: relu#0, relu#1"
    with pytest.raises(SiteError, match=f"^{message}$"):
        sites.record(X)
    with pytest.raises(SiteError, match=f"^{message}$"):
        sites.perturb({site: r})
    model.eval()
    with sites.perturb({site: r}):
        torch.testing.assert_close(logits(model, X), model.fc(torch.relu(1 + model.conv(X).mean((2, 3))) + 1))


def test_what_only_training_calls_can_be_named_and_the_hooks_go_with_the_mode() -> None:
    model = AuxiliaryHead().double()
    sites = Sites(model, r"aux|relu#\d|relu|fc", example=X)
    assert [str(site) for site in sites] == ["relu#0", "fc", "relu#1", "aux"]
    with sites.record(X) as recorder:
        out = model(X)
        torch.autograd.backward(F.cross_entropy(out.logits, Y) + F.cross_entropy(out.aux_logits, Y))
    assert all(g.any() for g in recorder.gradients().values())
    model.eval()
    with sites.record(X) as recorder:
        torch.autograd.backward(model(X).sum())
    assert [str(site) for site in recorder.gradients()] == ["relu", "fc"]
    traced: list[int] = []
    model.register_forward_pre_hook(lambda module, args: traced.append(1))
    for mode in (True, False, True):
        model.train(mode)
        sites.attach(X)
    assert [str(site) for site in sites] == ["relu#0", "fc", "relu#1", "aux"]
    assert traced == []
    sites.remove()
    assert not has_sites(model)


def test_a_site_that_only_training_has_is_missed_in_evaluation() -> None:
    model = AuxiliaryHead().double()
    sites = Sites(model, ["aux"], example=X)
    model.eval()
    with pytest.raises(SiteError, match=r"^site 'aux' is registered in the network but never called in a forward pass"):
        sites.record(X)


def test_blocks_that_training_skips_at_random_are_found_and_have_no_gradient_where_they_are_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Skipping().double()
    sites = Sites(model, "convolution outputs", example=X)
    assert [str(site) for site in sites] == ["stem", "blocks.0", "blocks.1", "blocks.2"]
    ran: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: ran.add(name))
    patterns = set()
    for seed in range(8):
        ran.clear()
        torch.manual_seed(seed)
        with sites.record(X) as recorder:
            torch.autograd.backward(F.cross_entropy(model(X), Y))
        for site, g in recorder.gradients().items():
            assert g.shape == (4, 4, 8, 8)
            assert bool(g.any()) == (site.module in ran)
        patterns.add(frozenset(ran))
    assert len(patterns) > 3
    assert [record.message for record in caplog.records if "not every pass of training reaches" in record.message] != []
    assert len(caplog.records) == 1
    inner = Sites(model, ["blocks.0"], example=X)
    [site] = inner
    r = torch.ones(4, 4, 8, 8).double()
    for seed in range(8):
        torch.manual_seed(seed)
        with inner.perturb({site: r}):
            model(X)
    model.eval()
    message = r"^site 'blocks.0' was not reached in this pass"
    with pytest.raises(SiteError, match=message), inner.record(X):
        model.stem(X)


def test_sites_are_named_by_texts() -> None:
    model: Any = TinyConv().double()
    wrongs: list[tuple[Any, str]] = [([model.conv1], "Conv2d"), ([1], "int")]
    for wrong, kind in wrongs:
        with pytest.raises(
            SiteError, match=rf"^a site is named by a text, and this is a {kind}; type for example sites="
        ):
            Sites(model, wrong, example=X)


def test_a_site_that_no_pass_of_training_skips_has_to_be_reached() -> None:
    model = TinyConv().double()
    sites = Sites(model, ["conv1"], example=X)
    with (
        pytest.raises(SiteError, match=r"^site 'conv1' was not reached in this pass: no forward pass ran"),
        sites.record(X),
    ):
        pass


Pair = namedtuple("Pair", ["a", "b"])


@pytest.mark.parametrize(
    "pack", [Pair, lambda a, b: [a, None, b], lambda a, b: OrderedDict(a=a, b=b), lambda a, b: {"a": a, "n": 1, "b": b}]
)
def test_an_exchanged_tensor_leaves_its_container_as_it_was(pack: Callable[[Tensor, Tensor], Any]) -> None:
    class Box(nn.Module):
        def forward(self, x: Tensor) -> Any:
            self.given = pack(x, 2 * x)
            return self.given

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.box = Box()

        def forward(self, x: Tensor) -> Tensor:
            self.got = self.box(x)
            values = list(self.got.values()) if isinstance(self.got, dict) else list(self.got)
            first, last = values[0], values[-1]
            total: Tensor = (first + last).flatten(1)
            return total

    model = Model()
    sites = Sites(model, r"box:output\[.*\]", example=X)
    given = model.box.given
    last = list(sites)[-1]
    with sites.perturb({last: torch.ones_like(X)}):
        assert torch.equal(model(X), (X + (2 * X + 1)).flatten(1))
    assert type(model.got) is type(given)
    assert model.got is not model.box.given
    assert list(model.got) == list(given) if isinstance(given, dict) else len(model.got) == len(given)


def test_sites_print_themselves() -> None:
    model = TinyResNet().double()
    assert str(Sites(model, ["conv1"])) == "Sites(['conv1']), not resolved yet: pass an example batch"
    assert str(Sites(model, ["conv1", "input", "fc"], example=X)) == (
        "site   shape      entries\ninput  (3, 8, 8)      192\nconv1  (4, 8, 8)      256\nfc     (5,)             5"
    )


def test_a_network_with_sites_can_be_pickled_and_copied() -> None:
    model = TinyConv().double().eval()
    sites = Sites(model, ["conv1", "bn2"], example=X)
    stored = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
    for other in (stored, copy.deepcopy(model)):
        with sites.perturb({site: torch.ones(len(X), *sites.shape(site), dtype=X.dtype) for site in sites}):
            moved = model(X)
            assert not torch.equal(other(X), moved)
        assert torch.equal(other(X), model(X))
