"""The latent audit: exact where it can be worked out, monotone, for images and tokens, and it finds what was planted."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.sites import has_sites
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.audit import Layer, passes
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures import LatentAudit, audit
from layerwise.evaluation.store import Store
from tests.evaluation.problems import trained
from tests.networks import CLASSES, TinyResNet, TokenClassifier, VisionTransformer, batch, seeded, tokens

X, Y = batch(24)
RADII = (0.02, 0.1, 0.3, 1.0)


class Linear(nn.Module):
    """Two layers without anything between them, two classes."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.first, self.last = nn.Linear(192, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x.flatten(1)))
        return out


def worked_out(model: Linear, x: Tensor, y: Tensor, norm: str) -> list[int]:
    """Correct at each radius: the margin is above what the noise can take away from it."""
    with torch.no_grad():
        z = model.first(x.flatten(1))
        logits = model.last(z)
        margin = torch.where(y == 0, 1, -1) * (logits[:, 0] - logits[:, 1])
        gap = model.last.weight[0] - model.last.weight[1]
    order, dual = (2, 2) if norm == "l2" else (torch.inf, 1)
    reach = z.norm(p=order, dim=1) * gap.norm(p=dual)
    return [int((margin > radius * reach).sum()) for radius in RADII]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("steps", [1, 10])
def test_it_is_exact_on_a_linear_network(norm: Any, steps: int) -> None:
    model, y = Linear().double(), (X.flatten(1).sum(1) > 96).long()
    with torch.no_grad():  # most are correct, by margins of every size
        model.last.bias.add_(torch.tensor([0.0, (model(X)[:, 0] - model(X)[:, 1]).median()]))
        y = torch.where(torch.arange(24) % 8 == 0, y, model(X).argmax(1))
    found = audit(model, (X, y), sites=["first"], radii=RADII, steps=steps, norm=norm)
    (layer,) = found.layers
    expected = worked_out(model, X, y, norm)
    assert list(layer.attacked) == expected
    assert len(set(expected)) >= 3
    # Two classes have one wrong one: what is taken from the label is brought to the target.
    assert [a + b for a, b in zip(layer.attacked, layer.targeted, strict=True)] == [24] * 4
    assert found.clean == int((model(X).argmax(1) == y).sum()) == 24 - found.at_target


def rising(values: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in pairwise(values))


@pytest.mark.parametrize("make", [TinyResNet, VisionTransformer, trained])
def test_curves_of_attacks_go_one_way_and_beat_noise(make: Any) -> None:
    model = make().double()
    found = audit(model, (X, Y), radii=RADII, steps=3)
    assert len(found.layers) >= 2
    for layer in found.layers:
        assert rising(tuple(-v for v in layer.attacked))
        assert rising(layer.targeted)
        assert rising((found.clean_loss, *layer.attacked_loss))
        assert all(a >= n for a, n in zip(layer.attacked_loss, layer.noisy_loss, strict=True))
        assert layer.attacked[-1] < found.clean or make is not trained


class Shift(nn.Module):
    """Adds a constant."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, z: Tensor) -> Tensor:
        return z + self.by


def planted() -> nn.Sequential:
    """A network that has learnt its batch, whose `2` lies far from zero: noise that is small beside it is large for what follows."""
    with seeded(0):
        layers = [nn.Flatten(), nn.Linear(192, 16), Shift(60.0), Shift(-60.0), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(16, CLASSES)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def test_a_planted_fragile_layer_is_found() -> None:
    found = audit(planted(), (X, Y), sites=["1", "2", "4", "5"], radii=(0.01, 0.03, 0.1, 0.3, 1.0))
    assert found.clean == 24
    assert found.weakest.site == "2"
    assert [layer.site for layer in found.fragile] == ["2"]
    assert "the weakest of 4 layers is 2" in found.sentence()
    assert found.sentence().endswith("fragile beside the others: 2.")
    noisy = {layer.site: layer.noisy[0] for layer in found.layers}
    assert noisy["1"] == noisy["5"] == 24
    sound = audit(planted(), (X, Y), sites=["1", "4", "5"])
    assert sound.fragile == ()


def test_the_numbers_do_not_depend_on_the_batch_size_and_nothing_is_left() -> None:
    model = TinyResNet().double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one, two = (audit(model, (X, Y), radii=RADII, steps=2, batch_size=size) for size in (24, 7))
    assert (one.clean, one.images) == (two.clean, 24)
    for a, b in zip(one.layers, two.layers, strict=True):
        assert (a.attacked, a.noisy, a.targeted) == (b.attacked, b.noisy, b.targeted)
        assert a.noisy_loss == pytest.approx(b.noisy_loss)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not has_sites(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("per", ["example", "token"])
def test_tokens_of_any_length_are_audited(per: Any) -> None:
    batches = [tokens(length=length, seed=length) for length in (6, 4)]
    found = audit(TokenClassifier().double(), batches, sites=["embed", "encoder.0"], radii=(0.1, 1.0), steps=2, per=per)
    assert (found.images, found.predictions) == (8, 8)
    assert [layer.site for layer in found.layers] == ["embed", "encoder.0"]
    assert all(rising(layer.attacked_loss) for layer in found.layers)


class NextTokens(nn.Module):
    """A language model of twenty tokens."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.embed, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.mix(self.embed(ids))))
        return out


