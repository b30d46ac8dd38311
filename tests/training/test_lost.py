"""A process of several that has ended: the others, or the one that started them, say so in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException

from layerwise.errors import ConfigError, LayerwiseError
from layerwise.training import ranks
from layerwise.training.ranks import survived
from layerwise.training.run import CHECKPOINTS, to_go_on

READ_ERROR = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:38616: Connection reset by peer."


def lose(error: Exception) -> None:
    with survived(lambda: "type the same again"):
        raise error


@pytest.fixture
def in_a_group(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(ranks, "grouped", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: request.param)


@pytest.mark.parametrize("in_a_group", [0, 1, 2], indirect=True)
@pytest.mark.parametrize("error", [RuntimeError(READ_ERROR), dist.DistBackendError("NCCL communicator was aborted")])
def test_survivors_say_it_but_for_those_who_would_only_repeat_it(
    in_a_group: None, request: pytest.FixtureRequest, error: Exception
) -> None:
    with pytest.raises(LayerwiseError, match=r"^another of the processes has ended, .*; type the same again$") as told:
        lose(error)
    spoken = isinstance(told.value.__cause__, OSError)
    assert spoken is (dist.get_rank() < 2)


def test_who_started_them_says_it() -> None:
    gone = ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 1, -9, "SIGKILL")
    with pytest.raises(LayerwiseError, match="another of the processes has ended"):
        lose(gone)


@pytest.mark.parametrize("error", [RuntimeError(READ_ERROR), ConfigError("eps=8"), ValueError("a bug")])
def test_other_errors_stay_as_they_are(error: Any) -> None:
    """Without a group a reset connection is something else."""
    with pytest.raises(type(error)) as told:
        lose(error)
    assert told.value is error


def test_the_command_is_the_one_that_works(tmp_path: Path) -> None:
    assert to_go_on(tmp_path) == "nothing is saved yet: type the same again"
    (tmp_path / CHECKPOINTS / "step-00000001").mkdir(parents=True)
    assert to_go_on(tmp_path) == f"go on with: layerwise train --resume {tmp_path}"
