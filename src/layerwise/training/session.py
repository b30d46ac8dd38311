"""A run in progress: where it is, what it has summed up, and what it tells between batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.core.calling import logits_of
from layerwise.core.driving import Part, cut
from layerwise.core.random import Bank, Stream
from layerwise.core.shards import weights_of
from layerwise.core.threat import ThreatModel
from layerwise.data import ImageData, batches, num_batches, rank_rows
from layerwise.errors import ConfigError
from layerwise.methods.base import Method
from layerwise.training.ema import Average
from layerwise.training.fsdp import Shards
from layerwise.training.interrupt import Interrupt
from layerwise.training.metrics import Bar, Clock, MetricsFile, Progress, Totals
from layerwise.training.monitor import NotFinite, OverfitMonitor, lost_noise
from layerwise.training.phases import Phases
from layerwise.training.run import Run
from layerwise.training.settings import Training

Watch: TypeAlias = Callable[[nn.Module], Mapping[str, float]]
"""Numbers of the caller's own about a network, by name."""

logger = logging.getLogger("layerwise")


@final
@dataclass(frozen=True)
class FitResult:
    """What a run gave.

    Args:
        run: its folder, if it has one.
        history: one record an epoch, as in metrics.jsonl.
        best: epoch, score, clean and robust accuracy of the best epoch; None if nothing was evaluated.
        flags: what went wrong in a known way, such as `"catastrophic-overfitting"`.
        messages: every sentence that was told.
        average: the averaged network's `state_dict`, with `ema_decay`.
        steps: batches done.
        seconds: time of this call.
    """

    run: Path | None
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    flags: list[str]
    messages: list[str]
    average: dict[str, Tensor] | None
    steps: int
    seconds: float


@final
@dataclass(frozen=True)
class Place:
    """Where a process works.

    Args:
        device: of its tensors.
        dtype: of its images.
        layout: of its images and weights in memory.
        rank: its number.
        world: how many there are.
        autocast: context of forward passes.
    """

    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format
    rank: int
    world: int
    autocast: Callable[[], AbstractContextManager[object]]


