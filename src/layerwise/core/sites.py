"""Sites attached to an unmodified network: record the gradient there, add noise there, or both in one pass.

The key fact (ANP): with noise r added to an activation z, dL/dr = dL/dz. So a zero leaf added by a forward hook records the gradient
of its site in the backward pass that happens anyway, for any module, without touching the network's code, keys or parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, each_tensor, examples, rows, shape_of
from layerwise.core.passes import Constraint, Hook, Pass, Replacement, Slot
from layerwise.core.selection import Selection, select
from layerwise.core.tracing import Layout, Side, Site, skips, trace_both, two_rows
from layerwise.errors import ConfigError, SiteError

logger = logging.getLogger("layerwise")


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of torch.compile, DDP, DataParallel and Lightning Fabric."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the network is a {type(model).__name__}; give a torch.nn.Module that gives logits")
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
    return any(isinstance(getattr(hook, "__self__", None), Hook) for hook in hooks)


@dataclass
class _Found:
    """What traces in one mode of the network have found.

    Args:
        sites: the chosen ones.
        calls: how often their modules are called.
        layouts: of the activations, for each shape of input that was traced.
        latest: the last of these shapes that was asked for.
    """

    sites: tuple[Site, ...] = ()
    calls: Mapping[str, int] = field(default_factory=dict)
    layouts: dict[Hashable, list[Layout]] = field(default_factory=dict)
    latest: Hashable = None


class Sites:
    """The chosen sites of one network.

    Hooks are attached when the sites are resolved, by one forward pass over an example batch: here if `example` is given, else at the
    first `record`. Sites are those of the mode, training or evaluation, in which they are used: a network may call other modules there,
    so they are looked for again when the mode has changed. Shapes are those of each pass. Between passes the hooks return what they are
    given; `remove` leaves the network bit-identical. Resolve before torch.compile: a hook that comes after the first compiled call is
    ignored by it.

    Args:
        model: any module, wrapped or not.
        selection: which sites; see `layerwise.core.selection.select`.
        first: only the first so many.
        exclude: which not.
        dtype: `"float32"`: under autocast a site hands on the float32 sum, because noise below the resolution of bf16 would vanish
            (measured: 5 to 67 % of LAD's first-order effect survives on a ResNet-56); `"same"`: the activation's own type, enough
            for sign steps of the activation's size.
        example: a batch to resolve the sites with.

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
        example: Inputs | None = None,
    ) -> None:
        self.model = unwrap(model)
        self.selection, self.first, self.exclude, self.dtype = selection, first, exclude, dtype
        self.monitor: dict[str, dict[str, Tensor]] | None = None
        self.slot = Slot()
        self._found = _Found()
        self._mode: bool | None = None
        self._by_mode: dict[bool, _Found] = {}
        self._example: Inputs | None = None
        self._handles: list[Any] = []
        self.left_out: set[Site] = set()
        if example is not None:
            self.resolve(example)

    def attach(self, x: Inputs) -> None:
        """Find the sites and attach the hooks, unless that is done for the mode in which the network is now.

        Args:
            x: a batch, two rows of which are passed.
        """
        mode = self.model.training
        if self._mode is mode:
            return
        found = self._by_mode.get(mode) or self._trace(x)
        if (found.sites, found.calls) != (self._found.sites, self._found.calls):
            self._take_hooks_away()
            self._add_hooks(found)
        self._found, self._mode, self._by_mode[mode] = found, mode, found

    def resolve(self, x: Inputs) -> None:
        """Attach, and know the shapes of the activations for inputs of the shape of x, so that noise can be made before the pass."""
        self.attach(x)
        shape = shape_of(x)
        if shape not in self._found.layouts:
            self._found.layouts[shape] = self._trace(x).layouts[shape]
        self._found.latest = shape

    def _trace(self, x: Inputs) -> _Found:
        """The sites in the network's present mode, with the layouts for x."""
        self._example = each_tensor(two_rows(x), torch.clone)  # not a view, which would keep the whole batch
        active, self.slot.active = self.slot.active, None
        found = trace_both(self.model, x)
        self.slot.active = active
        chosen = select(found, self.selection, first=self.first, exclude=self.exclude)
        return _Found(
            tuple(c.site for c in chosen),
            {c.site.module: found.calls[c.site.module] for c in chosen},
            {shape_of(x): [c.layout for c in chosen]},
            shape_of(x),
        )

    def _add_hooks(self, found: _Found) -> None:
        modules = dict(self.model.named_modules())
        groups: dict[tuple[str, Side], list[int]] = {}
        for index, site in enumerate(found.sites):
            groups.setdefault((site.module, site.side), []).append(index)
        for (name, side), indices in groups.items():
            hook = Hook(self.slot, indices, [found.sites[i] for i in indices], found.calls[name])
            if hook.counts:
                self._handles.append(self.model.register_forward_pre_hook(hook.reset, prepend=True))
            if side == "input":
                self._handles.append(modules[name].register_forward_pre_hook(hook.before, with_kwargs=True))
            else:
                self._handles.append(modules[name].register_forward_hook(hook.after))

    def _take_hooks_away(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def remove(self) -> None:
        """Take away our hooks, and only ours; a later `record` attaches them again."""
        self._take_hooks_away()
        self._by_mode.clear()
        self._found, self._mode, self._example = _Found(), None, None

    def record(
        self,
        x: Inputs,
        noise: Mapping[Site, Tensor | Replacement] | None = None,
        *,
        constraint: Constraint | None = None,
    ) -> Pass:
        """A context in which forward passes record their gradient at every site (and add `noise`).

        Args:
            x: the batch that will be passed.
            noise: r for some sites, of the shape of z, or what replaces z; nothing is added elsewhere.
            constraint: see `Constraint`.
        """
        self.attach(x)
        found = self._found
        return Pass(
            self.slot,
            found.sites,
            self._indexed(noise or {}),
            [True] * len(found.sites),
            rows=rows(x),
            constraint=constraint,
            layouts=found.layouts.get(shape_of(x)),
            missed=self._missed(x),
            device=examples(x).device,
            same=self.dtype == "same",
            monitor=self.monitor,
        )

    def perturb(self, noise: Mapping[Site, Tensor | Replacement], *, constraint: Constraint | None = None) -> Pass:
        """A context in which forward passes continue with z + constraint(r, z), or f(z), at the sites of `noise`.

        Keep it open until the loss is back-propagated: under activation checkpointing the forward is run again then.

        Raises:
            SiteError: the perturbation is empty or names a site that is not attached.
        """
        if not noise:
            raise SiteError("the perturbation is empty: it names no site")
        if self._example is not None and self._mode is not self.model.training:
            self.attach(self._example)
        indexed = self._indexed(noise)
        return Pass(
            self.slot,
            self._found.sites,
            indexed,
            [self.monitor is not None and r is not None for r in indexed],
            missed=self._missed(None),
            constraint=constraint,
            same=self.dtype == "same",
            monitor=self.monitor,
        )

    def _indexed(self, noise: Mapping[Site, Tensor | Replacement]) -> list[Tensor | Replacement | None]:
        attached = self._found.sites
        if unknown := [site for site in noise if site not in attached]:
            raise SiteError(
                f"site '{unknown[0]}' is not attached; attached are {', '.join(map(str, attached)) or 'none yet'}"
            )
        return [noise.get(site) for site in attached]

    def _missed(self, x: Inputs | None) -> Callable[[list[Site], bool], dict[Site, Layout] | None] | None:
        """What a training pass asks that has left out sites, see `Pass`; x is the batch of a pass that records."""
        if not self.model.training:
            return None

        def asked(sites: list[Site], others: bool) -> dict[Site, Layout] | None:
            # That no site at all was reached has other causes (nothing ran, hooks that a compiled network ignores): see it happen.
            if not (others or self.left_out or skips({s.module for s in self}, self.model, self._example)):
                return None
            if not self.left_out:
                logger.warning(
                    f"not every pass of training reaches {', '.join(map(str, sites))} (blocks left out at random?): such sites get their "
                    "noise where they are reached, and a gradient of 0 where they are not"
                )
            self.left_out |= set(sites)
            if x is None:
                return {}
            self.resolve(x)
            return {site: self._layouts[self._found.sites.index(site)] for site in sites}

        return asked

    def leave(self) -> None:
        """Close whatever context is open: what an abandoned generator left."""
        self.slot.active = None

    def __iter__(self) -> Iterator[Site]:
        """Go through the sites in the order of the calls."""
        return iter(self._found.sites)

    def __len__(self) -> int:
        """Count the sites; 0 before they are resolved."""
        return len(self._found.sites)

    def __enter__(self) -> Self:
        """Attach for the duration of a `with`."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the hooks."""
        self.remove()

    def shapes(self, x: Inputs) -> dict[Site, torch.Size] | None:
        """Shapes of the activations for one example of x, {site: shape}; None if no trace has seen inputs of that shape."""
        layouts = self._found.layouts.get(shape_of(x))
        return None if layouts is None else {s: layout.shape for s, layout in zip(self, layouts, strict=True)}

    def likes(self, x: Inputs) -> dict[Site, Tensor]:
        """What has the shape, type and device that each activation will have in a pass of x, and no memory; {} where nobody knows."""
        device = examples(x).device
        layouts = self._found.layouts.get(shape_of(x))
        autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        if layouts is None or autocast:
            return {}
        return {site: layout.like(rows(x), device) for site, layout in zip(self, layouts, strict=True)}

    def shape(self, site: Site) -> torch.Size:
        """Shape of the site's activation for one example, for inputs of the shape that was resolved last."""
        return self._layouts[self._found.sites.index(site)].shape

    @property
    def _layouts(self) -> list[Layout]:
        return self._found.layouts[self._found.latest]

    def __str__(self) -> str:
        """Give a table of names, shapes and entries per example."""
        if not self._found.sites:
            return f"Sites({self.selection!r}), not resolved yet: pass an example batch"
        rows = [("site", "shape", "entries")] + [
            (str(site), str(tuple(layout.shape)), f"{layout.shape.numel()}")
            for site, layout in zip(self._found.sites, self._layouts, strict=True)
        ]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows)


def choose_sites(model: nn.Module, example: Inputs, *selections: Selection) -> Sites:
    """Sites of the first selection that finds two or more in this network, or else of the first that finds any."""
    found = trace_both(unwrap(model), example)
    some: list[Selection] = []
    for selection in selections:
        with suppress(SiteError):
            if len(select(found, selection)) > 1:
                return Sites(model, selection, example=example)
            some.append(selection)
    return Sites(model, (some or selections)[0], example=example)


def block_sites(model: nn.Module, example: Inputs, sites: Selection | None) -> Sites:
    """Batch-norm outputs, or where there are no two of them convolutions' outputs, then blocks', then those of affine layers."""
    if sites is not None:
        return Sites(model, sites, example=example)
    kinds = ("batch-norm", "convolution", "block", "affine")
    return choose_sites(model, example, *(f"{kind} outputs" for kind in kinds))
