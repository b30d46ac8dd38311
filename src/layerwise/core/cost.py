"""What a mini-batch costs, in passes over the network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passes:
    """Cost of one mini-batch, in passes over the network.

    Args:
        forward: forward passes.
        activations: backward passes to the activations.
        weights: backward passes to the weights.
        steps: optimiser steps.
    """

    forward: int = 1
    activations: int = 1
    weights: int = 1
    steps: int = 1

    @property
    def total(self) -> int:
        """All passes; the standard step has 3."""
        return self.forward + self.activations + self.weights

    def __add__(self, other: Passes) -> Passes:
        """Add the passes of two parts."""
        return Passes(
            self.forward + other.forward,
            self.activations + other.activations,
            self.weights + other.weights,
            self.steps + other.steps,
        )

    def __rmul__(self, count: int) -> Passes:
        """So many times the same."""
        return Passes(count * self.forward, count * self.activations, count * self.weights, count * self.steps)


PROBE = Passes(1, 1, 0, 0)
"""Finds gradients at the sites."""
DESCENT = Passes(1, 1, 1, 1)
"""Trains."""
AGAIN = Passes(1, 1, 1, 0)
"""A second pass of the same descent, over other inputs or at other weights: no step of its own."""


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(0.31), duration(42), duration(750), duration(90_000)
    ('0.3 s', '42 s', '12.5 min', '25 h')
    """
    if seconds < 120:
        return f"{seconds:.{int(seconds < 10)}f} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
