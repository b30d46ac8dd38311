"""Single-step and accelerated training and MART, beyond their references: what the peers' codes get wrong, state, and messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Partial
from layerwise.core.probe import Probe
from layerwise.core.random import Stream
from layerwise.core.sites import Sites
from layerwise.core.threat import radius
from layerwise.core.tracing import Site
from layerwise.errors import CheckpointError, ConfigError, SiteError
from layerwise.methods import (
    ANP,
    AWP,
    FGSMCKPT,
    FGSMRS,
    MART,
    PGD,
    SLAT,
    YOPO,
    FreeAT,
    GradAlign,
    InputMethod,
    Method,
    Standard,
)
from layerwise.methods.yopo import value_at
from layerwise.training import fit
from tests.methods.cases import (
    backward,
    data,
    differing,
    distance,
    hooks_of,
    lockstep,
    optimizer_of,
    resnet,
    train,
    unchecked,
)
from tests.networks import SharedReLU, TinyConv, TinyMLP, TinyResNet, batch
from tests.training.fakes import cheap, pictures, weights

X, Y = batch(6)


# Gradient alignment


def test_the_alignment_term_moves_the_parameters() -> None:
    """In SLAT's code it is made from `.data` clones, and its gradient is zero."""
    model, method = resnet(), GradAlign(eps=0.1)
    g = torch.autograd.grad(nn.functional.cross_entropy(model(x := X.clone().requires_grad_()), Y, reduction="sum"), x)
    found = torch.autograd.grad(
        method.misalignment(model, X + 0.1, Y, g[0]), list(model.parameters()), allow_unused=True
    )
    moved = [n for (n, _), g in zip(model.named_parameters(), found, strict=True) if g is not None and bool(g.any())]
    assert "conv1.weight" in moved
    assert "fc.weight" in moved


def test_aligned_gradients_are_a_cosine_and_zero_gradients_add_nothing() -> None:
    model, method = TinyMLP().double(), GradAlign()
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), Y, reduction="sum"), x)
    assert float(method.misalignment(model, X, Y, g).detach()) == pytest.approx(0, abs=1e-12)
    assert float(method.misalignment(model, X, Y, -3 * g).detach()) == pytest.approx(2)
    half = torch.cat([g[:3], torch.zeros_like(g[3:])])
    value = method.misalignment(model, X, Y, -half)
    assert float(value.detach()) == pytest.approx(1)
    backward(value)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    with torch.no_grad():
        model.fc1.weight.zero_()
    model.zero_grad()
    dead = method.misalignment(model, X, Y, g)
    backward(dead)
    assert float(dead.detach()) == 0
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("base", [None, FGSMRS()])
def test_fgsm_and_its_alignment_share_a_gradient(base: InputMethod | None) -> None:
    model, forwards = resnet(), list[int]()
    model.register_forward_hook(lambda m, a, o: forwards.append(1))
    method = unchecked(GradAlign(base=base))
    train(method, model, [(X, Y)])
    assert len(forwards) == method.passes.forward == (3 if base is None else 4)


def test_alignment_is_float32_under_autocast() -> None:
    """The penalty is that of a run without autocast, to float32's precision; bf16 has three digits."""
    found = []
    for enabled in (False, True):
        model = TinyResNet(batch_norm=False)
        types: list[torch.dtype] = []
        model.conv1.register_forward_hook(lambda m, a, output, types=types: types.append(output.dtype))
        x = X.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(float(GradAlign(eps=0.2).misalignment(model, x + 0.2, Y, x).detach()))
        assert types == [torch.float32]
    assert found[0] == found[1]


# Checkpoints of FGSM


class Fixed(nn.Module):
    """Right for class 0 where the first pixel is below its threshold, one image a threshold; batch norm only to be in eval mode for."""

    def __init__(self, thresholds: list[float]) -> None:
        super().__init__()
        self.thresholds = torch.tensor(thresholds, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(1)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.norm.training)
        margin = 10 * (self.thresholds - x[:, 0, 0, 0])
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


