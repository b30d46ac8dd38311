"""What a GPU is asked for: every part runs at a tiny size, results are kept as they come, and nothing outlasts the limit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gpu import Part

from benchmarks import gpu, packed, robust
from layerwise.cli.arguments import parse
from layerwise.cli.main import commands, main
from layerwise.data.cifar import CIFAR10
from layerwise.errors import DataError
from layerwise.experiments import experiment
from layerwise.files import write_text

PARTS = {part.name: part for part in gpu.parts()}


def typed(part: Part, runs: Path) -> list[str]:
    return [word.format(runs=runs) for word in part.command]


def test_the_parts_are_in_order_of_worth() -> None:
    names = list(PARTS)
    assert names[:5] == ["tests", "steps-prn18-eager", "steps-prn18-captured", "robust-45", "slat"]
    assert [name for name in names if name in gpu.METHODS] == list(gpu.METHODS)
    assert all(names.index(f"{name}-autoattack") == names.index(name) + 1 for name in gpu.METHODS)
    assert {f"steps-{network}-{kind}" for network in gpu.NETWORKS for kind in gpu.STEPS} < set(names)


@pytest.mark.parametrize("name", [name for name in PARTS if name in gpu.METHODS])
def test_the_methods_are_the_recipes_in_one_loop(name: str, tmp_path: Path) -> None:
    arguments, settings = parse(typed(PARTS[name], tmp_path)[1:], commands(["train"]))
    chosen, _ = experiment.read(arguments.recipe, settings)
    training = chosen.training
    assert (chosen.model.name, training.epochs, training.batch_size) == ("preact_resnet18", 30, 128)
    assert (training.precision, training.capture, training.channels_last) == ("bf16-mixed", "auto", True)
    assert type(chosen.method).__name__.lower().replace("lad", "lad-natural") == name.replace("-rs", "rs").replace(
        "n-f", "nf"
    )
    assert chosen.evaluation.attacks == ["clean", "pgd-50"]


def test_every_part_runs_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    for part in map(gpu.rehearsal, (PARTS[name] for name in ("robust-45", "lad-natural", "lad-natural-autoattack"))):
        module, *rest = typed(part, tmp_path)
        assert (main(rest) if module == "layerwise" else robust.main(rest)) == 0, part.name
        assert part.record is not None
        assert json.loads(Path(part.record.format(runs=tmp_path)).read_text())
    torch.set_num_threads(threads)
    for part in PARTS.values():
        if part.name.startswith("steps-"):
            for each in (part, gpu.rehearsal(part)):
                arguments, _ = parse(typed(each, tmp_path)[1:], commands(["bench"]))
                assert arguments.output == Path(f"{tmp_path}/{part.name}.json")


class Scripted:
    """Seconds that are left, at one look after the other; the last stays."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    @property
    def left(self) -> float:
        return self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


def python(name: str, code: str, seconds: float = 0.0, **options: str) -> Part:
    return Part(name=name, command=("timeit", "-n1", "-r1", code), seconds=seconds, **options)


