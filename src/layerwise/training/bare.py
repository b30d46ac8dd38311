"""The network as it trains on one device in full precision, where Fabric has nothing to add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from torch import nn

from layerwise.training.settings import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@final
class Bare(nn.Module):
    """Nothing but a place for hooks that see the training passes only; Fabric's wrapper costs 20 microseconds a pass more.

    Args:
        network: the network, compiled or not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's."""
        return self._orig_mod(*args, **kwargs)


def suffices(fabric: Fabric, settings: Training) -> bool:
    """Whether a pass needs no autocast, no scaling and no other process."""
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    return type(fabric.strategy) is SingleDeviceStrategy and settings.precision == "32-true"
