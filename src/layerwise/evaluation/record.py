"""The record of an evaluation: every number with what it was measured on, as JSON and as markdown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar, final

from layerwise.attacks.base import Attack
from layerwise.core.registry import find
from layerwise.core.threat import ThreatModel
from layerwise.errors import CheckpointError, ConfigError, LayerwiseError
from layerwise.evaluation.checks import Finding
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measurement import Measurement, Unknown, plain
from layerwise.files import write_text
from layerwise.reading import read_record

Settings: TypeAlias = dict[str, Any]
"""An attack's fields in JSON's types; an inner attack is such a dict with its `name`."""

M = TypeVar("M", bound=Measurement)

FORMAT, VERSION = "layerwise-evaluation", 2

RANDOM = "The network draws random numbers: gradients are means over {} passes of it, no attack stops at a pass that happens to be wrong."


@final
@dataclass(frozen=True)
class ModelRecord:
    """Which network was evaluated.

    Args:
        name: what the caller calls it, by default its class.
        parameters: how many.
        fingerprint: digest of its weights and buffers.
    """

    name: str
    parameters: int
    fingerprint: str


@final
@dataclass(frozen=True)
class DataRecord:
    """On which images.

    Args:
        name: of the data.
        size: images of the split, of which the results count a part drawn by `seed`.
        seed: of the images and of the attacks' random numbers.
        fingerprint: digest of the first 16 images.
    """

    name: str
    size: int
    seed: int
    fingerprint: str


@final
@dataclass(frozen=True)
class Result:
    """What one attack leaves.

    Args:
        attack: how it is written, such as `pgd-50-10`.
        settings: every field, with the defaults that depend on the threat model filled in.
        count: correct out of total.
        seconds: how long it took.
        in_threat_model: False for an attack on hidden layers, which does not count for the worst case.
        kept: which images stay correct, see `outcomes`, a bit each, written in hexadecimal; empty in older records.
    """

    attack: str
    settings: Settings
    count: Count
    seconds: float
    in_threat_model: bool = True
    kept: str = ""

    def __post_init__(self) -> None:
        """Check that bits and count agree."""
        outcomes = self.outcomes
        if outcomes and (len(outcomes), sum(outcomes)) != (self.count.total, self.count.correct):
            raise ConfigError(f"kept has not {self.count.correct} of {self.count.total} bits set: evaluate again")

    @property
    def outcomes(self) -> tuple[bool, ...]:
        """Whether each image stays correct, in the order of the evaluation: what a paired comparison needs; empty if not known."""
        return unpacked(self.kept, self.count.total)

    @property
    def accuracy(self) -> float:
        """The share that is correct, in [0, 1]."""
        return self.count.accuracy


@final
@dataclass(frozen=True)
class Measured:
    """What one measure found.

    Args:
        measure: how it is written, such as `landscape points=21`.
        found: what it gave.
    """

    measure: str
    found: Measurement

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types, with the sentence for those who do not know the measure."""
        return {"measure": self.measure, "says": self.found.sentence(), "found": self.found.to_dict()}

    @classmethod
    def from_dict(cls, value: Any, *, source: str, trust: bool = False) -> Self:
        """Read what `to_dict` gave.

        Args:
            value: from JSON.
            source: where it came from, for messages.
            trust: load the code of a measure that is not this layerwise's.

        Raises:
            CheckpointError: it does not fit.
        """
        body: dict[str, Any] = read_record(dict[str, Any], value, source=source, where="a measure")
        measure, says, found = (body.get(key) for key in ("measure", "says", "found"))
        if not (isinstance(measure, str) and isinstance(says, str) and isinstance(found, dict)):
            raise CheckpointError(
                f"{source} is corrupt: a measure has no measure, says or found; evaluate the run again"
            )
        if ":" in str(found.get("kind", "")):
            name = measure.split()[0]
            try:
                find("measure", name, trust=trust)
            except LayerwiseError:
                kind = str(found.pop("kind"))
                return cls(measure, Unknown(kind, says, found))
        return cls(measure, Measurement.from_dict(found, source=source))


