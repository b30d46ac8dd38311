from __future__ import annotations

import logging
import sys
from typing import Any

import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from layerwise.attacks import APGDCE, APGDT, BPDA, CW, EOT, FABT, AutoAttack, Clean, InputAttack, Square, ThreatModel
from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from layerwise.evaluation import evaluate
from tests.evaluation.problems import Linear, Quantise, Rows, Wrapped, distance, trained, two_classes
from tests.networks import TinyMLP, batch

LINF, L2 = ThreatModel("linf", 0.08), ThreatModel("l2", 0.9)
SEED = 7
MEMBERS: list[InputAttack] = [APGDCE(8), APGDT(8, targets=3), FABT(8, targets=3), Square(60)]
QUICK = [*MEMBERS, AutoAttack(8, 3, 60)]


def right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = net(x).argmax(1) == y
    return out


def theirs(attack: InputAttack, net: nn.Module, threat: ThreatModel) -> Any:
    """The package's own object with the same settings."""
    common = {"norm": {"linf": "Linf", "l2": "L2"}[threat.norm], "eps": threat.eps, "seed": SEED, "device": "cpu"}
    if isinstance(attack, APGDCE):
        return APGDAttack(net, n_iter=attack.steps, n_restarts=1, loss="ce", **common)
    if isinstance(attack, APGDT):
        return APGDAttack_targeted(net, n_iter=attack.steps, n_restarts=1, n_target_classes=attack.targets, **common)
    if isinstance(attack, FABT):
        return FABAttack_PT(net, n_iter=attack.steps, targeted=True, n_target_classes=attack.targets, **common)
    assert isinstance(attack, Square)
    return SquareAttack(net, n_queries=attack.queries, n_restarts=1, p_init=0.8, resc_schedule=False, **common)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("attack", MEMBERS, ids=str)
def test_members_are_the_package_called_directly(attack: InputAttack, threat: ThreatModel) -> None:
    net, (x, y) = trained(torch.float32), batch(30, seed=5, dtype=torch.float32)
    y[3] = (y[3] + 1) % 5
    with torch.random.fork_rng([]):
        expected = theirs(attack, net, threat).perturb(x, y)
    assert torch.equal(attack(net, x, y, threat, generator=Stream(SEED, total=30)), expected)
    if not isinstance(attack, Square):
        assert 0 < right(net, expected, y).sum() < 29, "the problem cannot tell one image from another"


def test_autoattack_is_the_packages_standard_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # It ends with sys.settrace(None), which would end the measurement of coverage.
    monkeypatch.setattr("pyautoattack.checks.check_dynamic", lambda *args, **kwargs: None)
    net, (x, y) = trained(torch.float32), batch(30, seed=5, dtype=torch.float32)
    attack = AutoAttack(3, 1, 40)
    order = pyautoattack.AutoAttack(net, eps=LINF.eps, norm="Linf", seed=SEED)
    ce, targeted, fab, square = (theirs(member, net, LINF) for member in attack.members)
    order.apgd, order.apgd_targeted, order.fab, order.square = ce, targeted, fab, square
    assert order.attacks_to_run == [member.name for member in attack.members]
    with torch.random.fork_rng([]):
        expected, _ = order.run_standard_evaluation(x, y, batch_size=30)
    found = attack(net, x, y, LINF, generator=Stream(SEED, total=30))
    assert torch.equal(found, expected)
    first = attack.members[0](net, x, y, LINF, generator=Stream(SEED))
    assert right(net, found, y).sum() < right(net, first, y).sum(), "the problem does not need the ensemble"


def test_the_numbers_are_the_standard_ones() -> None:
    standard = pyautoattack.AutoAttack(trained(), eps=0.1)
    ce, targeted, fab, square = AutoAttack().members
    assert isinstance(ce, APGDCE)
    assert isinstance(targeted, APGDT)
    assert isinstance(fab, FABT)
    assert isinstance(square, Square)
    assert (standard.apgd.n_iter, standard.apgd.n_restarts) == (ce.steps, ce.restarts)
    assert (standard.apgd_targeted.n_iter, standard.apgd_targeted.n_target_classes) == (
        targeted.steps,
        targeted.targets,
    )
    assert (standard.fab.n_iter, standard.fab.n_target_classes, standard.fab.n_restarts) == (fab.steps, fab.targets, 1)
    assert (standard.square.n_queries, standard.square.n_restarts) == (square.queries, square.restarts)
    assert not standard.square.rescale_schedule
    assert (ce, targeted, fab, square) == (APGDCE(), APGDT(), FABT(), Square())


def linear(classes: int, shape: tuple[int, ...]) -> tuple[Linear, Tensor, Tensor]:
    """A linear network that knows nothing about grey, and images that it gets right."""
    g = torch.Generator().manual_seed(classes)
    pixels = int(torch.tensor(shape).prod())
    weight = torch.randn(classes, pixels, generator=g)
    net = Linear(weight, -0.5 * weight.sum(1))
    x = 0.2 + 0.6 * torch.rand(12, *shape, generator=g)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("threat", [ThreatModel("linf", 0.1), ThreatModel("l2", 0.7)], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 4, 9])
