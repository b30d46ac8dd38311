"""A run in progress: where it is, what it has seen, and what has to happen between batches and epochs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from layerwise.data import ImageData, batches, num_batches, rank_rows
from layerwise.errors import ConfigError
from layerwise.methods.base import Method
from layerwise.random import Stream
from layerwise.training import checkpoint
from layerwise.training.ema import Average
from layerwise.training.interrupt import Interrupt
from layerwise.training.metrics import Bar, Clock, MetricsFile, Progress, Totals
from layerwise.training.monitor import OVERFITTING, DivergedError, OverfitMonitor, lost_noise
from layerwise.training.phases import Phases
from layerwise.training.randomness import kept_random_states, random_states, seed_everything, set_random_states
from layerwise.training.ranks import any_rank
from layerwise.training.run import Run, put_weights
from layerwise.training.settings import Training
from layerwise.training.validation import score

logger = logging.getLogger("layerwise")


@final
@dataclass(frozen=True)
class FitResult:
    """What a run gave.

    Args:
        run: its folder, if it has one.
        history: one record an epoch, as in metrics.jsonl.
        best: epoch, clean and robust accuracy of the best epoch on the validation split; None if nothing was evaluated.
        flags: what went wrong in a known way, such as `"catastrophic-overfitting"`.
        messages: every sentence that was told.
        average: the averaged weights' `state_dict`, with `ema_decay`.
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
        rank: its number.
        world: how many there are.
        autocast: context of forward passes.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int
    autocast: Callable[[], AbstractContextManager[object]]


@final
@dataclass(frozen=True)
class Part:
    """A micro-batch: images, labels, random numbers, and its share of the global batch's mean loss."""

    x: Tensor
    y: Tensor
    source: Stream
    share: float


