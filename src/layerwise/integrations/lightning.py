"""Lightning: a mixin that trains a `LightningModule` with a method, by manual optimisation.

class Classifier(LayerwiseModule, lightning.LightningModule):
def __init__(self):
super().__init__()
self.network, self.method = resnet18(), lw.SLAT(eta=8 / 255)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from layerwise.core.driving import step
from layerwise.methods.base import Method


class LayerwiseModule:
    """Put it before `LightningModule`, and set `network` and `method`; the rest of the module is yours.

    The method's state is in Lightning's checkpoints. Schedules step once a batch where `lr_schedulers` gives one, as manual optimisation
    has it, and `clip_norm` is in place of the trainer's `gradient_clip_val`.

    Args:
        arguments: of the module.
        options: of the module.
    """

    network: nn.Module
    method: Method
    parts: int = 1
    clip_norm: float | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """All that the method wants to have descended for a batch `(x, y)`, steps included; logs and gives the mean loss."""
        del batch_idx
        x, y = batch
        this: Any = self
        optimizer = this.optimizers()
        loss = step(
            self.method,
            self.network,
            x,
            y,
            optimizer,
            backward=this.manual_backward,
            clip_norm=self.clip_norm,
            parts=self.parts,
        )
        for schedule in _listed(this.lr_schedulers()):
            schedule.step()
        this.log("train_loss", loss)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the method's state beside the network's."""
        checkpoint["layerwise_method"] = self.method.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.method.load_state_dict(checkpoint["layerwise_method"])


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
