"""torch.compile with hooks: its settings, and a check that perturbations really change what the network gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from layerwise.core.calling import logits
from layerwise.core.criteria import CrossEntropy
from layerwise.core.probe import Probe
from layerwise.core.sites import Sites
from layerwise.errors import SiteError
from layerwise.training.randomness import kept_random_states

ENOUGH = 8
"""Images that the bare network is tried with."""


@contextmanager
def compiling(enabled: bool) -> Iterator[None]:
    """Settings under which torch.compile respects the sites' hooks, for the duration.

    Hooks are guarded (a second instance of a class would reuse the first one's graph without them), and there is room for the graphs of
    probes, descents and evaluation.
    """
    if not enabled:
        yield
        return
    from torch._dynamo import config

    with config.patch(skip_nnmodule_hook_guards=False, recompile_limit=64):
        yield


def eagerly(wanted: bool) -> AbstractContextManager[None]:
    """Run compiled code eagerly for the duration: a ragged batch or a watched step is not worth a graph of its own."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager") if wanted else nullcontext()
    return stance


def check_hooks(model: nn.Module, raw: nn.Module, sites: Iterable[Sites], x: Tensor, y: Tensor) -> list[str]:
    """See whether noise at the sites reaches the logits, in the model that trains as in the bare network.

    Unit noise is added past any constraint. Buffers, random states and gradients are left as they were.

    Args:
        model: the network as it trains: wrapped, compiled.
        raw: the bare one.
        sites: what the methods attached.
        x: a training batch, shape (B, ...).
        y: its labels, shape (B,).

    Returns:
        A sentence for the sites whose noise changes nothing at first: they lie in a branch that starts at zero.

    Raises:
        SiteError: the noise reaches the bare network's logits and not the model's, or a site is dead.
    """
    said: list[str] = []
    few = slice(0, ENOUGH)
    for each in sites:
        changed = {}
        for name, network, images in (("bare", raw, x[few]), ("model", model, x)):
            with _untouched(raw, x.device):
                noise = {s: torch.randn(len(images), *each.shape(s), device=x.device, dtype=x.dtype) for s in each}
            with _untouched(raw, x.device):
                plain = logits(
                    network, images
                ).detach()  # two passes' activations at once would be the run's peak memory
            with _untouched(raw, x.device), each.perturb(noise):
                changed[name] = not torch.equal(plain, logits(network, images))
        if changed["bare"] and not changed["model"]:
            raise SiteError(
                f"noise at the sites {', '.join(map(str, each))} changes the bare network and not the compiled one: its hooks were "
                "ignored; attach the method before torch.compile, or set training.compile=false"
            )
        with _untouched(raw, x.device):
            _, g = Probe()(raw, x[few], y[few], criterion=CrossEntropy(), sites=each)
        silent = [str(site) for site, gradient in g.items() if site not in each.left_out and not gradient.any()]
        if silent:
            said.append(
                f"noise at {', '.join(repr(s) for s in silent)} changes nothing yet: a branch there starts at zero"
            )
    return said


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    kept = [buffer.clone() for buffer in model.buffers()]
    with kept_random_states(device):
        yield
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)
