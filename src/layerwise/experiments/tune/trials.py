"""The record of a search: a store with a line a trial and rung, a table, a picture, and the best settings as a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from layerwise.evaluation.intervals import wilson
from layerwise.evaluation.store import Store
from layerwise.evaluation.style import canvas, describe, legend_below, line, styled
from layerwise.experiments.ranges import Interval, Range
from layerwise.reading import read_record, written
from layerwise.training.run import Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRIALS = "trials.jsonl"

ITEM, RUNGS = "trial", 100
"""What the store calls trials, and how many rungs one has at most: its number and its rung make one number there."""

Objective: TypeAlias = Literal["robust", "clean", "rho"]
"""What is to be high: accuracy under PGD, accuracy without attack, or Deep Defense's rho_2."""

State: TypeAlias = Literal["sound", "overfitted", "masked", "inaccurate", "failed"]
"""Only what is sound can win. Overfitted: robustness collapsed in training; masked: the self-checks do not believe the attack, or more
steps undo what fewer showed; inaccurate: clean accuracy below the floor; failed: training or evaluation ended with an error."""


def run_name(number: int, rung: int) -> str:
    """Of a trial's run folder."""
    return f"trial-{number:03d}-rung-{rung}"


@final
@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial gave at one rung; shares are of the validation split.

    Args:
        trial: its number, from 0.
        rung: from 0.
        epochs: how long it was trained there.
        settings: {dotted setting: value}.
        state: see `State`.
        images: of the validation split that were looked at.
        clean: accuracy without attack.
        robust: accuracy under PGD, at the last rung under the longer one.
        rho: Deep Defense's rho_2, where it was asked for.
        findings: names of the self-checks that spoke up.
        seconds: of training and evaluation.
        run: name of the run folder.
        message: why it failed.
    """

    trial: int
    rung: int
    epochs: int
    settings: dict[str, Any]
    state: State
    images: int = 0
    clean: float | None = None
    robust: float | None = None
    rho: float | None = None
    findings: tuple[str, ...] = ()
    seconds: float
    run: str
    message: str = ""

    def score(self, objective: Objective) -> float:
        """What is to be high; 0 for what is not sound."""
        value: float | None = getattr(self, objective)
        return value if self.state == "sound" and value is not None else 0.0


@final
@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A finished search.

    Args:
        recipe: what was tuned.
        objective: what was to be high.
        weights: which ones of each trial were evaluated.
        ranges: what was searched.
        trials: every trial at every rung, in order.
        best: the winner.
    """

    recipe: str
    objective: Objective
    weights: Weights = "last"
    ranges: Mapping[str, Range]
    trials: tuple[Trial, ...]
    best: Trial

    def to_markdown(self) -> str:
        """A row for each trial's last rung, the best first."""
        keys = list(self.ranges)
        header = ["trial", *keys, "epochs", "clean %", "robust %", *["rho_2"] * self._has_rho, "seconds", "state"]
        last = {t.trial: t for t in self.trials}  # of equal trials the later rung
        total = {number: sum(t.seconds for t in self.trials if t.trial == number) for number in last}
        ranked = sorted(last.values(), key=lambda t: (-t.rung, -t.score(self.objective), t.trial))
        rows = [[*self._cells(t, keys), f"{total[t.trial]:.0f}", t.state] for t in ranked]
        rule = ["---" if name in ("state", *keys) else "---:" for name in header]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows)]
        failures = [f"trial {t.trial} failed: {t.message}" for t in self.trials if t.state == "failed"]
        return "\n".join([*lines, "", *failures, *[""] * bool(failures), self.sentence()]) + "\n"

    @property
    def _has_rho(self) -> bool:
        return self.objective == "rho"

    def _cells(self, t: Trial, keys: Sequence[str]) -> list[str]:
        rho = ["" if t.rho is None else f"{t.rho:.4g}"] * self._has_rho
        percent = ["" if share is None else f"{100 * share:.1f}" for share in (t.clean, t.robust)]
        return [str(t.trial), *(written(t.settings[key]) for key in keys), str(t.epochs), *percent, *rho]

    def sentence(self) -> str:
        """What won, and how far that is to be believed."""
        b, count = self.best, len({t.trial for t in self.trials})
        low, high = wilson(round(b.images * (b.robust or 0)), b.images)
        rho = f", rho_2 {b.rho:.4g}" if b.rho is not None else ""
        of = "" if self.weights == "last" else f" ({self.weights} weights)"
        return (
            f"Best of {count}: trial {b.trial}{of}, {100 * (b.clean or 0):.1f} % clean, {100 * (b.robust or 0):.1f} % under PGD "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f}){rho}, after {b.epochs} epochs, on {b.images} validation images. "
            "Being the best of several, it will do a little worse on others."
        )

    def figure(self) -> Figure:
        """The objective over each range, one panel a setting; rungs in colours, what is not sound as a cross."""
        with styled():
            figure, panels = canvas(1, len(self.ranges))
            for axes, (key, each) in zip(panels, self.ranges.items(), strict=True):
                self._draw(axes, key, each)
            panels[0].set_ylabel("rho_2" if self._has_rho else f"{self.objective} accuracy on validation, %")
            panels[0].set_title(f"{self.recipe}: {len({t.trial for t in self.trials})} trials")
            legend_below(figure, panels[0])
        return describe(figure, f"{self.objective} of the trials over {', '.join(self.ranges)}. {self.sentence()}")

    def _draw(self, axes: Axes, key: str, each: Range) -> None:
        names = [] if isinstance(each, Interval) else [written(v) for v in each.values]
        scale = 1 if self._has_rho else 100
        for rung in sorted({t.rung for t in self.trials}):
            there = [t for t in self.trials if t.rung == rung and getattr(t, self.objective) is not None]
            for sound in (True, False):
                shown = [t for t in there if (t.state == "sound") is sound]
                x = [names.index(written(t.settings[key])) if names else t.settings[key] for t in shown]
                look = {**line(rung), "linestyle": "none"} | ({} if sound else {"marker": "x"})
                label = f"{there[0].epochs} epochs" if there and sound else None
                axes.plot(x, [scale * getattr(t, self.objective) for t in shown], label=label, **look)
        if isinstance(each, Interval):
            axes.set_xscale("log" if each.log else "linear")
            ends = [each.low, (each.low * each.high) ** 0.5 if each.log else (each.low + each.high) / 2, each.high]
            axes.set_xticks(ends, [f"{end:.3g}" for end in ends])
            axes.xaxis.minorticks_off()
        else:
            axes.set_xticks(range(len(names)), names)
        axes.set_xlabel(key)


def read_trials(store: Store) -> list[Trial]:
    """The trials that a search has done; a line that was cut off or damaged is left out, and its trial is done again.

    Raises:
        CheckpointError: the disk refused, or a value is no trial.
    """
    with store.open():
        found = store.found(ITEM)
    return [read_record(Trial, value, source=str(store.path), where=f"trial {n}") for n, value in found.items()]


def add_trial(store: Store, trial: Trial) -> None:
    """Keep a trial; it is on the disk when this returns.

    Raises:
        CheckpointError: the disk refused.
    """
    with store.open():
        store.put(ITEM, asdict(trial), RUNGS * trial.trial + trial.rung)
