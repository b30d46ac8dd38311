"""One table: every method x what a method has to keep. What is known to fail is said, and has to fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core import driving
from layerwise.core.calling import logits
from layerwise.core.driving import Partial
from layerwise.core.random import Stream
from layerwise.errors import ConfigError, SiteError
from layerwise.methods import PGD, TRADES, YOPO, FreeLB, InputMethod, LayerMethod, ManifoldMixup
from tests.methods.cases import (
    METHODS,
    ROWS,
    CheckpointedResNet,
    backward,
    backward_next,
    data,
    differing,
    distance,
    hooks_of,
    make,
    optimizer_of,
    train,
    unchecked,
)
from tests.networks import AuxiliaryHead, Skipping, TinyResNet


def methods(**failing: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Every method; those that are named have to fail, for the reason given."""
    rows = [
        pytest.param(row, marks=pytest.mark.xfail(strict=True, reason=failing[row]) if row in failing else ())
        for row in ROWS
    ]
    assert not set(failing) - set(ROWS)
    return pytest.mark.parametrize("name", rows)


def plain() -> nn.Module:
    return TinyResNet(batch_norm=False).double()


@pytest.mark.parametrize("name", METHODS)
def test_it_trains(name: str) -> None:
    """The clean loss of one small batch falls by at least a quarter in 12 steps; seen were two fifths and more."""
    model, [(x, y)] = TinyResNet().double(), data(1, size=8)
    before = F.cross_entropy(model(x), y).item()
    train(make(name), model, [(x, y)] * 12, optimizer=optimizer_of(model, lr=0.2))
    assert F.cross_entropy(model(x), y).item() < 3 / 4 * before


@methods()
def test_it_is_deterministic_and_its_hooks_go_with_it(name: str) -> None:
    states = []
    for _ in range(2):
        model, method = TinyResNet().double(), make(name)
        states.append(train(method, model, data(3)))
        method.detach()
        assert method.attached_sites() == []
        assert hooks_of(model) == 0
    assert differing(*states) == []


@methods(
    FGSInter="the range of the gradients is taken over the rows of the micro-batch, whose probe knows no other rows",
    ManifoldMixup="rows are mixed with those of the micro-batch",
    NFM="rows are mixed with those of the micro-batch",
)
def test_it_does_not_depend_on_how_a_batch_is_split(name: str) -> None:
    whole = train(make(name), plain(), data(3))
    split = train(make(name), plain(), data(3), parts=(4, 2))
    assert distance(whole, split) < 1e-10


@methods()
def test_activation_checkpointing_changes_nothing(name: str) -> None:
    again = CheckpointedResNet(batch_norm=False).double()
    assert differing(train(make(name), plain(), data(3)), train(make(name), again, data(3))) == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [("LAT", {"joint": True}), ("LAD", {"base": TRADES(attack=PGD(steps=1)), "splitting": "strang-marchuk"})],
)
def test_activation_checkpointing_changes_nothing_in_joint_losses(name: str, fields: dict[str, object]) -> None:
    again = CheckpointedResNet(batch_norm=False).double()
    assert differing(train(make(name, **fields), plain(), data(3)), train(make(name, **fields), again, data(3))) == []


@methods()
def test_an_abandoned_generator_leaves_the_model_clean(name: str) -> None:
    """Closed, or only forgotten about: the next `losses` clears what it left."""
    model, untouched, [(x, y)] = plain(), plain(), data(1)
    for close in (True, False):
        method = make(name)
        left = iter(method.losses(model, x, y, generator=Stream(0)))
        next(left)
        if close:
            left.close()
            assert torch.equal(model(x), untouched(x))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        found = train(method, model, data(2))
        assert differing(found, train(make(name), plain(), data(2))) == []
        model.load_state_dict(state)
        method.detach()


@methods()
def test_training_goes_on_from_saved_state(name: str) -> None:
    model, method, batches = TinyResNet().double(), make(name), data(5)
    optimizer = optimizer_of(model)
    train(method, model, batches[:3], optimizer=optimizer)
    saved = {k: v.clone() for k, v in method.state_dict().items()}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    other = TinyResNet(seed=1).double()
    other.load_state_dict(weights)
    again = optimizer_of(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = train(method, model, batches[3:], optimizer=optimizer, first=3)
    resumed = make(name)
    resumed.load_state_dict(saved)
    assert differing(train(resumed, other, batches[3:], optimizer=again, first=3), expected) == []
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in method.state_dict().items())


