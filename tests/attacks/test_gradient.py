from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layerwise.attacks import (
    BIM,
    EOT,
    MIFGSM,
    Clean,
    DeepFoolAttack,
    FGSMAttack,
    InputAttack,
    PGDAttack,
    StepLL,
    ThreatModel,
    loss_gradient,
)
from layerwise.attacks.base import BLOCK, starting_points
from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from tests.evaluation.problems import Linear, Rows, distance, gradient, trained, two_classes, unit
from tests.networks import TinyConv, TinyResNet, batch

LINF, L2 = ThreatModel("linf", 0.05), ThreatModel("l2", 0.4)
NETS = [trained, lambda: TinyConv().double().eval(), lambda: TinyResNet().double().eval()]


def loop(
    net: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat: ThreatModel, *, steps: int, alpha: float
) -> Tensor:
    """Projected gradient ascent, written out."""
    x_adv = start
    for _ in range(steps):
        g = gradient(net, x_adv, y)
        if threat.norm == "linf":
            r = (x_adv - x + alpha * g.sign()).clamp(-threat.eps, threat.eps)
        else:
            r = x_adv - x + alpha * unit(g)
            r = torch.stack([v if v.norm() <= threat.eps else v * (threat.eps / v.norm()) for v in r])
        x_adv = (x + r).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("make", NETS)
def test_fgsm_is_the_formula_bitwise(make: Any) -> None:
    net, (x, y) = make(), batch(6)
    assert torch.equal(FGSMAttack()(net, x, y, LINF), (x + 0.05 * gradient(net, x, y).sign()).clamp(0, 1))
    assert torch.equal(FGSMAttack(step=0.5)(net, x, y, LINF), (x + 0.025 * gradient(net, x, y).sign()).clamp(0, 1))


def test_fgsm_in_l2_is_a_unit_step() -> None:
    net, (x, y) = trained(), batch(6)
    torch.testing.assert_close(
        FGSMAttack()(net, x, y, L2), (x + 0.4 * unit(gradient(net, x, y))).clamp(0, 1), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_bim_and_pgd_are_the_loop(make: Any, threat: ThreatModel) -> None:
    net, (x, y) = make(), batch(6)
    source = Stream(3, total=6)
    start = starting_points(x, threat, source)
    last: Any = {"stop_when_fooled": False}
    for attack, begin in (
        (BIM(7, **last), x),
        (PGDAttack(7, **last), start),
        (PGDAttack(7, random_start=False, **last), x),
    ):
        expected = loop(net, x, y, begin, threat, steps=7, alpha=threat.eps / 4)
        torch.testing.assert_close(attack(net, x, y, threat, generator=source), expected, rtol=0, atol=1e-12)
    given = PGDAttack(7, alpha=0.02, **last)(net, x, y, threat, generator=source)
    torch.testing.assert_close(given, loop(net, x, y, start, threat, steps=7, alpha=0.02), rtol=0, atol=1e-12)


def test_linf_pgd_is_the_loop_bitwise() -> None:
    net, (x, y) = trained(), batch(6)
    source = Stream(3, total=6)
    expected = loop(net, x, y, starting_points(x, LINF, source), LINF, steps=10, alpha=LINF.eps / 4)
    assert torch.equal(PGDAttack(10, stop_when_fooled=False)(net, x, y, LINF, generator=source), expected)


@pytest.mark.parametrize(("steps", "share"), [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25), (50, 0.25)])
def test_default_step_size_reaches_the_sphere(steps: int, share: float) -> None:
    for attack in (BIM(steps), PGDAttack(steps)):
        assert attack.resolved(LINF).alpha == pytest.approx(share * LINF.eps)
    assert PGDAttack(50).resolved(ThreatModel()).alpha == pytest.approx(2 / 255)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("mu", [1.0, 0.5, 0.0])
def test_mi_fgsm_by_hand(threat: ThreatModel, mu: float) -> None:
    net, (x, y) = trained(), batch(6)
    x_adv, m = x, torch.zeros_like(x)
    for _ in range(5):
        g = gradient(net, x_adv, y)
        m = mu * m + torch.stack([row / row.abs().sum() for row in g])
        x_adv = (x_adv + threat.eps / 5 * (m.sign() if threat.norm == "linf" else unit(m))).clamp(0, 1)
    found = MIFGSM(5, mu=mu, stop_when_fooled=False)(net, x, y, threat)
    torch.testing.assert_close(found, x_adv, rtol=0, atol=1e-12)


