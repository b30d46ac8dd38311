"""Every training method with its documented variants, as plain data that both checkouts can build.

A method is written once, as it is typed before a change; `renamed.py` says what is typed otherwise
after it. Radii and steps are chosen so that a step as a fraction of the radius is a power of two:
the product is then the same number, to the last bit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import renamed

Fields = dict[str, Any]
EPS = 0.1
ALPHA = EPS / 4
"""Step of attacks with several."""

MODULES = (
    *("", ".methods", ".training", ".data"),
    *(".evaluation", ".evaluation.corruptions", ".evaluation.measures", ".diagnostics", ".attacks"),
    *(".core", ".core.probe", ".core.criteria", ".core.random", ".probe", ".random"),
)
"""Where a name is looked for, below `layerwise`; the first that has it."""


@dataclass(frozen=True)
class Spec:
    """An object of the package: the name of its class, and its fields; fields may be specs."""

    name: str
    fields: Fields = field(default_factory=dict)

    def build(self, side: str, network: Network) -> Any:
        """The object, as this side spells it, for one of the networks."""
        name, fields = self.name, self.fields
        if side == "after" and name in renamed.CLASSES:
            name, fields = renamed.CLASSES[name](fields)
        values = {key: built(value, side, network) for key, value in fields.items()}
        return find(name)(**values)


def built(value: Any, side: str, network: Network) -> Any:
    """A field's value, specs and placeholders replaced."""
    if isinstance(value, Spec):
        return value.build(side, network)
    if isinstance(value, Source):
        return network.make(value.seed).eval()
    if isinstance(value, Where):
        return network.sites[value.kind]
    if isinstance(value, list):
        return [built(each, side, network) for each in value]
    return value