@final
@dataclass(frozen=True)
class Evaluation:
    """How robust a network is: the record of one `evaluate`.

    Args:
        model: the network.
        data: the images.
        threat: against what.
        results: of each attack, in order.
        worst: images that stay correct under every attack of the threat model.
        findings: what the self-checks found; empty is good.
        batch_size: images a batch.
        eot: passes that gradients were averaged over.
        device: the machine's part that computed.
        versions: of Python, torch and layerwise.
        measures: what else was measured, in order.
        random: whether the network draws random numbers, so that no attack stopped at a single pass that was wrong.
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
    measures: tuple[Measured, ...] = ()
    random: bool = False

    def __getitem__(self, attack: str) -> Result:
        """The result of an attack, by the way it is written."""
        return {result.attack: result for result in self.results}[attack]

    def found(self, kind: type[M]) -> list[M]:
        """The measurements of a kind, in order."""
        return [measured.found for measured in self.measures if isinstance(measured.found, kind)]

    @property
    def accuracies(self) -> dict[str, float]:
        """{attack: accuracy}."""
        return {result.attack: result.accuracy for result in self.results}

    @property
    def average_attacked(self) -> float | None:
        """LAD's Avg: the mean of the accuracies under attack, the clean one left out; None if nothing attacked."""
        attacked = [r.accuracy for r in self.results if r.attack != "clean" and r.in_threat_model]
        return sum(attacked) / len(attacked) if attacked else None

    def against(self, base: Evaluation) -> Evaluation:
        """The same with what its measurements are in terms of another network's, such as mCE and mFR.

        Args:
            base: of the network whose errors are 100 %; it may be this one.

        Raises:
            ConfigError: the two were not measured alike.
        """
        scored = []
        for measured in self.measures:
            scored.append(measured)
            for other in base.measures:
                if type(other.found) is type(measured.found):
                    score = measured.found.against(other.found)
                    scored += (
                        [] if score is None else [Measured(f"{measured.measure}, against {base.model.name}", score)]
                    )
                    break
        return replace(self, measures=tuple(scored))

    def to_json(self) -> str:
        """The record as JSON text, a line a measure: one number a line would make a hundred thousand of a few pictures."""
        body = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "measures"}
        text = json.dumps({"format": FORMAT, "version": VERSION, **body}, indent=2, allow_nan=False)
        lines = [json.dumps(measured.to_dict(), allow_nan=False) for measured in self.measures]
        listed = "\n    " + ",\n    ".join(lines) + "\n  " if lines else ""
        return text[:-2] + f',\n  "measures": [{listed}]\n}}\n'

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "the text", trust: bool = False) -> Evaluation:
        """Read what `to_json` wrote.

        Args:
            text: the JSON.
            source: where it came from, for messages.
            trust: load the code of measures that are not this layerwise's; else only what they say is known.

        Raises:
            CheckpointError: it is cut off or corrupt, is something else, or was written by another version.
        """
        body = unpack(text, format=FORMAT, version=VERSION, what="the record of an evaluation", source=source)
        found = measures_of(body, source=source, trust=trust)
        record: Evaluation = read_record(cls, {**body, "measures": []}, source=source)
        totals = {count.total for count in (record.worst, *(result.count for result in record.results))}
        if len(totals) > 1:
            raise CheckpointError(f"{source} is corrupt: its results count {sorted(totals)} images, they must be equal")
        return replace(record, measures=found)

    def write(self, folder: Path | str, record: str = "evaluation") -> None:
        """Write RECORD.md and RECORD.json into a run's folder; where the record is, the page is."""
        write_text(Path(folder) / f"{record}.md", self.to_markdown())
        write_text(Path(folder) / f"{record}.json", self.to_json())

    @classmethod
    def read(cls, folder: Path, record: str = "evaluation", *, trust: bool = False) -> Evaluation:
        """Read what `write` wrote.

        Args:
            folder: the run's.
            record: name of the files, without `.json`.
            trust: see `from_json`.

        Raises:
            CheckpointError: there is no such record, or it is cut off, corrupt or something else.
        """
        file = folder / f"{record}.json"
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            there = ", ".join(records(folder))
            hint = (
                f"--record takes {there}" if there else f"make it with: layerwise evaluate {shlex.quote(str(folder))}"
            )
            raise CheckpointError(f"{folder} holds no {file.name}; {hint}") from None
        return cls.from_json(text, source=str(file), trust=trust)

    def to_markdown(self) -> str:
        """A heading, the findings, a table with a row for each attack, and a sentence or a table for each measure."""
        rows = [_row(escape(r.attack), r.count, f"{r.seconds:.1f}") for r in self.results]
        rows.append(_row("**worst case**", self.worst, ""))
        warnings = [f"> **Warning** {escape(finding)}\n" for finding in self.findings]
        head = [
            f"**{escape(self.model.name)}** on {escape(self.data.name)}, {self.worst.total} of {self.data.size} images "
            f"(seed {self.data.seed}), {self.threat}.\n",
            *warnings,
            *([f"{RANDOM.format(self.eot)}\n"] if self.random else []),
            "| attack | accuracy % | 95 % interval | correct | seconds |",
            "|---|---:|---:|---:|---:|",
        ]
        return "\n".join([*head, *rows]) + "\n" + "".join(f"\n{line}\n" for line in self._sentences())

    def _sentences(self) -> Iterator[str]:
        for title, group in groupby((m.found for m in self.measures), key=lambda found: found.title):
            for found in group:
                yield f"{title}: {found.sentence()}"


