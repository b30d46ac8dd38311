"""How a few sites are chosen: by their names, by a regular expression, or by a phrase."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from layerwise.core.phrases import PHRASES, counted, meaning
from layerwise.core.tracing import Candidate, Site, Trace
from layerwise.errors import SiteError, did_you_mean

Selection: TypeAlias = str | Sequence[str]
"""A regular expression or a phrase (`"input"`, `"affine outputs"`, `"first(4)"`, ...), or a list of names and phrases."""

SHORTCUTS = r"(.*\.)?(shortcut|downsample)(\..*)?"
"""Matches the modules on the skip path of a residual block, under the names that networks give them."""


def select(found: Trace, selection: Selection, *, first: int | None = None, exclude: Selection = ()) -> list[Candidate]:
    """Choose sites.

    Args:
        found: what one forward pass reached.
        selection: a string is a phrase or a regular expression that has to match a site's whole name; a list holds
            phrases, exact names, and dotted suffixes of names (used only where no name is exactly that). Phrases:
            `"input"` (of several arguments the one that holds the examples), `"embeddings"` (the output of the first
            layer), `"affine outputs"` (convolutions and linear layers), `"convolution outputs"`,
            `"batch-norm outputs"`, `"block outputs"` and `"block states"` (the first block's input x_0 and the outputs
            x_1..x_N; also written `residual-block`), `"attention outputs"`, `"mlp outputs"` (what the last layer
            beside attention gives, in each block), and `"first(m)"`: the first m affine outputs counted from the
            input, shortcuts left out; `"first(m) block outputs"` and so on. See `layerwise.core.phrases`.
        first: keep only the first so many layers, in the order of the calls. The network's input and the gates in
            its blocks are not counted, and what comes before the first block counts once.
        exclude: the same grammar; what it matches is left out. A string may match nothing, a list may not.

    Raises:
        SiteError: nothing matched, a name is ambiguous or never called, an exclusion names nothing or leaves nothing.
    """
    chosen = _match(found, selection)
    if exclude:
        # A pattern may match nothing (not every network has shortcuts); a name in a list is meant.
        excluded = {c.site for c in _match(found, exclude, optional=isinstance(exclude, str))}
        kept = [c for c in chosen if c.site not in excluded]
        if not kept:
            raise SiteError(f"exclude={exclude!r} leaves none of the {len(chosen)} sites that {selection!r} chose")
        chosen = kept
    if first is not None:
        inputs = [c for c in chosen if c.site.module == ""]
        layers = counted(found, [c for c in chosen if c.site.module != ""])
        if not layers:
            raise SiteError(f"{selection!r} finds no layer inside the network, whose first {first} could be taken")
        if not 1 <= first <= len(layers):
            raise SiteError(f"first={first} of {selection!r} is not possible: type a number from 1 to {len(layers)}")
        chosen = inputs + layers[:first]
    return [_checked(c, found.batch) for c in chosen]


def _match(found: Trace, selection: Selection, *, optional: bool = False) -> list[Candidate]:
    entries = [selection] if isinstance(selection, str) else list(selection)
    if not entries:
        raise SiteError("no site is chosen; name some, for example sites=['input', 'conv1'], or 'batch-norm outputs'")
    for entry in entries:
        if not isinstance(entry, str):
            raise SiteError(
                f"a site is named by a text, and this is a {type(entry).__name__}; type for example sites=['conv1']"
            )
    by_name = not isinstance(selection, str)
    hits: dict[Site, Candidate] = {}
    for entry in entries:
        matched = _phrase(found, entry)
        if matched is None:
            matched = _named(found, entry) if by_name else _regular(found, entry)
        if not matched and not optional:
            raise SiteError(_nothing(found, entry))
        hits.update({c.site: c for c in matched})
    return [c for c in found if c.site in hits]


def _phrase(found: Trace, entry: str) -> list[Candidate] | None:
    """What a phrase stands for; None where `entry` is none."""
    if by_count := re.fullmatch(r"first\((\d+)\)( .+)?", entry):
        of = (by_count[2] or "affine outputs").strip()
        return select(found, of, first=int(by_count[1]), exclude=SHORTCUTS) if of in PHRASES else None
    return meaning(found, entry)


def _aliases(candidate: Candidate) -> set[str]:
    """Every name that a selection may use for this one site."""
    return {str(replace(candidate.site, key=key)) for key in (candidate.site.key, candidate.key, None)}


def _regular(found: Trace, pattern: str) -> list[Candidate]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SiteError(f"the site pattern {pattern!r} is not a regular expression: {error}") from error
    return [c for c in found if c.site.module and compiled.fullmatch(str(c.site))]


def _named(found: Trace, name: str) -> list[Candidate]:
    exact = [c for c in found if name in _aliases(c)]
    if not exact and (
        calls := [c for c in found if c.site.call is not None and str(replace(c.site, call=None)) == name]
    ):
        listed = ", ".join(str(c.site) for c in calls)
        raise SiteError(f"site {name!r} is called {len(calls)} times in one forward pass; name the call: {listed}")
    if len(exact) > 1:
        listed = ", ".join(str(c.site) for c in exact)
        raise SiteError(f"site {name!r} is ambiguous: {len(exact)} tensors pass there; name one: {listed}")
    return exact or [c for c in found if any(alias.endswith("." + name) for alias in _aliases(c))]


def _nothing(found: Trace, entry: str) -> str:
    if found.calls.get(entry) == 0:
        return f"site {entry!r} is registered in the network but never called in a forward pass"
    if entry in PHRASES:
        known = [repr(str(c.site)) for c in meaning(found, "affine outputs") or ()][:2]
        hint = f"name some, for example sites=[{', '.join(known)}]; " if known else ""
        return f"the network has no {entry}; {hint}`layerwise sites MODEL` lists all"
    names = [str(c.site) for c in found]
    return f"no site matches {entry!r}; {did_you_mean(entry, names)} (`layerwise sites MODEL` lists all)"


def _checked(candidate: Candidate, batch: int) -> Candidate:
    if reason := candidate.refusal(batch):
        raise SiteError(f"site '{candidate.site}' {reason}")
    return candidate
