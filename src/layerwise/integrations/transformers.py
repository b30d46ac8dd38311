"""A `Trainer` of transformers that trains with a method: `LayerwiseTrainer(model, args, train_dataset=data, method=lw.LAT())`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from layerwise.core.driving import step
from layerwise.errors import ConfigError
from layerwise.integrations.optional import library
from layerwise.methods.base import Method
from layerwise.models.weights import pack_tensors, unpack_tensors

STATE = "layerwise_method.safetensors"
"""What the method's state is called in a checkpoint's folder."""


class TrainingStep:
    """What makes a `Trainer` a `LayerwiseTrainer`: put it before the class of your own trainer.

    A method may step several times on a batch (ANP), and go on after its step (AWP, Parseval). So the whole batch is trained on in
    `training_step`; the trainer's own step afterwards finds no gradients, and moves nothing. The method's state is in the checkpoints.

    Args:
        arguments: of the trainer.
        method: what to train with; with a loss of its own, such as `lw.NextToken()` for language models.
        parts: micro-batches that a batch is cut into, in place of `gradient_accumulation_steps`.
        options: of the trainer.

    Raises:
        ConfigError: the trainer's arguments ask for what has to be done in another way here.
    """

    args: Any
    optimizer: Any
    accelerator: Any

    def __init__(self, *arguments: Any, method: Method, parts: int = 1, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.method, self.parts = method, parts
        if self.args.gradient_accumulation_steps > 1:
            raise ConfigError(
                "gradient_accumulation_steps would cut the batch where the method has to see it whole; leave it at 1, multiply "
                f"per_device_train_batch_size with {self.args.gradient_accumulation_steps}, and give the trainer "
                f"parts={self.args.gradient_accumulation_steps}"
            )
        if self.args.fp16:
            raise ConfigError("fp16 scales losses of one step a batch, and a method may take several; type bf16=True")
        if self.args.deepspeed:
            raise ConfigError("DeepSpeed steps by itself; train with layerwise.fit, or with FSDP")

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """All that the method wants to have descended for a batch, steps included; gives the mean loss."""
        del num_items_in_batch
        model.train()
        x = dict(self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        y = x.pop("labels", None)
        if y is None:
            raise ConfigError(f"the batch has no labels, only {', '.join(x)}; name the column 'labels'")
        limit = self.args.max_grad_norm
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            return step(
                self.method,
                model,
                x,
                y,
                self.optimizer,
                backward=self.accelerator.backward,
                clip_norm=limit if limit and limit > 0 else None,
                parts=self.parts,
            )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Put the method's state beside the optimiser's."""
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.args.should_save:
            (Path(output_dir) / STATE).write_bytes(pack_tensors(self.method.state_dict()))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take it up again."""
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and (file := Path(checkpoint) / STATE).is_file():
            self.method.load_state_dict(unpack_tensors(file))


if TYPE_CHECKING:

    class LayerwiseTrainer(TrainingStep):
        """`TrainingStep` and `transformers.Trainer`."""

        def __getattr__(self, name: str) -> Any: ...

else:

    def __getattr__(name: str) -> object:
        """The class, made when it is asked for: importing transformers takes seconds."""
        if name != "LayerwiseTrainer":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        bases = (TrainingStep, library("transformers").Trainer)
        globals()[name] = made = type(
            name, bases, {"__doc__": "`TrainingStep` and `transformers.Trainer`.", "__module__": __name__}
        )
        return made
