"""A search that several workers share: Optuna's own storage, a journal in a file that needs no server and works on network disks.

The settings of a trial go in as its parameters, before a worker starts; what it gave comes back as its value, and as an attribute of
the study for every rung. The journal is a channel: what counts is in trials.jsonl, as in a search without workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from layerwise.errors import CheckpointError
from layerwise.evaluation.store import versions
from layerwise.experiments.jobs import Crew, Job, not_all
from layerwise.experiments.ranges import Range
from layerwise.experiments.tune.search import distribution, exact, index, optuna
from layerwise.experiments.tune.trials import Trial, run_name
from layerwise.reading import read_record

if TYPE_CHECKING:
    from layerwise.experiments.tune.halving import _Search


@final
@dataclass(frozen=True, kw_only=True)
class Workers:
    """How several trials are tried at once.

    Args:
        crew: how many, and where.
        command: gives, of a trial's number and rung, what follows `layerwise` to try it, as `halving.try_one` does.
        again: the command that goes on with the search.
    """

    crew: Crew
    command: Callable[[int, int], tuple[str, ...]]
    again: str


JOURNAL = "optuna.log"
"""Of a search with workers, in its folder; `optuna-dashboard runs/tune/NAME/optuna.log` shows it."""


@final
class Shared:
    """The journal of a search.

    Args:
        folder: of the search.
        ranges: {dotted setting: range}.

    Raises:
        CheckpointError: the journal is a link or damaged.
    """

    def __init__(self, folder: Path, ranges: Mapping[str, Range]) -> None:
        package, file = optuna(), folder / JOURNAL
        if file.is_symlink():
            raise CheckpointError(f"{file} is a link; remove it, and type the same again")
        talk = package.logging
        level = talk.get_verbosity()
        talk.set_verbosity(talk.WARNING)
        try:
            backend = package.storages.journal.JournalFileBackend(str(file))
            storage = package.storages.JournalStorage(backend)
            self.study = package.create_study(
                storage=storage, study_name=str(versions()), direction="maximize", load_if_exists=True
            )
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}); remove it and the folders of trials that {folder} has no line of"
            ) from None
        finally:
            talk.set_verbosity(level)
        self.package, self.ranges = package, ranges

    def settings(self) -> list[dict[str, Any]]:
        """Of every trial, by its number.

        Raises:
            CheckpointError: they are not of this search.
        """
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            try:
                found.append({key: exact(each, trial.params[key]) for key, each in self.ranges.items()})
            except (KeyError, IndexError, TypeError):
                raise CheckpointError(
                    f"{JOURNAL}: trial {trial.number} is not of this search; remove the file"
                ) from None
        return found

    def add(self, settings: Mapping[str, Any]) -> None:
        """The next trial, which a worker may take now."""
        self.study.add_trial(
            self.package.trial.create_trial(
                state=self.package.trial.TrialState.RUNNING,
                params={key: index(each, settings[key]) for key, each in self.ranges.items()},
                distributions={key: distribution(self.package, each) for key, each in self.ranges.items()},
            )
        )

    def tell(self, number: int, run: str, score: float, outcome: Mapping[str, Any]) -> None:
        """What a trial gave at a rung; its value is that of the first one."""
        self.study.set_user_attr(run, dict(outcome))
        self.study.tell(number, score, skip_if_finished=True)

    def told(self) -> dict[str, Any]:
        """{run: what it gave}."""
        return dict(self.study.user_attrs)


@final
class Several:
    """The trials of a search side by side, each a job."""

    def __init__(self, search: _Search, workers: Workers) -> None:
        self.search, self.workers = search, workers
        self.shared = Shared(search.folder, search.ranges)

    def run(self, order: list[tuple[int, dict[str, Any] | None]], rung: int, quota: int) -> None:
        """Try at a rung what one after the other would be tried there: in order, until so many are sound.

        Raises:
            LayerwiseError: a job did not end well.
        """
        known = self.search.known
        for run in self.shared.told():
            self._take(run)
        while todo := [number for number, _ in order if (number, rung) not in known]:
            sound = sum((n, rung) in known and known[n, rung].state == "sound" for n, _ in order)
            if not (now := todo[: max(0, quota - sound)]):
                return
            lost = self.workers.crew.run(
                (self._job(number, rung) for number in now),
                total=len(now),
                again=lambda: self.workers.again,
                ended=lambda job: self._take(job.name),
                show=self.search.progress,
            )
            if lost:
                raise not_all(lost, self.workers.again)

    def _job(self, number: int, rung: int) -> Job:
        """A trial as a job; its settings are chosen now, when the earlier ones are running or done."""
        proposed, known = self.shared.settings(), self.search.known
        while number >= len(proposed):
            there = [known[n, 0] for n in range(number) if (n, 0) in known]
            running = [settings for n, settings in enumerate(proposed) if (n, 0) not in known]
            now = known.get((len(proposed), 0))
            self.shared.add(now.settings if now else self.search.propose(there, running))
            proposed = self.shared.settings()
        name = run_name(number, rung)
        return Job(name=name, command=self.workers.command(number, rung), runs=self.search.folder)

    def _take(self, run: str) -> None:
        """Keep what a worker has told of a run."""
        told = read_record(Trial, self.shared.told()[run], source=JOURNAL, where=run)
        if (told.trial, told.rung) not in self.search.known:
            self.search.keep(self.search.own(told))
