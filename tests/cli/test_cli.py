"""The command line as a user meets it: what every command shows, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from layerwise import models
from layerwise.cli import list as listing
from layerwise.cli.console import TABLE, readable
from layerwise.cli.main import commands
from layerwise.core import registry
from layerwise.evaluation import Evaluation
from layerwise.evaluation.corruptions import CORRUPTIONS, SEQUENCES, CorruptionErrors
from layerwise.evaluation.measures import Alignment, Examples, LatentAudit
from layerwise.evaluation.store import Store
from layerwise.experiments import experiment, recipe
from layerwise.experiments.suites import SUITES
from layerwise.methods import PGD
from layerwise.models.weights import unpack_tensors
from tests.command import QUICK, Command, Said, done, finished, layerwise, told
from tests.forks import typed

__all__ = ["done", "finished", "layerwise"]  # fixtures


def narrow(text: str) -> bool:
    """Whether every line of a text's tables and lists fits a terminal."""
    return max(len(line) for line in text.splitlines() if "  " in line) <= 80


# Help.


def test_without_a_command_there_is_help(layerwise: Command) -> None:
    said = layerwise()
    assert (said.code, said.err) == (0, "")
    assert said == layerwise("--help")
    assert narrow(said.out)
    for command in commands():
        assert re.search(rf"^    {command}\s+\w", said.out, re.MULTILINE)
        own = layerwise(command, "--help")
        assert own.code == 0
        assert own.out.startswith(f"usage: layerwise {command}")
        assert narrow(own.out)


def test_the_version_says_what_a_bug_report_needs(layerwise: Command) -> None:
    said = layerwise("--version")
    assert said.code == 0
    assert said.out.startswith(f"layerwise 0.1.0, torch {torch.__version__}, Python {sys.version.split()[0]}, ")


def test_train_help_explains(layerwise: Command) -> None:
    out = layerwise("train", "--help").out
    for word in (
        "extends: slat-digits",
        "--method.eta 0.1",
        "--seeds",
        "--resume",
        "--dry-run",
        "8/255",
        "null is none",
    ):
        assert word in out
    assert "--training.optimizer.lr" not in out


def test_help_of_a_recipe_lists_its_settings_as_they_are_typed(layerwise: Command) -> None:
    out = layerwise("train", "slat-digits", "--method.base", "FGSMRS", "--help").out
    assert "  --method.eta {conv1: 0.03, layer1: 0.03}\n        eta_k, in the unit of" in out
    assert "  --method.base.eps null\n" in out
    assert "  --method.base.noise 1\n        amplitude of the random start" in out
    assert "  --training.augment.name null\n" in out
    assert "  --evaluation.attacks [clean, fgsm, pgd-20]\n" in out


def test_help_of_a_run_lists_the_evaluations_settings(layerwise: Command, done: Path) -> None:
    out = layerwise("evaluate", "runs/done", "--help").out
    assert "  --evaluation.num_examples 20\n" in out
    assert "--training.epochs" not in out


# What there is.


@pytest.mark.parametrize(
    ("what", "some"),
    [
        ("methods", registry.names("method")),
        ("models", models.names()),
        ("data", ["digits", "mnist", "cifar10"]),
        ("recipes", recipe.names()),
        ("attacks", registry.names("attack")),
        ("suites", sorted(SUITES)),
        ("measures", registry.names("measure")),
        ("corruptions", [*CORRUPTIONS, *SEQUENCES]),
        ("criteria", ["CrossEntropy"]),
    ],
)
def test_lists(layerwise: Command, what: str, some: list[str]) -> None:
    said = layerwise("list", what)
    assert said.code == 0
    first = [line.split()[0] for line in said.out.splitlines() if line and line[0].isalnum()]
    assert set(some) <= set(first)
    # Every line of the table explains.
    _, rows = listing.rows(what)
    assert all(len(row[-1]) > 10 for row in rows if len(row) > 1)


def test_lists_keep_their_lines_in_a_file_or_a_pipe(layerwise: Command) -> None:
    (line,) = [line for line in layerwise("list", "methods").out.splitlines() if line.startswith("FGSMRS")]
    assert line.rstrip().endswith("u uniform in the ball.")