def test_language_models_are_audited_at_every_labelled_position() -> None:
    ids = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = -100
    batches = [((ids,), labels)]
    found = audit(NextTokens().double(), batches, sites=["mix"], radii=(0.5, 4.0), criterion=lw.NextToken())
    assert (found.images, found.predictions) == (3, 12)
    assert found.layers[0].targeted[-1] > 0


def test_layers_are_named_or_taken_evenly() -> None:
    model = TinyResNet().double()
    every = [f"blocks.block{n}" for n in (1, 2, 3, 4)]
    found = [audit(model, (X, Y), radii=(0.1,), steps=1, layers=layers) for layers in (None, 2, 1)]
    assert [[layer.site for layer in one.layers] for one in found] == [every, [every[0], every[3]], every[:1]]


def test_an_interrupted_audit_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, journal = TinyResNet().double(), tmp_path / "audit.journal"
    options: dict[str, Any] = {"radii": (0.1, 0.3), "steps": 2}
    expected = audit(model, (X, Y), **options)
    calls: list[int] = []

    def stop(module: nn.Module, args: Any, output: Tensor) -> None:
        calls.append(1)
        if len(calls) == limit:
            raise KeyboardInterrupt

    handle = model.register_forward_hook(stop)
    limit = 60
    with pytest.raises(KeyboardInterrupt):
        audit(model, (X, Y), **options, journal=journal)
    assert journal.exists()
    limit = 0
    calls.clear()
    assert audit(model, (X, Y), **options, journal=journal) == expected
    second = len(calls)
    calls.clear()
    handle_free = audit(model, (X, Y), **options)
    handle.remove()
    assert handle_free == expected
    assert second < len(calls)
    assert not journal.exists()


def test_its_cost_is_told_before_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    passed: list[int] = []
    model = TinyResNet().double()
    with caplog.at_level(logging.INFO, "layerwise"):
        audit(model, (X, Y), radii=(0.1, 0.2), steps=3, sites=["conv1", "blocks.block2"], batch_size=24)
    assert caplog.messages == ["the audit of 2 sites at 2 radii makes 61 passes over 24 examples"]
    assert passes(2, 3) == 30
    model.register_forward_hook(lambda module, args, output: passed.append(len(output)) if len(output) == 24 else None)
    audit(model, (X, Y), radii=(0.1, 0.2), steps=3, sites=["conv1"], batch_size=24)
    # Forward passes: the clean ones twice, and each probe's other half is a backward pass.
    assert len(passed) <= 2 + 2 * (2 * 3 + 3)


def test_by_name_each_layer_is_kept_and_the_record_holds_it(tmp_path: Path) -> None:
    text = "audit conv1 blocks.block2 images=6 steps=1 radii=0.1,0.3"
    journal = Store(tmp_path / "j")
    record = lw.evaluate(
        TinyResNet(), (X.float(), Y), attacks=["clean"], measures=[text], progress=False, journal=journal
    )
    kept = (tmp_path / "j").read_text()
    assert all(f"measure {text}, {site}" in kept for site in ("conv1", "blocks.block2"))
    found = record.measures[0].found
    assert isinstance(found, LatentAudit)
    assert [layer.site for layer in found.layers] == ["conv1", "blocks.block2"]
    assert Measurement.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "Latent audit" in record.to_markdown()
    assert len(found.figure().axes) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"radii": ()}, r"radii=\[\] cannot be audited; type rising numbers above 0"),
        ({"radii": (0.2, 0.1)}, r"radii=\[0\.2, 0\.1\] cannot be audited"),
        ({"steps": 0}, "steps=0 is too small"),
        ({"norm": "l1"}, "norm='l1' is unknown"),
        ({"per": "row"}, "per='row' is unknown"),
        ({"num_examples": 0}, "num_examples=0"),
    ],
)
def test_what_cannot_be_audited_is_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        audit(TinyResNet().double(), (X, Y), **options)


def test_no_batch_and_labels_that_are_no_classes_are_told() -> None:
    with pytest.raises(DataError, match="there is no batch to audit"):
        audit(TinyResNet().double(), [])
    with pytest.raises(DataError, match="needs classes to be right or wrong about"):
        audit(TinyResNet().double(), [(X, torch.zeros(24, 5))], criterion=nn.MSELoss())
    with pytest.raises(ConfigError, match="radii='a,b' are no numbers"):
        lw.evaluate(TinyResNet().double(), (X, Y), attacks=["clean"], measures=["audit radii=a,b"], progress=False)


def test_half_of_the_accuracy_is_found_between_radii() -> None:
    layer = Layer("a", (8, 2, 0), (10, 10, 9), (0, 1, 2), (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    sound = Layer("b", (10, 10, 9), (10, 10, 10), (0, 0, 0), (0.1, 0.2, 0.3), (0.1, 0.1, 0.1))
    found = LatentAudit((0.1, 0.2, 0.4), (layer, sound), 10, 10, 0.1, 10, 2, "l2", "example")
    assert found.half_radius(layer) == pytest.approx(0.15)
    assert found.half_radius(sound) == float("inf")
    assert found.weakest == layer