def records(folder: Path) -> list[str]:
    """Names of the records in a run's folder."""
    return sorted(f.stem for f in folder.glob("evaluation*.json"))


def measures_of(body: dict[str, Any], *, source: str, trust: bool) -> tuple[Measured, ...]:
    """Take a record's measures out of its body, read; see `Evaluation.from_json`."""
    listed: tuple[Any, ...] = read_record(tuple[Any, ...], body.pop("measures", None), source=source, where="measures")
    return tuple(Measured.from_dict(value, source=source, trust=trust) for value in listed)


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
        f"| {count.correct} / {count.total} | {seconds} |"
    )


def escape(text: object) -> str:
    """Text that stays text in markdown, also inside a table's cell: no bars, no line breaks, no markup, no mentions."""
    return re.sub(r"([\\|<>*`_\[\]&#~$@])", r"\\\1", " ".join(str(text).split()))


def packed(outcomes: Iterable[bool]) -> str:
    """`Result.kept` of these outcomes.

    >>> packed([True, False, True, True])
    'b'
    """
    return f"{int(''.join('01'[outcome] for outcome in outcomes), 2):x}"


def unpacked(kept: str, total: int) -> tuple[bool, ...]:
    """The outcomes of so many images that `packed` wrote; none of an empty text.

    >>> unpacked("b", 4)
    (True, False, True, True)

    Raises:
        ConfigError: it is no number in hexadecimal.
    """
    try:
        bits = f"{int(kept, 16):0{total}b}" if kept else ""
    except ValueError:
        raise ConfigError("kept is no number in hexadecimal: evaluate again") from None
    return tuple(bit == "1" for bit in bits)


def settings_of(attack: Attack, threat: ThreatModel) -> Settings:
    """An attack's fields, defaults filled in."""
    resolved = attack.resolved(threat)
    values = {f.name: getattr(resolved, f.name) for f in fields(resolved)}  # type: ignore[arg-type]
    return {"name": attack.name, **{key: _plain(value, threat) for key, value in values.items()}}


def _plain(value: Any, threat: ThreatModel) -> Any:
    if isinstance(value, Attack):
        return settings_of(value, threat)
    return str(value) if callable(value) else plain(value)


def black_box_worst(evaluation: Evaluation) -> Result | None:
    """The transfer of lowest accuracy, ANP's worst case over the sets of adversarial images; None if nothing was transferred.

    Reference: Liu et al. 2020 (ANP), "Adversarial robustness" in the evaluation.
    """
    return min((r for r in evaluation.results if _transfers(r.settings)), key=lambda r: r.accuracy, default=None)


def _transfers(settings: Any) -> bool:
    return isinstance(settings, dict) and (settings.get("name") == "transfer" or _transfers(settings.get("attack")))
