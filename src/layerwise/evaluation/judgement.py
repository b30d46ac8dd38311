"""What the judgement of a run says: the record of an evaluation, and the measures beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, final, get_type_hints

from layerwise.errors import CheckpointError
from layerwise.evaluation import EpsRef, Evaluation, Rho
from layerwise.evaluation.corruptions import CorruptionErrors, CorruptionScores, FlipProbabilities, FlipRates
from layerwise.evaluation.examples import Examples
from layerwise.evaluation.measures import Curves, Diagnostic
from layerwise.evaluation.record import unpack
from layerwise.files import write_text
from layerwise.reading import read_record

FORMAT, VERSION = "layerwise-measures", 1


@final
@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judgement of a run says; None and () is what nobody asked for.

    Args:
        evaluation: accuracies under attack.
        rho: Deep Defense's rho_2, one for each number of DeepFool steps.
        eps_ref: Deep Defense's reference radius.
        corruptions: errors under the common corruptions.
        corruption_scores: mCE and relative mCE against the base run.
        sequences: flips of the prediction within sequences.
        flip_rates: mFR against the base run.
        diagnostics: what was looked at, each with its figure.
        examples: a few adversarial images.
    """

    evaluation: Evaluation
    rho: tuple[Rho, ...] = ()
    eps_ref: EpsRef | None = None
    corruptions: CorruptionErrors | None = None
    corruption_scores: CorruptionScores | None = None
    sequences: FlipProbabilities | None = None
    flip_rates: FlipRates | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    examples: Examples | None = None

    def write(self, folder: Path, record: str = "evaluation") -> None:
        """Write RECORD.json (the evaluation), RECORD.measures.json (everything else) and RECORD.md into a folder."""
        measures = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "evaluation"}
        body = {"format": FORMAT, "version": VERSION, "evaluation": _identity(self.evaluation), **measures}
        # A line each: one number a line would make a hundred thousand of a few pictures.
        lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in body.items()]
        # The record itself comes last: where it is, the others are.
        write_text(folder / f"{record}.measures.json", "{\n" + ",\n".join(lines) + "\n}\n")
        write_text(folder / f"{record}.md", self.to_markdown())
        write_text(folder / f"{record}.json", self.evaluation.to_json())

    @classmethod
    def read(cls, folder: Path, record: str = "evaluation") -> Self:
        """Read what `write` wrote; where there are no measures, only the evaluation.

        Args:
            folder: the run's.
            record: name of the files, without `.json`.

        Raises:
            CheckpointError: there is no such record, a file is cut off, corrupt or something else, or the measures are those of
                another evaluation.
        """
        file, beside = folder / f"{record}.json", folder / f"{record}.measures.json"
        if not file.is_file():
            there = ", ".join(records(folder))
            hint = f"--record takes {there}" if there else f"make it with: layerwise evaluate {folder}"
            raise CheckpointError(f"{folder} holds no {file.name}; {hint}")
        evaluation = Evaluation.from_json(file.read_bytes(), source=str(file))
        if not beside.is_file():
            return cls(evaluation=evaluation)
        what = "what was measured beside an evaluation"
        body = unpack(beside.read_bytes(), format=FORMAT, version=VERSION, what=what, source=str(beside))
        if body.pop("evaluation", None) != _identity(evaluation):
            raise CheckpointError(
                f"{beside} was measured on other weights or images than {file}; evaluate the run again"
            )
        return cls(evaluation=evaluation, **_measures(body, str(beside)))

    def to_markdown(self) -> str:
        """The evaluation's table, and a line a measure."""
        return "\n".join([self.evaluation.to_markdown(), *(f"{line}\n" for line in self._lines())])

    def _lines(self) -> Iterator[str]:
        for r in self.rho:
            blank = f", {r.blank} blank ones left out" if r.blank else ""
            unfooled = f"{100 * r.unfooled:.2f} % not fooled"
            yield f"rho_2 with {r.num_steps} DeepFool steps: {r.value:.4g} over {r.images} images, {unfooled}{blank}"
        if self.eps_ref is not None:
            shares = ", ".join(f"{100 * c.accuracy:.2f} % at {f:g}" for f, c in self.eps_ref.accuracies.items())
            yield f"eps_ref: {self.eps_ref.eps:.4g} (FGSM halves the accuracy); accuracy under FGSM {shares} of it"
        if self.corruptions is not None:
            yield from _table(("corruption", "error %"), _corruption_rows(self.corruptions))
        if (ce := self.corruption_scores) is not None:
            named = {
                "mCE": ce.mce,
                f"relative mCE ({ce.relative})": ce.relative_mce,
                "mCE of the extra ones": ce.extra_mce,
            }
            yield from (
                f"{name} against {ce.base.name}: {value} %" for name, value in named.items() if value is not None
            )
        if self.sequences is not None:
            flips = [(name, str(self.sequences.probability(name))) for name in self.sequences.flips]
            yield from _table(("sequence", f"flips % ({self.sequences.rule} rule)"), flips)
        if (fr := self.flip_rates) is not None:
            named = {"mFR": fr.mfr, "mFR of the extra ones": fr.extra_mfr}
            yield from (
                f"{name} against {fr.base.name}: {value} %" for name, value in named.items() if value is not None
            )
        for diagnostic in self.diagnostics:
            said = diagnostic.sentence() if isinstance(diagnostic, Curves) else "a picture, see `layerwise report`."
            yield f"{diagnostic.title}: {said}"


def records(folder: Path) -> list[str]:
    """Names of the records in a run's folder."""
    found = sorted(f.stem for f in folder.glob("evaluation*.json"))
    return [name for name in found if not name.endswith(".measures")]


def plain(value: Any) -> Any:
    """A measure in JSON's types."""
    if isinstance(value, Diagnostic):
        return value.to_dict()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return None if value is None else asdict(value)


def typed(name: str, value: Any, *, source: str) -> Any:
    """What `plain` made of the measure called `name`, typed again.

    Raises:
        CheckpointError: it does not fit.
    """
    return read_record(get_type_hints(Judgement)[name], value, source=source, where=name)


def _measures(body: dict[str, Any], source: str) -> dict[str, Any]:
    known = {f.name for f in fields(Judgement)} - {"evaluation"}
    for names, fault in ((known - body.keys(), "has no"), (body.keys() - known, "has an unknown")):
        if names:
            raise CheckpointError(f"{source} is corrupt: it {fault} {', '.join(sorted(names))}; evaluate the run again")
    return {name: typed(name, value, source=source) for name, value in body.items()}


def _identity(evaluation: Evaluation) -> dict[str, Any]:
    """What an evaluation and the measures beside it have to have in common."""
    model, data = evaluation.model, evaluation.data
    return {"model": model.fingerprint, "data": data.fingerprint, "images": evaluation.worst.total, "seed": data.seed}


def _corruption_rows(errors: CorruptionErrors) -> list[tuple[str, str]]:
    clean = 1 - errors.clean.accuracy
    return [("none", f"{100 * clean:.1f}"), *((name, f"{100 * errors.error(name):.1f}") for name in errors.counts)]


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> Iterator[str]:
    yield "\n".join(f"| {a} | {b} |" for a, b in (header, ("---", "---:"), *rows))