@methods()
def test_state_of_something_else_is_refused(name: str) -> None:
    says = {
        "AWP": "PGD keeps no state",
        "Parseval": "Standard keeps no state",
        "FreeAT": "FreeAT keeps delta only",
    }.get(name, f"{name.split()[0]} keeps no state")
    if not name.startswith("LAT"):
        with pytest.raises(ConfigError, match=rf"^{says}, found other, some$"):
            make(name).load_state_dict({"some": torch.zeros(1), "other": torch.zeros(1)})


@methods()
def test_passes_that_look_for_noise_touch_no_parameter(name: str) -> None:
    """At the first yield: flags and gradients of the weights are as they were."""
    model, [(x, y)] = TinyResNet().double(), data(1)
    model.fc.bias.requires_grad_(False)
    model.fc.weight.grad = marker = torch.ones_like(model.fc.weight)
    flags = [p.requires_grad for p in model.parameters()]
    method = make(name)
    losses = iter(method.losses(model, x, y, generator=Stream(0)))
    next(losses)
    assert [p.requires_grad for p in model.parameters()] == flags
    if name == "AWP":  # it has set them aside, and brings them back when the generator goes on or is closed
        assert all(p.grad is None for p in model.parameters())
        losses.close()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["fc.weight"]
    assert model.fc.weight.grad is marker
    assert bool((marker == 1).all())
    assert all(m.training for m in model.modules())


