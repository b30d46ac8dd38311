"""TensorBoard's event files, written at once: its own writer does so in a thread, where a full disk is a traceback and no error."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from layerwise.errors import ConfigError
from layerwise.files import open_in_place, own_folder


@final
class EventFile:
    """Appends numbers to an event file of its own, which begins by taking back what an interrupted process told of later steps.

    Args:
        folder: of the run's event files.

    Raises:
        ConfigError: the package tensorboard is not there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(
                "tensorboard=True needs the package; type pip install 'layerwise[tensorboard]'"
            ) from error
        self._events, self._summaries, self._records = event_pb2, summary_pb2, RecordWriter
        self.path = folder / f"events.out.tfevents.{time.time():.3f}.{platform.node()}.{os.getpid()}"

    def write(self, values: Mapping[str, float], *, step: int) -> None:
        """Append numbers.

        Raises:
            OSError: the disk refused.
        """
        make, events = self._summaries.Summary, self._events
        told = [
            events.Event(step=step, summary=make(value=[make.Value(tag=k, simple_value=v) for k, v in values.items()]))
        ]
        if not self.path.exists():
            own_folder(self.path.parent)
            begin = events.SessionLog(status=events.SessionLog.START)
            told = [events.Event(file_version="brain.Event:2"), events.Event(step=step, session_log=begin), *told]
        with open_in_place(self.path, "ab") as file:
            self._append(file, told)

    def _append(self, file: Any, told: list[Any]) -> None:
        records = self._records(file)
        for event in told:
            event.wall_time = time.time()
            records.write(event.SerializeToString())
