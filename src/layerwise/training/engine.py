"""Lightning Fabric as the settings say."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from layerwise.errors import ConfigError
from layerwise.training import fsdp
from layerwise.training.settings import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def engine(settings: Training) -> Fabric:
    """Fabric as the settings say.

    Raises:
        ConfigError: this machine does not have what they ask for.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        with quiet(), warnings.catch_warnings():
            # Training on the CPU of a machine with a GPU is the user's choice.
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            fabric = Fabric(
                accelerator=settings.accelerator,
                devices=settings.devices,
                num_nodes=settings.num_nodes,
                **fsdp.chosen(settings),
            )
    except (ImportError, ValueError, RuntimeError, TypeError, MisconfigurationException) as error:
        said = str(error).splitlines()[0].rstrip(".!")
        raise ConfigError(
            f"training cannot start as asked: {said}; type training.accelerator=auto and training.devices=1 for what there is"
        ) from error
    planned = int(getattr(fabric.strategy, "num_processes", 1)) * settings.num_nodes
    started = int(os.environ.get("WORLD_SIZE", "1")) if torch.distributed.is_torchelastic_launched() else planned
    if planned != started:
        nodes = f" and --training.num_nodes {settings.num_nodes}" if settings.num_nodes > 1 else ""
        raise ConfigError(
            f"torchrun has started {started} processes, and training is set to {planned}; "
            f"type --training.devices {os.environ.get('LOCAL_WORLD_SIZE', started)}{nodes}, as many as --nproc-per-node"
        )
    # Fabric rounds the inputs of a mixed-precision model to bf16, whose steps near white are a whole grey level wide, and the outputs of
    # a double-precision one to float32; ours have the right type already.
    precision: Any = fabric.strategy.precision
    precision.convert_input = _unchanged
    if settings.precision == "64-true":
        precision.convert_output = _unchanged
    return fabric


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Fabric announces: the precision that was asked for, and every process of a group."""
    import lightning_fabric  # noqa: F401 - it sets the level itself

    talk = logging.getLogger("lightning_fabric")
    level = talk.level
    talk.setLevel(logging.WARNING)
    try:
        yield
    finally:
        talk.setLevel(level)


def _unchanged(value: Any) -> Any:
    return value
