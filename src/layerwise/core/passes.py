"""One use of the sites: what is added where, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from layerwise.core.norms import safe_divide
from layerwise.core.tracing import Layout, Site, arguments_of, tensors_of
from layerwise.errors import SiteError

Gradients: TypeAlias = dict[Site, Tensor]
"""{site: g}, g = dL/dz of the *sum* of the examples' losses, the shape of z."""
Noise: TypeAlias = dict[Site, Tensor]
"""A perturbation: {site: r}, r of the shape of the site's activation z, in the unit of z."""
Replacement: TypeAlias = Callable[[Tensor], Tensor]
"""`f(z)` is what the network continues with in place of z, inside the gradient; a recomputation of the pass calls it again."""
Constraint: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`constraint(r, z)` gives the noise that is really added to z; it acts outside the gradient."""


class Slot:
    """Which pass is on, if any: all that the hooks of a network look at."""

    active: Pass | None = None


class Pass:
    """One use of the sites, as a context: what is added where, and what was recorded.

    Contexts are not a stack: the last entered wins, and leaving an older one changes nothing. (Generators that wait between batches
    would otherwise add their noise to another's pass.)

    Leaves are made when an activation is seen, since its shape is the pass's and nobody else's; only where `layouts` tells the shape in
    advance are they made before, which spares a compiled network a break in its graph.

    Args:
        slot: where the hooks look.
        sites: all that are attached.
        noise: r or f for each of them, None where nothing is added.
        records: whether each of them records its gradient.
        rows: of the batch.
        constraint: see `Constraint`.
        layouts: of the activations, where they are known.
        missed: in training, where a network may skip blocks at random, is told which sites the pass has left out and whether it
            reached others. It says how they lie, for gradients of 0, or None if they should have been reached, as in evaluation.
        device: of leaves that are made in advance.
        same: whether sites hand on the activation's own type.
        monitor: where the sizes of the noise are written; None measures nothing.
    """

    def __init__(
        self,
        slot: Slot,
        sites: Sequence[Site],
        noise: Sequence[Tensor | Replacement | None],
        records: Sequence[bool],
        *,
        rows: int | None = None,
        constraint: Constraint | None = None,
        layouts: Sequence[Layout] | None = None,
        missed: Callable[[list[Site], bool], dict[Site, Layout] | None] | None = None,
        device: torch.device | None = None,
        same: bool = False,
        monitor: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        self.slot, self.sites, self.noise, self.records = slot, sites, noise, records
        self.rows, self.constraint, self.same, self.monitor = rows, constraint, same, monitor
        self.missed, self.device = missed, device
        # Noise that is added as it is becomes the leaf: dL/dr = dL/dz, and one sum is enough.
        self.plain = constraint is None and monitor is None
        self.carried = [False] * len(noise)
        self.recorded: list[Tensor | None] = [None] * len(noise)
        if layouts is not None and rows is not None and device is not None:
            for index, layout in enumerate(layouts):
                if records[index]:
                    self._make_leaf(index, layout, rows, device)
        self.fired = [False] * len(noise)
        self.forwards, self.recomputed = [0] * len(noise), [0] * len(noise)
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * len(noise)
        self._factor: Tensor | None = None

    def _make_leaf(self, index: int, layout: Layout, rows: int, device: torch.device) -> Tensor:
        r = self.noise[index]
        carries = self.plain and isinstance(r, Tensor) and layout.fits(r)
        leaf = layout.leaf(rows, device, r if carries and isinstance(r, Tensor) else None)
        self.carried[index], self.recorded[index] = carries, leaf
        return leaf

    @property
    def leaves(self) -> list[Tensor]:
        """The leaves whose gradient is that of their site: what `backward(loss, inputs=...)` takes, once the pass is made."""
        return [leaf for leaf in self.recorded if leaf is not None]

    def __enter__(self) -> Self:
        """Switch on."""
        self.slot.active = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Switch off, unless a later context is on; complain if a site was not reached."""
        if self.slot.active is self:
            self.slot.active = None
        if kind is None:
            self._check_reached()
            if self.monitor is not None:
                self._measure(self.monitor)

    def mean(self, loss: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Make the loss that will be descended, `loss(*arguments)`, a mean over the examples; returns it.

        Whatever the caller multiplies or divides it with afterwards (accumulation, loss scaling) arrives here as the gradient of the mean
        itself, so that `gradients` can give those of the sum of the examples' losses. That is why the pass makes the mean by itself.

        Args:
            loss: gives a mean over the examples of the pass: `criterion.mean`, or the `loss` of a method that perturbs the input.
            arguments: of it.
        """
        value = loss(*arguments)

        def keep(gradient: Tensor) -> None:
            self._factor = gradient.detach()

        value.register_hook(keep)  # type: ignore[no-untyped-call]
        return value

    def gradients(self) -> Gradients:
        """The recorded gradients, of the sum of the examples' losses; the leaves are emptied.

        Raises:
            SiteError: a site was not reached, or does not influence the loss.
        """
        left_out = self._check_reached()
        # A weight of 0 (of a joint loss, say) has recorded zeros, which stay zeros.
        given = self._factor
        factor = None if given is None else safe_divide(torch.full_like(given, self.rows or 1), given)
        result: Gradients = {}
        for site, leaf in zip(self.sites, self.recorded, strict=True):
            if site in left_out:
                result[site] = left_out[site].leaf(self.rows or 0, self.device or torch.device("cpu")).detach()
                continue
            if leaf is None:
                continue
            if leaf.grad is None:
                raise SiteError(
                    f"site '{site}' is dead: the loss does not depend on it (or has not been back-propagated); exclude it"
                )
            gradient = leaf.grad.detach()
            result[site] = gradient if factor is None else gradient * factor
            leaf.grad = None
        return result

    def apply(self, index: int, z: Tensor) -> Tensor:
        """What the network continues with at the site: z + constraint(r, z) + leaf."""
        r, records = self.noise[index], self.records[index]
        if (r is None and not records) or self._is_foreign(index):
            return z
        self.fired[index] = True
        leaf = self._leaf_at(index, z) if records else None
        total = z
        if isinstance(r, Tensor):
            if r.shape != z.shape:
                raise SiteError(
                    f"site '{self.sites[index]}' has shape {tuple(z.shape)}, its perturbation {tuple(r.shape)}"
                )
            # Outside the gradient: through a differentiable clamp a saturated entry has gradient 0, and z's range leaks into dL/dz.
            if not self.carried[index]:
                with torch.no_grad():
                    r = r.detach() if self.constraint is None else self.constraint(r, z)
                # z first, so that the sum keeps z's memory format.
                total = z + r
        elif r is not None:
            total = r(z)
        if leaf is not None:
            # As a view, so that the leaf can keep the gradient: it would copy one that other nodes hold too.
            total = total + leaf.view_as(leaf)
        if self.same:
            total = total.to(z.dtype)
        if self.monitor is not None and r is not None:
            self.kept[index] = (z.detach(), (total - z).detach())
        return total

    def _leaf_at(self, index: int, z: Tensor) -> Tensor:
        """The leaf of a site, made for the activation that is seen there if none fits it yet."""
        if not torch.is_grad_enabled():
            raise SiteError(
                f"site '{self.sites[index]}' was reached without gradient tracking while its gradient is recorded: "
                "it lies in torch.no_grad() or in an activation checkpoint; checkpoint with use_reentrant=False"
            )
        leaf = self.recorded[index]
        if leaf is not None and leaf.shape == z.shape:
            return leaf
        if self.rows is not None and (not z.ndim or len(z) != self.rows):
            raise SiteError(
                f"site '{self.sites[index]}' has shape {tuple(z.shape)} for a batch of {self.rows}: its first dimension is not the batch"
            )
        if leaf is not None and self.forwards[index] > 1:
            raise SiteError(
                f"site '{self.sites[index]}' has shape {tuple(z.shape)} where it had {tuple(leaf.shape)} before in the same pass, "
                "which records one shape; open a context for each"
            )
        return self._make_leaf(index, Layout.of(z), len(z), z.device)

    def _is_foreign(self, index: int) -> bool:
        """Whether this is the recomputation, by an activation checkpoint, of a pass that was made before this context.

        A joint loss back-propagates a clean and a perturbed pass together. The engine runs later nodes first, so the recomputations
        of this context's own passes come first, as many as it made forward passes; the others have to stay as they were.
        """
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self.forwards[index] += 1
            return False
        self.recomputed[index] += 1
        return self.recomputed[index] > self.forwards[index]

    def _check_reached(self) -> Mapping[Site, Layout]:
        """Complain about sites that were not reached, or give those that the pass may leave out where it records."""
        if all(self.fired):
            return {}
        wanted = [r is not None or records for r, records in zip(self.noise, self.records, strict=True)]
        missed = [site for site, want, fired in zip(self.sites, wanted, self.fired, strict=True) if want and not fired]
        if not missed:
            return {}
        left_out = None if self.missed is None else self.missed(missed, any(self.fired))
        if left_out is None:
            raise SiteError(
                f"site '{missed[0]}' was not reached in this pass: no forward pass ran, the branch was not taken, "
                "or the model was compiled before the sites were attached (attach first, then compile)"
            )
        return left_out

    def _measure(self, record: dict[str, dict[str, Tensor]]) -> None:
        """Sizes of the noise, and the share of its first-order effect <r, g> that survived the sum's rounding."""
        for site, r, leaf, kept in zip(self.sites, self.noise, self.recorded, self.kept, strict=True):
            if r is None or kept is None:
                continue
            # Sums are of double precision, their terms are not: activations as doubles would set the run's peak memory.
            z, added = _single(kept[0]), _single(kept[1])
            square = _sum(added, added)
            sizes = {
                "rms": (square / added.numel()).sqrt(),
                "max": added.abs().amax(),
                "relative": (square / _sum(z, z)).sqrt(),
            }
            if leaf is not None and leaf.grad is not None:
                g = _single(leaf.grad)
                asked = added
                if isinstance(r, Tensor):
                    asked = _single(r if self.constraint is None else self.constraint(r, kept[0]))
                sizes["survival"] = _sum(added, g) / _sum(asked, g)
            record[str(site)] = sizes


class Hook:
    """The hooks of one side of one module; it counts the calls only where the module is called several times.

    A module called once ignores the count, so that its recomputation in a checkpoint's backward finds its noise.
    """

    def __init__(self, slot: Slot, indices: list[int], sites: list[Site], expected: int) -> None:
        self.slot, self.indices, self.sites, self.expected = slot, indices, sites, expected
        self.counts = expected > 1
        self.calls = 0

    def reset(self, module: nn.Module, args: Any) -> None:
        """Start a forward pass of the network."""
        self.calls = 0

    def _turn(self) -> int | None:
        if not self.counts:
            return None
        if self.calls == self.expected and self.slot.active is not None:
            raise SiteError(
                f"site '{self.sites[0]}' is called more often than the {self.expected} times of a forward pass: it lies in an activation "
                "checkpoint, whose recomputation cannot tell the calls apart; exclude it or give each call its own module"
            )
        self.calls += 1
        return self.calls - 1

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Forward pre-hook: exchange arguments."""
        active, call = self.slot.active, self._turn()
        if active is None:
            return None
        for index, site in zip(self.indices, self.sites, strict=True):
            if site.call == call:
                key = next(iter(arguments_of(args, kwargs))) if site.key is None else site.key
                if isinstance(key, str):
                    kwargs = {**kwargs, key: active.apply(index, kwargs[key])}
                elif key is not None:
                    args = (*args[:key], active.apply(index, args[key]), *args[key + 1 :])
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: exchange tensors of the output."""
        active, call = self.slot.active, self._turn()
        if active is None:
            return None
        for index, site in zip(self.indices, self.sites, strict=True):
            if site.call == call:
                z = output if site.key is None else tensors_of(output)[site.key]
                output = _replaced(output, site.key, active.apply(index, z))
        return output


def _replaced(value: Any, key: int | str | None, tensor: Tensor) -> Any:
    """`value` with one of its tensors exchanged, out of place, its type kept."""
    if key is None:
        return tensor
    if isinstance(value, Mapping):
        changed = dict(value) if type(value) is dict else value.copy()  # type: ignore[attr-defined]
        changed[key] = tensor
        return changed
    items = [tensor if i == key else v for i, v in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _single(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>."""
    return (a * b).sum(dtype=torch.float64)