def find(name: str) -> Any:
    """A class or function of the package, wherever it lives, or in the module that is named."""
    place, _, name = name.rpartition(":")
    for module in [f".{place}"] if place else MODULES:
        try:
            return getattr(importlib.import_module(f"layerwise{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise LookupError(f"layerwise has no {name} in any of {', '.join(MODULES)}")


def of(name: str, /, **fields: Any) -> Spec:
    """Shorthand for a spec."""
    return Spec(name, fields)


@dataclass(frozen=True)
class Source:
    """Another network of the same kind, for methods that look at one."""

    seed: int


@dataclass(frozen=True)
class Where:
    """Sites of a network for one purpose."""

    kind: str


@dataclass(frozen=True)
class Network:
    """A network to train: how it is made from a seed, and its sites for each purpose."""

    name: str
    make: Callable[[int], nn.Module]
    sites: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A method, and the names of the networks that it makes sense on."""

    spec: Spec
    networks: Sequence[str] = ("conv", "mlp", "residual")


EVAL, TRAIN = of("Probe", batch_norm="eval"), of("Probe", batch_norm="train")
SMOOTH = of("CrossEntropy", label_smoothing=0.1)
PGD = of("PGD", eps=EPS, alpha=ALPHA, steps=3)
TRADES = of("TRADES", eps=EPS, alpha=ALPHA, steps=3)
MART = of("MART", eps=EPS, alpha=ALPHA, steps=3)
FGSM = of("FGSM", eps=EPS)
FGSMRS = of("FGSMRS", eps=EPS)
NFGSM = of("NFGSM", eps=EPS)
SLAT_SITES, BLOCKS, STATES = Where("slat"), Where("blocks"), Where("states")
SLAT = {"sites": SLAT_SITES, "eta": 0.05}
RESIDUAL = ("residual",)
SPACE = ("conv", "residual")
SINGLE_STEP = {"FGSM": FGSM, "FGSM-RS": FGSMRS, "N-FGSM": NFGSM}
BASES = {
    "Standard": of("Standard"),
    **SINGLE_STEP,
    "PGD": PGD,
    "TRADES": TRADES,
    "MART": MART,
    "PAT": of("PAT", eps=EPS, alpha=ALPHA, steps=3),
    "NAT": of("NAT", std=EPS, largest=2 * EPS),
    "EAT": of("EAT", std=EPS, largest=2 * EPS, sources=[Source(7), Source(8)]),
    "FGSM-CKPT": of("FGSMCKPT", eps=EPS),
    "FGS-orig": of("FGSOrig", eps=EPS),
    "Adv. Train I": of("AdvTrainI", network=Source(7), num_steps=2),
}
"""What perturbs the input, and so can stand inside a layer-wise method."""


def _inputs() -> dict[str, Case]:
    """Methods at the input, and their fields."""
    pgd = {"eps": EPS, "alpha": ALPHA, "steps": 3}
    nat = {"std": EPS, "largest": 2 * EPS}
    more = {
        "FGSM step 0.9": of("FGSM", eps=EPS, step=0.9),
        "FGSM smoothed": of("FGSM", eps=EPS, criterion=SMOOTH),
        "FGSM probe eval": of("FGSM", eps=EPS, probe=EVAL),
        "FGSM probe train": of("FGSM", eps=EPS, probe=TRAIN),
        "FGSM-RS step 1": of("FGSMRS", eps=EPS, step=1.0),
        "N-FGSM noise 1": of("NFGSM", eps=EPS, noise=1.0, step=0.5),
        "PGD from x": of("PGD", **pgd, random_start=False),
        "PGD l2": of("PGD", eps=0.5, alpha=0.125, steps=3, norm="l2"),
        "PGD l2 from x": of("PGD", eps=0.5, alpha=0.125, steps=3, norm="l2", random_start=False),
        "PGD probe eval": of("PGD", **pgd, probe=EVAL),
        "PGD one step": of("PGD", **{**pgd, "steps": 1}),
        "TRADES beta 1": of("TRADES", **pgd, beta=1.0, start_noise=0.01),
        "TRADES probe eval": of("TRADES", **pgd, probe=EVAL),
        "MART beta 1": of("MART", **pgd, beta=1.0),
        "MART probe eval": of("MART", **pgd, probe=EVAL),
        "PAT random start": of("PAT", **pgd, random_start=True),
        "PAT together": of("PAT", **pgd, halves="together"),
        "NAT gradient": of("NAT", **nat, step="gradient"),
        "NAT together": of("NAT", **nat, halves="together"),
        "EAT alone": of("EAT", **nat),
        "EAT gradient together": of("EAT", **nat, step="gradient", halves="together", sources=[Source(7)]),
        "FGSM-CKPT one": of("FGSMCKPT", eps=EPS, c=1, step=1.0, probe=EVAL),
        "FGS-orig alpha 0": of("FGSOrig", eps=EPS, alpha=0.0),
        "Adv. Train I alone": of("AdvTrainI", network=Source(7), num_steps=2, num_classes=3, alpha=0.0),
        "Free-AT": of("FreeAT", eps=EPS, m=3),
        "Free-AT step 0.5": of("FreeAT", eps=EPS, m=2, step=0.5),
        "YOPO": of("YOPO", eps=EPS, alpha=ALPHA, m=3, n=2),
        "YOPO adjoint": of("YOPO", eps=EPS, alpha=ALPHA, m=2, n=2, adjoint_update=True),
        "GradAlign": of("GradAlign", eps=EPS),
        "GradAlign step 0.5": of("GradAlign", eps=EPS, step=0.5, weight=1.0, probe=EVAL),
        "GradAlign on N-FGSM": of("GradAlign", eps=EPS, base=NFGSM),
        "GradAlign on FGSM-RS": of("GradAlign", eps=EPS, base=FGSMRS),
        "Parseval": of("Parseval", beta=0.01),
        "Parseval on PGD": of("Parseval", beta=0.01, share=0.6, base=PGD),
        "Parseval on Free-AT": of("Parseval", beta=0.01, base=of("FreeAT", eps=EPS, m=2)),
        "Parseval on ANP": of("Parseval", beta=0.01, base=of("ANP", k=2, layers=2)),
    }
    return {name: Case(spec) for name, spec in {**BASES, **more}.items()}


def _slat() -> dict[str, Case]:
    """SLAT on every base, with a base on its own, and its fields."""
    found = {f"SLAT on {name}": Case(of("SLAT", **SLAT, base=base)) for name, base in BASES.items()}
    clamped = of("SLAT", **SLAT, clamp_to_activation_range=True, input_step=0.9, probe=TRAIN)
    etas = {name: {"input": 0.1, **each} for name, each in SITE_ETAS.items()}
    found |= {
        "SLAT": Case(of("SLAT", **SLAT)),
        "SLAT clamped": Case(clamped, networks=SPACE),
        "SLAT two probes": Case(of("SLAT", **SLAT, num_probes=2)),
        "SLAT two probes on PGD": Case(of("SLAT", **SLAT, num_probes=2, base=PGD)),
        "SLAT two probes on N-FGSM": Case(of("SLAT", **SLAT, num_probes=2, base=NFGSM)),
        "SLAT two probes on FGSM-RS": Case(of("SLAT", **SLAT, num_probes=2, base=FGSMRS)),
        "SLAT input only": Case(of("SLAT", sites=["input"], eta=EPS)),
        "SLAT smoothed": Case(of("SLAT", **SLAT, criterion=SMOOTH, probe=EVAL)),
    }
    for name, eta in etas.items():
        found[f"SLAT eta a site, {name}"] = Case(of("SLAT", sites=SLAT_SITES, eta=eta), networks=(name,))
    return found


SITE_ETAS = {
    "conv": {"conv1": 0.05, "layer1": 0.02},
    "mlp": {"fc1": 0.05, "fc2": 0.02},
    "residual": {"conv1": 0.05, "layer1": 0.02},
}


def _lad() -> dict[str, Case]:
    """LAD on every base in both splittings, and its fields."""
    found = {}
    for name, base in BASES.items():
        for splitting in ("lie-trotter", "strang-marchuk"):
            spec = of("LAD", base=base, splitting=splitting)
            found[f"LAD {splitting} on {name}"] = Case(spec, networks=RESIDUAL)
    pgd = {"base": PGD}
    found |= {
        "LAD eta 0": Case(of("LAD", **pgd, eta=0.0), networks=RESIDUAL),
        "LAD two inner steps": Case(of("LAD", **pgd, num_inner_steps=2), networks=RESIDUAL),
        "LAD noise": Case(of("LAD", **pgd, noise_std=0.1), networks=RESIDUAL),
        "LAD-SM noise": Case(of("LAD", **pgd, noise_std=0.1, splitting="strang-marchuk"), networks=RESIDUAL),
        "LAD reference batch": Case(of("LAD", **pgd, reference_batch=16), networks=RESIDUAL),
        "LAD probe eval": Case(of("LAD", **pgd, probe=EVAL), networks=RESIDUAL),
        "LAD named sites": Case(of("LAD", **pgd, sites=BLOCKS)),
        "LAD-SM named sites": Case(of("LAD", **pgd, sites=STATES, splitting="strang-marchuk")),
        "LAD-TRADES gamma 1": Case(of("LAD", base=TRADES, gamma=1.0), networks=RESIDUAL),
        "LAD-TRADES gamma 0.2": Case(of("LAD", base=TRADES, gamma=0.2), networks=RESIDUAL),
    }
    return found


def _lat() -> dict[str, Case]:
    """LAT on every base, its joint and plain forms, FGS-inter and random noise."""
    found = {f"LAT on {name}": Case(of("LAT", base=base)) for name, base in BASES.items()}
    plain = {"relative": False, "eps": 0.1}
    found |= {
        "LAT": Case(of("LAT")),
        "LAT plain": Case(of("LAT", **plain)),
        "LAT joint": Case(of("LAT", joint=True)),
        "LAT joint plain": Case(of("LAT", **plain, joint=True, alpha=0.3)),
        "LAT joint on FGSM": Case(of("LAT", joint=True, base=FGSM)),
        "LAT reference batch": Case(of("LAT", eps=10.0, reference_batch=16)),
        "LAT at the input too": Case(of("LAT", **plain, sites=["input", Where("first")])),
        "LAT smoothed": Case(of("LAT", criterion=SMOOTH)),
        "FGS-inter": Case(of("FGSInter")),
        "FGS-inter plain": Case(of("FGSInter", **plain, alpha=0.3)),
        "FGS-inter probe eval": Case(of("FGSInter", probe=EVAL)),
        "Gaussian noise": Case(of("GaussianNoise")),
        "Gaussian noise at the input": Case(of("GaussianNoise", sites="input", std=0.2)),
        "Gaussian noise on PGD": Case(of("GaussianNoise", base=PGD)),
        "Gaussian noise on TRADES": Case(of("GaussianNoise", base=TRADES)),
    }
    return found


def _anp() -> dict[str, Case]:
    """ANP on every base, and its readings."""
    found = {f"ANP on {name}": Case(of("ANP", k=2, layers=2, base=base)) for name, base in BASES.items()}
    earlier = {"apply": "sign", "include_input": True, "layers": None, "eta": 0.7, "k": 3}
    fields: dict[str, Fields] = {
        "": {},
        " k 1": {"k": 1},
        " l2-batch": {"norm": "l2-batch"},
        " sign": {"norm": "sign", "eps": 0.01},
        " earlier code": earlier,
        " last step": {"update": "last-step"},
        " after probes": {"update": "after-probes"},
        " shifted": {"descend_at": "shifted"},
        " at the input too": {"include_input": True},
        " with shortcuts": {"include_shortcuts": True, "layers": None},
        " noise": {"noise_std": 0.1},
        " noise, earlier code": {**earlier, "noise_std": 0.1},
        " last step, probe eval": {"update": "last-step", "probe": EVAL},
    }
    return found | {f"ANP{name}": Case(of("ANP", **{"k": 2, "layers": 2, **more})) for name, more in fields.items()}


def _deep_defense() -> dict[str, Case]:
    """Deep Defense, its regularisers, and in combination."""
    small: Fields = {"num_steps": 2, "weight": 1.0, "d": 0.5}
    fields: dict[str, Fields] = {
        "": {},
        " linear": {"regulariser": "linear", "weight": 0.1},
        " alike": {"treat_wrong": "alike"},
        " three classes": {"num_classes": 3},
        " linf": {"p": float("inf"), "weight": 0.1},
        " p 1.5": {"p": 1.5, "weight": 0.1},
        " one layer": {"layer": Where("layer")},
        " on FGSM-RS": {"base": FGSMRS},
        " on FGS-orig": {"base": BASES["FGS-orig"]},
        " on TRADES": {"base": TRADES},
    }
    return {f"Deep Defense{name}": Case(of("DeepDefense", **{**small, **more})) for name, more in fields.items()}


def _awp() -> dict[str, Case]:
    """AWP around methods of every kind that takes one step."""
    bases = {
        **BASES,
        "SLAT": of("SLAT", **SLAT),
        "SLAT on N-FGSM": of("SLAT", **SLAT, base=NFGSM),
        "LAT": of("LAT"),
        "ANP last step": of("ANP", k=2, layers=2, update="last-step"),
        "FGS-inter": of("FGSInter"),
        "Gaussian noise": of("GaussianNoise"),
        "GradAlign": of("GradAlign", eps=EPS),
        "Deep Defense": of("DeepDefense", num_steps=2, weight=1.0, d=0.5),
    }
    found = {f"AWP on {name}": Case(of("AWP", base=base)) for name, base in bases.items()}
    for name, base in (("LAD", PGD), ("LAD-TRADES", TRADES)):
        found[f"AWP on {name}"] = Case(of("AWP", base=of("LAD", base=base)), networks=RESIDUAL)
    found["AWP gamma 0"] = Case(of("AWP", gamma=0.0, base=PGD))
    found["AWP gamma 0.1"] = Case(of("AWP", gamma=0.1, base=PGD))
    found["Parseval on AWP"] = Case(of("Parseval", beta=0.01, base=of("AWP", base=PGD)))
    return found


CASES: dict[str, Case] = {
    **_inputs(),
    **_slat(),
    **_lad(),
    **_lat(),
    **_anp(),
    **_deep_defense(),
    **_awp(),
}
"""Every configuration by its name."""
