from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.driving import Step
from layerwise.data import batches, load
from layerwise.data.splits import TensorSplit
from layerwise.errors import ConfigError, DataError, LayerwiseError
from layerwise.methods import ANP, FGSM, FGSMRS, LAD, LAT, PGD, SLAT, Losses, Method, Standard
from layerwise.models import build
from layerwise.training import SGD, AdamW, Cyclic, Phase, fit
from tests.networks import CLASSES, TinyConv, TinyMLP, TinyResNet
from tests.training.fakes import Scripted, apart, cheap, pictures, same, train, weights


class Steps:
    """Notes each optimiser step among a method's events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, events: list[str]) -> None:
        original = torch.optim.SGD.step

        def step(optimizer: torch.optim.SGD, *args: Any) -> Any:
            events.append("step")
            return original(optimizer, *args)

        monkeypatch.setattr(torch.optim.SGD, "step", step)


def test_a_step_follows_each_backward_and_the_code_after_a_yield_runs_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Scripted(script=("partial", "loss", "loss"))
    Steps(monkeypatch, method.events)
    train(TinyMLP(), method, cheap(max_steps=1))
    partial = ["a:partial", "a:backward", "a:after"]
    loss = ["a:loss", "a:backward", "step", "a:after"]
    assert method.events == [*partial, *loss, *loss, "a:closed"]


def test_micro_batches_advance_in_lockstep_and_each_is_back_propagated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Scripted(script=("partial", "loss"))
    Steps(monkeypatch, method.events)
    train(TinyMLP(), method, cheap(max_steps=1, accumulate=2))
    partial = ["a:partial", "a:backward", "b:partial", "b:backward"]
    loss = ["a:after", "a:loss", "a:backward", "b:after", "b:loss", "b:backward", "step"]
    assert method.events == [*partial, *loss, "a:after", "a:closed", "b:after", "b:closed"]


def test_partial_gradients_add_up() -> None:
    once, twice = TinyMLP(), TinyMLP()
    settings = cheap(max_steps=1, optimizer=SGD(lr=0.1, momentum=0, weight_decay=0), precision="64-true")
    start = weights(once)
    train(once, Scripted(), settings)
    train(twice, Scripted(script=("partial", "loss")), settings)
    moved = {k: 2 * (v - start[k].double()) for k, v in weights(once).items()}
    assert apart(moved, {k: v - start[k].double() for k, v in weights(twice).items()}) < 1e-12


def test_a_method_that_ends_without_a_loss_is_told_so() -> None:
    with pytest.raises(LayerwiseError, match=r"Scripted.losses ends with a Partial; end with a loss to step on"):
        train(TinyMLP(), Scripted(script=("loss", "partial")), cheap())


def test_a_method_whose_parts_differ_is_told_so() -> None:
    class Uneven(Scripted):
        def batch_losses(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
            second = self.calls % 2 == 1
            yield from super().batch_losses(model, x, y, step)
            if second:
                yield model(x).sum()

    with pytest.raises(LayerwiseError, match=r"Uneven.losses yields differently for the parts of one batch"):
        train(TinyMLP(), Uneven(), cheap(accumulate=2))


def test_generators_are_closed_when_something_goes_wrong() -> None:
    def fail(model: nn.Module, number: int) -> None:
        raise ZeroDivisionError

    method = Scripted(hook=fail)
    with pytest.raises(ZeroDivisionError):
        train(TinyMLP(), method, cheap(accumulate=2))
    assert [e for e in method.events if e.endswith("closed")] == ["a:closed", "b:closed"]


@pytest.mark.parametrize("channels_last", [False, "auto"])
def test_standard_training_equals_a_loop_written_by_hand_bit_by_bit(channels_last: Literal[False, "auto"]) -> None:
    data, net = pictures(), TinyConv()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    by_hand = copy.deepcopy(net).to(memory_format=layout)  # type: ignore[call-overload]
    settings = cheap(epochs=2, schedule=Cyclic(), optimizer=SGD(lr=0.1), channels_last=channels_last)
    train(net, Standard(), settings, data)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    for epoch in range(2):
        for index, (x, y) in enumerate(batches(data.train, 8, shuffle=True, seed=0, epoch=epoch)):
            done = (epoch * 5 + index) / 10
            optimizer.param_groups[0]["lr"] = 0.1 * (done / 0.4 if done < 0.4 else (1 - done) / 0.6)
            optimizer.zero_grad()
            logits = by_hand(x.contiguous(memory_format=layout))
            nn.functional.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert same(weights(net), weights(by_hand))


def whole_batch_methods() -> dict[str, Method]:
    sites = ["conv1", "blocks.block1"]
    return {
        "slat": SLAT(sites=sites, eta=0.05, base=FGSMRS(eps=0.05)),
        "anp": ANP(k=2, noise_std=0.01),
        "lat": LAT(eps=2.0),
        "lat-joint": LAT(eps=2.0, joint=True),
        "lad": LAD(eta=20.0, base=PGD(steps=2)),
    }


@pytest.mark.parametrize("name", whole_batch_methods())
def test_accumulation_gives_the_whole_batch_s_result(name: str) -> None:
    whole, parts = TinyResNet(batch_norm=False), TinyResNet(batch_norm=False)
    start = weights(whole)
    options: dict[str, Any] = {"epochs": 2, "precision": "64-true"}
    data = pictures(20)  # batches of 8, 8 and 4 rows, the last one in parts of one and two
    train(whole, whole_batch_methods()[name], cheap(**options), data)
    train(parts, whole_batch_methods()[name], cheap(accumulate=3, **options), data)
    assert apart(start, weights(whole)) > 1e-3
    assert apart(weights(whole), weights(parts)) < 1e-10


def test_the_rate_follows_progress_in_batches_however_many_steps_a_batch_has(tmp_path: Path) -> None:
    rates = {}
    for k in (1, 3):
        train(TinyMLP(), Scripted(script=("loss",) * k), cheap(schedule=Cyclic(), log_every=1), run=tmp_path / str(k))
        lines = [json.loads(line) for line in (tmp_path / str(k) / "metrics.jsonl").read_text().splitlines()]
        rates[k] = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates[1] == rates[3]
    assert rates[1] == pytest.approx([0.05 * m for m in (0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6)])


def test_clipping_bounds_the_step() -> None:
    net = TinyMLP()
    start = weights(net)
    settings = cheap(max_steps=1, optimizer=SGD(lr=1.0, momentum=0, weight_decay=0), clip_norm=1e-3)
    train(net, Standard(), settings)
    moved = torch.cat([(v - start[k]).flatten() for k, v in weights(net).items()])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_max_steps_ends_within_an_epoch_and_evaluates() -> None:
    result = train(TinyMLP(), Standard(), cheap(epochs=3, max_steps=7, eval_every=1))
    assert result.steps == 7
    assert [(h["epoch"], h["step"]) for h in result.history] == [(1, 5), (2, 7)]
    assert result.history[1]["split"] == "validation"
    assert result.history[1]["examples"] == 8


def test_training_accuracy_and_loss_are_those_of_the_passes() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), CLASSES)

    data = pictures()
    result = train(Fixed(), Standard(), cheap(epochs=1, optimizer=SGD(lr=0.0)), data)
    labels = data.train.labels
    assert labels is not None
    assert result.history[0]["accuracy"] == pytest.approx(float((labels == 1).float().mean()))
    loss = nn.functional.cross_entropy(torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.0]]).expand(len(labels), 5), labels)
    assert result.history[0]["loss"] == pytest.approx(float(loss))


def test_learning_raises_the_validation_accuracy_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    result = train(TinyConv(), FGSM(eps=0.02), cheap(epochs=8, eval_every=2, eval_step=0.5), run=tmp_path / "run")
    robust = [h["robust"] for h in result.history if "robust" in h]
    assert len(robust) == 4
    assert result.best is not None
    assert result.best["robust"] == max(robust) > 0.5


def test_a_caller_watches_the_network_after_every_look_at_validation_and_changes_nothing(tmp_path: Path) -> None:
    plain, watched = TinyConv(), TinyConv()
    seen: list[float] = []

    def watch(net: nn.Module) -> dict[str, float]:
        seen.append(float(torch.rand(1) + next(net.parameters()).detach().sum()))
        return {"mine": seen[-1]}

    settings = cheap(epochs=5, eval_every=2)
    train(plain, FGSM(eps=0.02), settings)
    train(watched, FGSM(eps=0.02), settings, run=tmp_path / "run", watch=watch)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["mine"]) for line in lines if "mine" in line] == list(
        zip((2, 4, 5), seen, strict=True)
    )
    assert same(weights(plain), weights(watched))


def test_the_test_split_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures()
    test = data.test

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the test split was read")

    for name in ("read", "subset"):
        monkeypatch.setattr(type(test), name, _unless(test, getattr(type(test), name), refuse))
    train(TinyMLP(), Standard(), cheap(epochs=1, eval_every=1), data)


def _unless(forbidden: object, original: Any, refuse: Any) -> Any:
    def guarded(self: object, *args: Any, **kwargs: Any) -> Any:
        return refuse() if self is forbidden else original(self, *args, **kwargs)

    return guarded


def test_the_average_is_evaluated_and_stored_beside_the_weights(tmp_path: Path) -> None:
    net = TinyConv()
    result = train(net, Standard(), cheap(eval_every=1, ema_decay=0.9), run=tmp_path / "run")
    assert {"ema_clean", "ema_robust"} <= result.history[-1].keys()
    assert result.average is not None
    assert 0 < apart(result.average, weights(net)) < 1
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "best.safetensors", "ema.safetensors", "best-ema.safetensors"} <= names


def test_the_model_is_left_as_it_came_but_for_its_weights() -> None:
    net = TinyConv()
    net.eval()
    net.conv2.train()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    method = SLAT(sites=["conv1"], eta=0.01)
    random = torch.get_rng_state()
    train(net, method, cheap(epochs=1))
    assert torch.equal(random, torch.get_rng_state())
    assert [name for name, m in net.named_modules() if m.training] == ["conv2"]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks
    assert not method.attached_sites()
    assert all(p.grad is None for p in net.parameters())


def test_frozen_batch_norm_stays_frozen() -> None:
    net = TinyConv()
    net.bn1.eval()
    before = weights(net)
    train(net, Standard(), cheap(epochs=1))
    after = weights(net)
    assert torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])
    assert not torch.equal(after["bn2.running_mean"], before["bn2.running_mean"])


@pytest.mark.parametrize("optimizer", [SGD(lr=0.05), AdamW(lr=0.01)])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(optimizer: Any) -> None:
    nets = [TinyConv() for _ in range(3)]
    for net, seed in zip(nets, (3, 3, 4), strict=True):
        train(net, FGSMRS(eps=0.03), cheap(seed=seed, optimizer=optimizer))
    assert same(weights(nets[0]), weights(nets[1]))
    assert not same(weights(nets[0]), weights(nets[2]))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), r"gives \(8, 3\) for 8 images; for the 5 classes of pictures"),
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 5)), r"does not take images of shape \(3, 8, 8\)"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(net, Standard(), cheap())


def test_a_batch_size_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=64 leaves no full batch of 40 images"):
        train(TinyMLP(), Standard(), cheap(batch_size=64, drop_last=True))


def test_machines_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="training cannot start as asked"):
        train(TinyMLP(), Standard(), cheap(accelerator="tpu"))


def test_data_without_images_are_refused() -> None:
    data = pictures()
    empty = replace(data, train=data.train.subset([]))
    with pytest.raises(ConfigError, match="the data set pictures has no training images"):
        train(TinyMLP(), Standard(), cheap(), empty)


def test_training_images_are_looked_at_where_there_are_no_others() -> None:
    data = pictures()
    bare = replace(data, validation=data.validation.subset([]))
    result = train(TinyMLP(), Standard(), cheap(epochs=1, eval_every=1, eval_examples=10, eval_steps=0), bare)
    assert (result.history[0]["split"], result.history[0]["examples"]) == ("train", 10)
    assert result.history[0]["robust"] is None
    assert result.best is not None
    assert result.best["score"] == result.history[0]["clean"]


def test_messages_go_to_the_log_the_metrics_and_the_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Complaining(TinyMLP):
        pass

    method = Scripted()
    method.warnings = lambda: ["something odd"]  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="layerwise"):
        result = train(Complaining(), method, cheap(epochs=1), run=tmp_path / "run")
    assert result.messages == ["something odd"]
    assert "something odd" in caplog.text
    assert '"message": "something odd"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_phases_change_the_method_and_go_back_at_the_end() -> None:
    method, seen = Scripted(scale=1.0), []
    method.hook = lambda model, number: seen.append(method.scale)
    clean = Standard()
    train(TinyMLP(), method, cheap(epochs=4), phases=[
        Phase(epochs=1, method=clean), Phase(epochs=2, fields={"scale": 2.0}), Phase(epochs=1, fields={"scale": 3}),
    ])  # fmt: skip
    assert seen == [2.0] * 10 + [3] * 5
    assert method.scale == 1.0


def test_channels_last_trains_the_same() -> None:
    nets = [TinyConv(), TinyConv()]
    for net, channels_last in zip(nets, (False, True), strict=True):
        method = SLAT(sites=["conv1"], eta=0.01)
        train(net, method, cheap(epochs=1, precision="64-true", channels_last=channels_last))
    assert nets[1].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert apart(weights(nets[0]), weights(nets[1])) < 1e-10


class ByName(nn.Module):
    """Convolutions, or not, whose weights' layouts in training are written down."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))
        self.layers(torch.zeros(1, 3, 8, 8))
        self.seen: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            tensors = (x, next(self.parameters()))  # the weights of a kernel of one pixel lie in both ways at once
            self.seen |= {v.is_contiguous(memory_format=torch.channels_last) for v in tensors if v.ndim == 4}
        out: Tensor = self.layers(x)
        return out