def test_momentum_matters() -> None:
    net, (x, y) = trained(), batch(6)
    assert not torch.equal(MIFGSM(5)(net, x, y, LINF), MIFGSM(5, mu=0.0)(net, x, y, LINF))


def test_step_ll_goes_towards_the_least_likely_class() -> None:
    net, (x, y) = trained(), batch(6)
    least = net(x).argmin(1)
    found = StepLL()(net, x, y, LINF)
    assert torch.equal(found, (x - 0.05 * gradient(net, x, least).sign()).clamp(0, 1))
    assert torch.equal(found, StepLL()(net, x, (y + 1) % 5, LINF))
    before, after = (F.cross_entropy(net(v), least, reduction="none") for v in (x, found))
    assert (after < before).all()


class Valleys(nn.Module):
    """Two classes on one pixel, wrong only beyond 0.5 +- 0.3, with hills between: the start decides where the ascent ends."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :1] - 0.5
        f = self.scale * (0.2 - z.abs().clamp(min=0.2) * torch.cos(30 * z))
        return torch.cat([torch.zeros_like(f), f], 1)


@pytest.mark.parametrize("restarts", [2, 5])
def test_restarts_keep_the_worst_of_each_image(restarts: int) -> None:
    net = Valleys()
    x = torch.linspace(0.3, 0.7, 40, dtype=torch.float64).reshape(-1, 1, 1, 1)
    y = (net(x)[:, 1] > 0).long()
    threat = ThreatModel("linf", 0.25)
    source = Stream(1, total=40)
    tries = [
        loop(net, x, y, starting_points(x, threat, source, k), threat, steps=3, alpha=threat.eps / 3)
        for k in range(restarts)
    ]
    fooled = torch.stack([net(v).argmax(1) != y for v in tries])
    losses = torch.stack([F.cross_entropy(net(v), y, reduction="none") for v in tries])
    assert fooled.any(0).sum() > fooled[-1].sum(), "the problem cannot show a lost restart"
    assert fooled.any(0).sum() > fooled[0].sum(), "the problem cannot show a missing restart"
    assert not fooled.any(0).all(), "the problem has no image that resists"
    expected = [
        tries[int(fooled[:, i].nonzero()[0]) if fooled[:, i].any() else int(losses[:, i].argmax())][i]
        for i in range(40)
    ]
    torch.testing.assert_close(
        PGDAttack(3, restarts, stop_when_fooled=False)(net, x, y, threat, generator=source),
        torch.stack(expected),
        rtol=0,
        atol=1e-12,
    )


class Sides(nn.Module):
    """Three classes on one pixel: nearly even but right on the left, wrong by a little on the right, and flat in between."""

    def forward(self, x: Tensor) -> Tensor:
        left = torch.tensor([0.35, 0.33, 0.32], dtype=x.dtype).log()
        right = torch.tensor([0.45, 0.54, 0.01], dtype=x.dtype).log()
        return torch.where(x.flatten(1) < 0.5, left, right)


def test_a_fooled_image_is_worse_than_one_of_higher_loss() -> None:
    x, y = torch.full((40, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(40, dtype=torch.int64)
    threat, source = ThreatModel("linf", 0.3), Stream(0, total=40)
    first = starting_points(x, threat, source)
    assert 0 < (first < 0.5).sum() < 40
    assert (PGDAttack(1, 20)(Sides(), x, y, threat, generator=source) >= 0.5).all()


class Flags(nn.Module):
    """Notes whether the parameters require gradients in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = trained(), set[bool]()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen |= {p.requires_grad for p in self.parameters()}
        out: Tensor = self.network(x)
        return out


@pytest.mark.parametrize("attack", [FGSMAttack(), PGDAttack(2, 2), MIFGSM(2), StepLL(), DeepFoolAttack(2)], ids=str)
def test_parameters_are_frozen_in_every_pass(attack: InputAttack) -> None:
    net, (x, y) = Flags(), batch(4)
    attack(net, x, y, L2)
    if not isinstance(attack, StepLL):
        with torch.no_grad():
            net(x)
    assert net.seen == {False}


