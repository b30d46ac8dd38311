"""Verdicts: what is claimed, under which attacks, and what speaks against it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.evaluation import Evaluation, Finding
from layerwise.report import report
from layerwise.report.verdict import Verdict
from layerwise.training.monitor import OVERFITTING
from tests.report.folders import metrics, put, record


def verdict(folder: Path, *evaluations: Evaluation, flags: tuple[str, ...] = ()) -> Verdict:
    lines = metrics(flags=flags)
    runs = [put(folder / f"a-seed{i}", e, lines=lines) for i, e in enumerate(evaluations)]
    (found,) = report(runs).verdicts
    return found


def test_a_strong_evaluation_without_findings_is_sound(tmp_path: Path) -> None:
    found = verdict(tmp_path, record(clean=90, pgd_50_10=46, autoattack=45, worst=44))
    assert (found.tone, found.command, found.alarms) == ("sound", None, ())
    # Wilson's interval of 44 of 100: 34.7 to 53.8 %.
    assert found.sentence == (
        "44.0 % ± 9.8 under AutoAttack (linf, eps 0.2; the worst of PGD-50-10 and AutoAttack for each image; 100 images of digits), "
        "no sign of gradient masking; 90.0 % ± 7.4 without attack"
    )


def test_several_seeds_are_a_mean_with_students_interval(tmp_path: Path) -> None:
    found = verdict(tmp_path, *(record(clean=90, autoattack=r) for r in (44, 45, 46)))
    # 4.3027 x 1 / sqrt(3) points.
    assert found.figure == "45.0 % ± 2.5"
    assert "under AutoAttack (linf, eps 0.2; 100 images of digits, 3 seeds), no sign of gradient masking" in found.text


def test_the_members_of_autoattack_together_are_as_strong(tmp_path: Path) -> None:
    names = {"apgd_ce": 40, "apgd_t": 39, "fab_t": 41, "square": 50}
    evaluation = record(clean=90, **names)
    results = tuple(replace(r, settings={"name": r.attack}) for r in evaluation.results)
    assert verdict(tmp_path, replace(evaluation, results=results)).tone == "sound"
    assert verdict(tmp_path / "less", replace(evaluation, results=results[:-1])).tone == "weak"


def test_weak_attacks_are_named_with_what_to_type(tmp_path: Path) -> None:
    found = verdict(tmp_path, record(clean=90, fgsm=60, pgd_20=50))
    assert found.tone == "weak"
    assert found.text.endswith("No self-check spoke up. Only FGSM and PGD-20 were run, so this is an upper bound; type")
    assert found.command == f"layerwise evaluate {shlex.quote(f'{tmp_path}/a-seed0')} --suite standard"
    assert "Only FGSM was run, so" in verdict(tmp_path / "one", record(clean=90, fgsm=60)).text


def test_no_attack_says_nothing(tmp_path: Path) -> None:
    found = verdict(tmp_path, record(clean=90))
    assert (found.tone, found.figure) == ("weak", "90.0 % ± 7.4")
    assert "no attack was run, so this says nothing about robustness" in found.text


def test_an_attack_on_hidden_layers_is_not_part_of_the_worst_case(tmp_path: Path) -> None:
    evaluation = record(clean=90, autoattack=50, latent=1, worst=50)
    *others, latent = evaluation.results
    found = verdict(tmp_path, replace(evaluation, results=(*others, replace(latent, in_threat_model=False))))
    assert found.figure.startswith("50.0 %")
    assert "latent" not in found.text


def test_findings_silence_the_claim(tmp_path: Path) -> None:
    finding = Finding("zero-gradient", 0.1, 0.9, "nothing moves")
    spoke = replace(record(clean=90, autoattack=50), findings=(finding,))
    found = verdict(tmp_path, record(clean=90, autoattack=50), spoke)
    assert found.tone == "alarm"
    assert found.alarms == (str(finding),)
    assert "not to be believed" in found.text
    assert "no sign" not in found.text


def test_an_overfitted_training_is_an_alarm(tmp_path: Path) -> None:
    found = verdict(tmp_path, record(clean=90, autoattack=50), flags=(OVERFITTING,))
    assert found.tone == "alarm"
    (alarm,) = found.alarms
    assert alarm.startswith("catastrophic-overfitting: robust validation accuracy of a-seed0 collapsed in epoch 2")


@pytest.mark.parametrize(("seeds", "told"), [(1, "a-seed0"), (2, "a-seed0")])
def test_the_command_quotes_what_a_shell_would_read(tmp_path: Path, seeds: int, told: str) -> None:
    found = verdict(tmp_path / "my runs; rm", *[record(clean=90, fgsm=1)] * seeds)
    assert found.command == f"layerwise evaluate '{tmp_path}/my runs; rm/{told}' --suite standard"
