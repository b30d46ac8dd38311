"""The errors that layerwise raises: each says what, where, what was found and what to type instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 8000
"""Characters of a message: what it quotes may come from a file of any size."""

MOST = 20
"""Names that are listed where none is close."""


class LayerwiseError(Exception):
    """Base of every error that a user can cause and mend; the command line prints it in one sentence, exit code 2.

    >>> print(DataError("the file a\\x1b[2J.png is missing"))
    the file a\\x1b[2J.png is missing
    """

    def __str__(self) -> str:
        """The sentence; what would steer a terminal, as the names of files can, is spelled out, and long quotations are cut."""
        text = super().__str__()
        text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"
        return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    # Line breaks separate the lines of some messages; files whose names have them are told in two lines.
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode()


class SiteError(LayerwiseError):
    """A site is unknown, ambiguous, dead or was not reached."""


class DataError(LayerwiseError):
    """A data set, file or batch is missing, corrupt or out of range."""


class ConfigError(LayerwiseError):
    """A setting is unknown, of the wrong kind or out of range."""


class CheckpointError(LayerwiseError):
    """A checkpoint or run folder is missing, corrupt or belongs to something else."""


class CaptureError(LayerwiseError):
    """A training step cannot be recorded once and replayed."""


def did_you_mean(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """A sentence that names the entries of `known` closest to `name`, or all of them when none is close.

    >>> did_you_mean("slta", ["slat", "anp"])
    "did you mean 'slat'?"
    """
    known = list(known)
    if not known:
        return "there is none"
    folded = {k.lower(): k for k in known}
    if name.lower() in folded:
        return f"did you mean '{folded[name.lower()]}'?"
    close = [folded[k] for k in difflib.get_close_matches(name.lower(), folded, n=count, cutoff=0.5)]
    if not close:
        # Part by part: 'slt' is no near match of 'slat-digits', but of its first part.
        parts = {k: difflib.get_close_matches(name, re.split(r"[-_.:]", k), n=1, cutoff=0.6) for k in known}
        close = [k for k, part in parts.items() if part][:count]
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    if len(known) <= MOST:
        return f"known: {', '.join(sorted(known))}."
    nearest = [folded[k] for k in difflib.get_close_matches(name.lower(), folded, n=count, cutoff=0)]
    return f"the nearest of {len(known)}: {', '.join(nearest)}."
