"""The batch contract: the first batch that a method sees is checked, once for each network, wherever the method runs.

What is wrong with a batch is silent otherwise (clipped pixels), or comes late and in words of its own (a label that is none, after an
epoch). The check makes one pass of the network in its present mode and looks at one tensor of numbers: one synchronisation, none after.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from layerwise.core.calling import Inputs, call, each_tensor, examples, logits_of, rows, take, with_examples
from layerwise.core.criteria import Criterion, CrossEntropy, NextToken, TokenCrossEntropy, class_logits
from layerwise.core.modes import all_modules, batch_norm, frozen, undisturbed
from layerwise.core.sites import unwrap
from layerwise.errors import ConfigError

SLACK = 1e-4
"""How far outside [0, 1] rounding may put a pixel."""

PROBABLE = 1e-3
"""How far from 1 the sums of outputs may be that look like probabilities."""

SOFT = 1e-2
"""The same of labels that are meant for probabilities, in bf16 too."""

MANY = 10
"""Classes whose outputs lie between 0 and 1 by chance once in a thousand networks that have learnt nothing yet."""

IN_PLACE = (
    "the network changes its input in place, so that every pass would see another one; write x = x - mean, not x -= mean, and no "
    "inplace=True before the first layer"
)

TOO_FEW = "more than 1 value per channel"
"""What torch says of a batch norm that has one value to take statistics of."""


@final
@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a method asks of a batch.

    Args:
        method: its name.
        criterion: what takes the network's outputs, if it is known.
        moves_inputs: whether it moves inputs within [0, 1], along their gradient.
        needs_classes: whether it takes outputs for logits of classes by itself.
    """

    method: str
    criterion: Criterion | None = None
    moves_inputs: bool = False
    needs_classes: bool = False


@final
class Seen:
    """The network whose first batch has been checked; no copy remembers it."""

    def __init__(self) -> None:
        self._network: weakref.ref[nn.Module] | None = None

    def knows(self, network: nn.Module) -> bool:
        """Whether it is this one."""
        return self._network is not None and self._network() is network

    def remember(self, network: nn.Module) -> None:
        """It is this one from now on."""
        self._network = weakref.ref(network)

    def __reduce__(self) -> tuple[type[Seen], tuple[()]]:
        """Forget, where a method is copied or sent to another process."""
        return Seen, ()


def prepared_inputs(x: Inputs) -> Inputs:
    """Inputs that can be differentiated anew: those that came out of an attack or of inference mode are cut off from it."""
    if isinstance(x, Tensor):
        return _cut_off(x) if x.requires_grad or x.is_inference() else x
    return each_tensor(x, _cut_off)


def prepared_labels(y: Any) -> Any:
    """Labels as losses want them: whole numbers of any size as int64."""
    if not isinstance(y, Tensor):
        return y
    y = _cut_off(y) if y.is_inference() else y
    return y.long() if y.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool) else y


def _cut_off(value: Tensor) -> Tensor:
    return value.clone() if value.is_inference() else value.detach()


def check_batch(model: nn.Module, x: Inputs, y: Any, demands: Demands) -> list[str]:
    """Check a batch and the network that takes it.

    Args:
        model: the network in the mode in which it trains, wrapped or not.
        x: the batch.
        y: its labels, or what else the criterion takes.
        demands: of the method.

    Returns:
        Sentences about what works and is probably not meant.

    Raises:
        ConfigError: what cannot be meant, with what to do.
    """
    _check_kinds(x, y, demands)
    raw = unwrap(model)
    refuse_meta(raw)
    seen = _passed(raw, x, demands, cast=raw is not model)
    _check_form(seen.output, x, y, demands)
    numbers = _numbers(examples(x), y, seen, demands)
    _check_values(numbers, seen.output, demands)
    if not _entropy(demands.criterion):
        _try_criterion(demands.criterion, seen.output, y)
    return _suspicions(numbers, demands)


@final
class _Passed(NamedTuple):
    """A pass over the batch."""

    output: Tensor
    """Detached."""
    changed: Tensor
    """Whether the network has written into its input, bool ()."""
    gradient: Tensor | None
    """Of the outputs' sum by the input, where inputs are moved."""