def test_the_first_checkpoint_that_fools_is_taken() -> None:
    """From 0.5, delta is 0.3: checkpoints at 0.6, 0.7, 0.8. The wrong example stays clean, the right one goes all the way."""
    model = Fixed([0.55, 0.65, 0.75, 0.9, 0.1])
    x, y = torch.full((5, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    method = unchecked(FGSMCKPT(attack=FGSMRS(eps=0.3, step=2.0), c=3))
    start = 0.5 + 0.3 * torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1])
    model.thresholds[0] = 0.57  # between the start, 0.53, and the first checkpoint
    found, _ = _at(start, method, model, x, y)
    assert found.flatten().tolist() == pytest.approx([0.6, 0.7, 0.8, 0.8, 0.5])
    assert model.modes == [True, False, False]


def _at(start: Tensor, method: FGSMCKPT, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    """Perturb from this start: the uniform draw is exchanged for what leads there."""
    u = ((start.reshape(x.shape) - x) / radius(method.attack.eps)).to(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layerwise.methods.fgsm.uniform", lambda like, source, *, key: u)
        return method.perturb(model, x, y)


def test_one_checkpoint_is_fgsm_rs_where_the_network_is_right() -> None:
    model = resnet()
    y = model(X).argmax(1)
    y[3:] = (y[3:] + 1) % 5
    rs, _ = FGSMRS(eps=0.1).perturb(model, X, y, generator=Stream(0))
    one, _ = FGSMCKPT(attack=FGSMRS(eps=0.1), c=1).perturb(model, X, y, generator=Stream(0))
    same = (one - rs).flatten(1).abs().amax(1) < 1e-15
    clean = (one == X).flatten(1).all(1)
    assert bool((same ^ clean).all())
    assert bool(same.any())
    assert bool(clean.any())


def test_checkpoints_keep_the_probes_own_criterion() -> None:
    seen: list[int] = []

    class Counting(Criterion):
        def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
            seen.append(len(y))
            return CrossEntropy()(logits, y)

    FGSMCKPT(attack=FGSMRS(probe=Probe(criterion=Counting()))).perturb(resnet(), X, Y)
    assert seen == [6]


# Free adversarial training


def test_delta_is_carried_over_and_a_short_batch_keeps_the_other_rows() -> None:
    method, model = FreeAT(eps=0.1, m=2), resnet()
    optimizer = optimizer_of(model)
    lockstep(method, model, optimizer, X, Y, 0, (6,))
    first = method.state_dict()["delta"].clone()
    assert float(first.abs().max()) == pytest.approx(0.1)
    lockstep(method, model, optimizer, X[:2], Y[:2], 1, (2,))
    second = method.state_dict()["delta"]
    assert torch.equal(second[2:], first[2:])
    assert not torch.equal(second[:2], first[:2])
    lockstep(method, model, optimizer, *batch(8), 2, (5, 3))
    assert len(method.state_dict()["delta"]) == 8


def test_the_first_replay_of_the_first_batch_is_standard_training() -> None:
    states = [train(method, resnet(), data(1)) for method in (FreeAT(m=1), Standard())]
    assert differing(*states) == []


def test_free_training_uses_the_pixels_range() -> None:
    seen: list[Tensor] = []
    model = resnet()
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    train(unchecked(FreeAT(eps=0.5, m=3)), model, data(2))
    assert len(seen) == 6
    assert all(0 <= float(x.min()) <= float(x.max()) <= 1 for x in seen)


def test_an_overflow_does_not_stay_in_delta() -> None:
    method, model = FreeAT(eps=0.1, m=1), resnet()
    for loss in method.losses(model, X, Y):
        assert isinstance(loss, Tensor)
        backward(loss * torch.inf)
    assert not bool(model.conv1.weight.grad.isfinite().all())  # type: ignore[union-attr]
    assert bool(method.state_dict()["delta"].isfinite().all())


def test_stored_noise_of_other_images_is_refused() -> None:
    method = FreeAT()
    method.load_state_dict({"delta": torch.zeros(4, 1, 28, 28)})
    message = "FreeAT's stored perturbation is for images of shape (1, 28, 28), found (3, 8, 8)"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        next(iter(method.losses(resnet(), X, Y)))
    method.load_state_dict({})
    next(iter(method.losses(resnet(), X, Y)))


# YOPO


@pytest.mark.parametrize(
    ("network", "site"),
    [(TinyMLP, "fc1"), (TinyConv, "bn1"), (TinyResNet, "blocks.block1"), (SharedReLU, "relu#1"), (SharedReLU, "conv2")],
)
def test_a_prefix_gives_the_activation_and_runs_nothing_behind_it(network: type[nn.Module], site: str) -> None:
    model = network().double().eval()
    with Sites(model, [site], example=X) as sites:
        (found,) = sites
    seen: list[Tensor] = []
    module = model.get_submodule(found.module)
    handle = module.register_forward_hook(lambda m, a, output: seen.append(output))
    model(X)
    handle.remove()
    behind: list[int] = []
    model.register_forward_hook(lambda m, a, output: behind.append(1))
    assert torch.equal(value_at(model, found, X), seen[found.call or 0])
    assert behind == []


def test_a_prefix_that_ends_nowhere_is_an_error() -> None:
    message = r"^site 'relu#5' was not reached in this pass: the branch was not taken$"
    model = SharedReLU().double()
    with pytest.raises(SiteError, match=message):
        value_at(model, Site("relu", call=5), X)
    assert hooks_of(model) == 0


def test_yopo_steps_cost_the_first_layer_only() -> None:
    model, counts = resnet(), {"conv1": 0, "fc": 0}

    def count(name: str) -> None:
        def add(module: nn.Module, args: object) -> None:
            counts[name] += 1

        model.get_submodule(name).register_forward_pre_hook(add)

    method = unchecked(YOPO(m=3, n=4))
    method.attach(model, X)
    for name in counts:
        count(name)
    for loss in method.losses(model, X, Y):
        backward(loss)
    assert counts == {"conv1": 3 + 2 * 4, "fc": 3}


def test_a_saturated_pixel_moves_on() -> None:
    """The authors' code clips inside the gradient, where a white pixel with noise above 1 gets none and stays."""
    white = torch.ones_like(X)
    model = resnet()
    seen: list[Tensor] = []
    method = YOPO(eps=0.1, m=2, n=1, step=0.2)
    method.attach(model, X)
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for loss in method.losses(model, white, Y, generator=Stream(0)):
        backward(loss)
    start, second = seen[0], seen[-1]
    stuck = start == 1
    assert bool(stuck.any())
    share = float((second[stuck] < 1).double().mean())
    assert 0.2 < share < 0.8  # those whose gradient points down


def test_one_propagation_of_yopo_is_a_random_start() -> None:
    """Without further propagations no step is made: standard training at clip(x + u)."""
    model = resnet()
    seen: list[Tensor] = []
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    train(YOPO(eps=0.1, m=1), model, [(X, Y)])
    assert 0 < float((seen[-1] - X).abs().max()) <= 0.1


def test_what_is_logged_of_the_second_update_is_the_loss() -> None:
    model, method = resnet(), YOPO(m=2, n=1, adjoint_update=True)
    values = []
    for loss in method.losses(model, X, Y, generator=Stream(0)):
        values.append(float((loss.loss if isinstance(loss, Partial) else loss).detach()))
        backward(loss)
    assert len(values) == 3
    assert values[2] == values[1]


def test_the_second_update_refuses_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    next(iter(YOPO().losses(resnet(), X, Y)))
    message = "adjoint_update=True descends on one process only; type adjoint_update=false or devices=1"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        next(iter(YOPO(adjoint_update=True).losses(resnet(), X, Y)))


# MART


def test_marts_terms_on_two_classes() -> None:
    """With two classes the largest other probability is 1 - p_y."""

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 0, 0], torch.zeros(len(x))], dim=1).double()

    x, x_adv, y = torch.ones(1, 1, 1, 1), -torch.ones(1, 1, 1, 1), torch.tensor([0])
    p, q = torch.sigmoid(torch.tensor(-1.0).double()), torch.sigmoid(torch.tensor(1.0).double())
    kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    expected = -p.log() - (1.0001 - (1 - p)).log() + 5 * (1 - q) * kl
    assert MART().loss(Two(), x, x_adv, y).item() == pytest.approx(expected.item())


