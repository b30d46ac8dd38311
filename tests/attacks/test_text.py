from __future__ import annotations

from pathlib import Path

import pytest

from layerwise.attacks import (
    APGDCE,
    APGDT,
    BIM,
    BPDA,
    CW,
    EOT,
    FABT,
    MIFGSM,
    At,
    Attack,
    AutoAttack,
    Clean,
    DeepFoolAttack,
    FGSMAttack,
    LatentAttack,
    PGDAttack,
    Square,
    StepLL,
    Transfer,
    parse_attack,
)
from layerwise.core import registry
from layerwise.core.registry import entries, find, names
from layerwise.errors import ConfigError

WRITTEN: list[tuple[str, Attack]] = [
    ("clean", Clean()),
    ("fgsm", FGSMAttack()),
    ("fgsm step=0.9", FGSMAttack(step=0.9)),
    ("bim-20", BIM(20)),
    ("bim-20 alpha=0.5/255", BIM(20, alpha=0.5 / 255)),
    ("pgd-50-10", PGDAttack(steps=50, restarts=10)),
    ("pgd-20", PGDAttack(20)),
    ("pgd-7 alpha=2/255 random_start=False", PGDAttack(7, alpha=2 / 255, random_start=False)),
    ("mi-fgsm-10", MIFGSM(10)),
    ("mi-fgsm-5 mu=0.9", MIFGSM(5, mu=0.9)),
    ("step-ll", StepLL()),
    ("deepfool-50", DeepFoolAttack()),
    ("deepfool-5 num_classes=3", DeepFoolAttack(5, num_classes=3)),
    ("pgd-20 stop_when_fooled=False", PGDAttack(20, stop_when_fooled=False)),
    ("apgd-ce", APGDCE()),
    ("apgd-ce steps=20 restarts=5", APGDCE(20, 5)),
    ("apgd-t", APGDT()),
    ("apgd-t targets=3", APGDT(targets=3)),
    ("fab-t", FABT()),
    ("fab-t steps=10", FABT(10)),
    ("square", Square()),
    ("square queries=300", Square(300)),
    ("autoattack", AutoAttack()),
    ("autoattack steps=10 targets=2 queries=50", AutoAttack(10, 2, 50)),
    ("cw-1000", CW()),
    (
        "cw-100 binary_search_steps=1 initial_const=0.2 bounded=False",
        CW(100, binary_search_steps=1, initial_const=0.2, bounded=False),
    ),
    ("at:12/255:fgsm", At(FGSMAttack(), 12 / 255)),
    ("at:l2,0.5:eot-4:pgd-3", At(EOT(PGDAttack(3), 4), 0.5, "l2")),
    ("latent", LatentAttack()),
    ("latent eps=20 sites=conv1 relative=True", LatentAttack(eps=20.0, sites="conv1", relative=True)),
    ("eot-16:pgd-20-2 alpha=1/255", EOT(PGDAttack(20, 2, alpha=1 / 255), 16)),
    ("bpda:front.quantise:bim-5", BPDA(BIM(5), "front.quantise")),
    ("eot-4:bpda:front:fgsm", EOT(BPDA(FGSMAttack(), "front"), 4)),
    ("transfer:runs/a:pgd-20", Transfer(PGDAttack(20), ("runs/a",))),
    ("transfer:runs/a,../runs/b-2:mi-fgsm-10 mu=0.9", Transfer(MIFGSM(10, mu=0.9), ("runs/a", "../runs/b-2"))),
    ("transfer:runs/a:bpda:front:fgsm", Transfer(BPDA(FGSMAttack(), "front"), ("runs/a",))),
    ("eot-4:transfer:runs/a:autoattack", EOT(Transfer(AutoAttack(), ("runs/a",)), 4)),
]


