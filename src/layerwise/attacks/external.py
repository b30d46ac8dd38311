"""What attacks from other packages share (`pip install 'layerwise[eval]'`): see `autoattack` and `carlini_wagner`.

They compute in float32. The network's flags, mode and gradients and PyTorch's random state are as before afterwards; what the packages
have to say goes to the logger `layerwise.external`, level debug. Their random numbers follow from the seed and from which images of the
batch are still correct, so that accuracies repeat, but move a little with the batch size.
"""

from __future__ import annotations

import logging
import os
import warnings
from abc import abstractmethod
from importlib import import_module
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import InputAttack, is_correct
from layerwise.core import norms
from layerwise.core.layout import gradients_by_rows
from layerwise.core.modes import frozen
from layerwise.core.random import Source, Stream
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError

LOGGER = logging.getLogger("layerwise.external")


@final
class Logits(nn.Module):
    """A network as the packages see it: float32 images in, float32 logits that depend on them out.

    Where no gradient reaches the images (a step function in the network, quantised layers), it is zero and not an error: then Square
    does the work.

    Args:
        network: the network.
        dtype: the type of image that it takes.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.training = False  # of this module alone: foolbox prints a warning about a network in training mode

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, C)."""
        logits: Tensor = self.network(x.to(self.dtype)).float()
        # Asked for always: the outputs of quantised layers say that they have a gradient and hand none on.
        return logits + 0 * x.flatten(1).sum(dim=1, keepdim=True) if x.requires_grad else logits


def package(name: str) -> Any:
    """The module of another package.

    Raises:
        ConfigError: it is not there, or cannot be imported.
    """
    # foolbox imports GitPython for its model zoo, and that is an error where there is no git.
    loud = "GIT_PYTHON_REFRESH" not in os.environ
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"this attack needs another package ({reason}); type pip install 'layerwise[eval]'"
        ) from error
    finally:
        if loud:
            del os.environ["GIT_PYTHON_REFRESH"]


class ExternalAttack(InputAttack):
    """An attack of another package on the images that are still correct; those that it does not fool stay as they are."""

    needs: ClassVar[str]

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """What the package finds for the images that are correct, cut to the ball.

        Raises:
            ConfigError: the package is not there, or does not take this norm or shape.
        """
        self.check(x, threat)
        seed, found = seed_of(generator), x.clone()
        with frozen(model), gradients_by_rows(model), torch.random.fork_rng(_gpus()):
            with torch.no_grad():
                logits = model(x)
            rows = is_correct(logits, y).nonzero().flatten()
            if len(rows):
                network = Logits(model, x.dtype)
                narrow = x[rows].float()
                part = self.run(network, narrow, y[rows], threat, seed=seed, classes=logits.shape[1]).detach()
                # In float64, untouched pixels would otherwise come back rounded.
                found[rows] = self._kept(x[rows], torch.where(part == narrow, x[rows], part.to(x.dtype)), threat)
        return found

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        del x, threat
        package(self.needs)

    @abstractmethod
    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """Attack images that are correct, float32, at least one; `classes` is how many logits there are."""

    def _kept(self, x: Tensor, found: Tensor, threat: ThreatModel) -> Tensor:
        """The images as found where they are in the ball, cut to it where not; what is not a number is not an image."""
        found = torch.where(norms.rows(found.flatten(1).isfinite().all(dim=1), x), found, x).clamp(0, 1)
        if not self.in_threat_model:
            return found
        far = norms.norm(found.double() - x.double(), threat.norm) > threat.eps + 5e-7 * max(1.0, threat.eps)
        return torch.where(
            norms.rows(far, x), (x + norms.project(found - x, threat.norm, threat.eps)).clamp(0, 1), found
        )


def seed_of(source: Source) -> int:
    """The packages' seed: a stream's own, for every batch alike, as the packages do; else one that is drawn."""
    if isinstance(source, Stream):
        return source.seed
    device = source.device if source is not None else None
    return int(torch.randint(2**31, (), generator=source, device=device))


def _gpus() -> list[int]:
    """The GPUs whose generators `torch.manual_seed` moves."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if used else []