def test_doctor(layerwise: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    said = layerwise("doctor")
    assert said.code == 0
    for word in ("python", "torch", "device", "lightning-fabric", "LAYERWISE_DATA is not set"):
        assert word in said.out
    assert re.findall(r"^check (\w+) +ok$", said.out, re.MULTILINE) == ["recording", "training", "folder"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    ill = layerwise("doctor")
    assert (ill.code, ill.err) == (2, "error: a check failed; put what is above into a bug report\n")
    assert "check folder      FAILED: ValueError: " in ill.out


def test_sites(layerwise: Command) -> None:
    every = layerwise("sites", "digits_cnn", "--shape", "1,8,8")
    assert every.code == 0
    assert re.search(r"^ *conv1 +Conv2d +\(16, 8, 8\)", every.out, re.MULTILINE)
    assert every.out.startswith("choose with --select")
    assert ":input" not in every.out
    inputs = layerwise("sites", "digits_cnn", "--shape", "1,8,8", "--inputs").out
    assert re.search(r"^ *bn1:input +BatchNorm2d", inputs, re.MULTILINE)
    some = layerwise("sites", "digits_cnn", "--shape=1x8x8", "--options", "{width: 4}", "--select", "conv1", "layer1")
    assert [line.split()[0] for line in some.out.splitlines()] == ["site", "conv1", "layer1"]
    assert "(4, 8, 8)" in some.out
    phrase = layerwise("sites", "vgg11", "--select", "first(2)")
    assert [line.split()[0] for line in phrase.out.splitlines()] == ["site", "conv1", "conv2"]


# Training.


def test_training_shows_a_table_that_fits_and_the_folder(layerwise: Command) -> None:
    said = layerwise("train", "slat-digits", *QUICK)
    assert said.code == 0
    assert said.err == "runs/slat-digits: SLAT, digits_cnn on digits, 20 epochs\n"
    assert re.search(r"^attack +accuracy % +95 % interval +correct +seconds$", said.out, re.MULTILINE)
    assert re.search(r"^clean +\d+\.\d\d +\d+\.\d\d to \d+\.\d\d +\d+ / 20 +\d", said.out, re.MULTILINE)
    assert "*" not in said.out
    assert narrow(said.out)
    assert said.out.endswith("\nrun folder: runs/slat-digits\n")
    assert Path("runs/slat-digits/evaluation.json").is_file()


def test_a_run_is_not_begun_twice_but_goes_on_in_both_forms(layerwise: Command) -> None:
    first = layerwise("train", "slat-digits", *QUICK, "--quiet")
    assert first.err == ""
    assert layerwise("train", "slat-digits", *QUICK).err == (
        "error: runs/slat-digits already holds a run; type --resume runs/slat-digits to go on with it, or choose another name\n"
    )
    for again in (
        ["slat-digits", *QUICK, "--resume"],
        ["--resume", "runs/slat-digits"],
        ["runs/slat-digits", "--resume"],
    ):
        said = layerwise("train", *again, "--quiet")
        assert (said.code, re.sub(r"\d+\.\d$", "", said.out)) == (0, re.sub(r"\d+\.\d$", "", said.out))
    changed = layerwise("train", "--resume", "runs/slat-digits", "--training.max_steps", "3")
    assert changed.code == 2
    assert changed.err == (
        "error: runs/slat-digits was trained with other settings, so it cannot be resumed with these "
        "(leave them out, or begin another run): training.max_steps: 2 before, 3 now\n"
    )


def test_own_recipes_with_several_seeds(layerwise: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: slat-digits\nmodel: {options: {width: 4}}\nmethod: {num_probes: 2}\n"
        "training: {max_steps: 2, eval_every: 0}\nevaluation: {attacks: [clean], num_examples: 20}\n"
    )
    said = layerwise("train", "mine.yaml", "--seeds", "2", "--runs", "there", "--method.eta.conv1", "8/255")
    assert said.code == 0
    assert re.search(r"^run +seeds +clean +train s$", said.out, re.MULTILINE)
    assert re.search(r"^mine +2 +\d+\.\d \[\d+\.\d, \d+\.\d\] +\d+\.\d$", said.out, re.MULTILINE)
    assert narrow(said.out.partition("\n\n")[2])
    chosen, _ = experiment.read("there/mine-seed1/config.yaml")
    assert (chosen.training.seed, chosen.method.eta) == (1, {"conv1": 8 / 255, "layer1": 0.03})  # type: ignore[attr-defined]


def test_settings_may_come_before_the_recipe(layerwise: Command) -> None:
    said = layerwise(
        "train", "--method", "PGD", *QUICK, "slat-digits", "--name", "mine", "--method.steps", "1", "--quiet"
    )
    assert said.code == 0
    assert experiment.read("runs/mine/config.yaml")[0].method == PGD(steps=1)


def test_a_dry_run_does_nothing(layerwise: Command, tmp_path: Path) -> None:
    said = layerwise("train", "slat-digits", *QUICK, "--dry-run")
    assert said.code == 0
    assert "method    SLAT, 5 passes a batch" in said.out
    assert list(tmp_path.iterdir()) == []


def test_the_demo_compares_three_methods_and_says_three_sentences(
    layerwise: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = experiment.read
    monkeypatch.setattr(experiment, "read", lambda recipe: read(recipe, QUICK))
    said = layerwise("demo", "--seeds", "2", "--quiet")
    assert said.code == 0
    assert re.findall(r"^(\S+-digits) +\d +\d", said.out, re.MULTILINE) == [
        "fgsm-few-digits",
        "slat-few-digits",
        "standard-few-digits",
        "fgsm-far-digits",
    ]
    *_, seen, sure, following, first, second = said.out.splitlines()
    assert re.match(r"Seen: SLAT is [+-]\d+\.\d points from FGSM .* in \d of 2 seeds; ", seen)
    assert re.match(r"How sure: the difference is [+-]\d+\.\d \+- \d+\.\d \(95 %, .*(is|not) decided", sure)
    assert following.startswith("Next: layerwise evaluate runs/demo/slat-few-digits-seed0 --suite standard")
    assert all(Path(page.removeprefix("report: ")).is_file() for page in (first, second))
    # Finished runs are kept.
    assert layerwise("demo", "--seeds", "2", "--quiet").out == said.out
    other = [*QUICK, "--training.seed=0", "--training.max_steps=3"]
    monkeypatch.setattr(experiment, "read", lambda recipe: read(recipe, other))
    shutil.rmtree("runs/demo/slat-few-digits-seed0/checkpoints")
    Path("runs/demo/slat-few-digits-seed0/evaluation.json").unlink()
    again = layerwise("demo", "--seeds", "2", "--quiet")
    assert again.code == 2
    assert again.err.endswith("training.max_steps: 2 before, 3 now; or begin anew: layerwise demo --runs ANOTHER\n")


# Evaluating.


def test_another_evaluation_leaves_the_runs_own(layerwise: Command, done: Path) -> None:
    before = (done / "evaluation.json").read_text()
    said = layerwise("evaluate", "runs/done", "--evaluation.attacks", "clean,fgsm", "--threat.eps", "8/255")
    assert said.code == 0
    assert "done on digits, 20 of 540 images (seed 0), linf, eps 8/255." in said.out
    assert said.out.endswith("record: runs/done/evaluation-custom.json\n")
    assert layerwise("evaluate", "runs/done", "--record", "mine", "--evaluation.num_examples=9").out.endswith(
        "/mine.json\n"
    )
    assert (done / "evaluation.json").read_text() == before
    assert layerwise("evaluate", "runs/done", "--data.root=.").out.endswith("runs/done/evaluation.json\n")


def test_a_run_that_may_only_be_read_has_its_record_elsewhere(
    layerwise: Command, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "done" not in str(path) and access(path, mode))
    before = {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}
    told(layerwise("evaluate", "runs/done"), r"^error: runs/done may only be read; type --output FOLDER, where the rec")
    base = ["--evaluation.measures=corruptions fog", "--evaluation.baseline=runs/done"]
    said = layerwise("evaluate", "runs/done", "--output", "there/is", "--record", "mine", *base)
    assert said.code == 0, said.err
    assert said.out.endswith("\nrecord: there/is/mine.json\n")
    assert Evaluation.read(Path("there/is"), "mine").found(CorruptionErrors)
    assert {p: p.read_bytes() for p in done.rglob("*") if p.is_file()} == before


def test_other_weights_have_a_record_of_their_own(layerwise: Command, done: Path) -> None:
    shutil.copy(done / "model.safetensors", done / "best.safetensors")
    said = layerwise("evaluate", "runs/done", "--weights", "best")
    assert "done (best weights) on digits" in said.out
    assert said.out.endswith("record: runs/done/evaluation-best.json\n")
    assert layerwise("report", "runs/done", "--record", "evaluation-best").code == 0


def test_more_examples_than_there_are_means_all(layerwise: Command, done: Path) -> None:
    assert "540 of 540 images" in layerwise("evaluate", "runs/done", "--evaluation.num_examples", "100000").out


def test_a_suite_has_a_record_of_its_own_and_gives_way_to_what_is_typed(layerwise: Command, done: Path) -> None:
    before = (done / "evaluation.json").read_text()
    said = layerwise("evaluate", "runs/done", "--suite", "quick", "--num-examples", "15", "--seed", "3")
    assert said.code == 0
    assert "done on digits, 15 of 540 images (seed 3), linf, eps 0.2." in said.out
    assert re.findall(r"^(\S+) +\d+\.\d\d ", said.out, re.MULTILINE) == ["clean", "fgsm", "pgd-10"]
    assert said.out.endswith("record: runs/done/evaluation-quick.json\n")
    said = layerwise("evaluate", "runs/done", "--evaluation.attacks=[clean]", "--suite=paper-lad", "--num-examples=15")
    assert "linf, eps 8/255." in said.out
    assert re.findall(r"^(\S+) +\d+\.\d\d ", said.out, re.MULTILINE) == ["clean"]
    assert said.err.startswith("state-ratio is left out: ")
    assert layerwise("evaluate", "runs/done", "--num-examples", "9").out.endswith("evaluation-custom.json\n")
    assert (done / "evaluation.json").read_text() == before


def test_an_audit_is_bounded_recorded_and_reported(layerwise: Command, done: Path) -> None:
    bounds = ["--sites", "conv1", "layer1", "--radii", "0.1,0.4", "--steps", "1"]
    said = layerwise("evaluate", "runs/done", "--audit", *bounds)
    assert said.code == 0, said.err
    assert re.search(r"the audit of 2 sites at 2 radii makes 29 passes over 100 examples\n", said.err)
    assert "Latent audit: the weakest of 2 layers is " in said.out
    assert said.out.endswith("record: runs/done/evaluation-audit.json\n")
    (found,) = Evaluation.read(done, "evaluation-audit").found(LatentAudit)
    assert ([layer.site for layer in found.layers], found.radii) == (["conv1", "layer1"], (0.1, 0.4))
    assert layerwise("report", "runs/done", "--record", "evaluation-audit").code == 0
    told(layerwise("evaluate", "runs/done", *bounds), r"^error: --sites is the audit's; type --audit too")


def test_measures_are_typed_like_attacks(layerwise: Command, done: Path) -> None:
    said = layerwise(
        *("evaluate", "runs/done", "--evaluation.measures", "corruptions fog, alignment images=5, pictures images=2"),
        *("--evaluation.baseline", "runs/done", "--record", "all", "--evaluation.attacks", "clean,fgsm"),
        "--evaluation.split=validation",
    )
    assert said.code == 0, said.err
    assert "done on digits validation, 20 of " in said.out
    assert "Gradient alignment: mean cosine" in said.out
    found = Evaluation.read(done, "all")
    kinds = ["CorruptionErrors", "CorruptionScores", "Alignment", "Examples"]
    assert [type(m.found).__name__ for m in found.measures] == kinds
    assert len(found.found(Examples)[0].items) == 2


OWN = """
from layerwise.attacks import InputAttack
from layerwise.evaluation import Target
from layerwise.evaluation.measures import Alignment
from dataclasses import dataclass


@dataclass(frozen=True)
class Lighter(InputAttack):
    def __call__(self, model, x, y, threat, *, generator=None):
        return (x + threat.eps).clamp(0, 1)


def halves(target: Target, *, images: int = 2) -> Alignment:
    "Nothing of use."
    return Alignment(0.5, (0.5,) * images, 0, 0.1)
"""


def test_ones_own_attack_and_measure_are_typed_like_others(
    layerwise: Command, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_to_type.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = ("--evaluation.measures=mine_to_type:halves images=3", "--evaluation.attacks=[clean, mine_to_type:Lighter]")
    said = layerwise("evaluate", "runs/done", *own, "--record", "own")
    assert said.code == 0, said.err
    found = Evaluation.read(done, "own")
    assert [r.attack for r in found.results] == ["clean", "mine_to_type:Lighter"]
    assert found.found(Alignment)[0].total == 3
    said = layerwise("report", "runs/done", "--record", "own", "--format", "md")
    assert "mean cosine 0.500 over 3 images" in said.out


def test_code_that_the_run_names_is_not_loaded(layerwise: Command, done: Path, tmp_path: Path) -> None:
    config = (done / "config.yaml").read_text()
    assert "  measures: []\n" in config
    (done / "config.yaml").write_text(config.replace("  measures: []\n", "  measures: [nobodys_module:halves]\n"))
    said = layerwise("evaluate", "runs/done", "--record", "own")
    assert said.code == 2
    assert "names code of its own, 'nobodys_module:halves', which would be executed; add --trust" in said.err


def test_a_report(layerwise: Command, done: Path) -> None:
    shutil.copytree(done, "runs/other")
    said = layerwise("report", "runs/done", "runs/other", "--output", "there")
    assert said.code == 0
    assert narrow(said.out.partition("\n\n")[2])
    assert said.out.endswith("\nreport: there/report.html\n")
    assert Path("there/report.md").read_text().count("| 1 |") == 2
    assert Path("there/report.html").read_text().startswith("<!doctype html>")


def test_a_report_in_markdown_goes_to_standard_output_as_it_is(layerwise: Command, done: Path) -> None:
    said = layerwise("report", "runs/done", "--format", "md")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("# Robustness on digits: done\n\n**done**: **")
    assert "|---|---:|" in said.out
    assert json.loads(layerwise("report", "runs/done", "--format", "json").out)["rows"][0]["name"] == "done"
    assert not Path("report").exists()


def test_tables_are_aligned() -> None:
    markdown = "text\n\n| a \\| b | n |\n|---|---:|\n| x\\_y | **10** |\n| | 5 |\n\nmore"
    assert readable(markdown).replace(TABLE, "|") == "text\n\n|a | b   n\n|-----  --\n|x_y    10\n|        5\n\nmore"


# Ctrl-C.


def test_a_stopped_evaluation_says_how_to_go_on(
    layerwise: Command, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = layerwise("evaluate", "runs/done", "--suite", "quick", "--record", "whole", "--quiet")
    extend, calls = Store.extend, 0

    def stop(self: Store, values: Iterable[tuple[str, int, Any]]) -> None:
        nonlocal calls
        extend(self, values)
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "extend", stop)
        said = layerwise("evaluate", "runs/done", "--fresh", "--suite", "quick", "--evaluation.batch_size", "250")
    command = "evaluate runs/done --suite quick --evaluation.batch_size 250"
    assert said == Said(130, "", f"stopped by Ctrl-C, what is done is kept; go on with: layerwise {command}\n")
    assert (done / "evaluation-quick.journal").is_file()
    again = layerwise(*command.split())
    assert again.code == 0
    timeless = [re.sub(r"\d+\.\d$", "", said.out, flags=re.MULTILINE) for said in (again, whole)]
    assert timeless[0].partition("\nrecord")[0] == timeless[1].partition("\nrecord")[0]
    assert not (done / "evaluation-quick.journal").exists()


def test_ctrl_c_says_how_to_go_on_and_resuming_ends_at_the_same_bits(layerwise: Command, tmp_path: Path) -> None:
    argv = [
        "slat-digits",
        *QUICK[1:],
        "--training.max_steps=150",
        "--training.batch_size=16",
        "--training.log_every=1",
        "--training.checkpoint_every=100",
    ]
    running = typed(tmp_path, "train", *argv)
    metrics = tmp_path / "runs/slat-digits/metrics.jsonl"
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert running.process.is_alive(), running.told()
        time.sleep(0.02)
    running.stop(signal.SIGINT)
    code, _, lines = running.told()
    assert code == 130
    err = "\n".join(lines)
    stopped = re.fullmatch(
        r"(?s).*stopped by Ctrl-C after batch (\d+) of 150 and saved; go on with: layerwise (train --resume runs/slat-digits)",
        err,
    )
    assert stopped, err
    assert 0 < int(stopped[1]) < 150
    assert "Traceback" not in err
    told(
        layerwise("evaluate", "runs/slat-digits"),
        r"has not finished \(\d+ of \d+ epochs\); go on with: layerwise train --resume runs/slat-digits",
    )
    assert layerwise(*stopped[2].split(), "--quiet").code == 0
    assert layerwise("train", *argv, "--name", "whole", "--quiet").code == 0
    resumed, whole = (unpack_tensors(Path(f"runs/{name}/model.safetensors")) for name in ("slat-digits", "whole"))
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_ctrl_c_at_another_moment_is_no_traceback(layerwise: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "LISTS", {"methods": stop})
    assert layerwise("list", "methods") == Said(130, "", "stopped by Ctrl-C\n")


def test_ctrl_c_among_seeds_says_how_to_go_on_with_all(layerwise: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt("stopped by Ctrl-C and saved")

    monkeypatch.setattr(experiment, "fit", stop)
    said = layerwise("train", "slat-digits", *QUICK, "--seeds", "2", "--quiet")
    assert said == Said(130, "", "stopped by Ctrl-C and saved; for all seeds type the same again with --resume\n")


def test_a_tilde_is_the_users_folder_after_an_equals_sign_too(layerwise: Command, tmp_path: Path) -> None:
    assert layerwise("train", "slat-digits", *QUICK, "--runs=~/runs", "--quiet").code == 0
    assert (tmp_path / "home" / "runs" / "slat-digits" / "config.yaml").is_file()
    assert layerwise("report", "~/runs/slat-digits", "--output=~/page").code == 0
    assert (tmp_path / "home" / "page" / "report.html").is_file()
    assert not (tmp_path / "~").exists()