def test_few_classes_and_one_channel(classes: int, threat: ThreatModel) -> None:
    net, x, y = linear(classes, (1, 7, 7))
    for attack in [APGDCE(5), APGDT(5), FABT(5), Square(40), AutoAttack(2, queries=10)]:
        for rows in (slice(0, 12), slice(2, 3)):
            found = attack(net, x[rows], y[rows], threat, generator=Stream(0, total=12))
            assert found.shape == x[rows].shape
            threat.check(x[rows], found, attack=str(attack))
        fooled = 12 - int(right(net, attack(net, x, y, threat, generator=Stream(0)), y).sum())
        assert fooled >= (1 if isinstance(attack, Square) else 4), attack


def test_apgd_t_finds_what_can_be_found_with_two_classes() -> None:
    net, w, b = two_classes(49)
    x = 0.3 + 0.4 * torch.rand(40, 1, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = net(x).argmax(1)
    reach = (x.flatten(1) @ w + b).abs() / w.abs().sum()
    eps = float(reach.median()) + 1e-5
    found = APGDT(10)(net, x, y, ThreatModel("linf", eps))
    assert torch.equal(~right(net, found, y), reach < eps)


@pytest.mark.parametrize("attack", [*QUICK, CW(20, 2, 0.5)], ids=str)
def test_wrong_images_are_left_alone(attack: InputAttack) -> None:
    net, (x, y) = trained(), batch(12, seed=5)
    wrong = (y + 1) % 5
    assert torch.equal(attack(net, x, wrong, L2, generator=Stream(0)), x), "nothing is left to attack"
    mixed = torch.where(torch.arange(12) < 6, wrong, y)
    found = attack(net, x, mixed, L2, generator=Stream(0))
    assert torch.equal(found[:6], x[:6])
    kept = right(net, found, mixed)
    if not isinstance(attack, CW):
        assert torch.equal(found[kept], x[kept]), "what is not fooled stays as it is, in float64 too"
    if not isinstance(attack, Square):
        assert not kept[6:].all()


@pytest.mark.parametrize("attack", [*QUICK, CW(10, 1, 0.5)], ids=str)
def test_nothing_is_changed_and_nothing_printed(
    attack: InputAttack, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    net, (x, y) = trained(torch.float32), batch(8, seed=5, dtype=torch.float32)
    net.train()
    net.fc1.weight.requires_grad_(False)
    state, kept = torch.get_rng_state(), x.clone()
    attack(net, x, y, L2, generator=Stream(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert all(module.training for module in net.modules())
    assert {k for k, p in net.named_parameters() if not p.requires_grad} == {"fc1.weight"}
    assert all(p.grad is None for p in net.parameters())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_tracing_goes_on() -> None:
    def trace(frame: Any, event: str, argument: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        AutoAttack(1, 1, 1)(trained(), *batch(2), LINF)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("attack", [APGDCE(3), Square(30)], ids=str)
def test_equal_seeds_repeat(attack: InputAttack) -> None:
    net, (x, y) = trained(), batch(20, seed=5)
    threat = ThreatModel("linf", 0.3)
    found = [attack(net, x, y, threat, generator=Stream(seed)) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    drawn = [attack(net, x, y, threat, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


class Steps(nn.Module):
    """Right where the mean of the left half is above that of the right half by a step of 1/4: no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        f = (
            (x[..., : x.shape[-1] // 2].flatten(1).mean(1) - x[..., x.shape[-1] // 2 :].flatten(1).mean(1))
            .mul(8)
            .round()
        )
        return torch.stack([f, 0.5 - f], 1)


def test_square_does_the_work_where_there_is_no_gradient(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="layerwise.external")
    x = torch.full((6, 1, 8, 8), 0.5)
    x[..., :4] += 0.17
    y, threat = torch.zeros(6, dtype=torch.int64), ThreatModel("linf", 0.2)
    assert right(Steps(), x, y).all()
    for attack in (APGDCE(5), APGDT(5), FABT(5)):
        assert right(Steps(), attack(Steps(), x, y, threat, generator=Stream(0)), y).all()
    assert "zero gradient" in caplog.text
    found = AutoAttack(3, queries=400)(Steps(), x, y, threat, generator=Stream(0))
    assert not right(Steps(), found, y).any()


class NoGradient(Rows):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Lost(torch.autograd.Function):
    """As quantised layers: what comes out says that it has a gradient, and none goes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


class Quantised(Rows):
    def forward(self, x: Tensor) -> Tensor:
        lost: Tensor = Lost.apply(x)  # type: ignore[no-untyped-call]
        return super().forward(lost)


@pytest.mark.parametrize("attack", MEMBERS, ids=str)
@pytest.mark.parametrize("kind", [NoGradient, Quantised])
def test_a_network_without_gradients_is_no_error(attack: InputAttack, kind: type[Rows]) -> None:
    net = kind(TinyMLP())
    x, _ = batch(4, dtype=torch.float32)
    y = net(x).argmax(1)
    assert attack(net, x, y, LINF, generator=Stream(0)).shape == x.shape


def test_wrappers_hold_them() -> None:
    x, y = batch(12, seed=5)
    net = Wrapped(Quantise(), trained()).eval()
    plain, through = (a(net, x, y, LINF, generator=Stream(0)) for a in (APGDCE(10), BPDA(APGDCE(10), "front")))
    assert right(net, through, y).sum() < right(net, plain, y).sum()
    noisy = Wrapped(nn.Dropout(0.1), trained())
    found = EOT(AutoAttack(3, 1, 10), 3)(noisy, x, y, LINF, generator=Stream(0))
    LINF.check(x, found, attack="eot")


@pytest.mark.parametrize(
    ("attack", "module"), [(APGDCE(), "pyautoattack.autopgd_base"), (FABT(), "pyautoattack.fab_pt"), (CW(), "foolbox")]
)
def test_a_missing_package_is_named(attack: InputAttack, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    x, y = batch(20, seed=5)
    with pytest.raises(
        ConfigError, match=rf"needs another package \(.*{module}.*\); type pip install 'layerwise\[eval\]'"
    ):
        attack(trained(), x, y, L2)


@pytest.mark.parametrize("text", ["autoattack", "eot-2:fab-t", "at:l2,0.5:cw"])
def test_a_missing_package_is_told_before_the_first_attack(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    net = Rows(trained())
    with pytest.raises(ConfigError, match=r"type pip install 'layerwise\[eval\]'"):
        evaluate(net, batch(20), threat=LINF, attacks=["clean", "pgd-50-10", text], progress=False)
    assert sum(net.seen) < 20, "nothing was attacked"
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="cw makes small l2 changes"):
        evaluate(net, batch(20), threat=LINF, attacks=["clean", "transfer:runs/a:cw"], progress=False)
    with pytest.raises(ConfigError, match="source 'runs/a' is only a name"):
        evaluate(net, batch(20), threat=LINF, attacks=["clean", "transfer:runs/a:fgsm"], progress=False)
    assert sum(net.seen) < 20, "nothing was attacked"


def test_square_in_l2_needs_room() -> None:
    net, x, y = linear(3, (1, 4, 4))
    for attack in (Square(), AutoAttack()):
        with pytest.raises(ConfigError, match=r"square needs images of at least 5 x 5 pixels under l2, eps 0.9"):
            attack(net, x, y, L2)
        flat = Linear(net.weight.detach(), net.bias.detach())
        with pytest.raises(ConfigError, match=r"square needs images \(C, H, W\) under linf"):
            attack(flat, x.flatten(1), y, LINF)


def test_cw_finds_the_nearest_boundary_of_a_linear_network() -> None:
    net, w, b = two_classes(16)
    x = 0.3 + 0.4 * torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = net(x).argmax(1)
    nearest = (x.flatten(1) @ w + b).abs() / w.norm()
    found = CW(200, 6, 0.1, 0.01, bounded=False)(net, x, y, LINF)
    assert not right(net, found, y).any()
    lengths = (found - x).flatten(1).norm(dim=1)
    assert (lengths > nearest - 1e-6).all()
    assert (lengths / nearest).mean() < 1.05
    # At its own size it fools every image; cut to a ball it fools those whose boundary is inside, and only those.
    threat = ThreatModel("l2", float(nearest.sort().values[4:6].mean()))
    cut = CW(200, 6, 0.1, 0.01)(net, x, y, threat)
    assert distance(x, cut, "l2") <= threat.eps + 1e-6
    assert torch.equal(right(net, cut, y), lengths > threat.eps)
    assert 0 < right(net, cut, y).sum() < 10


def test_cw_leaves_images_that_it_does_not_fool() -> None:
    net, (x, y) = trained(), batch(4, seed=5)
    assert torch.equal(CW(2, 1, 1e-6, 1e-4, bounded=False)(net, x, y, L2), x), "foolbox makes them black"


def test_cw_at_its_own_size_is_outside_the_threat_model() -> None:
    record = evaluate(
        trained(), batch(20), threat=LINF, attacks=[Clean(), CW(50, 1, 1.0, 0.05, bounded=False)], progress=False
    )
    result = record.results[1]
    assert result.accuracy < record["clean"].accuracy
    assert not result.in_threat_model
    assert record.worst == record["clean"].count
    with pytest.raises(ConfigError, match=r"cw makes small l2 changes, the threat model is linf.*`cw-5 bounded=False`"):
        CW(5)(trained(), *batch(2), LINF)
