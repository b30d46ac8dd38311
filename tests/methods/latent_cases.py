"""Every latent method beside its naive form on one network, whatever that is: a suite's small ones, or those of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.core.calling import rows
from layerwise.core.criteria import CrossEntropy, NextToken
from layerwise.core.driving import step
from layerwise.core.latent import in_ball
from layerwise.core.random import Stream, for_the_batch, normal, uniform
from layerwise.core.sites import Sites
from layerwise.methods import NFM, PNI, R3F, SMART, VAT, FreeLB, LatentPGD, ManifoldMixup, Method, NEFTune, TargetedLAT
from layerwise.methods.mixup import beta
from tests.reference.common import Batches
from tests.reference.freelb import freelb
from tests.reference.hooked import Hooked
from tests.reference.latent_pgd import latent_pgd
from tests.reference.mixup import Draw, mixup
from tests.reference.neftune import neftune
from tests.reference.nets import Net
from tests.reference.pni import pni
from tests.reference.smoothness import r3f, smart, vat
from tests.reference.targeted_lat import targeted_lat

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
METHODS = (
    *("NEFTune", "FreeLB", "SMART", "VAT", "R3F", "LatentPGD", "LatentPGD of examples"),
    *("TargetedLAT", "ManifoldMixup", "NFM", "PNI"),
)
Reference = Callable[..., Net]


def sequences(words: int, labels: int | None, *, count: int = 3) -> Batches:
    """Batches of sentences of different lengths, with padding; labels of their classes, or the sentences themselves."""
    found = []
    for seed in range(count):
        stream = torch.Generator().manual_seed(seed)
        ids = torch.randint(words, (4, 6 + seed), generator=stream)
        mask = torch.ones_like(ids)
        mask[0, -1] = mask[2, -2:] = 0
        y = torch.where(mask == 1, ids, -100) if labels is None else torch.randint(labels, (4,), generator=stream)
        found.append(({"input_ids": ids, "attention_mask": mask}, y))
    return found


def images(side: int, labels: int, *, channels: int = 3, count: int = 3) -> Batches:
    """Batches of pictures of noise."""
    streams = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return [
        (
            torch.rand(4, channels, side, side, generator=stream, dtype=torch.float64),
            torch.randint(labels, (4,), generator=stream),
        )
        for stream in streams
    ]


def gap(name: str, module: nn.Module, sites: Sequence[str], batches: Batches) -> tuple[float, float]:
    """How far our weights are from the naive form's after the batches, and how far these are from where they began."""
    model = copy.deepcopy(module).double().train()
    start = Hooked.around(model, sites)
    method, reference = case(name, start, batches)
    expected = reference(start, batches, **SGD)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    for number, (x, y) in enumerate(batches):
        step(method, model, x, y, optimizer, generator=Stream(0, number))
    return expected.distance(model), start.distance(model)


def case(name: str, net: Hooked, batches: Batches) -> tuple[Method, Reference]:
    """The method with settings for a small network, and its naive form with what a run with seed 0 draws."""
    ours: dict[str, Any] = {"sites": list(net.sites)}
    ours["criterion"] = NextToken() if batches[0][1].ndim == 2 else CrossEntropy()
    seen = [{site: v.detach() for site, v in net.passes(x)[1].items()} for x, _ in batches]
    with Sites(net.module, list(net.sites), example=batches[0][0]) as attached:
        names = dict(zip(net.sites, map(str, attached), strict=True))  # of a tuple's first, `layer:output[0]`

    def drawn(draw: Callable[..., Tensor], key: str = "start/") -> list[dict[str, Tensor]]:
        return [
            {site: draw(v, Stream(0, number), key=key + names[site]) for site, v in z.items()}
            for number, z in enumerate(seen)
        ]

    def of_batch(method: Callable[..., Method], reference: Reference, **fields: Any) -> tuple[Method, Reference]:
        return method(**ours, **fields), partial(reference, **fields)

    u, n, per = partial(drawn, uniform), partial(drawn, normal), {"per": "token"}
    if name == "NEFTune":
        return of_batch(NEFTune, partial(neftune, uniform=u("")), alpha=5.0)
    if name == "FreeLB":
        return of_batch(FreeLB, partial(freelb, uniform=u()), start=0.6, step=0.3, steps=3, eps=0.4)
    if name == "SMART":
        chosen = {"std": 0.1, "step": 0.05, "steps": 2, "size": 0.3, "weight": 2.0, **per}
        return of_batch(SMART, partial(smart, normal=n()), **chosen)
    if name == "VAT":
        return of_batch(VAT, partial(vat, normal=n()), xi=0.1, eps=0.7, steps=2, weight=0.5)
    if name == "R3F":
        return of_batch(R3F, partial(r3f, numbers=n()), eps=0.2, weight=2.0)
    if name.startswith("LatentPGD"):
        of = "example" if "examples" in name else "token"
        starts = drawn(lambda v, source, key: in_ball(v, 1.0, "l2", of, source, key=key))  # type: ignore[arg-type]
        reference = partial(latent_pgd, starts=starts, eps=dict.fromkeys(net.sites, 0.5), steps=3, per=of)
        return LatentPGD(**ours, eps=0.5, steps=3, per=of), reference  # type: ignore[arg-type]
    if name == "TargetedLAT":
        unwanted = [other(net, x, y, number) for number, (x, y) in enumerate(batches)]
        shared: dict[str, Any] = {"eps": 0.5, "steps": 4, "descents": 2, **per}
        return TargetedLAT(**ours, lr=0.05, **shared), partial(
            targeted_lat, sites=net.sites, unwanted=unwanted, lr_attack=0.05, **shared
        )
    if name in ("ManifoldMixup", "NFM"):
        noisy = name == "NFM"
        method = NFM(**ours) if noisy else ManifoldMixup(**ours)
        return method, partial(mixup, draws=[*mixtures(net.sites, seen, noisy=noisy)])
    return of_batch(PNI, partial(pni, normal=n("")), scale=0.5)


def other(net: Hooked, x: Any, y: Tensor, number: int) -> Tensor:
    """The labels, or tokens, that a run with seed 0 does not want."""
    classes = net.logits(x).shape[-1]
    share = (uniform(torch.empty(y.shape, dtype=torch.float64), Stream(0, number), key="target") + 1) / 2
    return torch.where(y == -100, y, (y + 1 + (share * (classes - 1)).long()) % classes)


def mixtures(sites: Sequence[str], seen: Sequence[Mapping[str, Tensor]], *, noisy: bool) -> Iterator[Draw]:
    """What a run with seed 0 mixes."""
    for number, z in enumerate(seen):
        source = Stream(0, number)
        drawn = for_the_batch(4, source, key="mixup").tolist()
        site = sites[int(drawn[0] * len(sites))]
        partners = uniform(torch.empty(rows(z[site])), source, key="partners").argsort()
        sizes = {"additive": 0.4 * beta(2, 5, drawn[2]), "multiplicative": 0.2 * beta(2, 5, drawn[3])}
        noise = {key: size * normal(z[site], source, key=key) for key, size in sizes.items()} if noisy else {}
        alpha = 1.0 if noisy else 2.0
        yield Draw(site, beta(alpha, alpha, drawn[1]), partners, **noise)
