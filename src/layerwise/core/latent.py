"""Noise at hidden layers beyond pixels: sequences with positions that are not real, norms of tokens, shapes that only a pass knows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.ascent import Ascent
from layerwise.core.calling import Inputs, examples, real_positions
from layerwise.core.norms import Norm
from layerwise.core.passes import Constraint, Noise, Replacement
from layerwise.core.random import Source, Stream, between, normal, uniform
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites, choose_sites
from layerwise.core.tracing import Site

Per: TypeAlias = Literal["example", "token"]
"""What a norm is of: an example's whole activation, or each token's where the activation is (B, L, d)."""


class Drawn:
    """Random noise for an activation, a `Replacement` that adds r = make(z), where `make` looks at the shape of z only.

    It is made when its activation is seen, since only then its shape is known, or `ahead`: a compiled network has no generators
    inside. A recomputation of the pass, and whoever asks for `r` afterwards, finds what was drawn.

    >>> start = Drawn(torch.ones_like)
    >>> start(torch.zeros(1, 2)), start.r
    (tensor([[1., 1.]]), tensor([[1., 1.]]))
    """

    def __init__(self, make: Callable[[Tensor], Tensor], *, constraint: Constraint | None = None) -> None:
        self.make, self.constraint = make, constraint
        # Nothing is compiled where the compiler has not been imported, which takes a second.
        self._given = _in_a_break() if "torch._dynamo" in sys.modules else _given
        self.r: Tensor | None = None

    def ahead(self, like: Tensor | None) -> Self:
        """Make it now, for an activation like this one, where that is known."""
        if like is not None:
            self.r = self.make(like)
        return self

    def __call__(self, z: Tensor) -> Tensor:
        """Give z + constraint(r, z), the noise outside the gradient."""
        with torch.no_grad():
            if self.r is None or self.r.shape != z.shape or self.r.device != z.device:
                self.r = self._given(self.make, z)
            r = self.r if self.constraint is None else self.constraint(self.r, z)
        return z + r


def _given(make: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return make(z)


@cache
def _in_a_break() -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """The same outside the graph of a compiled network, which would be made anew for every step's generator."""
    hidden: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = torch.compiler.disable(_given)  # type: ignore[no-untyped-call]
    return hidden


def likes(sites: Sites, x: Inputs, source: Source) -> dict[Site, Tensor]:
    """What noise can be drawn for before the pass, see `Sites.likes`.

    Nothing where the order of draws decides on their numbers: a network's dropout may come before its sites.
    """
    return sites.likes(x) if isinstance(source, Stream) else {}


def drawn(
    sites: Sites,
    x: Inputs,
    source: Source,
    make: Callable[[Site, Tensor], Tensor],
    *,
    constraint: Constraint | None = None,
    masked: bool = True,
) -> dict[Site, Tensor | Replacement]:
    """Noise `make(site, z)` at every site, see `Drawn`; zero at positions that are not real if `masked`.

    At the network's input z is known, and the pixels of x + r stay in [0, 1].
    """

    def maker(site: Site) -> Callable[[Tensor], Tensor]:
        return lambda z: at_real(make(site, z), x) if masked else make(site, z)

    noise: dict[Site, Tensor | Replacement] = {}
    known = likes(sites, x, source)
    for site in sites:
        if site.is_input:
            z = examples(x)
            noise[site] = (z + maker(site)(z)).clamp(0, 1) - z
        else:
            noise[site] = Drawn(maker(site), constraint=constraint).ahead(known.get(site))
    return noise


def as_tensors(noise: Mapping[Site, Tensor | Replacement]) -> Noise:
    """What was drawn, after the pass in which it was."""
    found = {site: r.r if isinstance(r, Drawn) else r for site, r in noise.items()}
    return {site: r for site, r in found.items() if isinstance(r, Tensor)}


def at_real(value: Tensor, x: Inputs) -> Tensor:
    """The same with zeros at the positions of a sequence that x's mask leaves out; whole where there are no positions.

    >>> at_real(torch.ones(1, 2, 1), {"input_ids": torch.ones(1, 2), "attention_mask": torch.tensor([[1, 0]])}).flatten()
    tensor([1., 0.])
    """
    real = real_positions(x)
    if real is None or value.ndim != 3 or value.shape[:2] != real.shape:
        return value
    return value * real[:, :, None]


def entries(z: Tensor, x: Inputs) -> Tensor | int:
    """How many entries of each example's activation lie at real positions, shape (B, 1, ...), or one number where all do."""
    real = real_positions(x)
    if real is None or z.ndim != 3 or z.shape[:2] != real.shape:
        return z[0].numel()
    # In the activation's precision: the root of an integer has float32's.
    return (real.sum(1)[:, None, None] * z.shape[2]).to(torch.promote_types(z.dtype, torch.float32))


def each(ascent: Ascent, per: Per) -> Ascent:
    """The same rules with every norm that of a token, where activations are (B, L, d) and `per` says so.

    >>> from layerwise.core.ascent import chain, normalize
    >>> each(chain(normalize("l2")), "token")(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
    tensor([[[0.6000, 0.8000],
             [0.0000, 1.0000]]])
    """

    def of_tokens(gradient: Tensor, previous: Tensor | None = None) -> Tensor:
        if gradient.ndim != 3:
            return ascent(gradient, previous)
        flat = None if previous is None else previous.flatten(0, 1)
        return ascent(gradient.flatten(0, 1), flat).view_as(gradient)

    return of_tokens if per == "token" else ascent


def units(z: Tensor, p: Norm, per: Per) -> Tensor:
    """||z||_p of each example or token, in a shape that broadcasts against z."""
    if per == "token" and z.ndim == 3:
        return norms.norm(z.flatten(0, 1), p).view(*z.shape[:2], 1)
    return norms.rows(norms.norm(z, p), z)


def spread(z: Tensor) -> Tensor:
    """The standard deviation of each example's entries, (B, 1, ...)."""
    return norms.rows(z.flatten(1).std(1, correction=0), z)


def in_ball(z: Tensor, eps: float, p: Norm, per: Per, source: Source, *, key: str) -> Tensor:
    """A start at hidden layers: a Gaussian direction of a length uniform in [0, eps] (l2), or uniform in the cube (linf)."""
    like = torch.empty_like(z, dtype=torch.promote_types(z.dtype, torch.float32), memory_format=torch.contiguous_format)
    if p == "linf":
        return between(like, eps, source, key=key)
    direction = normal(like, source, key=key)
    length = units(direction, p, per)
    share = (uniform(length, source, key=f"{key}/radius") + 1) / 2
    return norms.safe_divide(direction, length) * (eps * share)


def embedding_sites(model: nn.Module, example: Inputs, sites: Selection | None) -> Sites:
    """Where methods of language models put their noise: at the embeddings, in networks of images at the pixels."""
    return Sites(model, sites, example=example) if sites else choose_sites(model, example, "input", "embeddings")


def stream_sites(model: nn.Module, example: Inputs, sites: Selection | None) -> Sites:
    """Where the states of a network pass: the outputs of its blocks; of its affine layers where it has none."""
    if sites:
        return Sites(model, sites, example=example)
    return choose_sites(model, example, "block outputs", "affine outputs")
