"""What methods around another method share: they move weights, and all but the losses is the base's."""

from __future__ import annotations

from torch import Tensor, nn

from layerwise.core.calling import Inputs
from layerwise.core.cost import Passes
from layerwise.core.sites import Sites, unwrap
from layerwise.methods.base import Method
from layerwise.methods.weights import check_reachable


class Wrapper(Method):
    """A method around `base`, any other one, which holds the sites and the state."""

    base: Method
    _reached: nn.Module | None = None

    def reached(self, model: nn.Module) -> nn.Module:
        """The network unwrapped, once it is known that its weights can be moved.

        Raises:
            ConfigError: see `check_reachable`.
        """
        raw = unwrap(model)
        if self._reached is not raw:
            check_reachable(raw, of=type(self).__name__)
            self._reached = raw
        return raw

    @property
    def passes(self) -> Passes:
        """Those of the base."""
        return self.base.passes

    @property
    def losses_alone(self) -> Passes:
        """Those of the base."""
        return self.base.losses_alone

    def attach(self, model: nn.Module, example: Inputs) -> None:
        self.reached(model)
        self.base.attach(model, example)

    def detach(self) -> None:
        self._reached = None
        self.base.detach()

    def attached_sites(self) -> list[Sites]:
        """The base's."""
        return self.base.attached_sites()

    def state_dict(self) -> dict[str, Tensor]:
        """The base's."""
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.base.load_state_dict(state)

    def diagnose(self, model: nn.Module, x: Inputs, y: Tensor) -> dict[str, float]:
        """The base's."""
        return self.base.diagnose(model, x, y)

    def warnings(self) -> list[str]:
        """The base's."""
        return self.base.warnings()
