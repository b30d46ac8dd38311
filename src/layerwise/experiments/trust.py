"""Which texts may name code outside layerwise: trust belongs to where a text comes from.

What the user types, or writes as a recipe, is trusted. What is reached through a run folder is not, however deep: its
configuration, a recipe in it or that it names, the runs that these start from or compare with; unless the user says
`--trust`. Trust is asked for where texts become settings: a name of the user's code is imported there, once, and
everything after that finds only what has been imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_ALL: ContextVar[bool] = ContextVar("_ALL", default=False)

RUN, SEARCH = "config.yaml", "tune.yaml"
"""What makes a folder a run's, or a search's."""


@contextmanager
def trusting(everything: bool) -> Iterator[None]:
    """Trust run folders too, for the duration, if the user has said so; inside a context that does, everything is trusted."""
    token = _ALL.set(_ALL.get() or everything)
    try:
        yield
    finally:
        _ALL.reset(token)


def trusts_all() -> bool:
    """Whether the user has said `--trust`."""
    return _ALL.get()


def trusted(file: Path, *, named: bool) -> bool:
    """Whether what a file says may name code.

    Args:
        file: a recipe, or a run's configuration.
        named: whether it is the user, or a text that is trusted, who names the file.
    """
    return _ALL.get() or (named and not is_in_run(file))


def is_in_run(file: Path) -> bool:
    """Whether a file is the configuration of a run or search, or lies in the folder of one.

    The current folder, and those around it, count only if they are surely a run's: a project may have a config.yaml of its own.
    """
    if file.name in (RUN, SEARCH):
        return True
    here = Path.cwd()
    places = {*file.absolute().parents, *file.resolve().parents}
    around = {here, *here.parents}
    if any((place / RUN).is_file() or (place / SEARCH).is_file() for place in places - around):
        return True
    return any((place / RUN).is_file() and (place / "versions.json").is_file() for place in places & around)