# All of them


@pytest.mark.parametrize(
    "method",
    [
        GradAlign(),
        FGSMCKPT(),
        FreeAT(m=2),
        YOPO(m=2, n=1),
        YOPO(m=1, n=1, adjoint_update=True),
        MART(attack=PGD(steps=1)),
        AWP(base=SLAT(sites=["conv1"])),
    ],
    ids=lambda m: type(m).__name__,
)
def test_it_trains_in_mixed_precision_with_micro_batches(method: Method) -> None:
    """As in full precision, to a tenth of the way."""
    moved, states = [], []
    for precision in ("32-true", "bf16-mixed"):
        net = TinyResNet()
        settings = cheap(precision=precision, accumulate=2, epochs=1, ema_decay=0.9)
        result = fit(net, method, pictures(), training=settings, progress=False)
        assert result.messages == []
        states.append({k: v for k, v in weights(net).items() if not k.endswith("tracked")})
        moved.append(distance(weights(TinyResNet()), weights(net)))
    assert distance(*states) < 0.1 * moved[0]


# Messages

WRONG: list[tuple[Callable[[], Method], str]] = [
    (lambda: GradAlign(eps=8), "eps=8 is in units of 0 to 255 pixels, ours are 0 to 1; type eps=8/255"),
    (lambda: GradAlign(weight=-1.0), "weight=-1.0 is too small; type a number of at least 0"),
    (lambda: FGSMCKPT(c=0), "c=0 is too small; type a number of at least 1"),
    (lambda: FreeAT(m=0), "m=0 is too small; type a number of at least 1"),
    (lambda: YOPO(n=0), "n=0 is too small; type a number of at least 1"),
    (lambda: YOPO(m=0), "m=0 is too small; type a number of at least 1"),
    (lambda: YOPO(step=-1.0), "step=-1.0 is too small; type a number of at least 0"),
    (lambda: MART(beta=-1.0), "beta=-1.0 is too small; type a number of at least 0"),
    (lambda: AWP(gamma=-1.0), "gamma=-1.0 is too small; type a number of at least 0"),
    (
        lambda: AWP(base=ANP(k=3)),
        "AWP perturbs the weights around one step a batch, and ANP takes 3 steps; type another base, for example ANP with "
        "update=last-step",
    ),
    (
        lambda: AWP(base=FreeAT()),
        "AWP perturbs the weights around one step a batch, and FreeAT takes 8 steps; type another base, for example ANP "
        "with update=last-step",
    ),
    (
        lambda: AWP(base=AWP()),
        "AWP perturbs the weights around one step a batch, and AWP is one already; type another base",
    ),
]


@pytest.mark.parametrize(("make_it", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_setting_that_cannot_be_meant_is_an_error(make_it: Callable[[], Method], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_it()


def test_a_base_that_adds_up_losses_is_refused() -> None:
    message = "YOPO adds up several losses, and AWP takes one; type another base"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        next(iter(AWP(base=YOPO(m=2)).losses(resnet(), X, Y)))


@pytest.mark.parametrize(
    ("site", "found"),
    [("fc1:input", "fc1:input"), ("affine outputs", "fc1, fc2, fc3")],
)
def test_yopos_site_is_one_modules_output(site: str, found: str) -> None:
    message = f"site={site!r} has to be one module's output, found {found}; type site=conv1, say"
    model = TinyMLP().double()
    with pytest.raises(SiteError, match=f"^{re.escape(message)}$"):
        YOPO(site=site).attach(model, X)
    assert hooks_of(model) == 0
