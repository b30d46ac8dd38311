"""Training steps as one writes them by hand, eagerly and without hooks where that can be done: what the methods' speed is compared with.

Each is a loop over nothing but the network and the optimiser: no sites, no engine, no bookkeeping. Networks are `nn.Sequential` where
hidden layers are perturbed, so that the activations can be had by calling the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Draw = Callable[[Tensor], Tensor]
"""Random numbers of the shape of a tensor."""
Step = Callable[[Tensor, Tensor], None]
"""Trains on one batch."""


@final
@dataclass(frozen=True, kw_only=True)
class HandWritten:
    """The hand-written steps.

    Args:
        model: the network.
        optimizer: its optimiser.
        eps: radius.
        alpha: step of the multi-step methods.
        uniform: U(-1, 1) draws.
        normal: N(0, 1) draws.
        parts: modules that give the network when called one after the other, for noise at the outputs of all but the last; empty where
            there are none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    eps: float = 8 / 255
    alpha: float = 2 / 255
    uniform: Draw = lambda x: torch.rand_like(x) * 2 - 1
    normal: Draw = torch.randn_like
    parts: Sequence[nn.Module] = ()

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(self.model(x), y, reduction="sum"), x)[0]

    def standard(self, x: Tensor, y: Tensor) -> None:
        """A descent on the clean images."""
        self._descend(F.cross_entropy(self.model(x), y))

    def fgsm(self, x: Tensor, y: Tensor) -> None:
        """A descent at the FGSM images."""
        x_adv = (x + self.eps * self._gradient(x, y).sign()).clamp(0, 1)
        self._descend(F.cross_entropy(self.model(x_adv), y))

    def fgsm_rs(self, x: Tensor, y: Tensor) -> None:
        """FGSM from a random start, step 1.25 eps."""
        start = (x + self.eps * self.uniform(x)).clamp(0, 1)
        r = (start - x + 1.25 * self.eps * self._gradient(start, y).sign()).clamp(-self.eps, self.eps)
        self._descend(F.cross_entropy(self.model((x + r).clamp(0, 1)), y))

    def n_fgsm(self, x: Tensor, y: Tensor) -> None:
        """FGSM from a noisy start of 2 eps, without projection."""
        start = (x + 2 * self.eps * self.uniform(x)).clamp(0, 1)
        x_adv = (start + self.eps * self._gradient(start, y).sign()).clamp(0, 1)
        self._descend(F.cross_entropy(self.model(x_adv), y))

    def pgd(self, x: Tensor, y: Tensor, *, steps: int = 10) -> None:
        """PGD from a random start."""
        x_adv = (x + self.eps * self.uniform(x)).clamp(0, 1)
        for _ in range(steps):
            moved = x_adv + self.alpha * self._gradient(x_adv, y).sign()
            x_adv = (x + (moved - x).clamp(-self.eps, self.eps)).clamp(0, 1)
        self._descend(F.cross_entropy(self.model(x_adv), y))

    def trades(self, x: Tensor, y: Tensor, *, steps: int = 10) -> None:
        """TRADES with beta 6; the natural probabilities of the attack are computed once."""
        with torch.no_grad():
            natural = self.model(x).softmax(dim=1)
        x_adv = (x + 0.001 * self.normal(x)).clamp(0, 1)
        for _ in range(steps):
            at = x_adv.detach().requires_grad_()
            kl = F.kl_div(F.log_softmax(self.model(at), dim=1), natural, reduction="sum")
            moved = at.detach() + self.alpha * torch.autograd.grad(kl, at)[0].sign()
            x_adv = (x + (moved - x).clamp(-self.eps, self.eps)).clamp(0, 1)
        logits = self.model(x)
        kl = F.kl_div(F.log_softmax(self.model(x_adv), dim=1), logits.softmax(dim=1), reduction="batchmean")
        self._descend(F.cross_entropy(logits, y) + 6.0 * kl)

    def free(self, x: Tensor, y: Tensor, *, m: int = 8) -> None:
        """Free-m from a perturbation of zero."""
        delta = torch.zeros_like(x)
        for _ in range(m):
            x_adv = (x + delta).clamp(0, 1).requires_grad_()
            self._descend(F.cross_entropy(self.model(x_adv), y))
            assert x_adv.grad is not None
            delta = (delta + self.eps * x_adv.grad.sign()).clamp(-self.eps, self.eps)

    def _forward(self, x: Tensor, noise: Sequence[Tensor | float]) -> tuple[Tensor, list[Tensor]]:
        """The logits with noise at the parts' outputs, and these outputs as they went on."""
        z, *rest = self.parts[0](x), *self.parts[1:]
        states = []
        for part, r in zip(rest, noise, strict=True):
            states.append(z + r)
            z = part(states[-1])
        return z, states

    def slat(self, x: Tensor, y: Tensor) -> None:
        """SLAT at the input and at every part's output but the last's."""
        x_in = x.detach().requires_grad_()
        logits, states = self._forward(x_in, [0.0] * (len(self.parts) - 1))
        g_x, *g = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), [x_in, *states])
        x_adv = (x + self.eps * g_x.sign()).clamp(0, 1)
        self._descend(F.cross_entropy(self._forward(x_adv, [self.eps * v.sign() for v in g])[0], y))

    def latent_pgd(self, x: Tensor, y: Tensor, *, steps: int = 6, eps: float = 8.0) -> None:
        """Latent PGD in l2 balls at every part's output but the last's; each starts where it is first seen."""
        delta: list[Tensor] = []
        for _ in range(steps):
            z, *rest = self.parts[0](x), *self.parts[1:]
            states = []
            for number, part in enumerate(rest):
                if number == len(delta):
                    direction = self.normal(z)
                    share = (self.uniform(length(direction)) + 1) / 2
                    delta.append(direction / length(direction) * (eps * share))
                states.append(z + delta[number])
                z = part(states[-1])
            g = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), states)
            moved = [d + eps / steps * v / length(v) for d, v in zip(delta, g, strict=True)]
            delta = [d * (eps / length(d)).clamp(max=1) for d in moved]
        self._descend(F.cross_entropy(self._forward(x, delta)[0], y))


def length(z: Tensor) -> Tensor:
    """||z||_2 of each example, in a shape that goes with z."""
    found: Tensor = torch.linalg.vector_norm(z.flatten(1), dim=1)
    return found.reshape(-1, *[1] * (z.ndim - 1))


STEPS: dict[str, Callable[[HandWritten, Any], Step]] = {
    "Standard": lambda plain, method: plain.standard,
    "FGSM": lambda plain, method: plain.fgsm,
    "FGSMRS": lambda plain, method: plain.fgsm_rs,
    "NFGSM": lambda plain, method: plain.n_fgsm,
    "PGD": lambda plain, method: partial(plain.pgd, steps=method.steps),
    "TRADES": lambda plain, method: partial(plain.trades, steps=method.attack.steps),
    "FreeAT": lambda plain, method: partial(plain.free, m=method.m),
    "SLAT": lambda plain, method: plain.slat,
    "LatentPGD": lambda plain, method: partial(plain.latent_pgd, steps=method.steps, eps=method.eps),
}
"""{method: its step by hand}, at the method's default radii."""