def test_fooled_images_drop_out_of_later_restarts() -> None:
    net, (x, y) = Rows(trained()), batch(30, seed=5)
    threat = ThreatModel("linf", 0.1)
    PGDAttack(2, 3, stop_when_fooled=False)(net, x, y, threat, generator=Stream(0, total=30))
    rounds = [net.seen[i : i + 3] for i in range(0, 9, 3)]
    assert rounds[0] == [30] * 3
    assert 30 > rounds[1][0] >= rounds[2][0] > 0
    assert all(len(set(r)) == 1 for r in rounds)
    everything = Rows(trained())
    PGDAttack(2, 3, stop_when_fooled=False)(everything, x, y, ThreatModel("linf", 0.5), generator=Stream(0, total=30))
    assert everything.seen == [30] * 3, "all are fooled by the first restart"


def first_fooling(net: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat: ThreatModel, steps: int) -> Tensor:
    """One image after another: the first iterate that fools the network, else the last."""
    found = []
    for i in range(len(x)):
        a, b = x[i : i + 1], y[i : i + 1]
        path = [loop(net, a, b, start[i : i + 1], threat, steps=t, alpha=threat.eps / 4) for t in range(steps + 1)]
        found.append(next((v for v in path if net(v).argmax() != b), path[-1]))
    return torch.cat(found)


@pytest.mark.parametrize("threat", [ThreatModel("linf", 0.08), ThreatModel("l2", 0.9)], ids=str)
def test_an_image_stays_at_its_first_iterate_that_fools(threat: ThreatModel) -> None:
    net, (x, y) = trained(), batch(30, seed=5)
    source = Stream(0, total=30)
    start = starting_points(x, threat, source)
    for attack, begin in ((BIM(6), x), (PGDAttack(6), start)):
        expected = first_fooling(net, x, y, begin, threat, 6)
        found = attack(net, x, y, threat, generator=source)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        fooled = net(found).argmax(1) != y
        assert 3 < fooled.sum() < 27, "the problem needs images of both kinds"


@pytest.mark.parametrize("make", [BIM, PGDAttack, MIFGSM])
def test_stopping_fools_every_image_that_the_last_iterate_does_and_costs_less(make: Any) -> None:
    net, (x, y) = Rows(trained()), batch(100, seed=5)
    threat, right, rows = ThreatModel("linf", 0.08), {}, {}
    for stop in (True, False):
        net.seen.clear()
        found = make(10, alpha=0.04, stop_when_fooled=stop)(net, x, y, threat, generator=Stream(0, total=100))
        rows[stop], right[stop] = list(net.seen), net.network(found).argmax(1) == y
    assert not (right[True] & ~right[False]).any()
    assert right[True].sum() < right[False].sum(), "the problem has images that the ascent lets go again"
    assert rows[False] == [100] * 10
    assert rows[True] == sorted(rows[True], reverse=True)
    assert sum(rows[True]) < 0.8 * sum(rows[False])