@final
class _Numbers(NamedTuple):
    """What values are; truths are 0 and 1."""

    smallest_input: float
    largest_input: float
    smallest_label: float
    largest_label: float
    inputs_finite: float
    outputs_finite: float
    probabilities: float
    shares: float
    input_changed: float
    soft_label_error: float
    motionless: float


def _suspicions(numbers: _Numbers, demands: Demands) -> list[str]:
    """Sentences about what works and is probably not meant."""
    said = []
    if numbers.probabilities and _entropy(demands.criterion):
        said.append(
            "the network's outputs look like probabilities, not negative and with the sum 1, and cross entropy takes logits; leave out the "
            "softmax at the network's end"
        )
    elif numbers.shares and _entropy(demands.criterion):
        said.append(
            "the network's outputs all lie between 0 and 1, as behind a sigmoid, and cross entropy takes logits; leave out the sigmoid at "
            "the network's end"
        )
    if numbers.motionless:
        said.append(
            f"the gradient at the network's input is exactly zero (rounding, steps?), so that {demands.method} moves nothing there; take a "
            "method that perturbs layers behind it"
        )
    return said


def _entropy(criterion: Criterion | None) -> bool:
    """Whether the criterion is one of ours, whose labels are classes."""
    return criterion is None or isinstance(criterion, CrossEntropy | TokenCrossEntropy | NextToken)


def _check_kinds(x: Inputs, y: Any, demands: Demands) -> None:
    """Types and numbers of rows."""
    given, count = examples(x), rows(x)
    if not count:
        raise ConfigError("the batch is empty")
    if not isinstance(y, Tensor) and demands.criterion is not None and _entropy(demands.criterion):
        raise ConfigError(f"the labels are a {type(y).__name__}; give a tensor: torch.as_tensor(labels)")
    if isinstance(y, Tensor) and y.ndim and len(y) != count:
        raise ConfigError(f"the batch has {count} inputs and {len(y)} labels; give a label for each input")
    if given.is_floating_point():
        return
    if given.dtype == torch.uint8:
        raise ConfigError("the inputs are uint8, pixels from 0 to 255; divide them by 255: x.float() / 255")
    if demands.moves_inputs:
        raise ConfigError(
            f"{demands.method} moves the network's inputs, and these are {given.dtype} (token ids?), which nothing can move; take a "
            "method that perturbs layers, at the embeddings for example"
        )


def refuse_meta(raw: nn.Module) -> None:
    """Complain about a network whose weights have no values.

    Raises:
        ConfigError: it is on the meta device.
    """
    # Tensors of another class may be on the meta device by name and hold their values elsewhere.
    if any(p.is_meta and type(p.data) is Tensor for p in raw.parameters()):
        raise ConfigError(
            "the network is on the meta device, where weights have no values; type model.to_empty(device='cpu') and load its weights"
        )


def _weights_type(raw: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in raw.parameters() if p.is_floating_point()), None)


def _passed(raw: nn.Module, x: Inputs, demands: Demands, *, cast: bool) -> _Passed:
    """A pass over the batch that leaves no trace, differentiated where inputs are moved."""
    given, wanted = examples(x), _weights_type(raw)
    # A wrapper casts inputs to the type of the weights (bf16-true); this is the network inside.
    kind = wanted if cast and given.is_floating_point() and wanted is not None else given.dtype
    start = given.detach().to(kind)
    leaf = start.clone().requires_grad_(demands.moves_inputs)
    before, gradient = leaf._version, None
    with (
        undisturbed(raw, leaf.device),
        batch_norm(raw, "batch"),
        frozen(raw),
        torch.inference_mode(False),
        torch.set_grad_enabled(demands.moves_inputs),
        _mistakes(given, raw),
    ):
        output = logits_of(call(raw, with_examples(x, leaf)))
        if leaf._version != before:
            raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation")
        if demands.moves_inputs and output.is_floating_point():
            gradient = _gradient(output, leaf)
    return _Passed(output.detach(), (leaf.detach() != start).any(), gradient)