@final
class Session:
    """State of the loop; `fit` advances it.

    Args:
        raw: the bare network.
        phases: which method trains when.
        optimizer: the torch optimiser.
        settings: of the training.
        data: on the device.
        place: this process.
        run: the folder, if there is one.
        progress: whether a bar is shown.
    """

    def __init__(
        self,
        raw: nn.Module,
        phases: Phases,
        optimizer: torch.optim.Optimizer,
        *,
        settings: Training,
        data: ImageData,
        place: Place,
        run: Run | None,
        progress: Progress,
    ) -> None:
        self.raw, self.phases, self.optimizer = raw, phases, optimizer
        self.settings, self.data, self.place, self.run = settings, data, place, run
        size = settings.batch_size
        # A last batch with fewer images than ranks is left out: a rank without images could not take part.
        self.drop_last = settings.drop_last or 0 < len(data.train) % size < place.world
        self.per_epoch = num_batches(data.train, size, self.drop_last)
        if not self.per_epoch:
            raise ConfigError(
                f"batch_size={size} with drop_last leaves no batch of {len(data.train)} images; type a smaller one"
            )
        self.total_steps = min(settings.epochs * self.per_epoch, settings.max_steps or math.inf)
        self.schedule = settings.schedule.over(settings.epochs)
        self.average = Average(raw, settings.ema_decay) if settings.ema_decay is not None else None
        self.epoch = self.batch = 0
        self.method: Method = phases.method
        self.totals = Totals(place.device)
        self.sums = [0.0, 0.0, 0.0]
        self.lr, self.grad_norm = 0.0, torch.zeros(())
        self.history: list[dict[str, Any]] = []
        self.flags: list[str] = []
        self.messages: list[str] = []
        self.best: dict[str, dict[str, Any]] = {}
        self.monitor = OverfitMonitor()
        self.last: tuple[Tensor, Tensor] | None = None
        writes = run is not None and place.rank == 0
        board = run.path / "tensorboard" if run is not None and writes and settings.tensorboard else None
        self.metrics = MetricsFile(run.metrics if run is not None and writes else None, tensorboard=board)
        self.clock, self.interrupt = Clock(), Interrupt()
        self.bar, self.progress = Bar(False, total=0, done=0, title=""), progress

    # Position -----------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Batches done."""
        return self.epoch * self.per_epoch + self.batch

    @property
    def done(self) -> bool:
        """Whether all batches are done."""
        return self.step >= self.total_steps

    @property
    def size(self) -> int:
        """Images in the global batch that comes next."""
        return min(self.settings.batch_size, len(self.data.train) - self.batch * self.settings.batch_size)

    @property
    def logs(self) -> bool:
        """Whether the batch that comes next ends with a line of metrics."""
        return (self.step + 1) % self.settings.log_every == 0 or self.batch + 1 == self.per_epoch

    @property
    def measures(self) -> bool:
        """Whether the perturbations of the batch that comes next are measured: LAT has none before the run's second batch."""
        return self.batch == 0 or self.step == 1

    @property
    def unusual(self) -> bool:
        """Whether the batch that comes next is not worth a compiled graph of its own."""
        return self.measures or self.size < self.settings.batch_size

    def say(self, sentence: str, kind: str = "message") -> None:
        """Tell, and keep."""
        if self.place.rank == 0:
            self.messages.append(sentence)
            self.metrics.write({"kind": kind, "epoch": self.epoch + 1, "step": self.step, "message": sentence})
            logger.warning(sentence)

    # Batches ------------------------------------------------------------------------------------------------------

    def begin_epoch(self) -> Method:
        """Set the method of this epoch."""
        before, self.method = self.method, self.phases.enter(self.epoch)
        if len(self.phases.phases) > 1 and self.batch == 0 and self.place.rank == 0:
            index = self.phases.index(self.epoch)
            changes = dict(self.phases.phases[index].fields)
            if before is not self.method or (self.epoch > 0 and index != self.phases.index(self.epoch - 1)):
                name = type(self.method).__name__
                record = {"kind": "phase", "epoch": self.epoch + 1, "step": self.step, "method": name, "fields": changes}
                self.metrics.write(record)
        return self.method

    def images(self, start: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's rows of the epoch's batches from `start` (the next one) on."""
        settings, place = self.settings, self.place
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        for x, y in batches(
            self.data.train,
            settings.batch_size,
            device=place.device,
            shuffle=True,
            seed=settings.seed,
            epoch=self.epoch,
            start=self.batch if start is None else start,
            augment=settings.augment,
            drop_last=self.drop_last,
            num_workers=settings.num_workers,
            rows=(place.rank, place.world) if place.world > 1 else None,
            memory_format=layout,
        ):
            if self.done:
                return
            yield x.to(place.dtype), y

    def parts(self, x: Tensor, y: Tensor) -> list[Part]:
        """The micro-batches of this rank's rows."""
        total, world = self.size, self.place.world
        own = rank_rows(total, (self.place.rank, world)).start
        count = min(self.settings.accumulate, total // world)
        cuts = [rank_rows(len(x), (i, count)) for i in range(count)]
        return [
            Part(
                x[cut],
                y[cut],
                Stream(self.settings.seed, self.step, own + cut.start, total, own, len(x)),
                (cut.stop - cut.start) * world / total,
            )
            for cut in cuts
        ]

    def set_rate(self) -> None:
        """The learning rate of the batch that comes next, the same for all its steps, whatever their number."""
        self.lr = self.settings.optimizer.lr * self.schedule(self.step / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.lr)

    def end_batch(self, x: Tensor, y: Tensor, sizes: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Count, log, save and stop where it is due."""
        logs, self.last = self.logs, (x, y)
        self.clock.rows += self.size
        self.totals.end_batch()
        self.batch += 1
        self.bar.update(self.step)
        if sizes:
            self._tell_sizes({site: {k: float(v) for k, v in values.items()} for site, values in sizes.items()})
        if logs or self.done:
            self.log()
        # Asking the other ranks costs a synchronisation, so with several the wish waits for a line of metrics.
        if self.place.world == 1 or logs:
            self._stop_if_asked()
        every = max(1, round(self.settings.checkpoint_every * self.per_epoch))
        if self.batch < self.per_epoch and not self.done and self.step % every == 0:
            self.save()

    def log(self) -> None:
        """Read the sums and write a line.

        Raises:
            DivergedError: a loss was not finite.
        """
        interval = self.totals.batches
        if not interval:
            return
        loss, correct, rows, good = self.totals.read()
        if not math.isfinite(loss):
            raise Diverged(self.step - interval + good)
        self.sums = [a + b for a, b in zip(self.sums, (loss, correct, rows), strict=True)]
        record = {"loss": loss / rows, "accuracy": correct / rows, "lr": self.lr, "grad_norm": float(self.grad_norm)}
        speed = {"images_per_second": self.clock.rate()}
        if self.place.rank == 0:
            at = {"kind": "train", "epoch": self.epoch + 1, "step": self.step}
            self.metrics.write({**at, **record, **speed})
        self.bar.update(
            self.step,
            epoch=f"{self.epoch + 1}/{self.settings.epochs}",
            loss=f"{record['loss']:.3f}",
            accuracy=f"{record['accuracy']:.1%}",
            images_per_second=f"{speed['images_per_second']:,.0f}",
        )

    def _tell_sizes(self, sizes: dict[str, dict[str, float]]) -> None:
        if self.place.rank == 0:
            self.metrics.write({"kind": "sites", "epoch": self.epoch + 1, "step": self.step, "sites": sizes})
        if lost := lost_noise(sizes):
            self.say(lost)

    def _stop_if_asked(self) -> None:
        if not any_rank(self.interrupt.requested is not None, self.place.device):
            return
        where = f"stopped by {self.interrupt.requested or 'another rank'} after batch {self.batch} of epoch {self.epoch + 1}"
        if self.run is None:
            raise KeyboardInterrupt(f"{where}; nothing is saved, since the run has no folder")
        self.save()
        raise KeyboardInterrupt(f"{where}; saved; go on with: layerwise train --resume {self.run.path}")

    # Epochs -------------------------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Evaluate, watch, keep the best, and save."""
        settings, (loss, correct, rows) = self.settings, self.sums
        record: dict[str, Any] = {"kind": "epoch", "epoch": self.epoch + 1, "step": self.step}
        record |= {"loss": loss / rows, "accuracy": correct / rows, "lr": self.lr, "method": type(self.method).__name__}
        last = self.done or self.epoch + 1 == settings.epochs
        if settings.eval_every and (last or (self.epoch + 1) % settings.eval_every == 0):
            record |= self._evaluate()
        self._diagnose()
        for sentence in self.method.warnings():
            self.say(sentence)
        record |= {"seconds": self.clock.seconds, "flags": list(self.flags)}
        if self.place.rank == 0:
            self.metrics.write(record)
        self.history.append(record)
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, [0.0, 0.0, 0.0]
        if last or (self.epoch * self.per_epoch) % max(1, round(settings.checkpoint_every * self.per_epoch)) == 0:
            self.save()
        self.clock.restart()

    def _evaluate(self) -> dict[str, Any]:
        """Scores of the weights and of their average, on the validation split or, without one, on training images."""
        name = "validation" if len(self.data.validation) else "train"
        found: dict[str, Any] = {"split": name}
        found |= self._score("best", self.raw)
        if self.average is not None:
            with self.average.applied():
                found |= {f"ema_{k}": v for k, v in self._score("best-ema", self.raw).items() if k != "examples"}
        if found["robust"] is not None:
            self.bar.update(self.step, clean=f"{found['clean']:.1%}", robust=f"{found['robust']:.1%}")
            if told := self.monitor.update(self.epoch + 1, found["robust"]):
                self.flags = [*self.flags, OVERFITTING]
                self.say(told)
        return found

    def _score(self, which: str, model: nn.Module) -> dict[str, Any]:
        split = self.data.validation if len(self.data.validation) else self.data.train
        place = self.place
        rows = (place.rank, place.world)
        found = dict(
            score(
                model,
                split,
                self.settings,
                device=place.device,
                dtype=place.dtype,
                autocast=place.autocast,
                rows=rows,
            )
        )
        value = found["clean"] if found["robust"] is None else found["robust"]
        if which not in self.best or value > self.best[which]["score"]:
            self.best[which] = {"epoch": self.epoch + 1, "score": value, **found}
            if self.run is not None:
                self.run.save_weights(which, model.state_dict())
        return found

    def _diagnose(self) -> None:
        if self.last is None:
            return
        with kept_random_states(self.place.device):
            numbers = self.method.diagnose(self.raw, *self.last)
        if numbers and self.place.rank == 0:
            self.metrics.write({"kind": "diagnose", "epoch": self.epoch + 1, "step": self.step, **numbers})

    # Saving -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder."""
        if self.run is None:
            return
        shared = {
            **{"epoch": self.epoch, "batch": self.batch, "sums": self.sums, "history": self.history},
            **{"flags": self.flags, "messages": self.messages, "best": self.best, "monitor": self.monitor.state_dict()},
            **{"metrics": self.metrics.size, "optimizer": self.optimizer.state_dict(), "lr": self.lr},
            "ema_steps": 0 if self.average is None else self.average.steps,
        }
        own = {
            "random": random_states(self.place.device),
            "method": [method.state_dict() for method in self.phases.methods],
            "totals": self.totals.state_dict(),
        }
        checkpoint.save(
            self.run.checkpoints,
            step=self.step,
            weights=self.raw.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            state=shared,
            own=own,
            keep=self.settings.keep,
            rank=self.place.rank,
            device=self.place.device,
        )

    def start(self) -> None:
        """Seed the random states, and go back to the newest whole checkpoint if there is one."""
        settings, place = self.settings, self.place
        seed_everything(settings.seed, place.rank)
        if self.run is not None:
            contents, damaged = checkpoint.load_latest(self.run.checkpoints, rank=place.rank, world=place.world)
            if contents is not None:
                self._restore(contents)
            for sentence in damaged:
                self.say(sentence)
        self.bar = Bar(
            self.progress if place.rank == 0 else False,
            total=int(self.total_steps),
            done=self.step,
            title=self.run.path.name if self.run is not None else type(self.phases.method).__name__,
        )
        self.clock = Clock()

    def _restore(self, contents: checkpoint.Contents) -> None:
        assert self.run is not None
        state = contents.state
        put_weights(self.raw, contents.weights, where=f"the checkpoint of {self.run.path}")
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            # Loaded where it was saved; the fused kernels want it beside the weights.
            group["lr"] = group["lr"].to(self.place.device)
        if self.average is not None and contents.average is not None:
            self.average.load_state_dict(contents.average, state["ema_steps"])
        self.epoch, self.batch, self.sums, self.lr = (state[k] for k in ("epoch", "batch", "sums", "lr"))
        self.history, self.flags, self.best = state["history"], state["flags"], state["best"]
        self.messages = state["messages"]
        self.monitor.load_state_dict(state["monitor"])
        self.metrics.truncate(state["metrics"])
        own = own_share(contents, self.place.rank, self.place.world)
        if "random" in own:
            set_random_states(own["random"], self.place.device)
        for method, kept in zip(self.phases.methods, own["method"], strict=True):
            method.load_state_dict({k: v.to(self.place.device) for k, v in kept.items()})
        self.totals.load_state_dict(own["totals"])

    def finish(self) -> FitResult:
        """Store the last weights and give the result."""
        if self.run is not None:
            self.run.save_weights("last", self.raw.state_dict())
            if self.average is not None:
                self.run.save_weights("ema", self.average.state_dict())
        if self.place.rank == 0:
            self.metrics.write({"kind": "end", "epoch": self.epoch, "step": self.step, "seconds": self.clock.seconds})
        return FitResult(
            run=None if self.run is None else self.run.path,
            history=self.history,
            best=self.best.get("best"),
            flags=self.flags,
            messages=self.messages,
            average=None if self.average is None else {k: v.clone() for k, v in self.average.state_dict().items()},
            steps=self.step,
            seconds=self.clock.seconds,
        )

    def close(self) -> None:
        """Let go of the bar and the files."""
        self.bar.close()
        self.metrics.close()
