"""The random states of PyTorch, NumPy and Python as tensors, since the objects themselves do not pass `weights_only`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from layerwise.core.random import Stream


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Every state that a training step may draw from."""
    version, words, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()
    assert (version, name) == (3, "MT19937")
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, key), int(position), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor(float(cached), dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Go back to what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *key, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), position, has_gauss, float(states["numpy_gauss"])))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_everything(seed: int, rank: int) -> None:
    """Start every random state from the run's seed, another one on each rank: dropout has to differ between them."""
    drawn = Stream(seed).generator(f"global/{rank}", torch.device("cpu")).initial_seed()
    torch.manual_seed(drawn)
    random.seed(drawn)
    np.random.seed(drawn % 2**32)


@contextmanager
def kept_random_states(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside leaves no trace."""
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)