def _gradient(output: Tensor, leaf: Tensor) -> Tensor:
    gradient = None
    if output.requires_grad:
        (gradient,) = torch.autograd.grad(output.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise ConfigError(
            "no gradient flows from the network's output to its input: is there a torch.no_grad(), a detach(), or a quantised part "
            "in its forward pass? An attack cannot see through it"
        )
    return gradient


@contextmanager
def _mistakes(given: Tensor, raw: nn.Module) -> Iterator[None]:
    """Errors of a pass in words that say what to do."""
    try:
        yield
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        raise ConfigError(
            f"a batch of {len(given)} is too small for the statistics of batch norm ('{_norm_of(raw)}'): give two images or more at once "
            "(drop_last=True leaves out a last batch of one), or put the norm into evaluation mode"
        ) from error
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if "in-place operation" in reason:
            raise ConfigError(IN_PLACE) from error
        if "reentrant" in str(error) or "Checkpointing is not compatible" in reason:
            raise ConfigError(
                "the network's activation checkpoints give no gradients at inputs or layers; checkpoint with use_reentrant=False"
            ) from error
        shape, wanted = tuple(given.shape), _weights_type(raw)
        other = given.is_floating_point() and wanted not in (None, given.dtype) and "type" in reason
        hint = f"; its weights are {wanted}: type x.to({wanted})" if other else ""
        raise ConfigError(
            f"the network does not take inputs of shape {shape} and type {given.dtype}: {reason}{hint}"
        ) from error


def _check_form(output: Tensor, x: Inputs, y: Any, demands: Demands) -> None:
    """Shapes and types of output and labels."""
    count, shape = rows(x), tuple(output.shape)
    if not output.is_floating_point():
        raise ConfigError(f"the network gives {output.dtype}, predictions perhaps, where a loss needs its logits")
    if not output.ndim or len(output) != count:
        raise ConfigError(f"the network gives shape {shape} for {count} inputs; its first dimension has to be theirs")
    if demands.needs_classes and not class_logits(output, y):
        labels = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError(
            f"{demands.method} needs class probabilities: logits (B, C) of two classes or more, and labels (B,); the network gives "
            f"{shape}, the labels are {labels}; take another method, such as PGD"
        )
    if _entropy(demands.criterion) and isinstance(y, Tensor):
        _check_labels(output, y, shape)


def _check_labels(output: Tensor, y: Tensor, shape: tuple[int, ...]) -> None:
    """Of cross entropy: logits and labels that fit."""
    labels = tuple(y.shape)
    if output.ndim == 1:
        raise ConfigError(f"the network gives shape {shape}, one number an input; cross entropy takes logits (B, C)")
    if output.shape[1:].numel() == 1:
        raise ConfigError(
            "the network gives one number for each input, and the softmax over a single class is always 1; give two logits, or another "
            "criterion, such as nn.BCEWithLogitsLoss() with labels of its own shape"
        )
    if y.is_floating_point():
        if y.ndim == 1:
            raise ConfigError(f"the labels are {y.dtype}, and classes are whole numbers; type y.long()")
        return
    if output.ndim == 2 and labels == shape:
        raise ConfigError(f"the labels have shape {labels}, as if they were one-hot; type y.argmax(dim=1)")
    if output.ndim == 2 and y.ndim == 2 and labels[1] == 1:
        raise ConfigError(f"the labels have shape {labels}; type y.squeeze(1)")
    if y.ndim == 1 and output.ndim > 2 and output.shape[2:].numel() == 1:
        raise ConfigError(f"the network gives shape {shape} for labels (B,); let it end with flatten(1)")


def _numbers(given: Tensor, y: Any, seen: _Passed, demands: Demands) -> _Numbers:
    """What the values are, by one look at the device."""
    output = seen.output
    nothing = output.new_zeros((), dtype=torch.float32)
    floating, labelled = given.is_floating_point(), isinstance(y, Tensor) and y.numel() > 0
    labels = y if labelled and not y.is_floating_point() else None
    if labels is not None:
        labels = labels.masked_fill(labels == getattr(demands.criterion, "ignore_index", -100), 0)
    soft = y if labelled and y.is_floating_point() and y.ndim > 1 else None
    sums = output.float().sum(1) if output.ndim > 1 else nothing
    low, high = output.amin(), output.amax()
    values = (  # in the order of `_Numbers`
        given.amin() if floating else nothing,
        given.amax() if floating else nothing,
        nothing if labels is None else labels.amin(),
        nothing if labels is None else labels.amax(),
        given.isfinite().all() if floating else nothing + 1,
        output.isfinite().all(),
        (low >= 0) & ((sums - 1).abs().amax() < PROBABLE),
        # A sigmoid reaches neither end; the logits of a few classes may lie there by chance, all rows' alike.
        (low > 0) & (high < 1) & (output.ndim == 2 and output.shape[1] >= MANY),
        seen.changed,
        nothing if soft is None else (soft.float().sum(1) - 1).abs().amax(),
        # Where the outputs do not change either, the last layer has zeros for its weights so far.
        nothing if seen.gradient is None else ~seen.gradient.any() & (output != output[:1]).any(),
    )
    return _Numbers(*torch.stack([v.to(output.device, torch.float32) for v in values]).tolist())


def _check_values(numbers: _Numbers, output: Tensor, demands: Demands) -> None:
    """Complain about what the numbers say."""
    low, high = numbers.smallest_input, numbers.largest_input
    if not numbers.inputs_finite:
        raise ConfigError("the inputs hold values that are not finite")
    if numbers.input_changed:
        raise ConfigError(IN_PLACE)
    if demands.moves_inputs and not (low >= -SLACK and high <= 1 + SLACK):
        inside = (
            f"the inputs lie between {low:.3g} and {high:.3g}, and {demands.method} moves them within [0, 1], where"
        )
        if low >= 0 and high > 16:
            raise ConfigError(f"{inside} pixels from 0 to 255 would be clipped; divide them by 255")
        raise ConfigError(
            f"{inside} these would be clipped; give pixels in [0, 1] and let the network normalise them: "
            "layerwise.Normalized(model, mean, std). If it is meant, set check_inputs=False on the method"
        )
    if not numbers.outputs_finite:
        raise ConfigError("the network's outputs are not finite on a clean batch; its weights have probably diverged")
    if _entropy(demands.criterion):
        classes = output.shape[1 if isinstance(demands.criterion, CrossEntropy | None) else -1]
        if numbers.smallest_label < 0 or numbers.largest_label >= classes:
            raise ConfigError(
                f"the labels go from {numbers.smallest_label:.0f} to {numbers.largest_label:.0f}, and the network gives {classes} logits: "
                f"classes are numbered from 0 to {classes - 1}"
            )
        if numbers.soft_label_error > SOFT:
            raise ConfigError(
                "cross entropy takes labels of floating point for probabilities of the classes, and their rows do not add up to 1 (several "
                "labels an input?); give another criterion, such as nn.BCEWithLogitsLoss()"
            )


def _try_criterion(criterion: Criterion | None, output: Tensor, y: Any) -> None:
    """A loss of the user's takes what it gets."""
    if criterion is None:
        return
    try:
        criterion(output, y)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        labels = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError(
            f"the criterion does not take outputs {tuple(output.shape)} and labels {labels}: {reason}"
        ) from error


def norm_of_one_row(model: nn.Module, x: Inputs) -> str | None:
    """The name of a norm that has too few values for its statistics in a pass of one row; None if one row is enough."""
    raw = unwrap(model)
    if not any(isinstance(module, _NormBase) and module.training for module in all_modules(raw)):
        return None
    try:
        with undisturbed(raw, examples(x).device), batch_norm(raw, "batch"), torch.no_grad():
            call(raw, take(x, slice(0, 1)))
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        return _norm_of(raw)
    return None


def _norm_of(raw: nn.Module) -> str:
    found: str = next(n for n, module in raw.named_modules() if isinstance(module, _NormBase) and module.training)
    return found
