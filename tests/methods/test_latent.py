"""Methods at hidden layers beyond the papers, each against its naive form: equal weights after three steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.driving import Step
from layerwise.core.latent import in_ball
from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from layerwise.methods import LatentPGD
from tests.methods.cases import backward, unchecked
from tests.methods.test_references import BATCHES, PROBES, SGD, Case, train
from tests.networks import TinyConv, TinyMLP, TinyResNet, TokenClassifier, tokens
from tests.reference.latent_pgd import latent_pgd
from tests.reference.nets import Net

CONV: dict[str, tuple[int, ...]] = {"conv1": (6, 8, 8), "bn2": (8, 8, 8)}
MLP: dict[str, tuple[int, ...]] = {"fc1": (16,), "fc2": (12,)}


def starts(shapes: dict[str, tuple[int, ...]], norm: Any = "l2") -> list[dict[str, Tensor]]:
    """Points of the unit ball at each site, as a run with seed 0 draws them."""
    return [
        {
            site: in_ball(x.new_empty(len(x), *shape), 1.0, norm, "example", Stream(0, step), key=f"start/{site}")
            for site, shape in shapes.items()
        }
        for step, (x, _) in enumerate(BATCHES)
    ]


def latent_pgds() -> Iterator[Case]:
    for (bn, probe), norm in product(PROBES.items(), ("l2", "linf")):
        eps = {"conv1": 2.0, "bn2": 1.0} if norm == "l2" else {"conv1": 0.1, "bn2": 0.05}
        reference = partial(latent_pgd, eps=eps, steps=3, norm=norm, probe_bn=bn)
        ours: dict[str, Any] = {"sites": list(eps), "eps": eps, "steps": 3, "norm": norm, "probe": probe}
        yield Case(LatentPGD(**ours), partial(reference, starts=starts(CONV, norm)))
        yield Case(LatentPGD(**ours, random_start=False, step=0.5), partial(reference, step=0.5))
        yield Case(
            LatentPGD(**ours, clamp_to_activation_range=True),
            partial(reference, starts=starts(CONV, norm), clamp=True),
        )
    shares = dict.fromkeys(MLP, 0.2)
    yield Case(
        LatentPGD(sites=list(MLP), eps=0.2, relative=True, steps=2),
        partial(latent_pgd, eps=shares, steps=2, relative=True, starts=starts(MLP)),
        (TinyMLP,),
    )
    blocks = {f"blocks.block{n}": 1.0 for n in (1, 2, 3, 4)}
    yield Case(LatentPGD(eps=1.0, random_start=False), partial(latent_pgd, eps=blocks, steps=6), (TinyResNet,))


@pytest.mark.parametrize("case", [*latent_pgds()], ids=str)
def test_the_weights_are_those_of_the_algorithm_written_out(case: Case) -> None:
    for network in case.networks:
        model = network().double().train(case.training)
        start = Net.of(model)
        expected = case.reference(start, case.batches, lr=case.lr, **SGD)
        train(replace(case.method), model, case.batches, case.lr)  # type: ignore[type-var]
        assert start.distance(model) > case.lr / 300
        assert expected.distance(model) < 1e-10


def noise_at(method: LatentPGD, model: nn.Module, x: Any, y: Tensor) -> Tensor:
    """What the method's one site gets."""
    sites = method.sites_on(model, x)
    (delta,) = method.climb(model, x, y, sites, Step(generator=Stream(0))).values()
    return delta


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_norm_of_tokens_bounds_each_and_leaves_out_what_is_not_real(norm: Any) -> None:
    x, y = tokens()
    method = LatentPGD(sites=["embed"], eps=0.3, norm=norm, per="token", steps=2)
    delta = noise_at(method, TokenClassifier(), x, y)
    order = 2.0 if norm == "l2" else math.inf
    lengths = torch.linalg.vector_norm(delta, order, dim=2)
    assert bool((lengths[0, -1:] == 0).all())
    assert float(lengths.max()) <= 0.3 + 1e-6
    assert float(lengths[x["attention_mask"].bool()].min()) > 0.05
    assert len({round(v, 4) for v in lengths[1].tolist()}) > 1 or norm == "linf"


def test_a_norm_of_examples_bounds_all_of_their_tokens_together() -> None:
    x, y = tokens()
    delta = noise_at(LatentPGD(sites=["embed"], eps=0.3, steps=2), TokenClassifier(), x, y)
    assert float(torch.linalg.vector_norm(delta.flatten(1), dim=1).max()) <= 0.3 + 1e-6


def test_it_climbs_more_than_random_noise_of_its_size() -> None:
    model, (x, y) = TinyConv().double(), BATCHES[0]
    method = LatentPGD(sites=["conv1"], eps=1.0, random_start=False)
    delta = noise_at(method, model, x, y)
    sites = method.sites_on(model, x)
    random = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0), dtype=delta.dtype)
    random = random / random.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)

    def loss(r: Tensor) -> float:
        with sites.perturb(dict.fromkeys(sites, r)):
            return F.cross_entropy(model(x), y).item()

    assert loss(delta) > loss(random) + 0.01
    assert loss(delta) > loss(-delta)


def test_lengths_may_change_from_batch_to_batch() -> None:
    model, method = TokenClassifier(), LatentPGD(sites=["embed", "encoder.0"], eps=0.5, per="token", steps=2)
    for length in (6, 4, 9):
        x, y = tokens(length=length)
        for loss in method.losses(model, x, y, generator=Stream(0)):
            backward(loss)
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_in_evaluation_mode_dropout_is_off_in_the_probes_only() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 5)).double()
    seen = list[bool]()
    model[2].register_forward_hook(lambda module, args, output: seen.append(module.training))
    method = LatentPGD(sites=["1"], steps=2, mode="eval")
    unchecked(method).attach(model, BATCHES[0][0])
    seen.clear()
    next(iter(method.losses(model, *BATCHES[0], generator=Stream(0))))
    assert seen[-3:] == [False, False, True]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"eps": -1.0}, "eps=-1.0 is too small; type a number of at least 0"),
        ({"norm": "l1"}, "norm='l1' is unknown; type one of 'l2', 'linf'"),
        ({"per": "row"}, "per='row' is unknown; type one of 'example', 'token'"),
        ({"steps": 0}, "steps=0 is too small; type a number of at least 1"),
        ({"mode": "off"}, "mode='off' is unknown; type one of 'train', 'eval'"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}$"):
        LatentPGD(**fields)


def test_a_site_without_radius_is_named() -> None:
    method = LatentPGD(sites=["conv1", "bn2"], eps={"conv1": 1.0})
    with pytest.raises(ConfigError, match=r"^eps names no radius for site 'bn2'; known: conv1\.$"):
        method.attach(TinyConv().double(), BATCHES[0][0])
