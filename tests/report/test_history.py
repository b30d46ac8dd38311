"""What a report reads of a training: bounded, whatever the file holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

from layerwise.report.history import LONGEST, MOST, read_history


def test_a_long_file_is_thinned_but_for_the_ends_of_epochs(tmp_path: Path) -> None:
    file, epochs = tmp_path / "metrics.jsonl", 40
    train = json.dumps({"kind": "train", "epoch": 1, "step": 1, "loss": 0.5, "note": "x" * 60}) + "\n"
    per_epoch = 5 * MOST // len(train) // epochs
    with file.open("w") as out:
        for epoch in range(1, epochs + 1):
            out.write(train * per_epoch)
            out.write(json.dumps({"kind": "epoch", "epoch": epoch, "step": epoch, "seconds": 2.0 * epoch}) + "\n")
    history = read_history(file)
    assert len(history.lines) < MOST // len(train) + epochs
    assert len(history.of("train")) > per_epoch * epochs // 7
    assert [line["epoch"] for line in history.of("epoch")] == list(range(1, epochs + 1))
    assert history.seconds == 2.0 * epochs
    assert history.problem == "metrics.jsonl has 21 MB; one line in 6 is shown."


def test_lines_that_say_to_end_an_epoch_do_not_fill_the_memory(tmp_path: Path) -> None:
    file, line = tmp_path / "metrics.jsonl", '{"kind": "epoch", "a": 1}\n'
    file.write_text(line * (3 * MOST // len(line)))
    assert len(read_history(file).lines) <= MOST // len(line) + (MOST >> 7)


def test_a_line_without_end_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "end"}\n' + "[" * (2 * LONGEST))
    history = read_history(file)
    assert history.lines == ({"kind": "end"},)
    assert history.problem == "metrics.jsonl is damaged at line 2; what stands before it is shown."


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert read_history(tmp_path / "metrics.jsonl").problem == "metrics.jsonl is no plain file."
