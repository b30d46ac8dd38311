"""What was measured is kept: an interrupted evaluation goes on where it stopped, and ends at the record of one that was not."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerwise
from layerwise.attacks import Attack, ThreatModel
from layerwise.errors import CheckpointError
from layerwise.evaluation import Evaluation, evaluate
from layerwise.evaluation.store import Store, versions
from tests.evaluation.problems import trained
from tests.forks import started
from tests.networks import batch

DATA = batch(70, seed=3, dtype=torch.float32)
ATTACKS: list[Attack | str] = ["clean", "pgd-3", "latent", "eot-2:fgsm"]
BATCHES = 7


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode, and can be stopped or slowed down."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained(torch.float32)
        self.left, self.delay = 10**9, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        time.sleep(self.delay)
        out: Tensor = self.network(x + 2 * torch.rand_like(x) - 1)
        return out


def run(journal: Path | Store | None, net: nn.Module | None = None, **changes: Any) -> Evaluation:
    options: dict[str, Any] = {"threat": ThreatModel("linf", 0.1), "attacks": ATTACKS, "batch_size": 10, **changes}
    record: Evaluation = evaluate(net or Noisy(), DATA, progress=False, journal=journal, **options)
    return record


def timeless(record: Evaluation) -> Evaluation:
    return replace(record, results=tuple(replace(r, seconds=0.0) for r in record.results))


def entries(path: Path) -> list[Any]:
    """(item, part, value) of what is kept."""
    found = [json.loads(line)["entry"] for line in path.read_text().splitlines()]
    return [entry[1:] for entry in found if isinstance(entry, list)]


@contextmanager
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Warnings alone, and none of what came before."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield


def stopped(path: Path, forwards: int, **changes: Any) -> None:
    """Begin, and stop after so many passes."""
    net = Noisy()
    net.left = forwards
    with pytest.raises(KeyboardInterrupt):
        run(path, net, **changes)


def total_passes() -> int:
    net = Noisy()
    run(None, net)
    return 10**9 - net.left


def test_an_evaluation_that_is_stopped_again_and_again_ends_at_the_same_record(tmp_path: Path) -> None:
    whole, path = run(None), tmp_path / "a.journal"
    assert whole["clean"].count.correct not in (0, 70)
    net, seen = Noisy(), [0]
    run(None, net, attacks=["latent"])
    forwards = 10**9 - net.left  # enough for the self-checks and the attack that is done as a whole
    for _ in range(40):
        net = Noisy()
        net.left = forwards
        try:
            record = run(path, net)
            break
        except KeyboardInterrupt:
            seen.append(len(entries(path)))
            assert seen[-1] > seen[-2]
    else:
        pytest.fail("it never ends")
    assert len(seen) > 2
    assert timeless(record) == timeless(whole)
    assert not path.exists()


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8, 0.97])
def test_what_is_done_is_not_done_again_and_seconds_add_up(tmp_path: Path, share: float) -> None:
    path, everything = tmp_path / "a.journal", total_passes()
    stopped(path, round(share * everything))
    kept = [e for e in entries(path) if e[0] == "attack clean"]
    assert [e[1] for e in kept] == list(range(BATCHES))
    net = Noisy()
    record = run(path, net)
    again = 10**9 - net.left
    assert again < everything - len(kept)
    assert record["clean"].seconds == sum(e[2]["seconds"] for e in kept)


def test_results_do_not_depend_on_the_other_attacks() -> None:
    assert timeless(run(None)).results[1] == timeless(run(None, attacks=["pgd-3"])).results[0]


def slowly(path: Path) -> None:
    """Evaluate, so slowly that it can be killed meanwhile."""
    torch.set_num_threads(1)
    net = Noisy()
    net.delay = 0.003
    run(path, net)


def killed(path: Path, lines: int) -> None:
    """Evaluate in another process, and kill it when its journal has so many lines."""
    running = started(slowly, path)
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert running.is_alive()
        time.sleep(0.002)
    running.kill()
    running.join()
    assert running.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    for lines in (3, 13):
        killed(path, lines)
        assert lines <= len(path.read_text().splitlines()) < 2 + 4 * BATCHES
    assert timeless(run(path)) == timeless(run(None))


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_line_that_was_cut_off_is_done_again_without_a_word(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.journal"
    stopped(path, 25)
    path.write_bytes(path.read_bytes()[:-cut])
    with warned(caplog):
        assert timeless(run(path)) == timeless(run(None))
    assert not caplog.records


def test_a_journal_that_was_cut_off_in_its_first_line_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.journal"
    stopped(path, 25)
    for size in (0, 1, 100):
        path.write_bytes(path.read_bytes()[:size])
        with warned(caplog):
            stopped(path, 25)
    assert not caplog.records
    assert sorted(tmp_path.iterdir()) == [path]


def test_damaged_lines_are_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, whole = tmp_path / "a.journal", timeless(run(None))
    stopped(path, 40)
    lines = path.read_bytes().splitlines(keepends=True)
    # All images correct in a batch of clean ones: what a flipped bit could claim.
    lines[4] = lines[4].replace(b"0", b"1")
    lines[6] = b"\x00\xff" + lines[6]
    path.write_bytes(b"".join(lines))
    with warned(caplog):
        assert timeless(run(path)) == whole
    assert caplog.messages == [f"{path}: 2 damaged lines, what they held is done again"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"threat": ThreatModel("linf", 0.2)}, "threat {.*0.1} before, {.*0.2} now"),
        ({"seed": 1}, "data "),
        ({"num_examples": 50}, r"images \[70, 70\] before, \[50, 70\] now"),
        ({"batch_size": 9}, "batch size 10 before, 9 now"),
    ],
)
def test_under_other_circumstances_nothing_is_found_and_nothing_is_lost(
    tmp_path: Path, changes: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.journal"
    stopped(path, 25)
    before = entries(path)
    with warned(caplog):
        assert timeless(run(path, **changes)) == timeless(run(None, **changes))
    (message,) = caplog.messages
    assert re.match(f"{path} was begun under other circumstances \\({named}", message)
    assert message.endswith("that is kept, and this begins anew")
    assert entries(path) == before
    # The first evaluation goes on where it stopped, and leaves nothing.
    net = Noisy()
    assert timeless(run(path, net)) == timeless(run(None))
    assert 10**9 - net.left < total_passes()
    assert not path.exists()


def test_other_weights_are_other_circumstances(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, other = tmp_path / "a.journal", Noisy()
    stopped(path, 25)
    with torch.no_grad():
        other.network.fc2.bias.add_(1.0)
    with warned(caplog):
        assert timeless(run(path, other)) == timeless(run(None, other))
    assert "other circumstances (weights " in caplog.messages[0]


@pytest.mark.parametrize("package", ["torch", "layerwise", "python"])
def test_another_version_is_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    path = tmp_path / "measured.jsonl"
    assert Store(path).get("rho", lambda: 1) == 1
    assert Store(path).get("rho", lambda: 2) == 1
    monkeypatch.setattr("layerwise.evaluation.store.versions", lambda: {**versions(), package: "0.0.1"})
    assert Store(path).get("rho", lambda: 3) == 3


def test_on_the_path_and_not_installed_there_is_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert versions()["layerwise"] == f"{layerwise.__version__} (not installed)"


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\n", b"\x00\xff\n\n", b'{"entry": 3}\n', b"[" * 100_000 + b"\n"]
)
def test_what_is_no_journal_is_kept(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    (tmp_path / "a.journal.aside-1").write_text("older")
    with warned(caplog):
        run(path, attacks=["clean"])
    assert (tmp_path / "a.journal.aside-2").read_bytes() == content
    assert (tmp_path / "a.journal.aside-1").read_text() == "older"
    assert (
        "is damaged at its beginning, or was not written by this layerwise: it is kept as a.journal.aside-2"
        in caplog.text
    )


def test_another_list_of_attacks_goes_on_with_those_that_are_done(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    stopped(path, 25)
    net = Noisy()
    record = run(path, net, attacks=["clean", "fgsm"])
    alone = Noisy()
    run(None, alone, attacks=["fgsm"])
    assert net.left >= alone.left
    assert [r.attack for r in record.results] == ["clean", "fgsm"]


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with (
        Store(path).open(),
        pytest.raises(CheckpointError, match=r"a.journal is in use by this process; .* another --record NAME"),
        Store(path).open(),
    ):
        pass


def test_a_store_of_the_callers_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    run(Store(path), attacks=["clean"])
    assert [part for item, part, _ in entries(path) if item == "attack clean"] == list(range(BATCHES))


def test_several_processes_add_to_one_store(tmp_path: Path) -> None:
    path = tmp_path / "measured.jsonl"
    with Store(path).open(alone=False) as one, Store(path).open(alone=False) as other:
        one.put("a", 1)
        other.put("b", [2])
    with Store(path).open(alone=False) as store:
        assert (store.found("a"), store.found("b")) == ({0: 1}, {0: [2]})


def test_what_another_process_left_half_written_costs_only_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "measured.jsonl"
    Store(path).extend([("a", 0, 1), ("a", 1, 2)])
    path.write_bytes(path.read_bytes()[:-9])
    with Store(path).open(alone=False) as store:
        assert store.found("a") == {0: 1}
        store.put("b", 3)
    with warned(caplog), Store(path).open(alone=False) as store:
        assert (store.found("a"), store.found("b")) == ({0: 1}, {0: 3})
    assert caplog.messages == [f"{path}: 1 damaged lines, what they held is done again"]


def test_a_store_without_a_path_keeps_nothing() -> None:
    with Store(None).open() as store:
        store.put("a", 1)
        assert (store.found("a"), store.get("a", lambda: [2])) == ({}, [2])


def test_a_disk_that_is_full_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "a.journal", 0

    def full(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*a\.journal: No space left on device; free space and resume"
    ):
        run(path)
    assert timeless(run(path)) == timeless(run(None))