@methods()
def test_gradients_that_are_there_already_are_kept(name: str) -> None:
    """A user's own accumulation: each micro-batch's generator runs to its end, and the step comes later."""
    model, method = plain(), make(name)

    def added(x: Tensor, y: Tensor, step: int) -> None:
        for loss in method.losses(model, x, y, generator=Stream(0, step)):
            backward(loss)

    (one, two) = data(2)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    separate = []
    for step, (x, y) in enumerate((one, two)):
        model.zero_grad()
        added(x, y, step)
        separate.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    method.load_state_dict(state)
    model.load_state_dict(plain().state_dict())
    model.zero_grad()
    for step, (x, y) in enumerate((one, two)):
        added(x, y, step)
    for p, a, b in zip(model.parameters(), *separate, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(found, a + b, rtol=1e-8, atol=1e-10)


COUNTS_ON_STEPS = {"ANP", "ANP shifted", "FreeAT", "Parseval", "TargetedLAT"}


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@methods()
def test_a_method_that_counts_on_steps_says_so_where_they_come_later(
    name: str, fused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A user's own accumulation, backward for every loss of three batches and then a step; a loop that steps is told nothing."""
    for steps_later in (True, False):
        model, method = plain(), make(name)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        caplog.clear()
        for x, y in data(3):
            for loss in method.losses(model, x, y):
                backward(loss)
                if not steps_later and not isinstance(loss, Partial):
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=fused)
        said = [r.message for r in caplog.records if "counts on a step of the optimiser" in r.message]
        assert len(said) == (steps_later and name in COUNTS_ON_STEPS)
        assert method.needs_steps == (name in COUNTS_ON_STEPS)


@pytest.mark.parametrize("first_rate", [0.0, 0.1])
def test_weights_that_stand_still_are_no_proof_yet(first_rate: float, caplog: pytest.LogCaptureFixture) -> None:
    """A warm-up from 0; a step that is missing throughout is noticed all the same, gradients dropped or not."""
    for moves in (True, False):
        model, method = plain(), make("FreeAT")
        optimizer = torch.optim.SGD(model.parameters(), lr=first_rate)
        caplog.clear()
        for x, y in data(8):
            for loss in method.losses(model, x, y):
                optimizer.zero_grad()
                backward(loss)
                if moves:
                    optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.1
        assert ["counts on a step" in r.message for r in caplog.records] == [True] * (not moves)


@pytest.mark.parametrize("network", [Skipping, AuxiliaryHead])
@methods()
def test_networks_that_train_otherwise_than_they_evaluate(name: str, network: type[nn.Module]) -> None:
    """Blocks that training leaves out at random, modules that it calls more often, and a head that only it has."""
    torch.manual_seed(0)
    model = network().double()
    chosen = {"sites": "affine outputs"} if "sites" in signature(METHODS[name.split()[0]]).parameters else {}
    method = make(name, **chosen, **({"layers": None} if name.startswith("ANP") else {}))
    before, plain_model = {k: v.clone() for k, v in model.state_dict().items()}, network().double()
    optimizer = optimizer_of(model, lr=0.05)
    for x, y in data(6):
        assert driving.step(method, model, x, y, optimizer).isfinite()
    assert distance(before, dict(model.state_dict())) > 0
    sites = [str(site) for each in method.attached_sites() for site in each]
    assert "aux" not in sites
    if chosen and network is Skipping and not isinstance(method, FreeLB):
        assert {"blocks.0", "blocks.1", "blocks.2"} <= set(sites)
    method.detach()
    plain_model.load_state_dict(model.state_dict())
    x = data(1)[0][0]
    assert torch.equal(logits(model.eval(), x), logits(plain_model.eval(), x))


@methods()
def test_only_descents_move_the_running_statistics(name: str) -> None:
    """Those of the last batch norm, worked out again from its inputs in the passes that descend."""
    model, [(x, y)] = TinyResNet().double(), data(1)
    last, seen = model.get_submodule("bn"), list[Tensor]()
    assert isinstance(last, nn.BatchNorm2d)
    assert last.running_mean is not None
    assert last.running_var is not None

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        probes = not torch.is_grad_enabled() or not model.fc.weight.requires_grad or not last.track_running_stats
        if module.training and not probes:
            seen.append(args[0].detach())

    handle = last.register_forward_pre_hook(note)
    mean, var = last.running_mean.clone(), last.running_var.clone()
    train(make(name), model, [(x, y)])
    handle.remove()
    for z in seen:
        mean, var = 0.9 * mean + 0.1 * z.mean((0, 2, 3)), 0.9 * var + 0.1 * z.transpose(0, 1).flatten(1).var(1)
    assert len(seen) >= 1
    assert {int(b) for n, b in model.named_buffers() if n.endswith("tracked")} == {len(seen)}
    torch.testing.assert_close(last.running_mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(last.running_var, var, rtol=1e-12, atol=1e-14)


@methods()
def test_it_costs_the_passes_that_it_says(name: str) -> None:
    """Forward passes are those that reach the end. DeepFool stops where every row has arrived: its cost is the most that it can be."""
    model, method, [(x, y)] = plain(), unchecked(make(name)), data(1)
    method.attach(model, x)
    forwards: list[int] = []
    model.get_submodule("fc").register_forward_hook(lambda module, args, output: forwards.append(1))
    steps = 0
    losses = iter(method.losses(model, x, y, generator=Stream(0)))
    while (loss := backward_next(losses, 1.0)) is not None:
        steps += not isinstance(loss, Partial)
    assert steps == method.passes.steps
    at_most = method.second_order or name == "AdvTrainI"
    assert len(forwards) <= method.passes.forward if at_most else len(forwards) == method.passes.forward


@methods()
def test_a_layerwise_method_serves_one_network(name: str) -> None:
    method, [(x, y)] = make(name), data(1)
    train(method, plain(), [(x, y)])
    if not isinstance(method, LayerMethod):
        train(method, plain(), [(x, y)])
        return
    message = rf"^this {name.split()[0]} is attached to another network; one method instance serves one network: make a second one"
    with pytest.raises(SiteError, match=message):
        next(iter(method.losses(plain(), x, y)))
    method.detach()
    train(method, plain(), [(x, y)])


@methods()
def test_its_noise_survives_bf16(name: str) -> None:
    """At least 90 % of its first-order effect, at every site, in two steps."""
    method, batches = make(name), data(2, dtype=torch.float32)
    if not isinstance(method, LayerMethod) or isinstance(method, YOPO):  # it records at its site and adds nothing
        return
    model = TinyResNet()
    method.attach(model, batches[0][0])
    record: dict[str, dict[str, Tensor]] = {}
    for sites in method.attached_sites():
        sites.monitor = record
    with torch.autocast("cpu", torch.bfloat16):
        train(method, model, batches)
    shares = {site: float(sizes["survival"]) for site, sizes in record.items() if "survival" in sizes}
    assert len(shares) >= (1 if isinstance(method, ManifoldMixup) else 2)  # mixup has one of its sites a batch
    assert min(shares.values()) >= 0.9, shares


@methods()
def test_an_input_method_stays_in_the_pixels(name: str) -> None:
    method, model, [(x, y)] = make(name), plain(), data(1)
    if not isinstance(method, InputMethod):
        return
    x_adv, g = method.perturb(model, x, y, generator=Stream(0))
    assert g == {}
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    if name != "AdvTrainI":  # DeepFool has no radius; the longest way is N-FGSM's, 3 eps
        assert float((x_adv - x).abs().max()) <= 3 * 8 / 255 + 1e-12
