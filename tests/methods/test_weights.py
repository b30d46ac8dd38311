"""What moves weights (Parseval, AWP) moves those that layers use: parametrised ones, tied ones; or says that it cannot."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as made_by
from torch.nn.utils import parametrize, prune

from layerwise.core.driving import Partial
from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from layerwise.methods import AWP, FGSM, PGD, Method, Parseval, Standard
from layerwise.methods.weights import effective_weights
from tests.methods.cases import backward, data, differing, distance, hooks_of, optimizer_of, train
from tests.networks import TinyMLP, batch

X, Y = batch(6)


def older(name: str) -> Callable[[nn.Module], nn.Module]:
    def made(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            found: nn.Module = getattr(nn.utils, name)(layer)
        return found

    return made


PARAMETRISED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": made_by.weight_norm,
    "older weight_norm": older("weight_norm"),
    "spectral_norm": made_by.spectral_norm,
    "older spectral_norm": older("spectral_norm"),
}
EVERY = pytest.mark.parametrize("kind", PARAMETRISED)
NORMED = pytest.mark.parametrize("kind", ["weight_norm", "older weight_norm"])


def mlp(kind: str) -> TinyMLP:
    net = TinyMLP().double()
    torch.manual_seed(0)  # where a power iteration starts
    PARAMETRISED[kind](net.fc1)
    PARAMETRISED[kind](net.fc2)
    return net


def values(net: nn.Module) -> dict[str, Tensor]:
    return {weight.name: weight.value().detach().clone() for weight in effective_weights(net)}


@EVERY
def test_the_weights_are_those_that_layers_multiply_by_and_asking_moves_nothing(kind: str) -> None:
    net = mlp(kind)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = values(net)
    assert sorted(found) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert differing(before, net.state_dict()) == []
    net.eval()
    torch.testing.assert_close(net.fc1(X.flatten(1)), X.flatten(1) @ found["fc1.weight"].T + net.fc1.bias)


@EVERY
def test_parseval_makes_a_tight_frame_of_the_weight_that_is_used(kind: str) -> None:
    """On weight_norm it tightened v, and left singular values 0.8 away from 1."""
    layer = nn.Linear(8, 6, bias=False).double()
    nn.init.orthogonal_(layer.weight, gain=0.5)
    torch.manual_seed(0)
    layer = PARAMETRISED[kind](layer)  # type: ignore[assignment]
    for step in range(200):
        Parseval(beta=0.1, share=0.5)._tighten(layer, Stream(0, step), 0)
        layer(torch.zeros(1, 8, dtype=torch.float64))  # a power iteration goes on in passes only
    singular = torch.linalg.svdvals(values(layer)["weight"])
    torch.testing.assert_close(singular, torch.ones(6).double(), atol=1e-3, rtol=0)


@NORMED
def test_parseval_on_a_weight_norm_is_parseval_on_the_weight(kind: str) -> None:
    plain, normed = TinyMLP().double(), mlp(kind)
    for net in (plain, normed):
        Parseval(beta=0.1)._tighten(net, Stream(0), 0)
    for name, value in values(normed).items():
        torch.testing.assert_close(value, values(plain)[name])


def yields(net: nn.Module) -> list[float]:
    """The losses of one batch of AWP, at w and at w + v."""
    found = []
    for loss in AWP(gamma=0.05, base=Standard()).losses(net, X, Y):
        found.append(float((loss.loss if isinstance(loss, Partial) else loss).detach()))
        backward(loss)
    return found


@EVERY
def test_awp_moves_the_weight_that_is_used_and_not_what_it_is_made_of(kind: str) -> None:
    """As on a network whose weights are plain and the same; in evaluation mode, where no power iteration changes them."""
    net, plain = mlp(kind).eval(), TinyMLP().double()
    plain.load_state_dict(values(net), strict=False)
    before = {k: v.detach().clone() for k, v in net.named_parameters()}
    found = yields(net)
    assert found == pytest.approx(yields(plain), rel=1e-9)
    assert found[1] - found[0] > 0.05
    for name, value in net.named_parameters():
        torch.testing.assert_close(value.detach(), before[name], rtol=1e-12, atol=1e-15)
    # The gradients that are descended are those at w + v.
    grads = dict(net.named_parameters())["fc3.weight"].grad
    assert grads is not None
    torch.testing.assert_close(grads, plain.fc3.weight.grad)


@EVERY
@pytest.mark.parametrize("method", [AWP(base=PGD(steps=1)), Parseval(beta=0.01)], ids=["AWP", "Parseval"])
def test_they_train_parametrised_networks_and_leave_no_hook(kind: str, method: Method) -> None:
    net = mlp(kind)
    own = hooks_of(net)
    before = values(net)
    train(method, net, data(3), optimizer=optimizer_of(net), parts=(4, 2))
    assert all(bool(v.isfinite().all()) for v in net.state_dict().values())
    assert all(float((v - before[k]).abs().max()) > 1e-4 for k, v in values(net).items())
    method.detach()
    assert hooks_of(net) == own


@NORMED
def test_awp_without_gamma_is_its_base_on_parametrised_networks(kind: str) -> None:
    found = train(AWP(base=FGSM(), gamma=0.0), mlp(kind), data(2))
    assert differing(found, train(FGSM(), mlp(kind), data(2))) == []


@NORMED
def test_compiled_awp_is_the_same_on_parametrised_networks(kind: str) -> None:
    torch.compiler.reset()
    expected = train(AWP(base=FGSM(), gamma=0.05), mlp(kind), data(2))
    net, method = mlp(kind), AWP(base=FGSM(), gamma=0.05)
    method.attach(net, X)
    config: Any = torch._dynamo.config
    with config.patch(skip_nnmodule_hook_guards=False, recompile_limit=64):
        compiled: Any = torch.compile(net, backend="aot_eager")
        found = train(method, compiled, data(2))
    torch.compiler.reset()
    assert distance({k.removeprefix("_orig_mod."): v for k, v in found.items()}, expected) < 1e-12


class Tied(nn.Module):
    """Two layers that share a weight, plain or normed."""

    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(192, 192, bias=False), nn.Linear(192, 192, bias=False)
        if normed:
            for layer in (self.first, self.second):
                made_by.weight_norm(layer)
            one: Any = self.first.parametrizations
            other: Any = self.second.parametrizations
            other.weight.original0, other.weight.original1 = one.weight.original0, one.weight.original1
        else:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x.flatten(1))))[:, :5]
        return out


@pytest.mark.parametrize("normed", [False, True])
def test_a_weight_that_layers_share_is_moved_once(normed: bool) -> None:
    net = Tied(normed=normed).double()
    w = net.first.weight.detach().clone()
    assert list(values(net)) == ["first.weight"]
    Parseval(beta=0.1, share=1.0)._tighten(net, Stream(0), 0)
    torch.testing.assert_close(net.second.weight.detach(), 1.1 * w - 0.1 * w @ w.T @ w)
    torch.testing.assert_close(net.first.weight.detach(), net.second.weight.detach())


def test_awp_moves_a_shared_weight_once() -> None:
    net = Tied().double()
    w = net.first.weight.detach().clone()
    losses = iter(AWP(gamma=0.05, base=Standard()).losses(net, X, Y))
    backward(next(losses))
    next(losses)
    assert float((net.first.weight.detach() - w).norm() / w.norm()) == pytest.approx(0.05)
    assert net.second.weight is net.first.weight


class Adapted(nn.Linear):
    """A frozen layer with an adapter, its parts named as everybody names them."""

    def __init__(self) -> None:
        super().__init__(192, 5)
        self.weight.requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(192, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.flatten(1)) + self.lora_B(self.lora_A(x.flatten(1)))
        return out


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def pruned() -> nn.Module:
    layer = nn.Linear(192, 5)
    prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return nn.Sequential(nn.Flatten(), layer)


def without_inverse() -> nn.Module:
    layer = nn.Linear(192, 5)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return nn.Sequential(nn.Flatten(), layer)


CANNOT: list[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: nn.Sequential(Adapted()),
        "moves weights, and '0' adds an adapter's product to its own, which no parameter is: merge the adapter first "
        "(merge_and_unload), or train it with another method",
    ),
    (
        pruned,
        "moves weights, and that of '1' is pruned anew in every pass; type torch.nn.utils.prune.remove(module, 'weight') first",
    ),
]


@pytest.mark.parametrize("method", [AWP(), Parseval()], ids=["AWP", "Parseval"])
@pytest.mark.parametrize(("network", "message"), CANNOT, ids=["adapter", "pruned"])
def test_weights_that_are_no_parameters_are_refused(
    method: Method, network: Callable[[], nn.Module], message: str
) -> None:
    """Before the first step, by `attach` and in a loop of one's own."""
    says = f"^{type(method).__name__} {re.escape(message)}$"
    for use in (method.attach, lambda net, x: list(method.losses(net, x, Y))):
        with pytest.raises(ConfigError, match=says):
            use(network().double(), X)


def test_parseval_needs_an_inverse_and_awp_does_not() -> None:
    net = without_inverse().double()
    says = "1.weight is made by Doubled, which has no right_inverse: no parameters give a wanted weight; take the parametrisation off"
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
        train(Parseval(), net, data(1))
    train(AWP(base=FGSM()), net, data(1))