@pytest.mark.parametrize(("text", "attack"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_written_and_read(text: str, attack: Attack) -> None:
    assert str(attack) == text
    assert parse_attack(text) == attack


def test_names_alone_take_the_defaults() -> None:
    assert parse_attack("pgd") == PGDAttack()
    assert parse_attack("mi-fgsm") == MIFGSM()
    assert parse_attack(" eot:pgd ") == EOT(PGDAttack())


def test_every_attack_is_listed_and_tested() -> None:
    assert set(names("attack")) == {a.name for _, a in WRITTEN}
    assert all(find("attack", a.name).thing is type(a) for _, a in WRITTEN)


def test_every_attack_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    known = {name: entry.thing.__name__ for name, entry in entries("attack").items()}
    assert [name for name, cls in known.items() if f"`{name}" not in page or f"`{cls}`" not in page] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg-20", r"attack 'pdg-20' is unknown; did you mean 'pgd' or .*\? \(`layerwise list attacks`"),
        ("", "attack '' is unknown"),
        ("pgd-20-1-3", "has more than pgd takes; type pgd-STEPS-RESTARTS, for example pgd-20"),
        ("fgsm-3", "has more than fgsm takes; type fgsm, for example fgsm"),
        ("fgsm:pgd", "has more than fgsm takes"),
        ("pgd-20 apha=2/255", r"pgd has no 'apha'; did you mean 'alpha'\?"),
        ("pgd-20 alpha=2/x", "alpha=2/x does not fit; type a number or a fraction such as 8/255 or null"),
        ("pgd random_start=maybe", "random_start=maybe does not fit; type true or false"),
        ("deepfool num_classes=x", "num_classes=x does not fit; type a whole number"),
        ("pgd-0", "steps=0 is too small"),
        ("eot-16", r"has to hold an attack on the images; type eot-16:ATTACK"),
        ("eot-16:latent", r"has to hold an attack on the images"),
        ("eot-16-2:pgd", r"has to hold an attack on the images"),
        ("bpda:quantise", r"type bpda:MODULE:ATTACK, for example bpda:quantise:bim-5"),
        ("bpda-3:quantise:pgd", r"type bpda:MODULE:ATTACK"),
        ("transfer:runs/a", r"type transfer:RUN:ATTACK, for example transfer:runs/a,runs/b:pgd-20"),
        ("transfer::pgd", r"transfer has no source; type transfer:RUN:ATTACK"),
        ("transfer:runs/a:latent", r"has to hold an attack on the images"),
        ("transfer:runs/a,runs/a:pgd", r"two sources are called 'runs/a'"),
        ("square queries=0", "queries=0 is too small"),
        ("autoattack-100", "has more than autoattack takes; type autoattack, for example autoattack"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_attack(text)


PASSES = {
    "clean": 1,
    "fgsm": 3,
    "step-ll": 4,
    "bim-20": 41,
    "pgd-50-10": 1010,
    "mi-fgsm-10": 21,
    "deepfool-5 num_classes=4": 26,
    "apgd-ce steps=20 restarts=5": 205,
    "apgd-t targets=3": 601,
    "fab-t steps=10": 271,
    "square queries=300": 300,
    "autoattack": 9703,
    "cw-100 binary_search_steps=1": 301,
    "latent": 3,
}


@pytest.mark.parametrize(("text", "passes"), PASSES.items())
def test_what_an_attack_costs(text: str, passes: int) -> None:
    assert parse_attack(text).passes() == passes


def test_classes_that_are_not_there_cost_nothing() -> None:
    assert parse_attack("deepfool-5").passes(classes=3) == 5 * 4 + 1
    assert parse_attack("apgd-t").passes(classes=3) == 2 * 100 * 2 + 1


OWN = """
from dataclasses import dataclass
from layerwise.attacks import InputAttack
from layerwise.core.registry import register


@dataclass(frozen=True)
class Lighter(InputAttack):
    numbers = ("steps",)

    steps: int = 1
    by: float = 0.1

    def __call__(self, model, x, y, threat, *, generator=None):
        return (x + min(self.by, threat.eps)).clamp(0, 1)


register("attack", "darker")(type("Darker", (Lighter,), {"__module__": __name__}))
"""


def test_an_attack_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_attacks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    # What is registered here is forgotten at the end.
    monkeypatch.setitem(registry._ENTRIES, "attack", {e.name: e for e in entries("attack").values()})
    for text in ("their_attacks:Lighter-3", "their_attacks:Lighter-3 by=2/255", "eot-2:their_attacks:Lighter-3"):
        attack = parse_attack(text, trust=True)
        assert str(attack) == text
        assert attack.passes() > 0
    assert str(parse_attack("their_attacks:darker-2", trust=True)) == "darker-2"
    assert str(parse_attack("darker-2")) == "darker-2"


def test_an_attack_of_somebody_elses_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whose_attacks.py").write_text("raise AssertionError")
    monkeypatch.chdir(tmp_path)
    for text in ("whose_attacks:Lighter-3", "bpda:front:whose_attacks:Lighter"):
        with pytest.raises(
            ConfigError, match="names code of its own, 'whose_attacks:Lighter', which would be executed"
        ):
            parse_attack(text)
