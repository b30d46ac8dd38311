"""What every test shares: one thread, repeatable draws, and a place for the tests in double precision."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.networks import batch

torch.set_num_threads(1)
settings.register_profile("here", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for whatever is made without a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Six images (6, 3, 8, 8) in [0, 1], double precision, and their labels."""
    return batch(6)
