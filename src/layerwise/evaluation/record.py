"""The record of an evaluation: every number with what it was measured on, as JSON and as markdown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from layerwise.attacks.base import Attack
from layerwise.core.threat import ThreatModel
from layerwise.errors import CheckpointError
from layerwise.evaluation.checks import Finding
from layerwise.evaluation.metrics import Count
from layerwise.reading import read_record

Settings: TypeAlias = dict[str, Any]
"""An attack's fields in JSON's types; an inner attack is such a dict with its `name`."""

FORMAT, VERSION = "layerwise-evaluation", 1


@dataclass(frozen=True)
class ModelRecord:
    """Which network was judged.

    Args:
        name: what the caller calls it, by default its class.
        parameters: how many.
        fingerprint: digest of its weights and buffers.
    """

    name: str
    parameters: int
    fingerprint: str


@dataclass(frozen=True)
class DataRecord:
    """On which images.

    Args:
        name: of the data.
        size: images of the split, of which the results count a part drawn by `seed`.
        seed: of the images and of the attacks' random numbers.
        fingerprint: digest of the first 16 images judged.
    """

    name: str
    size: int
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Result:
    """What one attack left right.

    Args:
        attack: how it is written, such as `pgd-50-10`.
        settings: every field, with the defaults that depend on the threat model filled in.
        count: right out of total.
        seconds: how long it took.
        in_threat_model: False for an attack on hidden layers, which does not count for the worst case.
    """

    attack: str
    settings: Settings
    count: Count
    seconds: float
    in_threat_model: bool = True

    @property
    def accuracy(self) -> float:
        """The share that is right, in [0, 1]."""
        return self.count.accuracy


@dataclass(frozen=True)
class Evaluation:
    """How robust a network is: the record of one `evaluate`.

    Args:
        model: the network.
        data: the images.
        threat: against what.
        results: of each attack, in order.
        worst: images that stay right under every attack of the threat model.
        findings: what the self-checks found; empty is good.
        batch_size: images a batch.
        eot: passes that gradients were averaged over.
        device: the machine's part that computed.
        versions: of Python, torch and layerwise.
    """

    model: ModelRecord
    data: DataRecord
    threat: ThreatModel
    results: tuple[Result, ...]
    worst: Count
    findings: tuple[Finding, ...]
    batch_size: int
    eot: int
    device: str
    versions: dict[str, str]

    def __getitem__(self, attack: str) -> Result:
        """The result of an attack, by the way it is written."""
        return {result.attack: result for result in self.results}[attack]

    @property
    def accuracies(self) -> dict[str, float]:
        """{attack: accuracy}."""
        return {result.attack: result.accuracy for result in self.results}

    @property
    def average_attacked(self) -> float | None:
        """LAD's Avg: the mean of the accuracies under attack, the clean one left out; None if nothing attacked."""
        attacked = [r.accuracy for r in self.results if r.attack != "clean" and r.in_threat_model]
        return sum(attacked) / len(attacked) if attacked else None

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "the text") -> Evaluation:
        """Read what `to_json` wrote.

        Args:
            text: the JSON.
            source: where it came from, for messages.

        Raises:
            CheckpointError: it is cut off or corrupt, is something else, or was written by a newer version.
        """
        body = unpack(text, format=FORMAT, version=VERSION, what="the record of an evaluation", source=source)
        record: Evaluation = read_record(cls, body, source=source)
        totals = {count.total for count in (record.worst, *(result.count for result in record.results))}
        if len(totals) > 1:
            raise CheckpointError(f"{source} is corrupt: its results count {sorted(totals)} images, they must be equal")
        return record

    def to_markdown(self) -> str:
        """A heading, the findings, and a table with a row for each attack."""
        rows = [_row(_cell(r.attack), r.count, f"{r.seconds:.1f}") for r in self.results]
        rows.append(_row("**worst case**", self.worst, ""))
        warnings = [f"> **Warning** {_cell(finding)}\n" for finding in self.findings]
        head = [
            f"**{_cell(self.model.name)}** on {_cell(self.data.name)}, {self.worst.total} of {self.data.size} images "
            f"(seed {self.data.seed}), {self.threat}.\n",
            *warnings,
            "| attack | accuracy % | 95 % interval | right | seconds |",
            "|---|---:|---:|---:|---:|",
        ]
        return "\n".join([*head, *rows]) + "\n"


def unpack(text: str | bytes, *, format: str, version: int, what: str, source: str) -> dict[str, Any]:
    """The body of a JSON file that begins with its format and version.

    Args:
        text: the JSON.
        format: what it has to say it is.
        version: likewise.
        what: what such a file is called, for messages.
        source: where it came from, for messages.

    Raises:
        CheckpointError: it is cut off or corrupt, is something else, or was written by another version.
    """
    try:
        found = json.loads(text)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{source} is not JSON ({error}); evaluate the run again") from error
    if not isinstance(found, dict) or found.pop("format", None) != format:
        raise CheckpointError(f"{source} is not {what}; give a file that `layerwise evaluate` wrote")
    if (written := found.pop("version", None)) != version:
        raise CheckpointError(
            f"{source} has version {written!r}, this layerwise reads {version}; use the one that wrote it"
        )
    return found


def _row(name: str, count: Count, seconds: str) -> str:
    low, high = count.interval
    return (
        f"| {name} | {100 * count.accuracy:.2f} | {100 * low:.2f} to {100 * high:.2f} "
        f"| {count.right} / {count.total} | {seconds} |"
    )


def _cell(value: object) -> str:
    """Text that stays inside its cell: no bars, no line breaks, no markup."""
    text = " ".join(str(value).split())
    for character in "\\|<>*`_[]":
        text = text.replace(character, "\\" + character)
    return text


def settings_of(attack: Attack, threat: ThreatModel) -> Settings:
    """An attack's fields, defaults filled in."""
    resolved = attack.resolved(threat)
    values = {f.name: getattr(resolved, f.name) for f in fields(resolved)}  # type: ignore[arg-type]
    return {"name": attack.name, **{key: _plain(value, threat) for key, value in values.items()}}


def _plain(value: Any, threat: ThreatModel) -> Any:
    if isinstance(value, Attack):
        return settings_of(value, threat)
    return list(value) if isinstance(value, tuple) else value


def black_box_worst(evaluation: Evaluation) -> Result | None:
    """The transfer of lowest accuracy, ANP's worst case over the sets of adversarial images; None if nothing was transferred.

    Reference: Liu et al. 2020 (ANP), "Adversarial robustness" in the evaluation.
    """
    return min((r for r in evaluation.results if _transfers(r.settings)), key=lambda r: r.accuracy, default=None)


def _transfers(settings: Any) -> bool:
    return isinstance(settings, dict) and (settings.get("name") == "transfer" or _transfers(settings.get("attack")))
