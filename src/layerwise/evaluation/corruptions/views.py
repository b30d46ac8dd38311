"""The two families, corruptions and sequences, seen alike: so many views of every image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from layerwise.evaluation.corruptions.corrupt import CORRUPTIONS, VERSION, corrupt, find
from layerwise.evaluation.corruptions.frost import Frost, load_frost
from layerwise.evaluation.corruptions.sequences import SEQUENCES, perturb
from layerwise.evaluation.corruptions.severities import SEVERITIES, table_for


@final
@dataclass(frozen=True)
class Maker:
    """Makes the views of images.

    Args:
        sequences: frames of sequences; else severities of corruptions.
        seed: of the random numbers.
        table: the corruptions' severities, see `table_for`.
        frost: pictures of frost; by default `load_frost()`.
    """

    sequences: bool = False
    seed: int = 0
    table: str = "auto"
    frost: Frost | None = None

    def count(self, name: str) -> int:
        """Views of an image: 5 severities, or the frames of a sequence."""
        if self.sequences:
            return find(name, SEQUENCES, "sequence")[1]
        find(name, CORRUPTIONS, "corruption")
        return len(SEVERITIES)

    def views(self, x: Tensor, name: str, rows: Tensor) -> Iterator[Tensor]:
        """One view of all images after the other, each of the shape of x.

        Args:
            x: images, shape (B, C, H, W).
            name: the corruption or sequence.
            rows: the images' numbers, shape (B,).
        """
        if self.sequences:
            return perturb(x, name, seed=self.seed, rows=rows)
        options = {"seed": self.seed, "rows": rows, "table": self.table, "frost": self._frost(name)}
        return (corrupt(x, name, severity, **options) for severity in SEVERITIES)  # type: ignore[arg-type]

    def origin(self, name: str, height: int, width: int) -> dict[str, str | int]:
        """All that the views depend on beside the images."""
        origin: dict[str, str | int] = {"name": name, "seed": self.seed, "version": VERSION}
        if not self.sequences:
            origin["table"] = table_for(height, width, self.table).name
        if not self.sequences and name == "frost":
            frost = self._frost(name)
            assert frost is not None
            origin["frost"] = frost.source
        return {"kind": "sequence" if self.sequences else "corruption", **origin}

    def _frost(self, name: str) -> Frost | None:
        return load_frost() if name == "frost" and self.frost is None else self.frost
