"""Every setting of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from layerwise.core.arguments import Named
from layerwise.core.checks import Count, NonNegative, Whole, check_fields, of_kind
from layerwise.data import Augment
from layerwise.errors import ConfigError
from layerwise.training.optim import SGD, Optimizer
from layerwise.training.schedules import Cyclic, Schedule


@dataclass(frozen=True, kw_only=True)
class Training(Named):
    """How a network is trained, whatever the method.

    Args:
        epochs: passes over the training split.
        batch_size: images in a global batch, over all ranks and micro-batches.
        optimizer: `SGD`, `Adam` or `AdamW`, with its peak rate.
        schedule: multiplier of the rate as a function of progress, the share of the run's batches that are done; it moves once a batch,
            however many steps the method makes there.
        clip_norm: largest l2 norm of the whole gradient; None does not clip.
        ema_decay: decay of the moving average of the weights, which is evaluated and stored beside them; None keeps none.
        precision: `"32-true"`, `"bf16-mixed"` (autocast; pixels, and sums at sites, stay float32) or `"64-true"`.
        accumulate: micro-batches that a batch is cut into; the result is the whole batch's, batch norm excepted.
        augment: random crop and flip; None leaves the images alone.
        drop_last: leave out an epoch's last batch if it is not full.
        max_steps: end after so many batches, whatever `epochs` says, with the schedule over these (a quick look).
        seed: of the order, augmentation, noise, starts and dropout.
        eval_every: epochs between two looks at the validation split; 0 never looks.
        eval_steps: steps of the cheap PGD there; 0 measures clean accuracy only.
        eval_examples: only the first so many validation images; None is all.
        eval_step: its step, as a fraction of the threat model's radius.
        checkpoint_every: epochs between two checkpoints; a fraction makes several in an epoch.
        keep: checkpoints that are kept.
        num_workers: processes that read streamed data.
        accelerator: `"auto"`, `"cpu"`, `"cuda"`, ...: Fabric's names.
        devices: how many a node, or `"auto"`.
        num_nodes: machines.
        strategy: `"fsdp2"`, which shards parameters and optimiser over the processes, or Fabric's: `"auto"`, `"ddp"`, `"ddp_spawn"`, ...
        batch_norm: with several processes, batch statistics `"per-rank"`, of a process's own rows, or `"synchronised"`, of all of them.
        compile: run the network through torch.compile.
        compile_backend: torch.compile's backend.
        capture: record a whole step on a CUDA device and replay it: true, false, or `"auto"`, where it can be. Methods that cannot be
            recorded are told once and run eagerly.
        channels_last: whether the channels of each pixel of images and weights lie together in memory, which convolutions are faster
            with and which rounds their sums in another order: true, false, or `"auto"`, where it pays and the network takes it (see
            `layerwise.core.layout.fastest`). What `"auto"` moves is moved back at the end.
        log_every: batches between two lines of metrics; on a GPU also between two looks at whether the loss is finite.
        tensorboard: write the metrics for TensorBoard too.

    Raises:
        ConfigError: a setting is out of range.

    >>> Training(epochs=2, batch_size=64).optimizer
    SGD(lr=0.2, momentum=0.9, weight_decay=0.0005, nesterov=False, decay_norms=True)
    """

    epochs: Count = 30
    batch_size: Count = 128
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Cyclic)
    clip_norm: float | None = None
    ema_decay: float | None = None
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    accumulate: Count = 1
    augment: Augment | None = None
    drop_last: bool = False
    max_steps: Count | None = None
    seed: int = 0
    eval_every: Whole = 1
    eval_steps: Whole = 10
    eval_examples: Count | None = 1000
    eval_step: NonNegative = 0.25
    checkpoint_every: float = 1.0
    keep: Count = 2
    num_workers: Whole = 0
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: Count = 1
    strategy: str = "auto"
    batch_norm: Literal["per-rank", "synchronised"] = "per-rank"
    compile: bool = False
    compile_backend: str = "inductor"
    capture: bool | Literal["auto"] = False
    channels_last: bool | Literal["auto"] = "auto"
    log_every: Count = 50
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        self._check_parts()
        check_fields(self)
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate={self.accumulate} cuts a batch of {self.batch_size} into nothing; type a smaller number"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm={self.clip_norm} is not a norm; type a number above 0, or null for none")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(
                f"ema_decay={self.ema_decay} is not a decay; type a number such as 0.999, or null for none"
            )
        if not self.checkpoint_every > 0:
            raise ConfigError(f"checkpoint_every={self.checkpoint_every} is not a time; type epochs, such as 1 or 0.25")
        of_kind("augment", self.augment, Augment | None, example="layerwise.data.Augment()")
        if self.strategy != "fsdp2" and self.strategy.startswith(("fsdp", "deepspeed")):
            raise ConfigError(
                f"strategy={self.strategy!r} is not supported; type strategy=fsdp2 to shard the parameters, or strategy=ddp"
            )
        if self.strategy == "fsdp2" and self.capture is True:
            raise ConfigError("steps are not captured with strategy=fsdp2; type capture=auto")
        self.schedule.over(self.epochs)

    def _check_parts(self) -> None:
        """Torch's own optimisers and schedulers belong to one network already."""
        for name, wanted, example in (
            ("optimizer", Optimizer, "layerwise.training.SGD(lr=0.1)"),
            ("schedule", Schedule, "layerwise.training.Cosine()"),
        ):
            value = getattr(self, name)
            if not isinstance(value, wanted):
                kind = value if isinstance(value, type) else type(value)
                given = repr(value) if isinstance(value, str) else f"a {kind.__module__}.{kind.__name__}"
                raise ConfigError(
                    f"{name} is {given}; give settings of which it is made for the network, {name}={example}"
                )
