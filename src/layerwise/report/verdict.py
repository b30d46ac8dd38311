"""The verdict on a run: one sentence that a reader can trust, with everything that speaks against it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerwise.evaluation import Evaluation, Result
from layerwise.report.comparison import WORST, cell, ranged
from layerwise.report.document import Text, shorten
from layerwise.report.runs import Group, evaluated_in_python

ENSEMBLE = frozenset({"apgd-ce", "apgd-t", "fab-t", "square"})
"""The members of AutoAttack's standard version."""

STANDARD = ["clean", "pgd-50-10", "autoattack"]
"""The attacks of the suite of that name, which a call in Python spells out."""

Tone: TypeAlias = Literal["even", "better", "worse", "alarm"]

LONGEST_FINDING = 600
"""Characters of a finding that are shown."""

NAMES = {
    "fgsm": "FGSM",
    "bim": "BIM",
    "pgd": "PGD",
    "mifgsm": "MI-FGSM",
    "mi-fgsm": "MI-FGSM",
    "step-ll": "Step-LL",
    "deepfool": "DeepFool",
    "cw": "C&W",
    "apgd-ce": "APGD-CE",
    "apgd-t": "APGD-T",
    "fab-t": "FAB-T",
    "square": "Square",
    "autoattack": "AutoAttack",
}
"""The attacks' names as papers write them; others are written as they were typed."""


TONES: Mapping[str, Tone] = {"better": "better", "worse": "worse", "undecided": "even"}


@dataclass(frozen=True)
class Verdict:
    """What there is to say about the runs of one recipe.

    Args:
        name: of the recipe.
        figure: accuracy in the worst case, with its interval; empty where nothing was evaluated.
        text: the rest of the sentence.
        tone: of the baseline and where nothing is decided "even", else "better" or "worse" than the baseline; "alarm" where the
            figure is not to be believed.
        alarms: what the self-checks and the training found.
        notes: what else has to be known: the difference to the baseline, a training that was cut.
        strong: whether AutoAttack or its members were run.
    """

    name: str
    figure: str
    text: str
    tone: Tone
    alarms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    strong: bool = True

    @property
    def sentence(self) -> str:
        """The figure and the text."""
        return f"{self.figure} {self.text}".strip()


def verdict(entry: Group, baseline: str) -> Verdict:
    """What the evaluations of a recipe's runs amount to, and how they compare with the baseline's."""
    alarms, compared = tuple(_alarms(entry)), entry.row.against.get(WORST)
    notes = (
        []
        if compared is None
        else [f"{compared} {'against' if compared.verdict == 'undecided' else 'than'} {baseline} ({compared.over})."]
    )
    notes += [f"{run.folder.name}: {state}." for run in entry.runs if (state := run.state)]
    return Verdict(
        name=entry.name,
        figure=ranged(entry.row.worst, " %"),
        text=_text([run.evaluation for run in entry.runs], believed=not alarms),
        tone="alarm" if alarms else TONES[compared.verdict] if compared else "even",
        alarms=alarms,
        notes=tuple(notes),
        strong=_is_strong(entry.first.evaluation),
    )


def said(evaluation: Evaluation) -> str:
    """The sentence on one evaluation, without a run around it."""
    return f"{ranged(cell([evaluation.worst]), ' %')} {_text([evaluation], believed=not evaluation.findings)}"


def _text(evaluations: Sequence[Evaluation], *, believed: bool) -> str:
    first = evaluations[0]
    seeds = f", {len(evaluations)} seeds" if len(evaluations) > 1 else ""
    images = f"{first.worst.total:,} images of {first.data.name}{seeds}"
    attacked = _attacked(first)
    if not attacked:
        return f"without attack on {images}; no attack was run, so this says nothing about robustness"
    under = _listed(map(spelled, attacked))
    strongest = next((spelled(r) for r in attacked if _name(r) == "autoattack"), under)
    several = "; the worst for each image" if strongest == under else f"; the worst of {under} for each image"
    facts = f"under {strongest} ({first.threat}{several if len(attacked) > 1 else ''}; {images})"
    unattacked = [r.attack for r in first.results if _name(r) == "clean"][:1]
    cells = [cell([e[name].count for e in evaluations]) for name in unattacked]
    beside = "".join(f"; {ranged(each, ' %')} without attack" for each in cells)
    if not believed:
        return f"{facts}{beside}; not to be believed before what stands below is explained"
    if _is_strong(first):
        return f"{facts}, no sign of gradient masking{beside}"
    return f"{facts}{beside}. An upper bound; no self-check spoke up"


def caveat(entries: Sequence[Group]) -> Iterator[Text]:
    """What the weakly attacked runs lack, once for all that one command evaluates."""
    weak = [entry for entry in entries if not _is_strong(entry.first.evaluation)]
    said = "so what is said above is an upper bound; type:"
    if named := [entry for entry in weak if not entry.first.own]:
        folders = " ".join(shlex.quote(str(run.folder)) for entry in named for run in entry.runs)
        names = "these runs" if len(named) == len(entries) else _listed(entry.name for entry in named)
        yield Text(f"AutoAttack was not run on {names}, {said}", f"layerwise evaluate {folders} --suite standard")
    for run in (run for entry in weak for run in entry.runs if run.own):
        options = (f"threat=layerwise.{run.evaluation.threat!r}", f"attacks={STANDARD}")
        call = evaluated_in_python(run.folder, "standard", *options)
        yield Text(f"AutoAttack was not run on {shorten(run.folder.name)}, {said}", call)


def _attacked(evaluation: Evaluation) -> list[Result]:
    return [r for r in evaluation.results if r.in_threat_model and _name(r) != "clean"]


def spelled(result: Result) -> str:
    """An attack as papers write it, `PGD-50-10`."""
    name = _name(result)
    return NAMES.get(name, name) + result.attack.removeprefix(name) if result.attack.startswith(name) else result.attack


def _is_strong(evaluation: Evaluation) -> bool:
    names = {_name(result) for result in _attacked(evaluation)}
    return "autoattack" in names or names >= ENSEMBLE


def _name(result: Result) -> str:
    return str(result.settings.get("name", result.attack))


def _listed(names: Iterable[str]) -> str:
    *before, last = (shorten(name) for name in names)
    return f"{', '.join(before)} and {last}" if before else last


def _alarms(entry: Group) -> Iterable[str]:
    yield from (shorten(finding, LONGEST_FINDING) for finding in entry.row.findings)
    for run in entry.runs:
        if (epoch := run.history.overfitted) is not None:
            yield (
                f"catastrophic-overfitting: robust validation accuracy of {run.folder.name} collapsed in epoch {epoch} of its training; "
                "look at its curves, and evaluate its best weights as well (--weights best)"
            )
