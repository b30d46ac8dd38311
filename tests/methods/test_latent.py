"""Methods at hidden layers beyond the papers, each against its naive form: equal weights after three steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.driving import Partial, Step
from layerwise.core.latent import in_ball
from layerwise.core.random import Stream, normal, uniform
from layerwise.errors import ConfigError
from layerwise.methods import R3F, SMART, VAT, FreeLB, LatentPGD, Method, NEFTune
from tests.methods.cases import backward, unchecked
from tests.methods.test_references import BATCHES, PROBES, Case
from tests.networks import TinyConv, TinyMLP, TinyResNet, TokenClassifier, tokens
from tests.reference.freelb import freelb
from tests.reference.latent_pgd import latent_pgd
from tests.reference.neftune import neftune
from tests.reference.smoothness import r3f, smart, vat

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


def numbers(
    draw: Callable[..., Tensor], shapes: dict[str, tuple[int, ...]], key: str = "start/"
) -> list[dict[str, Tensor]]:
    """Random numbers of each site, as a run with seed 0 draws them."""
    return [
        {site: draw(x.new_empty(len(x), *shape), Stream(0, step), key=key + site) for site, shape in shapes.items()}
        for step, (x, _) in enumerate(BATCHES)
    ]


def others() -> Iterator[Case]:
    sites, u, n = list(CONV), numbers(uniform, CONV), numbers(normal, CONV)
    free: dict[str, Any] = {"start": 0.6, "step": 0.3, "steps": 3}
    yield Case(FreeLB(sites=sites, **free), partial(freelb, uniform=u, **free))
    yield Case(FreeLB(sites=sites, eps=0.4, **free), partial(freelb, uniform=u, eps=0.4, **free))
    yield Case(
        FreeLB(sites=list(MLP)),
        partial(freelb, uniform=numbers(uniform, MLP), start=0.6, step=0.1, steps=2),
        (TinyMLP,),
    )
    yield Case(NEFTune(sites=sites), partial(neftune, uniform=numbers(uniform, CONV, ""), alpha=5.0))
    for steps in (1, 2):
        found: dict[str, Any] = {"std": 0.1, "step": 0.05, "steps": steps, "size": 0.3, "weight": 2.0}
        yield Case(SMART(sites=sites, **found), partial(smart, normal=n, **found))
        found = {"xi": 0.1, "eps": 0.7, "steps": steps, "weight": 0.5}
        yield Case(VAT(sites=sites, **found), partial(vat, normal=n, **found))
    yield Case(R3F(sites=sites, eps=0.2, weight=2.0), partial(r3f, numbers=n, eps=0.2, weight=2.0))
    yield Case(R3F(sites=sites, eps=0.2, noise="uniform"), partial(r3f, numbers=u, eps=0.2, weight=1.0))


@pytest.mark.parametrize("case", [*latent_pgds(), *others()], ids=str)
def test_the_weights_are_those_of_the_algorithm_written_out(case: Case) -> None:
    case.agree()


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


def test_a_relative_radius_at_the_pixels_is_refused() -> None:
    """Pixels that were kept in [0, 1] in units of their norm would leave it in their own."""
    method = LatentPGD(sites=["input", "conv1"], relative=True)
    with pytest.raises(ConfigError, match=r"^relative=True is for hidden sites; at the input"):
        method.attach(TinyConv().double(), BATCHES[0][0])


@pytest.mark.parametrize("length", [6, 7, 9, 11])
def test_neftune_draws_the_numbers_that_trl_draws(length: int) -> None:
    """trl and transformers: `alpha / sqrt(L d)` in float32, then `zeros_like(embeddings).uniform_(-size, size)`."""
    model, (x, y) = TokenClassifier(), tokens(length=length)
    size = 5.0 / torch.sqrt(torch.tensor(x["input_ids"].shape[1] * 8))
    embeddings = model.embed(x["input_ids"])
    torch.manual_seed(3)
    theirs = embeddings + torch.zeros_like(embeddings).uniform_(-float(size), float(size))
    expected = model(inputs_embeds=theirs, attention_mask=x["attention_mask"]).logits
    torch.manual_seed(3)
    (loss,) = unchecked(NEFTune(sites=["embed"])).losses(model, x, y)
    assert isinstance(loss, Tensor)
    assert torch.equal(loss, F.cross_entropy(expected, y))
    assert not torch.equal(loss, F.cross_entropy(model(**x).logits, y))


def at_embeddings(name: str, model: TokenClassifier, x: Any, y: Tensor) -> Tensor:
    """The loss of FreeLB's, SMART's and latent PGD's first batch, written out over `inputs_embeds`."""
    mask, z = x["attention_mask"], model.embed(x["input_ids"]).detach()
    real: Tensor = mask[:, :, None].double()
    total = torch.zeros((), dtype=torch.float64)

    def logits(delta: Tensor) -> Tensor:
        out: Tensor = model(inputs_embeds=z + delta, attention_mask=mask).logits
        return out

    def gradient(delta: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = delta.clone().requires_grad_()
        g: Tensor = torch.autograd.grad(loss(logits(leaf)), leaf)[0]
        return g * real

    def entropy(out: Tensor) -> Tensor:
        return F.cross_entropy(out, y, reduction="sum")

    def apart(p: Tensor, q: Tensor) -> Tensor:
        p, q = p.log_softmax(1), q.log_softmax(1)
        return (p.exp() * (p - q)).sum(1) + (q.exp() * (q - p)).sum(1)

    if name == "FreeLB":
        delta = 0.6 * uniform(z, Stream(0), key="start/embed") * real / (real.sum((1, 2), keepdim=True) * 8).sqrt()
        for _ in range(2):
            total = total + entropy(logits(delta)) / len(y) / 2
            g = gradient(delta, entropy)
            delta = delta + 0.1 * g / g.flatten(1).norm(dim=1)[:, None, None]
        return total
    if name == "SMART":
        clean = logits(torch.zeros_like(z))
        delta = 0.1 * normal(z, Stream(0), key="start/embed") * real
        delta = delta + 0.01 * gradient(delta, lambda out: apart(clean.detach(), out).sum())
        largest = delta.abs().amax(2, keepdim=True)
        delta = delta / torch.where(largest == 0, 1.0, largest)
        return (entropy(clean) + apart(clean, logits(delta)).sum()) / len(y)
    delta = in_ball(z, 0.3, "l2", "token", Stream(0), key="start/embed") * real
    for _ in range(2):
        g = gradient(delta, entropy)
        delta = delta + 0.15 * F.normalize(g, dim=2)
        delta = delta * (0.3 / delta.norm(dim=2, keepdim=True).clamp(min=0.3))
    return entropy(logits(delta)) / len(y)


TOKENS: list[Method] = [
    FreeLB(sites=["embed"]),
    SMART(sites=["embed"], std=0.1, step=0.01),
    LatentPGD(sites=["embed"], eps=0.3, per="token", steps=2),
]


@pytest.mark.parametrize("method", TOKENS, ids=lambda m: type(m).__name__)
def test_at_embeddings_the_losses_are_those_over_inputs_embeds(method: Method) -> None:
    model, (x, y) = TokenClassifier().double(), tokens()
    expected = at_embeddings(type(method).__name__, model, x, y)
    losses = []
    for loss in method.losses(model, x, y, generator=Stream(0)):
        backward(loss)
        losses.append((loss.loss if isinstance(loss, Partial) else loss).detach())
    method.detach()
    assert abs(sum(losses) - expected).item() < 1e-10
    assert abs(expected - F.cross_entropy(model(**x).logits, y)).item() > 1e-3


def test_freelb_may_keep_the_dropout_of_its_first_pass() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Dropout(0.5), nn.Linear(8, 5)).double()
    x, y = BATCHES[0]
    for same in (True, False):
        seen = list[Tensor]()
        handle = model[2].register_forward_hook(lambda m, a, out, seen=seen: seen.append(out == 0))
        method = FreeLB(sites=["1"], steps=3, same_dropout=same)
        method.attach(model, x)
        method.check_inputs = False
        seen.clear()
        for loss in method.losses(model, x, y, generator=Stream(0)):
            backward(loss)
        handle.remove()
        assert torch.equal(seen[0], seen[1]) is torch.equal(seen[1], seen[2]) is same


def test_neftunes_size_is_rounded_as_trls() -> None:
    """Divided in another order, or by another library's root, 28 of 100 sizes differ in their last bit."""
    found = [NEFTune().reach(torch.zeros(1, n)) for n in range(1, 400)]
    assert found == [float(5.0 / torch.sqrt(torch.tensor(n))) for n in range(1, 400)]
