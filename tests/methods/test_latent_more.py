"""Targeted latent adversarial training, mixups and parametric noise against their naive forms, and what else they promise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.criteria import CrossEntropy, NextToken
from layerwise.core.random import Stream, for_the_batch, normal, uniform
from layerwise.errors import ConfigError, DataError
from layerwise.methods import NFM, PNI, ManifoldMixup, TargetedLAT
from layerwise.methods.mixup import beta
from layerwise.methods.targeted_lat import AdamW, Opposed
from tests.methods.cases import backward, unchecked
from tests.methods.test_latent import CONV, numbers
from tests.methods.test_references import BATCHES, Case
from tests.networks import CLASSES, TinyConv, TinyResNet, seeded
from tests.reference.mixup import Draw, mixup
from tests.reference.pni import pni
from tests.reference.targeted_lat import targeted_lat


def others_than_the_labels() -> list[Tensor]:
    found = []
    for step, (_, y) in enumerate(BATCHES):
        drawn = uniform(torch.empty(len(y), dtype=torch.float64), Stream(0, step), key="target")
        found.append((y + 1 + ((drawn + 1) / 2 * (CLASSES - 1)).long()) % CLASSES)
    return found


def draws(sites: dict[str, tuple[int, ...]], alpha: float, additive: float, multiplicative: float) -> list[Draw]:
    """What runs with seed 0 mix."""
    found = []
    for step, (x, y) in enumerate(BATCHES):
        source = Stream(0, step)
        drawn = for_the_batch(4, source, key="mixup").tolist()
        site = list(sites)[int(drawn[0] * len(sites))]
        like = x.new_empty(len(x), *sites[site])
        more, times = additive * beta(2, 5, drawn[2]), multiplicative * beta(2, 5, drawn[3])
        partners = uniform(torch.empty(len(y)), source, key="partners").argsort()
        noise = [c * normal(like, source, key=key) for c, key in ((more, "additive"), (times, "multiplicative"))]
        found.append(Draw(site, beta(alpha, alpha, drawn[1]), partners, *(n if additive else None for n in noise)))
    return found


def cases() -> Iterator[Case]:
    attack: dict[str, Any] = {"eps": 0.5, "steps": 5}
    targeted = partial(targeted_lat, unwanted=others_than_the_labels(), sites=CONV, lr_attack=0.05)
    ours: dict[str, Any] = {"sites": list(CONV), "lr": 0.05}
    yield Case(TargetedLAT(**ours, **attack), partial(targeted, descents=4, **attack), lr=0.1)
    weights: dict[str, Any] = {"towards": 1.0, "utility": 0.0, "cutoff": 1.5}
    yield Case(
        TargetedLAT(**ours, away=0.25, descents=1, **weights, **attack),
        partial(targeted, descents=1, weight_away=0.25, **weights, **attack),
    )
    yield Case(ManifoldMixup(sites=list(CONV)), partial(mixup, draws=draws(CONV, 2.0, 0.0, 0.0)))
    yield Case(NFM(sites=list(CONV)), partial(mixup, draws=draws(CONV, 1.0, 0.4, 0.2)))
    yield Case(PNI(sites=list(CONV), scale=0.5), partial(pni, normal=numbers(normal, CONV, ""), scale=0.5))


@pytest.mark.parametrize("case", [*cases()], ids=str)
def test_the_weights_are_those_of_the_algorithm_written_out(case: Case) -> None:
    case.agree()


class Causal(nn.Module):
    """A language model whose positions see the mean of those before; `model(input_ids=...)` or `inputs_embeds`."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.embed, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20)

    def forward(
        self, *, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, attention_mask: Tensor
    ) -> Tensor:
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        h = (h * attention_mask[:, :, None]).cumsum(1) / attention_mask.cumsum(1)[:, :, None]
        out: Tensor = self.head(torch.tanh(3 * self.mix(h)))
        return out


def conversations() -> tuple[dict[str, Tensor], Tensor]:
    """Two prompts of three tokens, each with a wanted and an unwanted completion, of which the unwanted ones are shorter."""
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (4, 7), generator=stream)
    ids[1, :3], ids[3, :3] = ids[0, :3], ids[2, :3]
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[1::2, -1] = 0
    labels = torch.where(mask == 1, ids, -100)
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": mask}, labels


