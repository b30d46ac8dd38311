"""Verdicts: what is claimed, under which attacks, and what speaks against it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import layerwise as lw
from layerwise.evaluation import Evaluation, Finding
from layerwise.experiments.suites import SUITES
from layerwise.report import report
from layerwise.report.document import Section, Text
from layerwise.report.verdict import STANDARD, Verdict
from layerwise.training.monitor import OVERFITTING
from tests.report.folders import metrics, put, record


def verdict(folder: Path, *evaluations: Evaluation, flags: tuple[str, ...] = ()) -> Verdict:
    lines = metrics(flags=flags)
    runs = [put(folder / f"a-seed{i}", e, lines=lines) for i, e in enumerate(evaluations)]
    (found,) = report(runs).verdicts
    return found


def test_a_strong_evaluation_without_findings_is_sound(tmp_path: Path) -> None:
    found = verdict(tmp_path, record(clean=90, pgd_50_10=46, autoattack=45, worst=44))
    assert (found.tone, found.strong, found.alarms) == ("even", True, ())
    # Wilson's interval of 44 of 100: 34.7 to 53.8 %.
    assert found.sentence == (
        "44.0 % [34.7, 53.8] under AutoAttack (linf, eps 0.2; the worst of PGD-50-10 and AutoAttack for each image; 100 images of digits), "
        "no sign of gradient masking; 90.0 % [82.6, 94.5] without attack"
    )


def test_several_seeds_are_a_mean_with_students_interval(tmp_path: Path) -> None:
    found = verdict(tmp_path, *(record(clean=90, autoattack=r) for r in (44, 45, 46)))
    # 4.3027 x 1 / sqrt(3) points.
    assert found.figure == "45.0 % [42.5, 47.5]"
    assert "under AutoAttack (linf, eps 0.2; 100 images of digits, 3 seeds), no sign of gradient masking" in found.text


def test_the_members_of_autoattack_together_are_as_strong(tmp_path: Path) -> None:
    names = {"apgd_ce": 40, "apgd_t": 39, "fab_t": 41, "square": 50}
    evaluation = record(clean=90, **names)
    results = tuple(replace(r, settings={"name": r.attack}) for r in evaluation.results)
    assert verdict(tmp_path, replace(evaluation, results=results)).strong
    assert not verdict(tmp_path / "less", replace(evaluation, results=results[:-1])).strong


def test_weak_attacks_are_an_upper_bound_and_one_command_makes_it_stronger_for_all(tmp_path: Path) -> None:
    weak = [put(tmp_path / name, record(clean=90, fgsm=60, pgd_20=50)) for name in ("my runs; rm", "b")]
    strong = put(tmp_path / "c", record(clean=90, autoattack=45))
    made = report([*weak, strong])
    assert made.verdicts[0].text.endswith("An upper bound; no self-check spoke up")
    caveat = made.remarks[0]
    assert caveat.text.startswith("AutoAttack was not run on my runs; rm and b, so")
    told = " ".join(shlex.quote(str(folder)) for folder in weak)
    assert caveat.command == f"layerwise evaluate {told} --suite standard"
    assert made.to_markdown().count("AutoAttack was not run") == 1
    assert not report([strong]).remarks


def test_a_network_without_a_name_is_evaluated_in_python(tmp_path: Path) -> None:
    """The last call is what one of them says."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images = torch.rand(12, 1, 8, 8), torch.arange(12) % 10
    folder = tmp_path / "mine"
    put(folder, record(clean=90, fgsm=60), settings={"model": {"own": "Net"}})
    save_file(network.state_dict(), folder / "model.safetensors")
    made = report([folder])
    commands = [said.command or "" for said in made.remarks]
    commands += [call for section in made.sections for call in calls(section)]
    assert SUITES["standard"].settings["attacks"] == STANDARD
    assert len(set(commands)) > 2
    assert not [command for command in commands if command.startswith("layerwise ")]
    assert commands[0].endswith(f"attacks=['clean', 'pgd-50-10', 'autoattack']).write('{folder}', 'standard')")
    threat, attacks = lw.ThreatModel("linf", 0.2), ["clean", "fgsm"]
    options = f"threat=layerwise.{threat!r}, attacks={attacks}, num_examples=100, seed=0"
    loaded = f"layerwise.load('{folder}', model=network)"
    assert f"layerwise.evaluate({loaded}, data, {options}).write('{folder}', 'evaluation')" in commands
    given: Any = {"threat": threat, "attacks": attacks, "num_examples": 100, "seed": 0}
    lw.evaluate(lw.load(str(folder), model=network), images, **given).write(str(folder), "evaluation")
    assert list(Evaluation.read(folder).accuracies) == ["clean", "fgsm"]


def calls(section: Section) -> list[str]:
    """What a section says to type."""
    return [block.command for block in section.blocks if isinstance(block, Text) and block.command]


def test_no_attack_says_nothing(tmp_path: Path) -> None:
    found = verdict(tmp_path, record(clean=90))
    assert (found.tone, found.strong, found.figure) == ("even", False, "90.0 % [82.6, 94.5]")
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


def test_a_training_that_was_cut_is_marked(tmp_path: Path) -> None:
    lines = [{"kind": "epoch", "epoch": 1, "step": 5, "planned": 360, "flags": []}]
    (found,) = report([put(tmp_path / "a", record(clean=90, fgsm=60), lines=lines)]).verdicts
    assert found.notes == ("a: its training was cut at 5 of 360 steps.",)
    whole = [{**lines[0], "step": 360}]
    (found,) = report([put(tmp_path / "b", record(clean=90, fgsm=60), lines=whole)]).verdicts
    assert found.notes == ()