def strided(channels: int, *, groups: int = 1) -> nn.Sequential:
    """A shortcut of a residual network."""
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, 1, stride=2, groups=groups))


@pytest.mark.parametrize(
    ("layers", "options", "last"),
    [
        (lambda: nn.Conv2d(3, 6, 3), {}, True),
        (lambda: nn.Conv2d(3, 6, 3), {"channels_last": False}, False),
        (lambda: nn.Conv2d(3, 6, 3), {"precision": "64-true"}, False),
        (lambda: nn.Conv2d(3, 6, 3), {"precision": "64-true", "channels_last": True}, True),
        (nn.Identity, {}, False),
        (nn.Identity, {"channels_last": True}, True),
        # Where oneDNN would write past its memory.
        (lambda: strided(7), {}, False),
        (lambda: strided(8), {}, True),
        (lambda: strided(4, groups=2), {}, True),
        (lambda: nn.Conv2d(3, 6, 1), {}, True),
        (lambda: nn.Conv2d(3, 6, 3, stride=2), {}, True),
    ],
)
def test_channels_lie_together_where_it_pays_and_is_safe(
    layers: Callable[[], nn.Module], options: dict[str, Any], last: bool
) -> None:
    net = ByName(layers())
    train(net, Standard(), cheap(epochs=1, **options))
    assert net.seen == {last}
    # What nobody asked for is undone.
    kept = options.get("channels_last") is True
    assert {v.is_contiguous() for v in net.parameters() if v.ndim == 4} <= {not kept}


