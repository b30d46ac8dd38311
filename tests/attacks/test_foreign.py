"""Anybody's attack is evaluated like ours, within the same ball; networks without gradients get a sentence from each attack."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks import FGSMAttack, PGDAttack, ThreatModel
from layerwise.attacks.base import loss_gradient
from layerwise.attacks.external import package
from layerwise.core.registry import names
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.evaluation import evaluate

X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))


def own_fgsm(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (x + 0.1 * loss_gradient(model, x, y).sign()).clamp(0, 1)


class OwnObject:
    """An attack with settings, as other libraries have them."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        for p in model.parameters():
            assert not p.requires_grad
        return (x + self.by).clamp(0, 1)


THREAT = ThreatModel("linf", 0.1)


def run(attack: Any, model: nn.Module | None = None, threat: ThreatModel = THREAT) -> Any:
    return evaluate(model or network(), (X, Y), attacks=[attack], threat=threat, progress=False)


def test_a_function_is_an_attack() -> None:
    own, ours = run(own_fgsm), run(FGSMAttack())
    assert own.results[0].count == ours.results[0].count
    assert own.results[0].attack.endswith("test_foreign:own_fgsm")
    assert own.worst == ours.worst
    assert own.from_json(own.to_json()) == own


def test_an_object_is_one_too() -> None:
    assert run(OwnObject(0.1)).results[0].attack.endswith("test_foreign:OwnObject")


class OfTorchattacks:
    """Called as objects of torchattacks are: made for a network, with a radius."""

    __module__ = "torchattacks.attacks.fgsm"

    def __init__(self, model: nn.Module, eps: float) -> None:
        self.model, self.eps = model, eps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + self.eps * loss_gradient(self.model, x, y).sign()).clamp(0, 1)


class OfART:
    """Called as objects of ART are: not at all, and with arrays."""

    __module__ = "art.attacks.evasion"

    def __init__(self, model: nn.Module, eps: float) -> None:
        self.inner = OfTorchattacks(model, eps)

    def generate(self, x: Any, y: Any) -> Any:
        return self.inner(torch.from_numpy(x), torch.from_numpy(y)).numpy()


class Mine(OfTorchattacks):
    """A class of one's own over one of theirs."""


@pytest.mark.parametrize("kind", [OfTorchattacks, OfART, Mine])
def test_objects_of_other_packages_are_called_in_their_way(kind: Any) -> None:
    model = network()
    found, ours = run(kind(model, 0.1), model), run(FGSMAttack(), model)
    assert found.results[0].kept == ours.results[0].kept
    with pytest.raises(ConfigError, match=r"left the threat model \(linf, eps 0.1\)"):
        run(kind(model, 0.2), model)


def test_an_object_of_another_network_is_told() -> None:
    with pytest.raises(ConfigError, match="it was made for another network; make it of the one that is evaluated"):
        run(OfTorchattacks(network(), 0.1))


def test_objects_of_foolbox_are_told_network_and_radius() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = package("foolbox").attacks
    found, ours = run(theirs.LinfFastGradientAttack(random_start=False)), run(FGSMAttack())
    assert found.results[0].attack == "foolbox.attacks.fast_gradient_method:LinfFastGradientAttack"
    assert found.results[0].kept == ours.results[0].kept
    with pytest.raises(ConfigError, match=r"left the threat model \(l2, eps 0.1\)"):
        run(theirs.LinfFastGradientAttack(random_start=False), threat=ThreatModel("l2", 0.1))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (OwnObject(0.2), r"OwnObject left the threat model \(linf, eps 0.1\): an image lies at linf distance 0.2"),
        (lambda model, x, y: x + 0.1, r"left the pixel range"),
        (lambda model, x, y: x[:1], r"made images of shape \(1, 1, 8, 8\) out of \(12, 1, 8, 8\); the shape must stay"),
        (lambda model, x, y: None, r"gave NoneType; an attack is called as attack\(model, x, y\)"),
        (lambda x, y: x, r"failed \(TypeError: .*lambda model, x, y: theirs\(x, y\)"),
        (PGDAttack, r"the class PGDAttack is no attack; give a name such as 'pgd-20', or"),
        (5, r"5 is no attack"),
    ],
)
def test_what_leaves_the_ball_or_is_none(attack: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(attack)


class Unseen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.inner(x)
            return logits


def without_gradient(kind: str) -> nn.Module:
    model = network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own quantisation and scripts deprecated
        if kind == "quantised":
            flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
            quantise: Any = torch.ao.quantization.quantize_dynamic
            found = quantise(flat, {nn.Linear}, dtype=torch.qint8)
        elif kind == "frozen script":
            found = torch.jit.freeze(torch.jit.script(model))
        elif kind == "exported":
            batch = ({0: torch.export.Dim("b")},)
            found = torch.export.export(model, (X[:2],), dynamic_shapes=batch).module()
        else:
            found = Unseen()
    return found  # type: ignore[no-any-return]


SHORT = {
    "cw": "cw steps=2 binary_search_steps=1 bounded=False",
    "autoattack": "autoattack steps=2 queries=5",
    **{name: f"{name} steps=2" for name in ("apgd-ce", "apgd-t", "fab-t", "pgd", "bim", "mi-fgsm")},
    "square": "square queries=5",
}


@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
@pytest.mark.parametrize("kind", ["quantised", "frozen script", "exported", "no_grad"])
def test_networks_that_cannot_be_differentiated(kind: str) -> None:
    model = without_gradient(kind)
    for name in set(names("attack")) - {"at", "bpda", "eot", "transfer", "deepfool", "latent"}:
        told = {finding.name: finding.explanation for finding in run(SHORT.get(name, name), model).findings}
        assert kind not in ("quantised", "no_grad") or "black-box" in told["zero-gradient"]


@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
@pytest.mark.parametrize("kind", ["quantised", "no_grad"])
def test_attacks_that_cannot_do_without_gradients_name_one_that_can(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"none reaches the images .* type an attack that needs none: square"):
        run("deepfool-2", without_gradient(kind))
    with pytest.raises(LayerwiseError):
        run("latent", without_gradient(kind))
