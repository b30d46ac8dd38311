"""A plan says what an experiment would do and cost, and does nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from layerwise.experiments.experiment import read
from layerwise.experiments.plan import kept_bytes, plan

SMALL = ["--training.batch_size=32", "--model.options.width=4"]


def test_a_plan_names_what_would_happen_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    phases = "[{epochs: 1, fields: {k: 1}}, {epochs: 2, fields: {k: 4}}, {epochs: 1, method: PGD}]"
    overrides = [
        "--method=ANP",
        "--method.layers=1",
        "--phases",
        phases,
        "--training.epochs=4",
        "--training.batch_size=32",
        "--model.options.width=4",
    ]
    text = plan(read("slat-digits", overrides)[0])
    assert list(tmp_path.iterdir()) == []
    assert "digits: 1,131 to train on, 126 to choose by, 540 to evaluate on" in text
    # 1,131 images are 36 batches of 32.
    assert "4 epochs, 144 batches of 32" in text
    assert re.findall(r"phase (\d) +(\d) epochs, (\w+), (\d+) passes", text) == [
        ("1", "1", "ANP", "3"),
        ("2", "2", "ANP", "12"),
        ("3", "1", "PGD", "23"),
    ]
    assert "conv1  (4, 8, 8)      256" in text
    assert re.search(r"time +about [0-9.]+ s in all", text)


def test_a_plan_counts_only_the_batches_that_would_be_trained() -> None:
    phases = ["--phases", "[{epochs: 1}, {epochs: 1}]", "--training.epochs=2", "--training.max_steps=3"]
    text = plan(read("standard-digits", [*SMALL, *phases])[0])
    assert "2 epochs, 3 batches of 32" in text


def test_memory_is_what_backward_passes_keep() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(5, 4)
    # The input for the first weight's gradient, and what the ReLU gave for its own and the second weight's.
    assert kept_bytes(net, lambda: net(x).sum().backward()) == 4 * (5 * 4 + 5 * 3)

    def second_order() -> None:
        inner = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(net(inner).square().sum(), inner, create_graph=True)
        g.square().sum().backward()  # type: ignore[no-untyped-call]

    def first_order() -> None:
        net(x).square().sum().backward()

    assert kept_bytes(net, second_order) > 2 * kept_bytes(net, first_order)

    def three_times() -> None:
        for _ in range(3):
            first_order()

    # All is let go in the end: three passes need no more than one.
    assert kept_bytes(net, three_times) == kept_bytes(net, first_order)


def test_a_plan_names_where_training_starts_from_and_trains_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = plan(read("deep-defense-digits", ["--training.batch_size=8", "--method.num_steps=1"])[0])
    assert re.search(r"^start +standard-digits$", text, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