@final
class Session:
    """State of the loop; `fit` advances it.

    Args:
        raw: the bare network.
        phases: which method trains when.
        optimizer: the torch optimiser.
        settings: of the training.
        threat: against what.
        data: on the device.
        place: this process.
        run: the folder, if there is one.
        shards: what the optimiser moves.
        join_last: whether what is left of an epoch after its full batches belongs to the last of them.
    """

    def __init__(
        self,
        raw: nn.Module,
        phases: Phases,
        optimizer: torch.optim.Optimizer,
        *,
        settings: Training,
        threat: ThreatModel,
        data: ImageData,
        place: Place,
        run: Run | None,
        shards: Shards,
        join_last: bool = False,
    ) -> None:
        self.raw, self.phases, self.optimizer = raw, phases, optimizer
        self.threat = threat
        self.settings, self.data, self.place, self.run, self.shards = settings, data, place, run, shards
        # A last batch with fewer images than ranks is left out: a rank without images could not take part.
        self.drop_last = settings.drop_last or 0 < len(data.train) % settings.batch_size < place.world
        self.join_last = join_last
        self.per_epoch = num_batches(data.train, settings.batch_size, self.drop_last, join_last=join_last)
        if not self.per_epoch:
            raise ConfigError(
                f"batch_size={settings.batch_size} leaves no full batch of {len(data.train)} images; type a smaller one"
            )
        planned = settings.epochs * self.per_epoch
        self.total_steps = planned if settings.max_steps is None else min(planned, settings.max_steps)
        self.schedule = settings.schedule.over(settings.epochs)
        self.average = Average(raw, settings.ema_decay) if settings.ema_decay is not None else None
        self.epoch, self.batch, self.sums = 0, 0, [0.0, 0.0, 0.0]
        self.totals, self.lr, self.grad_norm = Totals(place.device), 0.0, torch.zeros(())
        self.history: list[dict[str, Any]] = []
        self.flags: list[str] = []
        self.messages: list[str] = []
        self.best: dict[str, dict[str, Any]] = {}
        self.monitor = OverfitMonitor(chance=_largest_share(data))
        self.seen: tuple[Tensor, Tensor] | None = None
        self.logits: Tensor | None = None
        self.bank: Bank | None = None  # while a step is recorded
        self.logged = False
        self.method = phases.method
        self.watch: Watch | None = None
        folder = run.path if run is not None and run.writes else None
        board = folder / "tensorboard" if folder is not None and settings.tensorboard else None
        self.metrics = MetricsFile(folder / "metrics.jsonl" if folder is not None else None, tensorboard=board)
        self.clock, self.interrupt, self.bar = Clock(), Interrupt(), Bar(False, total=0, done=0, title="")

    @property
    def step(self) -> int:
        """Batches done."""
        return self.epoch * self.per_epoch + self.batch

    @property
    def done(self) -> bool:
        """Whether all batches are done."""
        return self.step >= self.total_steps

    @property
    def inside(self) -> bool:
        """Whether the epoch goes on after the batches that are done."""
        return self.batch < self.per_epoch and not self.done

    @property
    def size(self) -> int:
        """Images in the global batch that comes next."""
        left = len(self.data.train) - self.batch * self.settings.batch_size
        return left if self.join_last and self.batch + 1 == self.per_epoch else min(self.settings.batch_size, left)

    @property
    def unusual(self) -> bool:
        """Whether the batch that comes next is not worth a compiled graph of its own: ragged, or measured."""
        return self.measures or self.size != self.settings.batch_size

    @property
    def logs(self) -> bool:
        """Whether the batch that comes next ends with a line of metrics."""
        due = (self.step + 1) % self.settings.log_every == 0
        return due or self.batch + 1 == self.per_epoch or self.step + 1 == self.total_steps

    @property
    def measures(self) -> bool:
        """Whether the perturbations of the batch that comes next are measured: LAT has none before the run's second batch."""
        return self.batch == 0 or self.step == 1

    def due(self, epochs: float) -> bool:
        """Whether something that happens every so many epochs happens after the batches that are done."""
        return self.step % max(1, round(epochs * self.per_epoch)) == 0

    def say(self, sentence: str) -> None:
        """Tell, and keep."""
        if self.place.rank == 0:
            self.messages.append(sentence)
            self.record("message", {"message": sentence})
            logger.warning(sentence)

    def record(self, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write a line of metrics, and give it."""
        line = {"kind": kind, "epoch": self.epoch + 1, "step": self.step, **values}
        self.metrics.write(line)
        return line

    def show(self, progress: Progress) -> None:
        """Start the clock and the bar."""
        title = self.run.path.name if self.run is not None else type(self.phases.method).__name__
        wanted = progress if self.place.rank == 0 else False
        self.bar, self.clock = Bar(wanted, total=self.total_steps, done=self.step, title=title), Clock()

    def begin_epoch(self) -> Method:
        """Give the method of this epoch, its fields set."""
        self.method, index = self.phases.enter(self.epoch), self.phases.index(self.epoch)
        starts = self.batch == 0 and (self.epoch == 0 or index != self.phases.index(self.epoch - 1))
        if starts and len(self.phases.phases) > 1:
            fields = dict(self.phases.phases[index].fields)
            self.record("phase", {"phase": index + 1, "method": type(self.method).__name__, "fields": fields})
        return self.method

    def images(self, start: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's rows of the epoch's batches, from the next one (or `start`) on."""
        settings, place = self.settings, self.place
        found = batches(
            self.data.train,
            settings.batch_size,
            device=place.device,
            shuffle=True,
            seed=settings.seed,
            epoch=self.epoch,
            start=self.batch if start is None else start,
            augment=settings.augment,
            drop_last=self.drop_last,
            join_last=self.join_last,
            num_workers=settings.num_workers,
            rows=(place.rank, place.world) if place.world > 1 else None,
            memory_format=place.layout,
        )
        for x, y in found:
            if self.done:
                return
            yield x.to(place.dtype), y

    def parts(self, x: Tensor, y: Tensor) -> list[Part]:
        """The micro-batches of this rank's rows."""
        total, world, settings = self.size, self.place.world, self.settings
        own = rank_rows(total, (self.place.rank, world)).start
        count = min(settings.accumulate, total // world)
        stream = Stream(settings.seed, self.step, own, total, own, len(x), self.bank)
        return cut(x, y, stream, count, lambda rows: rows * world / total)

    def set_rate(self) -> None:
        """The learning rate of the batch that comes next, the same for all its steps, so that no schedule depends on their number."""
        self.lr = self.settings.optimizer.lr * self.schedule(self.step / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.lr)

    def note_logits(self, model: nn.Module, args: object, output: object) -> None:
        """Forward hook of the wrapped network: training accuracy is that of the last pass before a loss."""
        self.logits = logits_of(output).detach()

    def observe(self, loss: Tensor, part: Part, *, later: bool) -> None:
        """Add a pass to the sums; see `Totals.add`."""
        logits, y = self.logits, part.y
        counted = logits is not None and logits.ndim == 2 and len(logits) == len(y)
        self.totals.add(loss, logits if counted else None, y, later=later)

    def end_batch(self, x: Tensor, y: Tensor, sizes: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Count the batch, and log where it is due."""
        self.logged, self.seen = self.logs, (x, y)
        self.clock.rows += self.size
        self.totals.end_batch()
        self.batch += 1
        self.bar.update(self.step)
        if sizes:
            measured = {site: {k: float(v) for k, v in values.items()} for site, values in sizes.items()}
            self.record("sites", {"sites": measured})
            if lost := lost_noise(measured):
                self.say(lost)
        if self.logged:
            self.log()

    def log(self) -> None:
        """Read the sums and write a line.

        Raises:
            NotFinite: a loss was not.
        """
        begin = self.step - self.totals.batches
        loss, correct, rows, good = self.totals.read()
        if not math.isfinite(loss):
            raise NotFinite(begin + good)
        self.sums = [a + b for a, b in zip(self.sums, (loss, correct, rows), strict=True)]
        values = {"loss": loss / rows, "accuracy": correct / rows, "lr": self.lr, "grad_norm": float(self.grad_norm)}
        rate = self.clock.rate()
        self.record("train", {**values, "images_per_second": rate})
        self.bar.update(
            self.step,
            epoch=f"{self.epoch + 1}/{self.settings.epochs}",
            loss=f"{values['loss']:.3f}",
            training_accuracy=f"{values['accuracy']:.1%} (as perturbed)",
            images_per_second=f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
        )

    def result(self) -> FitResult:
        """Store the last weights and sum up."""
        if self.run is not None:
            self.run.save_weights("last", weights_of(self.raw))
        average = None if self.average is None else {k: v.clone() for k, v in self.average.state_dict().items()}
        if self.run is not None and average is not None:
            self.run.save_weights("ema", average)
        return FitResult(
            run=None if self.run is None else self.run.path,
            history=self.history,
            best=self.best.get("best"),
            flags=self.flags,
            messages=self.messages,
            average=average,
            steps=self.step,
            seconds=self.clock.seconds,
        )

    def close(self) -> None:
        """Let go of the bar."""
        self.bar.close()


def _largest_share(data: ImageData) -> float:
    """How often a network is correct that always says the same class."""
    labels = data.train.labels
    return 1 / data.num_classes if labels is None else float(labels.bincount().max()) / len(labels)
