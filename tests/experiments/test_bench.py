"""Timings: that the same work is compared, and what the command prints and writes. No test looks at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core import registry
from layerwise.core.random import normal, uniform
from layerwise.errors import ConfigError
from layerwise.experiments.bench import steps, timing
from layerwise.experiments.bench.plain import STEPS, HandWritten
from layerwise.experiments.bench.stepping import Setup, cut, opened, parse_method, training
from layerwise.experiments.bench.steps import bench_steps, step_table
from layerwise.experiments.bench.timing import interleaved, medians, ratio, repeated
from layerwise.methods import PGD, SLAT, TRADES, FreeAT, LatentPGD, Method
from tests.command import Command, layerwise
from tests.forks import forks

__all__ = ["layerwise"]

SMALL: dict[str, Any] = {"model": "digits_cnn", "options": {"width": 4}, "shape": (1, 8, 8), "batch": 6}


def small(**options: Any) -> Setup:
    return Setup(**SMALL, training=training(batch_size=6, accelerator="cpu", **options))


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, 8, 8, generator=stream, dtype=torch.float64), torch.arange(count)


@pytest.mark.parametrize("name", STEPS)
def test_the_plain_step_does_what_the_method_does(name: str) -> None:
    usual: dict[str, Method] = {"PGD": PGD(steps=2), "TRADES": TRADES(attack=PGD(steps=2)), "FreeAT": FreeAT(m=2)}
    usual["LatentPGD"] = LatentPGD(sites=["conv1", "layer1"], steps=2)
    method = usual.get(name) or registry.find("method", name).thing()
    ours = small().network().double()
    theirs, before = copy.deepcopy(ours), copy.deepcopy(ours)
    assert isinstance(theirs, nn.Sequential)
    for net, step in ((ours, None), (theirs, STEPS[name])):
        source = torch.Generator().manual_seed(5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        if step is not None:
            plain = HandWritten(
                model=net,
                optimizer=optimizer,
                parts=cut(theirs, ["conv1", "layer1"]),
                uniform=lambda x, source=source: uniform(x, source),  # type: ignore[misc]
                normal=lambda x, source=source: normal(x, source),  # type: ignore[misc]
            )
            step(plain, method)(*images())
            continue
        for loss in method.losses(net, *images(), generator=source):
            assert isinstance(loss, Tensor)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert any(not torch.allclose(a, b) for a, b in zip(ours.parameters(), before.parameters(), strict=True))
    # Buffers differ: plain probes move the running statistics.
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


def test_what_is_timed_is_the_step_of_fit() -> None:
    setup = small(clip_norm=0.1)
    with opened(SLAT(eta=0.1), setup) as contestant:
        session = contestant.loop.session
        assert not session.unusual
        weights = [p.detach().clone() for p in session.raw.parameters()]
        norm = session.grad_norm.clone()
        contestant.run()
        assert float(norm) > 0
        assert any(not torch.equal(a, b) for a, b in zip(weights, session.raw.parameters(), strict=True))
        assert float(session.lr) == 1e-5
    assert not any(m._forward_hooks for m in session.raw.modules())


def test_operations_are_counted_as_passes_say() -> None:
    counts = {}
    for text in ("Standard", "PGD:steps=1", "PGD:steps=3", "GradAlign"):
        with opened(parse_method(text, small()), small()) as contestant:
            counts[text] = contestant.operations
    probe = (counts["PGD:steps=3"] - counts["PGD:steps=1"]) / 2
    # Two of a descent's three passes; the descent spares the gradient at the pixels.
    assert probe / counts["Standard"] == pytest.approx(2 / 3, abs=0.05)
    assert counts["GradAlign"] > counts["PGD:steps=1"]


def test_a_record_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    wanted = ["SLAT", "LAT:sites=first(2)", "LAD", "SLAT:sites=nowhere"]
    record = bench_steps(small(), wanted, rounds=2, seconds=1e-3, say=said.append)
    assert [row["method"] for row in record["rows"]] == ["Standard", "SLAT", "LAT:sites=first(2)", "LAD"]
    assert ["nowhere" in sentence for sentence in said] == [True]
    rows = {row["method"]: row for row in record["rows"]}
    assert rows["Standard"]["ratio"] == 1.0
    assert rows["SLAT"]["floor"] == pytest.approx(5 / 3)
    assert rows["SLAT"]["to_by_hand"] > 0
    assert rows["LAD"]["to_by_hand"] is None
    assert all(row["fastest"] <= row["milliseconds"] <= row["slowest"] for row in record["rows"])
    header, body = step_table(json.loads(json.dumps(record)))
    assert {len(row) for row in body} == {len(header)}
    assert {"packages", "processor", "allocator", "threads"} <= record["machine"].keys()


def test_contestants_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    found = interleaved(runs, torch.device("cpu"), rounds=3, seconds=0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert all(len(times) == 3 for times in found.values())
    # A machine that slows down in the middle does not change a ratio that is taken turn by turn.
    assert ratio([2.0, 8.0, 2.0], [1.0, 4.0, 1.0]) == 2.0


def stopping(calls: int) -> Callable[[], None]:
    """A step that Ctrl-C hits at the so-manieth call."""
    left = iter(range(calls - 1))

    def step() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return step


def test_whole_rounds_are_kept_where_they_are_asked_for() -> None:
    cpu = torch.device("cpu")
    # One call finds out how many steps fill a turn; the third turn is the fourth call.
    found = interleaved({"a": lambda: None, "b": stopping(4)}, cpu, rounds=9, seconds=0, part=True)
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}
    for part, calls in ((True, 2), (False, 4)):
        with pytest.raises(KeyboardInterrupt):
            interleaved({"a": stopping(calls)}, cpu, rounds=9, seconds=0, part=part)


def test_a_stopped_bench_shows_what_it_has(layerwise: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def short(*arguments: object, rounds: int, **options: Any) -> dict[str, list[float]]:
        return interleaved(*arguments, rounds=min(rounds, 2), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "interleaved", short)
    argv = ["bench", "step", "--network", "digits_cnn", "--shape", "1,8,8", "--batch", "8", "--seconds", "0"]
    said = layerwise(*argv, "--methods", "FGSM", "--output", "kept.json")
    assert (said.code, said.err) == (130, "stopped by Ctrl-C; what is shown is of 2 of 7 rounds\n")
    assert "FGSM" in said.out
    assert json.loads((tmp_path / "kept.json").read_text())["settings"]["rounds"] == 2


def test_a_misspelt_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'SLAT'"):
        parse_method("SLT", small())
    with pytest.raises(ConfigError, match="field=value"):
        parse_method("PGD:steps", small())


def test_the_command_prints_a_table_and_writes_a_record(layerwise: Command, tmp_path: Path) -> None:
    file = tmp_path / "results" / "step.json"
    small = [
        "--network",
        "digits_cnn",
        "--shape",
        "1,8,8",
        "--options",
        "{width: 4}",
        "--batch",
        "4",
        "--accelerator",
        "cpu",
    ]
    quick = ["--rounds", "1", "--seconds", "0.001", "--methods", "FGSM", "--output", str(file)]
    said = layerwise("bench", "step", *small, *quick)
    assert said.code == 0
    assert "FGSM" in said.out
    assert "1.67" in said.out
    record = json.loads(file.read_text())
    assert record["kind"] == "step"
    assert record["settings"]["shape"] == [1, 8, 8]
    refused = layerwise("bench", "step", "--training.epochs", "3")
    assert refused.code == 2
    assert "--training.epochs" in refused.err


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("--rounds=0", "--rounds=0 is too small"),
        ("--threads=0", "--threads=0 is too small"),
        ("--processes=0", "--processes=0 is too small"),
        ("--seconds=-1", "--seconds=-1.0 is too small"),
        ("--network=lenett", "did you mean 'lenet'"),
        ("--shape=1,28", "(N, C, H, W)"),
        ("--methods=SLATT", "did you mean 'SLAT'"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(layerwise: Command, asked: str, answer: str) -> None:
    said = layerwise("bench", "step", "--network=mlp", asked)
    assert said.code == 2
    assert answer in said.err


def test_rows_are_medians_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def context(kind: str) -> Any:
        asked.append(kind)
        return forks()

    monkeypatch.setattr(timing, "get_context", context)
    record = repeated(bench_steps, small(), ["FGSM"], rounds=1, seconds=1e-3, say=print, processes=2, threads=1)
    assert asked == ["spawn", "spawn"]
    assert record["processes"] == 2
    assert record["machine"]["threads"] == 1
    assert [(row["method"], row["passes"]) for row in record["rows"]] == [("Standard", 3), ("FGSM", 5)]
    tables = [[{"method": "FGSM", "passes": 5, "ratio": r, "to_by_hand": None}] for r in (3.0, 1.0, 1.5)]
    assert medians(tables) == [{"method": "FGSM", "passes": 5, "ratio": 1.5, "to_by_hand": None}]
