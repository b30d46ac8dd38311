"""Attacks from other packages (`pip install 'layerwise[eval]'`): AutoAttack and its members, Carlini and Wagner's.

They compute in float32. The network's flags, mode and gradients and PyTorch's random state are as before afterwards; what the packages
have to say goes to the logger `layerwise.external`, level debug. Their random numbers follow from the seed and from which images of the
batch are still right, so that accuracies repeat, but move a little with the batch size.
"""

from __future__ import annotations

import logging
import os
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise import norms
from layerwise.errors import ConfigError
from layerwise.evaluation.base import InputAttack, is_right
from layerwise.evaluation.threat import ThreatModel
from layerwise.methods.base import at_least
from layerwise.probe import frozen
from layerwise.random import Source, Stream

LOGGER = logging.getLogger("layerwise.external")


@final
class Logits(nn.Module):
    """A network as the packages see it: float32 images in, float32 logits that depend on them out.

    Where no gradient reaches the images (a step function in the network), it is zero and not an error: then Square does the work.

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
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            logits = logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)
        return logits


@final
class _Talk:
    """What pyautoattack takes for a logger."""

    def warning(self, message: str) -> None:
        LOGGER.debug(message)


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
    """An attack of another package on the images that are still right; those that it does not fool stay as they are."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """See `InputAttack.__call__`.

        Raises:
            ConfigError: the package is not there, or does not take this norm or shape.
        """
        self.check(x, threat)
        seed, found = seed_of(generator), x.clone()
        with frozen(model), torch.random.fork_rng(_gpus()):
            with torch.no_grad():
                logits = model(x)
            rows = is_right(logits, y).nonzero().flatten()
            if len(rows):
                network = Logits(model, x.dtype)
                narrow = x[rows].float()
                part = self.run(network, narrow, y[rows], threat, seed=seed, classes=logits.shape[1]).detach()
                # In float64, untouched pixels would otherwise come back rounded.
                found[rows] = self._kept(x[rows], torch.where(part == narrow, x[rows], part.to(x.dtype)), threat)
        return found

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """See `Attack.check`."""
        del x, threat
        package("pyautoattack")

    @abstractmethod
    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """Attack images that are right, float32, at least one; `classes` is how many logits there are."""

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


def _options(x: Tensor, threat: ThreatModel, seed: int) -> dict[str, Any]:
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    return {"norm": norm, "eps": threat.eps, "seed": seed, "device": x.device, "verbose": False}


@final
@dataclass(frozen=True)
class APGDCE(ExternalAttack):
    """AutoAttack's first member: projected ascent on the cross entropy that sets its own step size.

    Args:
        steps: of each restart.
        restarts: how many.

    Reference: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
    """

    name: ClassVar[str] = "apgd-ce"

    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        _at_least_one(steps=self.steps, restarts=self.restarts)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
        attack = package("pyautoattack.autopgd_base").APGDAttack(
            network, n_iter=self.steps, n_restarts=self.restarts, loss="ce", logger=_Talk(), **_options(x, threat, seed)
        )
        found: Tensor = attack.perturb(x, y)
        return found


@final
@dataclass(frozen=True)
class APGDT(ExternalAttack):
    """AutoAttack's second member: APGD on the targeted difference-of-logits-ratio loss, one likely class after another.

    The loss needs four classes; with fewer its numerator, the difference of the two logits, takes its place.

    Args:
        steps: for each class.
        restarts: for each class.
        targets: how many of the likeliest wrong classes; fewer where there are not so many.

    Reference: see `APGDCE`.
    """

    name: ClassVar[str] = "apgd-t"

    steps: int = 100
    restarts: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        """Check the fields."""
        _at_least_one(steps=self.steps, restarts=self.restarts, targets=self.targets)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
        attack = package("pyautoattack.autopgd_base").APGDAttack_targeted(
            network,
            n_iter=self.steps,
            n_restarts=self.restarts,
            n_target_classes=min(self.targets, classes - 1),
            logger=_Talk(),
            **_options(x, threat, seed),
        )
        if classes < 4:

            def difference(z: Tensor, label: Tensor) -> Tensor:
                target: Tensor = attack.y_target
                return (z.gather(1, target[:, None]) - z.gather(1, label[:, None])).squeeze(1)

            attack.dlr_loss_targeted = difference
        found: Tensor = attack.perturb(x, y)
        return found


@final
@dataclass(frozen=True)
class FABT(ExternalAttack):
    """AutoAttack's third member: the fast adaptive boundary attack, which looks for the nearest image of another class.

    Args:
        steps: for each class.
        restarts: for each class.
        targets: how many of the likeliest wrong classes; fewer where there are not so many.

    Reference: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """

    name: ClassVar[str] = "fab-t"

    steps: int = 100
    restarts: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        """Check the fields."""
        _at_least_one(steps=self.steps, restarts=self.restarts, targets=self.targets)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
        attack = package("pyautoattack.fab_pt").FABAttack_PT(
            network,
            n_iter=self.steps,
            n_restarts=self.restarts,
            n_target_classes=min(self.targets, classes - 1),
            targeted=True,
            **_options(x, threat, seed),
        )
        found: Tensor = attack.perturb(x, y)
        return found


@final
@dataclass(frozen=True)
class Square(ExternalAttack):
    """AutoAttack's fourth member: random search with squares, which asks for logits only and needs no gradient.

    Args:
        queries: passes for each image and restart.
        restarts: how many.

    Reference: Andriushchenko et al. 2020, "Square attack".
    """

    name: ClassVar[str] = "square"

    queries: int = 5000
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        _at_least_one(queries=self.queries, restarts=self.restarts)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """See `Attack.check`."""
        super().check(x, threat)
        if x.ndim != 4 or (threat.norm == "l2" and x.shape[2] < 5):
            least = " of at least 5 x 5 pixels" if threat.norm == "l2" else " (C, H, W)"
            raise ConfigError(
                f"square needs images{least} under {threat}, these are {tuple(x.shape[1:])}; leave it out, and autoattack too"
            )

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
        attack = package("pyautoattack.square").SquareAttack(
            network,
            n_queries=self.queries,
            n_restarts=self.restarts,
            resc_schedule=False,
            **_options(x, threat, seed),
        )
        found: Tensor = attack.perturb(x, y)
        return found


@final
@dataclass(frozen=True)
class AutoAttack(InputAttack):
    """The standard ensemble: APGD-CE, APGD-T, FAB-T and Square in this order, each on the images that are still right.

    With other than the default numbers it is not what papers mean by AutoAttack. For networks that draw random numbers put `eot`
    around it.

    Args:
        steps: of the first three members.
        targets: of APGD-T and FAB-T.
        queries: of Square.

    Reference: see `APGDCE`.
    """

    name: ClassVar[str] = "autoattack"

    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        """Check the fields."""
        _at_least_one(steps=self.steps, targets=self.targets, queries=self.queries)

    @property
    def members(self) -> tuple[ExternalAttack, ...]:
        """The four attacks, in order."""
        steps, targets = self.steps, self.targets
        return APGDCE(steps), APGDT(steps, targets=targets), FABT(steps, targets=targets), Square(self.queries)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """See `Attack.check`."""
        for member in self.members:
            member.check(x, threat)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """See `InputAttack.__call__`; the members share a seed, as in the package.

        Raises:
            ConfigError: the package is not there, or does not take this shape.
        """
        self.check(x, threat)
        source, found = Stream(seed_of(generator)), x.clone()
        # Not the package's own loop: it switches the tracing of debuggers and coverage off, and fails on fewer than four classes.
        for member in self.members:
            with torch.no_grad():
                rows = is_right(model(found), y).nonzero().flatten()
            if not len(rows):
                break
            found[rows] = member(model, x[rows], y[rows], threat, generator=source)
        return found


@final
@dataclass(frozen=True)
class CW(ExternalAttack):
    """Carlini and Wagner's l2 attack: min ||x' - x||^2 + c max(z_y - max_k!=y z_k + confidence, 0), x' = (tanh w + 1) / 2.

    The nearest adversarial image that it meets is judged. ANP's tables: `cw binary_search_steps=1 initial_const=0.2 bounded=False`.

    Args:
        steps: of Adam, for each c.
        binary_search_steps: values of c that are tried.
        initial_const: the first c.
        stepsize: Adam's rate.
        confidence: by how much another logit has to lead.
        bounded: the image is cut to the ball of the threat model, which has to be l2; False judges it at whatever size it has, as the
            papers' tables do: then it is outside every threat model, and does not count for the worst case.

    Reference: Carlini and Wagner 2017, section VI.A.
    """

    name: ClassVar[str] = "cw"
    numbers: ClassVar[tuple[str, ...]] = ("steps",)

    steps: int = 1000
    binary_search_steps: int = 9
    initial_const: float = 1e-3
    stepsize: float = 0.01
    confidence: float = 0.0
    bounded: bool = True

    def __post_init__(self) -> None:
        """Check the fields."""
        _at_least_one(steps=self.steps, binary_search_steps=self.binary_search_steps)
        for key in ("initial_const", "stepsize", "confidence"):
            at_least(key, getattr(self, key), 0)

    @property
    def in_threat_model(self) -> bool:
        """See `Attack.in_threat_model`."""
        return self.bounded

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """See `Attack.check`."""
        package("foolbox")
        if self.bounded and threat.norm != "l2":
            raise ConfigError(
                f"cw makes small l2 changes, the threat model is {threat}; type norm='l2', or `{self} bounded=False` to judge its "
                "images at their own size"
            )

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`; nothing in it is random."""
        foolbox = package("foolbox")
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            steps=self.steps,
            binary_search_steps=self.binary_search_steps,
            initial_const=self.initial_const,
            stepsize=self.stepsize,
            confidence=self.confidence,
        )
        wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
        found, _, _ = attack(wrapped, x, foolbox.Misclassification(y), epsilons=None)
        # Where it finds nothing it gives a black image, and calls that a success if the network happens to get it wrong.
        return torch.where(norms.rows(found.flatten(1).any(dim=1), x), found, x)


def _at_least_one(**values: int) -> None:
    for key, value in values.items():
        at_least(key, value, 1)
