"""Look at the package's own modules without importing torch, which takes seconds: what they list is names, numbers and sentences."""

from __future__ import annotations

import sys
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

import layerwise

HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "lightning_fabric", "safetensors")
"""Packages that take long to import, and that no listing needs."""


class _Anything(ABCMeta):
    """Makes classes that have every attribute, can be called, subscripted and derived from."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (_Thing,), {})
        setattr(cls, name, made)
        return made

    def __getitem__(cls, item: object) -> Any:
        return cls

    def __call__(cls, *args: Any, **options: Any) -> Any:
        # torch.compile(function), torch.no_grad()(function): what a decorator gives is what it was given.
        if cls.__module__ == __name__:
            return args[0] if args and isinstance(args[0], FunctionType | type) else super().__call__()
        return super().__call__(*args, **options)


class _Thing(metaclass=_Anything):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Thing()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return args[0] if args and isinstance(args[0], FunctionType | type) else _Thing()


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (_Thing,), {})
        setattr(self, name, made)
        return made


class _StandIn(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def without_torch() -> Iterator[None]:
    """Let the package's modules be imported with stand-ins for torch and others; afterwards they are as if never imported.

    Where torch is there already, nothing is changed. What a stand-in cannot do raises whatever it raises.
    """
    if "torch" in sys.modules:
        yield
        return
    finder, own = _StandIn(), dict(vars(layerwise))
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_concerned(name)}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in list(filter(_is_concerned, sys.modules)):
            del sys.modules[name]
        sys.modules.update(aside)
        for name in set(vars(layerwise)) - set(own):
            delattr(layerwise, name)


def _is_concerned(module: str) -> bool:
    """Whether a module may not be seen inside as it is outside, nor outside as it is inside."""
    first, *rest = module.split(".")
    return first in HEAVY or (first == "layerwise" and rest[:1] not in ([], ["cli"], ["errors"]))
