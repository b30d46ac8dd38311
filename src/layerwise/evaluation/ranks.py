"""An evaluation in several processes: each evaluates its share of the batches, and all end with the same record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from layerwise.core.shards import grouped

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are: (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if grouped() else (0, 1)


@contextmanager
def launched() -> Iterator[None]:
    """A process group for the duration where torchrun has started this process and there is none; it carries results only."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def of_the_first(value: T) -> T:
    """The value that the process of rank 0 has; every process has to ask."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def joined(values: list[T]) -> list[T]:
    """The values of all processes, rank by rank; every process has to ask."""
    world = rank_and_world()[1]
    if world == 1:
        return values
    found: list[list[T]] = [[] for _ in range(world)]
    dist.all_gather_object(found, values)
    return [value for part in found for value in part]