def test_points_without_a_pixel_range_are_not_moved_within_one() -> None:
    points = load("gaussians", size=200, test_size=20)
    network = build("toy", num_classes=2, shape=points.shape)
    history = fit(network, Standard(), points, training=cheap(eval_every=1, eval_steps=3), progress=False).history
    assert history[-1]["robust"] is None
    assert history[-1]["clean"] > 0.5
    for method in (FGSM(), SLAT(sites=()), LAD(sites="relu1"), LAT(base=PGD(steps=1))):
        with pytest.raises(
            ConfigError, match=rf"^{type(method).__name__} moves inputs within \[0, 1\], and the values of gaussians"
        ):
            fit(network, method, points, training=cheap(), progress=False)
    fit(network, LAT(), points, training=cheap(max_steps=2), progress=False)


class Quantised(nn.Module):
    """A step function before the network: no gradient reaches the images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = TinyMLP()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network((8 * x).round() / 8)
        return out


def test_a_look_that_cannot_attack_says_so(caplog: pytest.LogCaptureFixture) -> None:
    for network, told in ((TinyMLP(), 0), (Quantised(), 1)):
        with caplog.at_level(logging.WARNING, logger="layerwise"):
            train(network, Standard(), cheap(epochs=1, eval_every=1))
        assert sum("PGD moved no image" in message for message in caplog.messages) == told


@pytest.mark.parametrize("num_classes", [1, 5])
def test_images_of_one_class_are_told_before_the_first_step(num_classes: int) -> None:
    usual, method = pictures(8), Scripted()
    same_label = TensorSplit(torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64))
    data = replace(usual, train=same_label, classes=usual.classes[:num_classes])
    with pytest.raises(DataError, match="every training image has label 0, so there is nothing to learn"):
        train(TinyMLP(), method, cheap(), data)
    assert method.events == []
