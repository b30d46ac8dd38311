"""Probes: passes that find perturbations, with gradients at the sites (and the input) only, none for the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.core.arguments import Named
from layerwise.core.calling import Inputs, examples, logits, with_examples
from layerwise.core.checks import check_fields
from layerwise.core.criteria import Criterion, as_criterion
from layerwise.core.driving import AUTOGRAD, PLAIN, Backward, Exact, Step
from layerwise.core.modes import BatchNormMode, batch_norm, frozen
from layerwise.core.norms import safe_divide
from layerwise.core.passes import Constraint, Gradients, Pass, Replacement
from layerwise.core.sites import Sites
from layerwise.core.tape import remembered
from layerwise.core.tracing import Site
from layerwise.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Probe(Named):
    """How a probe is made.

    Args:
        batch_norm: what batch norm does meanwhile, see `layerwise.core.modes`; the papers do not say, the default leaves no trace.
        criterion: another loss than the descent's; None is the same.
    """

    batch_norm: BatchNormMode = "batch"
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        """Take any loss for a criterion, and check the mode."""
        check_fields(self)
        if self.criterion is not None:
            object.__setattr__(self, "criterion", as_criterion(self.criterion))

    def __call__(
        self,
        model: nn.Module,
        x: Inputs,
        y: Tensor,
        *,
        criterion: Criterion,
        sites: Sites | None = None,
        noise: Mapping[Site, Tensor | Replacement] | None = None,
        constraint: Constraint | None = None,
        wrt_input: bool = False,
        step: Step = PLAIN,
    ) -> tuple[Tensor, Gradients]:
        """One forward and one backward to the activations.

        Args:
            model: the network, wrapped or not.
            x: inputs; a tensor (B, ...), or what else the network takes.
            y: what the criterion takes beside the logits, usually labels (B,).
            criterion: each example's loss, unless the probe has its own.
            sites: where to record; None records nowhere.
            noise: perturbations of the pass, {site: r}, or what replaces z.
            constraint: see `layerwise.core.sites.Constraint`.
            wrt_input: also give dL/dx, of the tensor that holds the examples.
            step: whose engine back-propagates.

        Returns:
            dL/dx of shape x (zeros without memory if not asked for) and {site: dL/dz}, of the sum of the examples' losses.
        """

        def find() -> tuple[Tensor, Gradients]:
            recorder = sites.record(x, noise, constraint=constraint) if sites is not None else nullcontext()
            return self._pass(model, x, y, criterion, recorder, wrt_input, step.backward)

        return remembered(find)

    def _pass(
        self,
        model: nn.Module,
        x: Inputs,
        y: Tensor,
        criterion: Criterion,
        recorder: Pass | nullcontext[None],
        wrt_input: bool,
        backward: Backward,
    ) -> tuple[Tensor, Gradients]:
        given = examples(x).detach()
        if wrt_input and not given.is_floating_point():
            raise ConfigError(
                f"the network's input holds {given.dtype}, through which no gradient flows; perturb a layer, such as the embeddings"
            )
        leaf = given.requires_grad_(wrt_input)
        with self.around(model), recorder as active:
            loss = (self.criterion or criterion).sum(logits(model, with_examples(x, leaf)), y)
            leaves = [leaf] * wrt_input + (active.leaves if active is not None else [])
            # A loss that no leaf reaches has no graph; the sites then say which of them was missed or is dead.
            exact = backward is AUTOGRAD or isinstance(backward, Exact)
            factor = None if exact or not loss.requires_grad else _factor_of(loss)
            if loss.requires_grad or active is None:
                backward(loss, inputs=leaves)
        gradient = leaf.grad if leaf.grad is not None else given.detach().new_zeros(()).expand_as(given)
        g = active.gradients() if active is not None else {}
        if factor:
            return safe_divide(gradient.detach(), factor[0]), {k: safe_divide(v, factor[0]) for k, v in g.items()}
        return gradient.detach(), g

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """Parameters frozen and batch norm as this probe has it, once for all of its passes inside."""
        if (key := (model, self.batch_norm)) == _around.get():
            yield
            return
        with frozen(model), batch_norm(model, self.batch_norm):
            token = _around.set(key)
            try:
                yield
            finally:
                _around.reset(token)


def _factor_of(loss: Tensor) -> list[Tensor]:
    """What the engine multiplies or divides the loss with, once it has."""
    found: list[Tensor] = []
    loss.register_hook(lambda gradient: found.append(gradient.detach()))  # type: ignore[no-untyped-call]
    return found


_around: ContextVar[tuple[nn.Module, BatchNormMode] | None] = ContextVar("layerwise_around", default=None)
