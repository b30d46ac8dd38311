"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.shards import divided, joined, local, weights_of


@final
class Average:
    """An exponential moving average of a network's weights and running statistics: a <- d a + (1 - d) w after every step.

    d is min(decay, (1 + n) / (10 + n)) at step n, so that a short run is not held at its initial weights.

    Args:
        model: the unwrapped network; its tensors must stay the same objects.
        decay: in (0, 1).

    >>> net = nn.Linear(1, 1, bias=False)
    >>> average = Average(net, 0.9)
    >>> with torch.no_grad():
    ...     _ = net.weight.add_(1)
    >>> average.update()
    >>> round(float(net.weight.detach() - average.values["weight"]), 4)
    0.1818
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self._like = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self._live = {k: local(v) for k, v in self._like.items()}
        self.values = {k: v.clone() for k, v in self._live.items()}
        device = next(iter(self.values.values())).device
        # A tensor on the device, so that a captured step counts too; float32 where there is no float64 (MPS).
        self.count = torch.zeros((), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)

    @property
    def steps(self) -> int:
        """Steps taken; reading it waits for the device."""
        return int(self.count)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights as they are."""
        self.count += 1
        decay = ((1 + self.count) / (10 + self.count)).clamp(max=self.decay)
        averages = list(self.values.values())
        moves = torch._foreach_sub(list(self._live.values()), averages)
        torch._foreach_mul_(moves, 1 - decay)
        torch._foreach_add_(averages, moves)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the averaged weights, for the duration."""
        kept = [v.clone() for v in self._live.values()]
        self._put(self.values.values())
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: object) -> None:
        torch._foreach_copy_(list(self._live.values()), list(values))  # type: ignore[call-overload]

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged network's `state_dict`; what is not a float is the network's own. Every process has to ask."""
        return {**weights_of(self.model), **{k: joined(v, self._like[k]) for k, v in self.values.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take up what `state_dict` gave after so many steps."""
        self.count.fill_(steps)
        for name, value in self.values.items():
            value.copy_(local(divided(state[name], self._like[name])))
