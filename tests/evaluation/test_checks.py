from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerwise.attacks import BIM, BPDA, EOT, MIFGSM, At, Attack, Clean, FGSMAttack, PGDAttack, Square, ThreatModel
from layerwise.evaluation import CHECKS, wilson
from layerwise.evaluation.checks import LEVEL, Check, Finding, compare

THREAT = ThreatModel("linf", 0.1)
N = 400


def first(share: float, *, count: int = N) -> Tensor:
    """The first images stay right: of two such outcomes the lower is a part of the higher."""
    return torch.arange(count) < round(share * count)


def last(share: float) -> Tensor:
    return first(share).flip(0)


def names(findings: list[Finding]) -> list[str]:
    return [f.name for f in findings]


@pytest.mark.parametrize(
    ("accuracies", "found"),
    [
        ({Clean(): 0.9, FGSMAttack(): 0.5, PGDAttack(20): 0.4}, []),
        ({Clean(): 0.9, FGSMAttack(): 0.905, PGDAttack(20): 0.6}, []),
        ({Clean(): 0.9, FGSMAttack(): 0.95, PGDAttack(20): 0.65}, ["fgsm-above-clean"]),
        ({Clean(): 0.9, FGSMAttack(): 0.5, PGDAttack(20): 0.51}, []),
        ({Clean(): 0.9, FGSMAttack(): 0.5, PGDAttack(20): 0.6}, ["pgd-above-fgsm"]),
        ({Clean(): 0.9, FGSMAttack(): 0.5, PGDAttack(20): 0.6, BIM(20): 0.45}, []),
        ({Clean(): 0.9, FGSMAttack(): 0.5, PGDAttack(20): 0.2}, []),
        ({Clean(): 0.9, FGSMAttack(): 0.7, PGDAttack(20): 0.01}, ["fgsm-far-above-pgd"]),
        ({Clean(): 0.6, FGSMAttack(): 0.7, PGDAttack(20): 0.01}, ["fgsm-above-clean", "fgsm-far-above-pgd"]),
        ({Clean(): 0.9, FGSMAttack(): 0.5, PGDAttack(2): 0.6}, []),
        ({Clean(): 0.9, FGSMAttack(step=0.1): 0.8, PGDAttack(20): 0.1}, []),
        ({EOT(FGSMAttack(), 4): 0.5, BPDA(PGDAttack(20), "front"): 0.6}, ["pgd-above-fgsm"]),
        ({Clean(): 0.9, At(FGSMAttack(), 0.2): 0.95, At(PGDAttack(20), 0.2): 0.99}, []),
        ({PGDAttack(20): 0.5}, []),
        ({}, []),
    ],
)
def test_contradicting_accuracies(accuracies: dict[Attack, float], found: list[str]) -> None:
    assert names(compare({a: first(v) for a, v in accuracies.items()}, THREAT)) == found


def test_a_poor_step_in_l2_is_no_sign() -> None:
    outcomes: dict[Attack, Tensor] = {FGSMAttack(): first(0.7), PGDAttack(20): first(0.01)}
    assert compare(outcomes, ThreatModel("l2", 1.0)) == []
    assert names(compare(outcomes, THREAT)) == ["fgsm-far-above-pgd"]


@pytest.mark.parametrize(
    ("weak", "strong", "found"),
    [
        (PGDAttack(10), PGDAttack(50), "more-steps-weaker"),
        (PGDAttack(10), PGDAttack(10, restarts=5), "more-steps-weaker"),
        (PGDAttack(10, alpha=0.01), PGDAttack(50), ""),  # another step size
        (PGDAttack(10, restarts=5), PGDAttack(50), ""),  # more of one, less of the other
        (PGDAttack(10), BIM(50), ""),
        (BIM(10), BIM(50), "more-steps-weaker"),
        (MIFGSM(10), MIFGSM(20), "more-steps-weaker"),
        (EOT(PGDAttack(10), 4), EOT(PGDAttack(50), 4), "more-steps-weaker"),
        (FGSMAttack(step=0.5), FGSMAttack(), "larger-radius-weaker"),
        (At(FGSMAttack(), 0.05), FGSMAttack(), "larger-radius-weaker"),
        (FGSMAttack(), At(FGSMAttack(), 0.2), ""),  # one step beyond the radius in question
        (PGDAttack(10), At(PGDAttack(10), 0.2), "larger-radius-weaker"),
        (PGDAttack(10), At(PGDAttack(50), 0.2), ""),
        (PGDAttack(10), At(PGDAttack(10), 0.2, "l2"), ""),
    ],
)
def test_what_is_stronger_on_paper_leaves_less(weak: Attack, strong: Attack, found: str) -> None:
    contradiction = names(compare({weak: first(0.3), strong: first(0.5)}, THREAT))
    assert contradiction == ([found] if found else [])
    assert compare({weak: first(0.5), strong: first(0.3)}, THREAT) == []


def test_the_worst_contradiction_of_a_kind_is_told_once() -> None:
    outcomes: dict[Attack, Tensor] = {PGDAttack(10): first(0.3), PGDAttack(20): first(0.4), PGDAttack(50): first(0.6)}
    (finding,) = compare(outcomes, THREAT)
    assert finding.explanation.startswith("120 of 400 images (0 the other way round)")


def test_images_that_only_the_black_box_fools() -> None:
    square = Square()
    weaker_everywhere: dict[Attack, Tensor] = {PGDAttack(20): first(0.3), square: first(0.6)}
    assert compare(weaker_everywhere, THREAT) == []
    # Just as strong in accuracy, but on other images: what is right under PGD (the first 30 %) falls to the search.
    assert names(compare({PGDAttack(20): first(0.3), square: last(0.3)}, THREAT)) == ["black-box-beats-white-box"]
    assert compare({FGSMAttack(): first(0.3), square: last(0.3)}, THREAT) == []  # one step is no measure


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_few_images_do_not_cry_wolf(count: int) -> None:
    """The same difference of 5 points is chance among 20 images and a contradiction among 1,000."""
    outcomes: dict[Attack, Tensor] = {FGSMAttack(): first(0.5, count=count), PGDAttack(20): first(0.55, count=count)}
    assert bool(compare(outcomes, THREAT)) == (count == 1000)


def test_values_are_lower_ends() -> None:
    check = Check("some-check", 0.1, "here", "there")
    (finding,) = check.share(30, 100)
    text = "30 of 100 images (20.6 to 41.5 % of all such): here: there"
    assert finding == Finding("some-check", 0.1, wilson(30, 100, level=LEVEL)[0], text)
    assert str(finding).startswith(f"some-check: at least 0.206 (more than 0.1): {text}")
    assert check.share(0, 100) == []
    hits, against = first(0.5, count=100), first(0.7, count=100) & (torch.arange(100) >= 20)
    (finding,) = Check("c", -1.0, "here", "there").surplus(hits, against)  # 20 the one way, 20 the other
    assert finding.value == pytest.approx(0.4 * (2 * wilson(20, 40, level=LEVEL)[0] - 1))
    assert finding.value < 0


def test_every_check_explains_itself() -> None:
    assert all(name == check.name and len(check.explanation) > 60 for name, check in CHECKS.items())
    assert all(0 <= check.threshold < 1 for check in CHECKS.values())
