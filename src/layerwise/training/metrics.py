"""What a run tells while it trains: lines of JSON, sums that stay on the device, and the progress bar.

Each line of metrics.jsonl has `kind`, `step` (batches done) and `epoch` (from 1): "train" (since the line before), "epoch", "sites" (sizes
and surviving share of the perturbations), "diagnose" (the method's own numbers), "phase", "message", "end".
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from layerwise.core.cost import duration
from layerwise.files import append, open_in_place, writing
from layerwise.training.events import EventFile
from layerwise.training.ranks import smallest, total

logger = logging.getLogger("layerwise")

PAUSE = 30.0
"""Seconds between two sentences about a run that nobody watches."""

SEVERAL = 16
"""Passes whose right answers are counted at once: on a CPU that takes 2 % off the step of a small network."""

Progress: TypeAlias = bool | Literal["force"]
"""True shows a bar where a person watches, `"force"` everywhere, False nowhere."""


@final
class MetricsFile:
    """Appends records to metrics.jsonl, and to TensorBoard's files if asked to.

    Args:
        path: of the file; None keeps nothing.
        tensorboard: folder of TensorBoard's event files; None writes none.
    """

    def __init__(self, path: Path | None, *, tensorboard: Path | None = None) -> None:
        self.path = path
        self.events = EventFile(tensorboard) if tensorboard is not None else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; numbers that are not finite become their names.

        Raises:
            CheckpointError: the disk refused.
        """
        if self.path is None:
            return
        append(self.path, f"{json.dumps(finite(record))}\n".encode())
        if self.events is not None and (kind := record["kind"]) in ("train", "epoch"):
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "epoch")}
            with writing(self.events.path):
                self.events.write({f"{kind}/{name}": value for name, value in numbers.items()}, step=record["step"])

    @property
    def size(self) -> int:
        """Bytes written: what a checkpoint remembers, so that a resumed run does not tell twice."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def truncate(self, size: int) -> str | None:
        """Forget what came after a checkpoint.

        Args:
            size: bytes written then.

        Returns:
            A sentence if fewer are there, as after a power failure; half a line is then removed.

        Raises:
            CheckpointError: the disk refused.
        """
        there = self.size
        if self.path is None or there == size:
            return None
        with writing(self.path):
            if there:
                with open_in_place(self.path, "r+b") as file:
                    file.truncate(size if there > size else file.readall().rfind(b"\n") + 1)
        if there > size:
            return None
        return (
            f"{self.path.name} has {there} of the {size} bytes that the checkpoint remembers: lines of metrics are lost"
        )


def finite(value: Any) -> Any:
    """The value for JSON: containers rebuilt, numbers that are not finite as text.

    >>> finite({"loss": float("nan"), "at": (1, 2.5)})
    {'loss': 'nan', 'at': [1, 2.5]}
    """
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@final
class Totals:
    """Sums over the batches since the last look; they stay on the device, and whether they are finite with them.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        # float32 where there is no float64 (MPS).
        self.sums = torch.zeros(2, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        self.loss, self.correct = self.sums.unbind()  # taken once: each look at a part costs as much as adding to it
        self.good = torch.zeros((), device=device, dtype=torch.int64)
        self.rows = 0
        self.batches = 0
        self._answers: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, logits: Tensor | None, y: Tensor, *, later: bool = False) -> None:
        """Add one pass.

        Args:
            loss: its mean loss.
            logits: shape (B, C), if they are known.
            y: labels, shape (B,).
            later: count the right answers of several passes at once, which a step that is recorded cannot.
        """
        self.loss.add_(loss.detach(), alpha=len(y))
        self.rows += len(y)
        if logits is not None:
            self._answers.append((logits, y))
        if not later or len(self._answers) == SEVERAL:
            self._count()

    def _count(self) -> None:
        """Count the correct answers."""
        if self._answers:
            logits, y = (p[0] if len(p) == 1 else torch.cat(p) for p in zip(*self._answers, strict=True))
            self.correct.add_((logits.argmax(dim=1) == y).sum())
            self._answers.clear()

    def bad(self) -> Tensor:
        """1.0 from the first loss on that is not finite, else 0.0; no synchronisation (0-dim, float32)."""
        return self.loss.isfinite().logical_not().float()

    def end_batch(self) -> None:
        """Count the batch, and whether all was finite up to here."""
        self.good += self.loss.isfinite()
        self.batches += 1

    def read(self) -> tuple[float, int, int, int]:
        """Sum of losses, correct answers, rows, and batches before the first that was not finite, over all ranks; starts afresh."""
        self._count()
        sums = total(torch.stack([self.sums[0], self.sums[1], torch.tensor(self.rows).to(self.sums)]))
        loss, correct, rows = sums.tolist()
        good, self.rows, self.batches = smallest(int(self.good), self.good.device), 0, 0
        self.sums.zero_()
        self.good.zero_()
        return loss, round(correct), round(rows), good

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._count()
        return {"sums": self.sums.cpu(), "good": int(self.good), "rows": self.rows, "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.sums.copy_(state["sums"])
        self.good.fill_(state["good"])
        self.rows, self.batches = state["rows"], state["batches"]


@final
class Bar:
    """A progress bar over the run's batches with the estimated end, and a line below it: epoch, loss, accuracies, images a second.

    Where nobody watches, in a log file, the same is logged as a sentence every half minute.

    Args:
        show: see `Progress`.
        total: batches of the run.
        done: batches done before.
        title: what runs.
    """

    def __init__(self, show: Progress, *, total: int, done: int, title: str) -> None:
        self._live: Any = None
        self._said: dict[str, str] = {}
        self._title, self._total, self._first = title, total, done
        self._began = self._told = time.monotonic()
        self._quiet = not show
        if not show:
            return
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        console = Console(stderr=True, force_terminal=True if show == "force" else None)
        if not console.is_terminal:
            return
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        bar = BarColumn(bar_width=20)
        self._bar = RichProgress(TextColumn("{task.description}"), bar, MofNCompleteColumn(), *times, console=console)
        self._task = self._bar.add_task(title, total=total, completed=done)
        self._line = Text()
        self._live = Live(Group(self._bar, self._line), console=console)
        self._live.start()

    def update(self, done: int, **values: str) -> None:
        """Move to `done` batches; `values` change what is said below."""
        self._said |= values
        if self._live is not None:
            self._line.plain = self._sentence("  ")
            self._bar.update(self._task, completed=done)
        elif self._said and not self._quiet and time.monotonic() - self._told >= PAUSE and done > self._first:
            self._told = time.monotonic()
            left = (self._told - self._began) / (done - self._first) * (self._total - done)
            said = self._sentence(", ")
            logger.info("%s: batch %d of %d, about %s left, %s", self._title, done, self._total, duration(left), said)

    def _sentence(self, between: str) -> str:
        return between.join(f"{name.replace('_', ' ')} {value}" for name, value in self._said.items())

    def close(self) -> None:
        """Leave the last state standing."""
        if self._live is not None:
            self._live.stop()


@final
class Clock:
    """Images a second since the last look, without the time that evaluation took."""

    def __init__(self) -> None:
        self.started = self.mark = time.perf_counter()
        self.rows = 0

    def restart(self) -> None:
        """Do not count what happened since."""
        self.mark, self.rows = time.perf_counter(), 0

    def rate(self) -> float:
        """Images a second; starts afresh."""
        elapsed = time.perf_counter() - self.mark
        rate = self.rows / elapsed if elapsed > 0 else 0.0
        self.restart()
        return rate

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.started