def test_a_pair_shares_what_is_added_to_its_prompt() -> None:
    """The loss of the first descent, written out with AdamW of torch over `inputs_embeds`."""
    model, (x, y) = Causal().double(), conversations()
    mask = x["attention_mask"]
    z = model.embed(x["input_ids"]).detach()
    place = torch.zeros(1, 7, 1, dtype=torch.float64)
    place[:, :3] = 1
    delta = torch.zeros(2, 7, 8, dtype=torch.float64, requires_grad=True)

    def entropies(noise: Tensor) -> list[Tensor]:
        """Of each row, at its labelled positions."""
        out = model(inputs_embeds=z + noise, attention_mask=mask).log_softmax(2)[:, :-1]
        return [-out[i, y[i, 1:] != -100, y[i, 1:][y[i, 1:] != -100]] for i in range(4)]

    def loss(each: list[Tensor], wanted: int) -> Tensor:
        towards = torch.stack([each[i].mean() for i in range(wanted, 4, 2)]).sum()
        far = [each[i] for i in range(1 - wanted, 4, 2)]
        gone = [torch.where(e > 5, torch.zeros_like(e), -(1 - (-e).exp()).log()).mean() for e in far]
        away = torch.stack(gone).sum()
        return 0.5 * towards + 0.5 * away

    optimiser = torch.optim.AdamW([delta], lr=0.05)
    for _ in range(6):
        (g,) = torch.autograd.grad(loss(entropies((delta * place).repeat_interleave(2, 0)), 1), delta)
        delta.grad = g
        optimiser.step()
        with torch.no_grad():
            delta *= (0.2 / delta.norm(dim=2, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    found = (delta * place).detach().repeat_interleave(2, 0)
    clean = sum(entropies(torch.zeros_like(z))[i].mean() for i in (0, 2))
    expected = (1.5 * clean + loss(entropies(found), 0)) / 2 / 2.5
    method = TargetedLAT(sites=["embed"], pairs=True, eps=0.2, steps=6, criterion=NextToken())
    first = next(iter(unchecked(method).losses(model, x, y, generator=Stream(0))))
    assert isinstance(first, Tensor)
    assert float(found.norm(dim=2).max()) > 0.199
    assert abs((first - expected).item()) < 1e-10
    assert abs((first - 1.5 * clean / 2 / 2.5 - loss(entropies(torch.zeros_like(z)), 0) / 5).item()) > 1e-3


def test_rows_that_are_no_pairs_are_refused() -> None:
    x, y = conversations()
    method = TargetedLAT(sites=["embed"], pairs=True, criterion=NextToken())
    odd = {name: value[:3] for name, value in x.items()}
    with pytest.raises(DataError, match="pairs=True takes rows in pairs, found 3"):
        next(iter(unchecked(method).losses(Causal(), odd, y[:3])))


def test_adamw_as_a_rule_is_torchs() -> None:
    stream = torch.Generator().manual_seed(0)
    leaf, rule, r = torch.zeros(2, 3, requires_grad=True), AdamW(0.05), None
    optimiser = torch.optim.AdamW([leaf], lr=0.05)
    for _ in range(5):
        leaf.grad = g = torch.randn(2, 3, generator=stream)
        optimiser.step()
        r = rule(g, g, r)
    assert r is not None
    torch.testing.assert_close(r, leaf.detach(), rtol=1e-5, atol=1e-7)


def test_the_loss_away_is_finite_for_what_is_certain_and_stops_for_what_is_gone() -> None:
    logits = torch.tensor([[50.0, 0.0], [0.0, 0.0], [-9.0, 0.0]], requires_grad=True)
    away = Opposed(CrossEntropy(), 0.0, 1.0, drawn=torch.zeros(3), swapped=True)
    losses = away(logits, torch.tensor([0, 0, 0]))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(losses.isfinite().all())
    assert bool(logits.grad.isfinite().all())
    assert losses[1].item() == pytest.approx(torch.tensor(2.0).log().item())
    assert losses[2].item() == 0.0


def test_mixed_labels_follow_the_mixed_activations() -> None:
    """Of one example alone there is nobody to mix with: the loss is the plain one."""
    model, (x, y) = TinyResNet(batch_norm=False).double(), BATCHES[0]
    (loss,) = unchecked(ManifoldMixup(sites=["conv1"])).losses(model, x[:1], y[:1], generator=Stream(0))
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(F.cross_entropy(model(x[:1]), y[:1]).item())


def test_the_layer_changes_from_batch_to_batch_and_the_input_is_one() -> None:
    model, method = TinyConv().double(), ManifoldMixup(sites=["input", "conv1", "bn2"])
    record: dict[str, dict[str, Tensor]] = {}
    method.attach(model, BATCHES[0][0])
    for sites in method.attached_sites():
        sites.monitor = record
    for step in range(12):
        for loss in unchecked(method).losses(model, *BATCHES[0], generator=Stream(0, step)):
            backward(loss)
    assert set(record) == {"input", "conv1", "bn2"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TargetedLAT(steps=0), "steps=0 is too small"),
        (lambda: TargetedLAT(away=-1.0), "away=-1.0 is too small"),
        (lambda: TargetedLAT(towards=0, away=0, utility=0), r"towards \+ away \+ utility=0 is too small"),
        (lambda: ManifoldMixup(alpha=0.0), "alpha=0.0 is too small"),
        (lambda: NFM(additive=-0.1), "additive=-0.1 is too small"),
        (lambda: PNI(scale=-1.0), "scale=-1.0 is too small"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
