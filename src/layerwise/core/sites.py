"""Sites attached to an unmodified network: record the gradient there, add noise there, or both in one pass.

The key fact (ANP): with noise r added to an activation z, dL/dr = dL/dz. So a zero leaf added by a forward hook records the gradient
of its site in the backward pass that happens anyway, for any module, without touching the network's code, keys or parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from layerwise.core.passes import Constraint, Pass, _Hook
from layerwise.core.tracing import Selection, Side, Site, select, trace
from layerwise.errors import SiteError


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of torch.compile, DDP, DataParallel and Lightning Fabric."""
    while True:
        parts = model._modules  # not `hasattr`, which is slow where nothing is found, and this is asked for every batch
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner: Any = model.module
        elif "_forward_module" in parts and "_original_module" in parts:  # Fabric's wrapper, not imported here
            inner = model._original_module or model._forward_module
        elif "_orig_mod" in parts:
            inner = model._orig_mod
        else:
            return model
        model = inner


def has_sites(model: nn.Module) -> bool:
    """Whether any sites are attached to the network."""
    hooks = (h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return any(isinstance(getattr(hook, "__self__", None), _Hook) for hook in hooks)


class Sites:
    """The chosen sites of one network.

    Hooks are attached when the sites are resolved, by one forward pass over an example batch: here if `example` is given, else at the
    first `record`. Between passes they return what they are given; `remove` leaves the network bit-identical. Resolve before
    torch.compile: a hook that comes after the first compiled call is ignored by it.

    Args:
        model: any module, wrapped or not.
        selection: which sites; see `layerwise.core.tracing.select`.
        first: only the first so many.
        exclude: which not.
        dtype: `"float32"`: under autocast a site hands on the float32 sum, because noise below the resolution of bf16 would vanish
            (measured: 5 to 67 % of LAD's first-order effect survives on a ResNet-56); `"same"`: the activation's own type, enough
            for sign steps of the activation's size.
        example: a batch, shape (B, ...), to resolve the sites with.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> sites = Sites(net, ["0", "2"], example=torch.zeros(1, 2))
    >>> print(sites)
    site  shape  entries
    0     (3,)         3
    2     (2,)         2
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        *,
        first: int | None = None,
        exclude: Selection = (),
        dtype: Literal["float32", "same"] = "float32",
        example: Tensor | None = None,
    ) -> None:
        self.model = unwrap(model)
        self.selection, self.first, self.exclude, self.dtype = selection, first, exclude, dtype
        self.monitor: dict[str, dict[str, Tensor]] | None = None
        self._sites: tuple[Site, ...] = ()
        self._calls: dict[str, int] = {}
        self._shapes: list[torch.Size] = []
        self._leaf_options: list[dict[str, Any]] = []
        self._input_shape: torch.Size | None = None
        self._active: Pass | None = None
        self._handles: list[Any] = []
        if example is not None:
            self.resolve(example)

    def resolve(self, x: Tensor) -> None:
        """Find the sites with one forward pass over (at most two rows of) x and attach the hooks; again if x's shape is new."""
        if self._input_shape == x.shape[1:]:
            return
        active, self._active = self._active, None
        found = trace(self.model, x)
        self._active = active
        chosen = select(found, self.selection, first=self.first, exclude=self.exclude)
        self._shapes = [c.shape[1:] for c in chosen]
        self._leaf_options = [
            {"dtype": torch.promote_types(c.dtype, torch.float32), "memory_format": c.memory_format} for c in chosen
        ]
        sites, calls = tuple(c.site for c in chosen), {c.site.module: found.calls[c.site.module] for c in chosen}
        if (sites, calls) != (self._sites, self._calls):
            self.remove()
            self._sites, self._calls = sites, calls
            self._attach(calls)
        self._input_shape = x.shape[1:]

    def _attach(self, calls: Mapping[str, int]) -> None:
        modules = dict(self.model.named_modules())
        groups: dict[tuple[str, Side], list[int]] = {}
        for index, site in enumerate(self._sites):
            groups.setdefault((site.module, site.side), []).append(index)
        for (name, side), indices in groups.items():
            hook = _Hook(self, indices, [self._sites[i] for i in indices], calls[name])
            if hook.counts:
                self._handles.append(self.model.register_forward_pre_hook(hook.reset, prepend=True))
            if side == "input":
                self._handles.append(modules[name].register_forward_pre_hook(hook.before, with_kwargs=True))
            else:
                self._handles.append(modules[name].register_forward_hook(hook.after))

    def remove(self) -> None:
        """Take away our hooks, and only ours; a later `record` attaches them again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sites, self._input_shape = (), None

    def record(
        self, x: Tensor, noise: Mapping[Site, Tensor] | None = None, *, constraint: Constraint | None = None
    ) -> Pass:
        """A context in which forward passes record their gradient at every site (and add `noise`).

        Args:
            x: the batch that will be passed, shape (B, ...): it sizes the leaves.
            noise: r for some sites, shape of z; nothing is added elsewhere.
            constraint: see `Constraint`.
        """
        self.resolve(x)
        indexed = self._indexed(noise or {})
        # Noise that is added as it is becomes the leaf: dL/dr = dL/dz, and one sum is enough.
        plain = constraint is None and self.monitor is None
        carried = [
            plain and r is not None and r.dtype == options["dtype"] and r.shape[1:] == shape
            for r, options, shape in zip(indexed, self._leaf_options, self._shapes, strict=True)
        ]
        leaves = [
            self._leaf(i, x, r if carries else None)
            for i, (r, carries) in enumerate(zip(indexed, carried, strict=True))
        ]
        return Pass(self, indexed, leaves, constraint, carried)

    def _leaf(self, index: int, x: Tensor, r: Tensor | None) -> Tensor:
        """Zeros, or the noise, in the layout that the site has."""
        options = self._leaf_options[index]
        if r is not None:
            return r.detach().contiguous(memory_format=options["memory_format"]).requires_grad_()
        return torch.empty((len(x), *self._shapes[index]), device=x.device, **options).zero_().requires_grad_()

    def perturb(self, noise: Mapping[Site, Tensor], *, constraint: Constraint | None = None) -> Pass:
        """A context in which forward passes continue with z + constraint(r, z) at the sites of `noise`.

        Keep it open until the loss is back-propagated: under activation checkpointing the forward is run again then.

        Raises:
            SiteError: the perturbation is empty or names a site that is not attached.
        """
        if not noise:
            raise SiteError("the perturbation is empty: it names no site")
        indexed = self._indexed(noise)
        monitored = self.monitor is not None
        watched = [torch.zeros_like(r, requires_grad=True) if monitored and r is not None else None for r in indexed]
        return Pass(self, indexed, watched, constraint)

    def _indexed(self, noise: Mapping[Site, Tensor]) -> list[Tensor | None]:
        if unknown := [site for site in noise if site not in self._sites]:
            raise SiteError(
                f"site '{unknown[0]}' is not attached; attached are {', '.join(map(str, self._sites)) or 'none yet'}"
            )
        return [noise.get(site) for site in self._sites]

    def leave(self) -> None:
        """Close whatever context is open: what an abandoned generator left."""
        self._active = None

    def __iter__(self) -> Iterator[Site]:
        """Go through the sites in the order of the calls."""
        return iter(self._sites)

    def __len__(self) -> int:
        """Count the sites; 0 before they are resolved."""
        return len(self._sites)

    def __enter__(self) -> Self:
        """Attach for the duration of a `with`."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the hooks."""
        self.remove()

    def shape(self, site: Site) -> torch.Size:
        """Shape of the site's activation for one example."""
        return self._shapes[self._sites.index(site)]

    def __str__(self) -> str:
        """Give a table of names, shapes and entries per example."""
        if not self._sites:
            return f"Sites({self.selection!r}), not resolved yet: pass an example batch"
        rows = [("site", "shape", "entries")] + [
            (str(s), str(tuple(h)), f"{h.numel()}") for s, h in zip(self._sites, self._shapes, strict=True)
        ]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows)


def choose_sites(model: nn.Module, example: Tensor, *selections: Selection) -> Sites:
    """Sites of the first selection that this network has."""
    for selection in selections[:-1]:
        with suppress(SiteError):
            return Sites(model, selection, example=example)
    return Sites(model, selections[-1], example=example)


def block_sites(model: nn.Module, example: Tensor, sites: Selection | None) -> Sites:
    """Batch-norm outputs, or convolution outputs where there is no batch norm, or affine outputs where there is no convolution."""
    if sites is not None:
        return Sites(model, sites, example=example)
    return choose_sites(model, example, "batch-norm outputs", "convolution outputs", "affine outputs")
