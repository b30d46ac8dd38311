from __future__ import annotations

from pathlib import Path

import pytest

from layerwise.attacks import (
    APGDCE,
    APGDT,
    ATTACKS,
    BIM,
    BPDA,
    CW,
    EOT,
    FABT,
    FGSM,
    MIFGSM,
    PGD,
    At,
    Attack,
    AutoAttack,
    Clean,
    DeepFoolAttack,
    LatentAttack,
    Square,
    StepLL,
    Transfer,
    parse_attack,
)
from layerwise.errors import ConfigError

WRITTEN: list[tuple[str, Attack]] = [
    ("clean", Clean()),
    ("fgsm", FGSM()),
    ("fgsm step=0.9", FGSM(step=0.9)),
    ("bim-20", BIM(20)),
    ("bim-20 alpha=0.5/255", BIM(20, alpha=0.5 / 255)),
    ("pgd-50-10", PGD(steps=50, restarts=10)),
    ("pgd-20", PGD(20)),
    ("pgd-7 alpha=2/255 random_start=False", PGD(7, alpha=2 / 255, random_start=False)),
    ("mi-fgsm-10", MIFGSM(10)),
    ("mi-fgsm-5 mu=0.9", MIFGSM(5, mu=0.9)),
    ("step-ll", StepLL()),
    ("deepfool-50", DeepFoolAttack()),
    ("deepfool-5 num_classes=3", DeepFoolAttack(5, num_classes=3)),
    ("pgd-20 stop_when_fooled=False", PGD(20, stop_when_fooled=False)),
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
    ("at:12/255:fgsm", At(FGSM(), 12 / 255)),
    ("at:l2,0.5:eot-4:pgd-3", At(EOT(PGD(3), 4), 0.5, "l2")),
    ("latent", LatentAttack()),
    ("latent eps=20 sites=conv1 relative=True", LatentAttack(eps=20.0, sites="conv1", relative=True)),
    ("eot-16:pgd-20-2 alpha=1/255", EOT(PGD(20, 2, alpha=1 / 255), 16)),
    ("bpda:front.quantise:bim-5", BPDA(BIM(5), "front.quantise")),
    ("eot-4:bpda:front:fgsm", EOT(BPDA(FGSM(), "front"), 4)),
    ("transfer:runs/a:pgd-20", Transfer(PGD(20), ("runs/a",))),
    ("transfer:runs/a,../runs/b-2:mi-fgsm-10 mu=0.9", Transfer(MIFGSM(10, mu=0.9), ("runs/a", "../runs/b-2"))),
    ("transfer:runs/a:bpda:front:fgsm", Transfer(BPDA(FGSM(), "front"), ("runs/a",))),
    ("eot-4:transfer:runs/a:autoattack", EOT(Transfer(AutoAttack(), ("runs/a",)), 4)),
]


@pytest.mark.parametrize(("text", "attack"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_written_and_read(text: str, attack: Attack) -> None:
    assert str(attack) == text
    assert parse_attack(text) == attack


def test_names_alone_take_the_defaults() -> None:
    assert parse_attack("pgd") == PGD()
    assert parse_attack("mi-fgsm") == MIFGSM()
    assert parse_attack(" eot:pgd ") == EOT(PGD())


def test_every_attack_is_listed_and_tested() -> None:
    assert set(ATTACKS) == {a.name for _, a in WRITTEN}
    assert all(ATTACKS[a.name] is type(a) for _, a in WRITTEN)


def test_every_attack_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    assert [name for name in ATTACKS if f"`{name}" not in page or f"`{ATTACKS[name].__name__}`" not in page] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg-20", r"attack 'pdg-20' is unknown; did you mean 'pgd' or .*\? \(`layerwise list attacks`"),
        ("", "attack '' is unknown"),
        ("pgd-20-1-3", "has more than pgd takes; type pgd-STEPS-RESTARTS, for example pgd-20"),
        ("fgsm-3", "has more than fgsm takes; type fgsm, for example fgsm"),
        ("fgsm:pgd", "has more than fgsm takes"),
        ("pgd-20 apha=2/255", r"pgd has no 'apha'; did you mean 'alpha'\?"),
        ("pgd-20 alpha=2/x", "'2/x' is not a radius"),
        ("pgd random_start=maybe", "random_start=maybe has to be true or false"),
        ("deepfool num_classes=x", "num_classes=x has to be a whole number"),
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
