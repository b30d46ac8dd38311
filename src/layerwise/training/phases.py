"""Phases: a schedule of a method's fields, or of the method itself, over the epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, final

from torch import Tensor, nn

from layerwise.core.arguments import Named
from layerwise.core.checks import at_least, parse_radius
from layerwise.core.threat import EPS
from layerwise.errors import ConfigError, did_you_mean
from layerwise.methods.base import LayerMethod, Method


@dataclass(frozen=True, kw_only=True)
class Phase(Named):
    """A part of a run.

    Args:
        epochs: how long.
        fields: of the run's method that change at the phase's first epoch, and stay so; `base.eps` reaches a field's field.
        method: another method that trains in this phase; None is the run's own.

    Raises:
        ConfigError: no epoch, or both `fields` and `method`.

    >>> from layerwise.methods import Standard
    >>> anp = (Phase(epochs=5, method=Standard()), Phase(epochs=20, fields={"eps": 1.0, "k": 3}))
    """

    epochs: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    method: Method | None = None

    def __post_init__(self) -> None:
        """Check the length."""
        at_least("a phase's epochs", self.epochs, 1)
        if self.fields and self.method is not None:
            raise ConfigError(
                "a phase has a method of its own or changes fields of the run's method, not both; leave one"
            )


@final
class Phases:
    """Which method, with which fields, trains in which epoch.

    Args:
        method: the run's method.
        phases: in order; empty is one phase.
        epochs: of the run.

    Raises:
        ConfigError: the phases do not add up to the epochs, or a field is unknown or out of range.
    """

    def __init__(self, method: Method, phases: Sequence[Phase], epochs: int) -> None:
        self.method, self.phases = method, tuple(phases) or (Phase(epochs=epochs),)
        if (covered := sum(p.epochs for p in self.phases)) != epochs:
            raise ConfigError(f"the phases have {covered} epochs and the run {epochs}; type training.epochs={covered}")
        if not is_dataclass(method):
            raise ConfigError(f"{type(method).__name__} is no dataclass; decorate it with @dataclass(kw_only=True)")
        self._given: dict[str, Any] = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
        self._original: Method = _copied(method)
        self.methods: list[Method] = []
        for candidate in (method, *(p.method for p in self.phases)):
            if candidate is not None and not any(candidate is m for m in self.methods):
                self.methods.append(candidate)
        for index in range(len(self.phases)):
            self._as_in(index)

    def index(self, epoch: int) -> int:
        """The phase of an epoch, both from 0."""
        for index, phase in enumerate(self.phases):
            if epoch < phase.epochs:
                return index
            epoch -= phase.epochs
        return len(self.phases) - 1

    def enter(self, epoch: int) -> Method:
        """Give the method of an epoch, its fields set."""
        index = self.index(epoch)
        _take_over(self.method, self._as_in(index))
        return self.phases[index].method or self.method

    def _as_in(self, index: int) -> Method:
        """A copy of the run's method with the fields of the phases up to this one."""
        copy = self._original
        for phase in self.phases[: index + 1]:
            copy = changed(copy, phase.fields)
        return copy

    @contextmanager
    def attached(self, raw: nn.Module, example: Tensor) -> Iterator[None]:
        """All methods on the network, for the whole run, since torch.compile ignores later hooks; fields and hooks as before afterwards.

        Raises:
            ConfigError: a phase would choose other sites.
        """
        mine = [m for m in self.methods if not m.attached_sites()]
        try:
            for method in self.methods:
                method.attach(raw, example)
            self._check_sites(raw, example)
            yield
        finally:
            for method in mine:
                method.detach()
            for name, value in self._given.items():
                setattr(self.method, name, value)
            _take_over(self.method, self._original)

    def _check_sites(self, raw: nn.Module, example: Tensor) -> None:
        attached = [str(site) for sites in self.method.attached_sites() for site in sites]
        for index, phase in enumerate(self.phases):
            copy = _layered(self._as_in(index))
            if not phase.fields or copy is None or not attached:
                continue
            with copy.make_sites(raw, example) as sites:
                chosen = [str(site) for site in sites]
            if chosen != attached:
                raise ConfigError(
                    f"phase {index + 1} would perturb {', '.join(chosen)}, the run perturbs {', '.join(attached)}; the sites of a method "
                    "stay as they are: give the phase a method of its own"
                )


def _copied(method: Method) -> Method:
    """A copy whose base is a copy too; the networks that it looks at are the same."""
    owner: Any = method
    parts = {f.name: getattr(owner, f.name) for f in fields(owner) if f.init}
    return replace(owner, **{k: _copied(v) for k, v in parts.items() if isinstance(v, Method)})  # type: ignore[no-any-return]


def _take_over(method: Method, like: Method) -> None:
    """Give a method the fields of another one; its base stays the same object, with its sites and what it carries over."""
    owner: Any = method
    for name in (f.name for f in fields(owner) if f.init):
        own, new = getattr(owner, name), getattr(like, name)
        if isinstance(own, Method) and type(own) is type(new):
            _take_over(own, new)
        else:
            setattr(owner, name, new)


def _layered(method: object) -> LayerMethod | None:
    """The method that has the sites: itself, or the base of a method around another."""
    while isinstance(method, Method) and not isinstance(method, LayerMethod):
        method = getattr(method, "base", None)
    return method if isinstance(method, LayerMethod) else None


def changed(method: Method, values: Mapping[str, Any]) -> Method:
    """A copy of a method with other fields, checked as at its construction.

    >>> from layerwise.methods import ANP
    >>> changed(ANP(), {"eps": "8/255", "probe.batch_norm": "eval"}).probe
    Probe(batch_norm='eval', criterion=None)

    Raises:
        ConfigError: a field is unknown, of the wrong kind or out of range.
    """
    for name, value in values.items():
        method = _replaced(method, name.split("."), value, name)
    return method


def _replaced(owner: Any, path: Sequence[str], value: Any, name: str) -> Any:
    own = {f.name: f for f in fields(owner) if f.init} if is_dataclass(owner) else {}
    known = list(own)
    if path[0] not in known:
        raise ConfigError(
            f"phase: {type(owner).__name__} has no field '{path[0]}' (in '{name}'); {did_you_mean(path[0], known)}"
        )
    old = getattr(owner, path[0])
    if len(path) > 1:
        value = _replaced(old, path[1:], value, name)
    elif isinstance(value, str) and (isinstance(old, float) or own[path[0]].metadata == EPS):
        value = parse_radius(value)
    elif _is_number(old) and not _is_number(value) and value is not None:
        raise ConfigError(f"phase: '{name}' is {old!r}, found {value!r}; type a number")
    return replace(owner, **{path[0]: value})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
