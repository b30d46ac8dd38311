"""Suites: what to evaluate a network by, under one name. `layerwise evaluate RUN --suite standard`.

Where a value is not a paper's own, the line says so; tables, figures and sections are numbered as in the printed papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from layerwise.errors import ConfigError, did_you_mean


@final
@dataclass(frozen=True)
class Suite:
    """Settings of an evaluation, by the names that the command line has for them.

    Args:
        summary: what it is for.
        settings: of `evaluation`, or of `threat` as `threat.eps`; what is not there stays as the run has it.
    """

    summary: str
    settings: Mapping[str, Any]

    def contents(self) -> str:
        """What is in it, in a line.

        >>> SUITES["quick"].contents()
        'attacks clean, fgsm, pgd-10; num_examples 1000'
        """
        return "; ".join(f"{name} {_written(value)}" for name, value in self.settings.items())


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


_TRANSFERS = ["fgsm", "pgd-10 alpha=16/255", "pgd-10 alpha=2/255", "step-ll", "mi-fgsm-10"]

SUITES: dict[str, Suite] = {
    "quick": Suite(
        "a first look in minutes; says little about a network that hides its gradient",
        {"attacks": ["clean", "fgsm", "pgd-10"], "num_examples": 1000},
    ),
    "standard": Suite(
        "what to report: PGD with restarts, and the independent AutoAttack",
        {"attacks": ["clean", "pgd-50-10", "autoattack"], "measures": ["pictures"]},
    ),
    "paper-slat": Suite(
        "SLAT: tables 1 and 4, figures 3 to 6",
        {
            "threat.norm": "linf",
            "threat.eps": "8/255",  # section 3
            # Appendix E; the step of 2/255 is that of the code it follows.
            "attacks": ["clean", "pgd-50-10", "autoattack"],
            # Figures 3, 4, 5, 6 and eq. 6; how many images is not printed.
            "measures": ["radius-curve steps=50", "landscape", "feature-gradients", "alignment", "linearity"],
        },
    ),
    "paper-anp": Suite(
        "ANP on CIFAR-10: tables 1, 3 to 6 and 8 to 11, figures 4, 5, 9 and 13; black-box attacks need sources",
        {
            "threat.norm": "linf",
            "threat.eps": "8/255",
            "attacks": [
                "clean",
                # Table 3: BPDA is BIM of 5 steps where there is no filter in front; PGD's steps are not printed, 10 are PAT's in
                # training; it starts at the image (appendix). C&W has c = 0.2 and no radius.
                "bim-5",
                "pgd-10 alpha=2/255 random_start=False",
                "cw-1000 binary_search_steps=1 initial_const=0.2 bounded=False",
                # Tables 1 and 6: radius 8 and, for FGSM, 16; PGD's step 16 is longer than its radius; MI-FGSM's steps are ours.
                *(f"transfer:each:{attack}" for attack in _TRANSFERS),
                "at:16/255:transfer:each:fgsm",
            ],
            "measures": [
                # Tables 8 to 10 print extra ones beside the standard ones.
                "corruptions all",
                "sequences all",
                "boundary-distance images=100 directions=1000",  # eq. 3, figure 7
                *(
                    f"noise-insensitivity noise={noise}" for noise in ("fgsm", "step-ll", "gaussian", "shot")
                ),  # figure 9
                "representation-insensitivity",  # figures 4 and 13, which print no formula
                "input-gradients",  # figure 5
                "reassignment",  # figure 2b
            ],
        },
    ),
    "paper-anp-mnist": Suite(
        "ANP on MNIST: table 7; black-box attacks need sources",
        {
            "threat.norm": "linf",
            "threat.eps": 0.2,
            "attacks": [
                "clean",
                "bim-5",
                "pgd-10 random_start=False",  # steps and step size are not printed
                "cw-1000 binary_search_steps=1 initial_const=0.2 bounded=False",
                "at:0.1:transfer:each:fgsm",
                "transfer:each:fgsm",
                "at:0.3:transfer:each:fgsm",
            ],
        },
    ),
    "paper-lad": Suite(
        "LAD: tables 3 and 4, figure 2, for networks trained with PGD or TRADES",
        {
            "threat.norm": "linf",
            "threat.eps": "8/255",
            # Appendix B.1: M = 20, alpha = 2/255; naturally trained networks have 0.5/255 and radii that are lost with table 1.
            "attacks": [
                "clean",
                "fgsm",
                "at:12/255:fgsm",
                "bim-20 alpha=2/255",
                "at:12/255:bim-20 alpha=2/255",
            ],
            "measures": ["state-ratio"],  # eq. 16
        },
    ),
    "paper-lat": Suite(
        "LAT: tables 1, 2 and 4, figures 1 and 2",
        {
            "threat.norm": "linf",
            "threat.eps": 0.1,
            "attacks": [
                "clean",
                *(f"at:{eps}:fgsm" for eps in (0.02, 0.04, 0.06, 0.08)),  # table 4
                "fgsm",
                *(f"at:{eps}:fgsm" for eps in (0.05, 0.15, 0.2)),  # table 1
                *(f"latent eps={eps}" for eps in (0.05, 0.1, 0.15, 0.2)),  # table 1
            ],
            "measures": [
                "features classes=2",  # figure 1, two classes
                "jacobian images=100",  # figure 2; the paper takes the whole test set of a toy network
                "adversarialness images=10000",  # table 2
            ],
        },
    ),
    "paper-deep-defense": Suite(
        "Deep Defense: table 1; other networks take the eps_ref of the regularised one, --evaluation.attacks '[at:EPS:fgsm]'",
        # Section 4.1; DeepFool's 5 steps are those of the authors' code, 50 converge.
        {"attacks": ["clean"], "measures": ["rho steps=5", "rho", "eps-ref"]},
    ),
}
"""Every suite by name."""


def find_suite(name: str) -> Suite:
    """The suite called so.

    Raises:
        ConfigError: there is none.
    """
    if name not in SUITES:
        if inside := [suite for suite, each in SUITES.items() if name in each.settings["attacks"]]:
            raise ConfigError(
                f"{name} is an attack; type --suite {inside[0]}, which contains it, or --evaluation.attacks '[clean, {name}]'"
            )
        raise ConfigError(f"suite {name!r} is unknown; {did_you_mean(name, SUITES)} (`layerwise list suites`)")
    return SUITES[name]
