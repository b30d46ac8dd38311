"""The verdict on a run: one sentence that a reader can trust, with everything that speaks against it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from layerwise.evaluation import Estimate, Result
from layerwise.report.comparison import cell
from layerwise.report.document import shorten
from layerwise.report.runs import Group

ENSEMBLE = frozenset({"apgd-ce", "apgd-t", "fab-t", "square"})
"""The members of AutoAttack's standard version."""

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


@dataclass(frozen=True)
class Verdict:
    """What there is to say about the runs of one recipe.

    Args:
        name: of the recipe.
        figure: accuracy in the worst case, with its interval.
        text: the rest of the sentence.
        command: what to type for a stronger verdict; None where there is nothing better.
        tone: "sound", "weak" (strong attacks are missing) or "alarm" (do not believe it).
        alarms: what the self-checks and the training found.
    """

    name: str
    figure: str
    text: str
    command: str | None
    tone: Literal["sound", "weak", "alarm"]
    alarms: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """All of it but the command."""
        return f"{self.figure} {self.text}"


def verdict(entry: Group) -> Verdict:
    """What the evaluations of a recipe's runs amount to."""
    evaluations = [run.evaluation for run in entry.runs]
    first = evaluations[0]
    attacked = [r for r in first.results if r.in_threat_model and _name(r) != "clean"]
    clean = next((cell([e[r.attack].count for e in evaluations]) for r in first.results if _name(r) == "clean"), None)
    seeds = f", {len(evaluations)} seeds" if len(evaluations) > 1 else ""
    images = f"{first.worst.total:,} images of {first.data.name}{seeds}"
    command = f"layerwise evaluate {shlex.quote(str(entry.first.folder))} --suite standard"
    alarms = tuple(_alarms(entry))
    if not attacked:
        text = f"without attack on {images}; no attack was run, so this says nothing about robustness: type"
        return Verdict(entry.name, _shown(entry.row.worst), text, command, "alarm" if alarms else "weak", alarms)
    under = _listed(map(spelled, attacked))
    strongest = next((spelled(r) for r in attacked if _name(r) == "autoattack"), under)
    several = "; the worst for each image" if strongest == under else f"; the worst of {under} for each image"
    worst = several if len(attacked) > 1 else ""
    facts = f"under {strongest} ({first.threat}{worst}; {images})"
    beside = "" if clean is None else f"; {_shown(clean)} without attack"
    strong = strongest != under or _is_strong(attacked)
    if alarms:
        text = f"{facts}{beside}; not to be believed before what stands below is explained"
    elif strong:
        text = f"{facts}, no sign of gradient masking{beside}"
    else:
        text = f"{facts}{beside}. No self-check spoke up"
    if not strong:
        text += f". Only {under} {'were' if len(attacked) > 1 else 'was'} run, so this is an upper bound; type"
    tone: Literal["sound", "weak", "alarm"] = "alarm" if alarms else "sound" if strong else "weak"
    return Verdict(entry.name, _shown(entry.row.worst), text, None if strong else command, tone, alarms)


def spelled(result: Result) -> str:
    """An attack as papers write it, `PGD-50-10`."""
    name = _name(result)
    return NAMES.get(name, name) + result.attack.removeprefix(name) if result.attack.startswith(name) else result.attack


def _is_strong(attacked: Iterable[Result]) -> bool:
    names = {_name(result) for result in attacked}
    return "autoattack" in names or names >= ENSEMBLE


def _name(result: Result) -> str:
    return str(result.settings.get("name", result.attack))


def _shown(share: Estimate) -> str:
    return f"{100 * share.value:.1f} % ± {100 * share.arm:.1f}"


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