def test_results_are_kept_in_order_and_the_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[str]] = []

    def note(file: Path, text: str) -> None:
        kept.append(list(json.loads(text)["parts"]))
        write_text(file, text)

    monkeypatch.setattr(gpu, "write_text", note)
    output, marks = tmp_path / "gpu.json", tmp_path / "marks"
    says = f"open({str(tmp_path / 'one.json')!r}, 'w').write('[1]')"
    sleeps = f"import os, time; open({str(marks)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    todo: Sequence[Part] = (
        python("record", says, record="{runs}/one.json"),
        python("fails", "raise ValueError"),
        python("long", "pass", seconds=500),
        python("lacks", "pass", needs="{runs}/nowhere"),
        python("sleeps", sleeps, seconds=20),
        python("late", "pass", seconds=20),
    )

    class Until(Scripted):
        """Time is over when the part that sleeps does so."""

        @property
        def left(self) -> float:
            return 0.2 if marks.exists() else 100.0

    def sleeping(process: Any, budget: Any) -> int:
        while sleeps in process.args and not marks.exists():
            time.sleep(0.01)
        return awaited(process, budget)

    awaited = gpu._awaited
    monkeypatch.setattr(gpu, "_awaited", sleeping)
    parts = gpu.go_through(todo, Until(), output=output, runs=tmp_path)["parts"]
    names = [part.name for part in todo]
    assert kept == [names[: i + 1] for i in range(len(names))]
    assert (parts["record"]["code"], parts["record"]["record"]) == (0, [1])
    assert parts["fails"]["code"] == 1
    assert parts["long"] == {"left_out": "needs about 500 s, 100 s are left"}
    assert parts["lacks"]["left_out"].endswith("nowhere is not there")
    assert parts["sleeps"]["code"] == -15
    assert parts["late"] == {"left_out": "needs about 20 s, 0 s are left"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(marks.read_text()), 0)
    # The same again does what is left, and nothing twice.
    marks.unlink()
    (tmp_path / "one.json").unlink()
    again = gpu.go_through([todo[0], python("late", "pass")], Scripted(100.0), output=output, runs=tmp_path)["parts"]
    assert (again["record"], again["late"]["code"]) == (parts["record"], 0)


def test_a_foreign_file_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "other.json"
    output.write_text("[]")
    assert gpu.main(["--rehearse", "--output", str(output)]) == 2
    assert "is no record of benchmarks/gpu.sh" in capsys.readouterr().err
    assert output.read_text() == "[]"


def test_the_limit_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    budget = gpu.Budget(60)
    now[0] += 20
    assert budget.left == 40 - gpu.GRACE


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """CIFAR-10's files with few images, a last picture that is not full among them."""
    generator = np.random.default_rng(0)
    (tmp_path / "data" / CIFAR10.folder).mkdir(parents=True)
    for number, name in enumerate(packed.FILES):
        records = generator.integers(0, 256, (3 + 30 * number, CIFAR10.record), dtype=np.uint8)
        records[:, 0] %= 10
        (tmp_path / "data" / CIFAR10.folder / name).write_bytes(records.tobytes())
    return tmp_path


def test_what_is_packed_comes_out_to_the_bit(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packed, "AT_A_TIME", 40)
    assert packed.main(["pack", str(cifar / "data"), str(cifar / "parts")]) == 0
    assert sorted(path.name for path in (cifar / "parts").iterdir()) == ["cifar10-1.zip", "cifar10-2.zip"]
    assert packed.main(["unpack", str(cifar / "parts"), str(cifar / "again")]) == 0
    for name in packed.FILES:
        before, after = ((cifar / where / CIFAR10.folder / name).read_bytes() for where in ("data", "again"))
        assert before == after
    assert "cifar10-2.zip" in capsys.readouterr().out


def test_parts_that_are_missing_damaged_or_too_large_are_told(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = packed.pack(cifar / "data", cifar / "parts")
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(DataError, match=r"cifar10-2.zip: .*bring all 2 parts there"):
        packed.unpack(cifar / "parts", cifar / "again")
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cifar10-2.zip: "):
        packed.unpack(cifar / "parts", cifar / "again")
    second.write_bytes(first.read_bytes())  # the digests say that half is missing
    with pytest.raises(DataError, match="is not what was packed"):
        packed.unpack(cifar / "parts", cifar / "again")
    assert not (cifar / "again" / CIFAR10.folder / CIFAR10.test).exists()
    monkeypatch.setattr(packed, "LIMIT", 1000)
    with pytest.raises(DataError, match="more than 1,000"):
        packed.pack(cifar / "data", cifar / "parts")
    (cifar / "data" / CIFAR10.folder / CIFAR10.test).write_bytes(b"cut")
    with pytest.raises(DataError, match="no multiple of 3,073"):
        packed.pack(cifar / "data", cifar / "parts")
