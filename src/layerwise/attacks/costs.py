"""How much work an attack is, for estimates of the end."""

from __future__ import annotations

import math
from typing import Any

from layerwise.attacks.autoattack import FABT, AutoAttack, Square
from layerwise.attacks.base import Attack
from layerwise.attacks.carlini_wagner import CW
from layerwise.attacks.gradient import Clean, DeepFoolAttack
from layerwise.attacks.transfer import Transfer
from layerwise.attacks.wrappers import EOT


def passes(attack: Attack) -> int:
    """Forward and backward passes that an attack makes for an image at most; images that are fooled early cost less.

    >>> from layerwise.evaluation.registry import parse_attack
    >>> [passes(parse_attack(text)) for text in ("clean", "fgsm", "pgd-50-10", "eot-4:pgd-20")]
    [1, 3, 1010, 161]
    """
    if isinstance(attack, AutoAttack):
        # APGD-CE, APGD-T, FAB-T (about three passes a step), Square.
        return attack.steps * (2 + 2 * attack.targets + 3 * attack.targets) + attack.queries
    inner: Any = getattr(attack, "attack", None)
    if isinstance(attack, EOT):
        return attack.passes * (passes(inner) - 1) + 1
    if inner is not None:
        return passes(inner) * (len(attack.sources) if isinstance(attack, Transfer) else 1)
    if isinstance(attack, Clean):
        return 1
    if isinstance(attack, Square):
        return attack.queries * attack.restarts
    if isinstance(attack, DeepFoolAttack):
        return attack.num_steps * (1 + attack.num_classes) + 1
    factors = [getattr(attack, name, 1) for name in ("steps", "restarts", "targets", "binary_search_steps")]
    each = 3 if isinstance(attack, FABT | CW) else 2
    extra = getattr(attack, "restarts", 1)
    return each * math.prod(factors) + extra