def test_momentum_of_the_others_goes_on_when_one_image_is_fooled() -> None:
    net, (x, y) = trained(), batch(30, seed=5)
    threat = ThreatModel("linf", 0.08)
    together = MIFGSM(6)(net, x, y, threat)
    alone = torch.cat([MIFGSM(6)(net, x[i : i + 1], y[i : i + 1], threat) for i in range(30)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_nothing_stops_while_gradients_are_averaged() -> None:
    net, (x, y) = Rows(trained()), batch(30, seed=5)
    EOT(PGDAttack(3), 2)(net, x, y, ThreatModel("linf", 0.5), generator=Stream(0, total=30))
    assert net.seen == [30] * 6


def test_images_without_finite_logits_are_fooled_from_the_start() -> None:
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    x[1] = -0.0

    class Log(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.stack([z.flatten(1).sum(1) + 5, z.flatten(1).log().sum(1)], 1)

    found = BIM(3, alpha=0.01)(Log(), x, y, LINF)
    assert torch.equal(found[1], x[1])
    assert not torch.equal(found[0], x[0])


def test_restarts_without_random_start() -> None:
    with pytest.raises(ConfigError, match="restarts=3 without a random start are all the same; type restarts=1"):
        PGDAttack(restarts=3, random_start=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGDAttack(0), "steps=0 is too small"),
        (lambda: FGSMAttack(step=1.5), "step=1.5 is a fraction of eps"),
        (lambda: StepLL(step=0.0), "step=0.0 is a fraction of eps"),
        (lambda: BIM(alpha=-1.0), "alpha=-1.0 is too small"),
        (lambda: BIM(alpha=2.0).resolved(LINF), "alpha=2 is in units of 0 to 255 pixels"),
        (lambda: DeepFoolAttack(num_classes=1), "num_classes=1 is too small"),
    ],
)
def test_settings_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_starts_belong_to_the_image_not_to_the_batch() -> None:
    x = torch.rand(300, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for threat in (LINF, L2):
        whole = starting_points(x, threat, Stream(7, total=300))
        for size in (1, 50, BLOCK, 299):
            parts = [
                starting_points(x[i : i + size], threat, Stream(7, start=i, total=300)) for i in range(0, 300, size)
            ]
            # The last bit of a row's norm depends on how many rows are summed side by side.
            torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-14)
        assert not torch.equal(whole, starting_points(x, threat, Stream(8, total=300)))
        assert not torch.equal(whole, starting_points(x, threat, Stream(7, total=300), 1))
        moved = (whole - x).flatten(1)
        assert len({tuple(row) for row in moved.tolist()}) == 300, "every image has its own start"


def test_starts_from_a_plain_generator() -> None:
    net, (x, y) = trained(), batch(6)
    drawn = [PGDAttack(3)(net, x, y, LINF, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_starts_fill_the_ball() -> None:
    x = torch.full((4000, 1, 1, 2), 0.5, dtype=torch.float64)
    radii = (starting_points(x, ThreatModel("l2", 0.3), Stream(0, total=4000)) - x).flatten(1).norm(dim=1) / 0.3
    # In the plane, a uniform point of the disc has a squared radius that is uniform in [0, 1].
    assert (radii**2).mean().item() == pytest.approx(0.5, abs=0.02)
    box = ((starting_points(x, LINF, Stream(0, total=4000)) - x) / LINF.eps).flatten()
    assert box.square().mean().item() == pytest.approx(1 / 3, abs=0.02)


def test_deepfool_on_two_linear_classes() -> None:
    net, w, b = two_classes()
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = net(x).argmax(1)
    found = DeepFoolAttack(5)(net, x, y, ThreatModel("l2", 4.0))
    f = x.flatten(1) @ w + b
    step = 1.02 * (-f / w.dot(w))[:, None] * w
    torch.testing.assert_close(found, (x + step.reshape(x.shape)).clamp(0, 1), rtol=0, atol=1e-12)
    whole = ((x.flatten(1) + step).clamp(0, 1) == x.flatten(1) + step).all(1)
    assert whole.sum() > 5
    assert (net(found).argmax(1) != y)[whole].all()
    lengths = (found - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths[whole], 1.02 * (f.abs() / w.norm())[whole], rtol=1e-10, atol=0)


def test_deepfool_on_three_linear_classes_takes_the_nearest_boundary() -> None:
    g = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 9, generator=g, dtype=torch.float64)
    net = Linear(weight, torch.zeros(3, dtype=torch.float64))
    x = 0.4 + 0.2 * torch.rand(30, 1, 3, 3, generator=g, dtype=torch.float64)
    moved = (DeepFoolAttack(1)(net, x, net(x).argmax(1), ThreatModel("l2", 0.2)) - x).flatten(1)
    for row, image in zip(moved, x, strict=True):
        z = weight @ image.flatten()
        k0 = int(z.argmax())
        distances = {k: ((z[k0] - z[k]) / (weight[k] - weight[k0]).norm()).item() for k in range(3) if k != k0}
        k = min(distances, key=lambda k: distances[k])
        step = 1.02 * distances[k] * (weight[k] - weight[k0]) / (weight[k] - weight[k0]).norm()
        step = step if step.norm() <= 0.2 else step * (0.2 / step.norm())
        expected = (image.flatten() + step).clamp(0, 1) - image.flatten()
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-9)


def test_deepfool_in_linf_takes_the_sign_step_over_the_boundary() -> None:
    net, w, b = two_classes()
    x = 0.3 + 0.4 * torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = x.flatten(1) @ w + b
    size = 1.02 * f.abs() / w.abs().sum()
    found = DeepFoolAttack(5)(net, x, net(x).argmax(1), ThreatModel("linf", 0.5))
    torch.testing.assert_close((found - x).abs().flatten(1), size[:, None].expand(-1, 16), rtol=1e-10, atol=1e-12)
    assert (net(found).argmax(1) != net(x).argmax(1)).all()


class Step(nn.Module):
    """No gradient reaches the images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 5, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc((x.flatten(1) > 0.5).double())
        return out


def test_networks_without_a_gradient_are_attacked_by_the_start_alone() -> None:
    net, (x, y) = Step(), batch(4)
    for attack in (FGSMAttack(), BIM(3), MIFGSM(3), MIFGSM(3, stop_when_fooled=False)):
        for threat in (LINF, L2):
            assert torch.equal(attack(net, x, y, threat), x), "0 / 0 is nowhere to go"
    source = Stream(0, total=4)
    torch.testing.assert_close(
        PGDAttack(5)(net, x, y, LINF, generator=source), starting_points(x, LINF, source), rtol=0, atol=1e-15
    )
    with pytest.raises(ConfigError, match=r"none reaches the images \(a step function, .* needs none: square"):
        DeepFoolAttack()(net, x, y, L2)


class Root(nn.Module):
    """The square root's slope at 0 is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.stack([flat.sum(1), (0.0 * flat[:, 0].sqrt()) + 1 - flat.sum(1)], 1)


def test_gradients_that_are_not_finite_stop_no_attack() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    assert loss_gradient(Root(), x, y).isfinite().all()
    moved = FGSMAttack()(Root(), x + torch.tensor([0.0, 0.5, 0.5, 0.5]).reshape(1, 1, 2, 2), y, LINF)
    assert torch.equal(moved[:, 0, 0, 0], torch.zeros(2))
    torch.testing.assert_close(moved[:, 0, 1], torch.full((2, 2), 0.45))


ATTACKS: list[InputAttack] = [
    Clean(),
    FGSMAttack(),
    FGSMAttack(step=0.3),
    BIM(3),
    BIM(3, alpha=0.9),
    PGDAttack(3),
    PGDAttack(2, 3, alpha=0.7),
    MIFGSM(3),
    MIFGSM(3, alpha=0.6),
    StepLL(),
    DeepFoolAttack(3),
]


@settings(max_examples=60, deadline=None)
@given(
    attack=st.sampled_from(ATTACKS),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.one_of(st.just(0.0), st.floats(1e-4, 1.0)),
    seed=st.integers(0, 1000),
    corners=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_attack_stays_in_the_ball_and_the_pixel_range(
    attack: InputAttack, norm: Any, eps: float, seed: int, corners: bool, dtype: torch.dtype
) -> None:
    x, y = batch(5, seed=seed, dtype=dtype)
    x = x.round() if corners else x
    x[0] = 0.0
    threat = ThreatModel(norm, eps)
    kept = x.clone()
    x_adv = attack(trained(dtype), x, y, threat, generator=Stream(seed, total=5))
    assert x_adv.dtype == dtype
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert distance(x, x_adv, norm) <= eps + 1e-6
    assert torch.equal(x, kept), "the images themselves are untouched"


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not isinstance(a, Clean)], ids=str)
def test_attacks_raise_the_loss_and_leave_the_network_alone(attack: InputAttack) -> None:
    net, (x, y) = trained(), batch(20, seed=3)
    net.fc1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x_adv = attack(net, x, y, L2, generator=Stream(0, total=20))
    assert F.cross_entropy(net(x_adv), y) > 2 * F.cross_entropy(net(x), y)
    assert {k: p.requires_grad for k, p in net.named_parameters()} == {
        k: k != "fc1.weight" for k, _ in net.named_parameters()
    }
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_more_steps_are_stronger_and_restarts_too() -> None:
    net, (x, y) = trained(), batch(100, seed=9)

    def right(attack: InputAttack) -> int:
        x_adv = attack(net, x, y, ThreatModel("linf", 0.1), generator=Stream(0, total=100))
        return int((net(x_adv).argmax(1) == y).sum())

    clean, fgsm, long, many = (right(a) for a in (Clean(), FGSMAttack(), PGDAttack(20), PGDAttack(20, 5)))
    assert clean > fgsm > long > many > 0
