"""`layerwise tune`: ranges as they are written, halving, interruptions, and what a search may look at."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pytest

from layerwise.data import Split
from layerwise.errors import CheckpointError, ConfigError, LayerwiseError
from layerwise.evaluation import Evaluation, Rho
from layerwise.evaluation.store import Store
from layerwise.experiments import experiment
from layerwise.experiments.ranges import Choice, Interval, Range
from layerwise.experiments.settings import with_settings
from layerwise.experiments.tune.halving import BEST, PICTURE, TABLE, Plan, tune
from layerwise.experiments.tune.shorter import shortened
from layerwise.experiments.tune.trials import TRIALS, Trial, read_trials
from layerwise.training import Phase
from layerwise.trees import Tree, at
from tests.command import Command, layerwise, told

__all__ = ["layerwise"]

QUICK = [
    "--training.max_steps=2",
    "--training.eval_every=0",
    "--training.eval_steps=1",
    "--training.eval_examples=20",
    "--model.options.width=4",
]
ETA: dict[str, Range] = {"method.eta": Interval(0.01, 1.0, log=True)}


def settings(*more: str) -> Tree:
    return experiment.read("slat-digits", [*QUICK, *more])[1]


def write(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@final
class Forbidden(Split):
    """A split that nobody may look at."""

    def __len__(self) -> int:
        raise AssertionError("the test split was counted")

    def subset(self, rows: Any) -> Forbidden:
        raise AssertionError("the test split was cut")

    def to(self, device: Any) -> Forbidden:
        return self

    def read(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the test split was read")


@pytest.fixture
def no_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data whose test split raises when it is used."""
    load = experiment.load_data
    monkeypatch.setattr(experiment, "load_data", lambda chosen: replace(load(chosen), test=Forbidden()))


def outcome(clean: float, *robust: float, flags: tuple[str, ...] = (), findings: tuple[str, ...] = ()) -> Any:
    accuracies = {"clean": clean} | {f"pgd-{i}": value for i, value in enumerate(robust)}
    evaluation = SimpleNamespace(
        accuracies=accuracies,
        worst=SimpleNamespace(total=100),
        findings=[SimpleNamespace(name=name) for name in findings],
        found=lambda kind: [],
    )
    return SimpleNamespace(flags=list(flags)), evaluation


def scripted(monkeypatch: pytest.MonkeyPatch, gives: Any) -> list[str]:
    """Have training give what `gives(trial, rung, experiment)` says; the list fills with the names of the runs."""
    runs: list[str] = []

    def train(chosen: Any, tree: Any, *, folder: Path, **rest: Any) -> Any:
        runs.append(folder.name)
        trial, rung = folder.name.removeprefix("trial-").split("-rung-")
        return gives(int(trial), int(rung), chosen)

    monkeypatch.setattr(experiment, "train", train)
    return runs


def without_time(trials: Any) -> list[Trial]:
    return [replace(t, seconds=0.0) for t in trials]


def test_there_are_no_more_trials_than_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripted(monkeypatch, lambda trial, rung, chosen: outcome(0.9, 0.5))
    ranges: dict[str, Range] = {"method.eta": Choice((0.1, 0.2)), "training.batch_size": Choice((32,))}
    found = tune(settings(), ranges, Plan(trials=9, budget=3), name="x", folder=tmp_path / "t")
    assert sorted(t.settings["method.eta"] for t in found.trials if t.rung == 0) == [0.1, 0.2]


def test_a_shorter_run_keeps_its_proportions() -> None:
    base, _ = with_settings(settings(), {"training.schedule": {"name": "MultiStep", "milestones": [10, 0.8]}}, where="")
    base = replace(base, phases=[{"epochs": 15, "fields": {"eta": 0.1}}, {"epochs": 5, "method": {"name": "Standard"}}])
    base = replace(base, training=replace(base.training, max_steps=200))
    short, tree = shortened(base, epochs=5)
    assert [short.training.schedule(p) for p in (0.4, 0.6, 0.9)] == [1.0, 0.1, pytest.approx(0.01)]
    assert (short.training.epochs, short.training.max_steps) == (5, 50)
    phases: list[Phase] = experiment.make_phases(short)
    assert [p.epochs for p in phases] == [4, 1]
    assert experiment.SCHEMA.read(tree)[0] == short


def test_each_rung_keeps_the_best_third(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[int, int, list[str]]] = []

    def gives(trial: int, rung: int, chosen: Any) -> Any:
        seen.append((rung, chosen.training.epochs, chosen.evaluation.attacks))
        assert chosen.evaluation.split == "validation"
        return outcome(0.9, 1 / (2 + abs(trial - 5)) + 0.01 * rung)

    scripted(monkeypatch, gives)
    found = tune(settings(), ETA, Plan(trials=9, budget=9), name="x", folder=tmp_path / "t")
    by_rung = [[t for t in found.trials if t.rung == rung] for rung in range(3)]
    assert [[t.trial for t in there] for there in by_rung] == [list(range(9)), [5, 4, 6], [5]]
    assert [t.epochs for there in by_rung for t in there] == [1] * 9 + [3] * 3 + [9]
    assert len({t.settings["method.eta"] for t in by_rung[0]}) == 9
    assert found.best == by_rung[2][0]
    assert {attacks[1] for rung, _, attacks in seen if rung < 2} == {"pgd-1"}
    assert [attacks for rung, _, attacks in seen if rung == 2] == [["clean", "pgd-1", "pgd-5"]]
    assert read_trials(Store(tmp_path / "t" / TRIALS)) == list(found.trials)


def test_what_is_not_sound_is_recorded_and_makes_room_for_the_next_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gives(trial: int, rung: int, chosen: Any) -> Any:
        if trial == 0:
            raise RuntimeError("out of luck")
        if trial == 1:
            return outcome(0.9, 0.9, flags=("catastrophic-overfitting",))
        if trial == 2 and rung == 1:
            return outcome(0.9, 0.8, 0.65)  # the longer PGD undoes what the shorter one left
        if trial == 3:
            return outcome(0.9, 0.75, findings=("random-search-beats-gradient",))
        return outcome(0.9, (8 - trial) / 10)

    scripted(monkeypatch, gives)
    found = tune(settings(), ETA, Plan(trials=6, budget=3), name="x", folder=tmp_path / "t")
    first = [t.state for t in found.trials if t.rung == 0]
    assert first == ["failed", "overfitted", "sound", "masked", "sound", "sound"]
    assert found.trials[0].message == "RuntimeError: out of luck"
    assert [(t.trial, t.state) for t in found.trials if t.rung == 1] == [(2, "masked"), (4, "sound"), (5, "sound")]
    assert found.best.trial == 4
    table = found.to_markdown()
    assert "trial 0 failed: RuntimeError: out of luck" in table
    assert "Best of 6: trial 4" in table
    assert "40.0 % under PGD (95 % interval 30.9 to 49.8)" in table  # Wilson's, of 40 in 100


def test_for_clean_accuracy_overfitting_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripted(
        monkeypatch, lambda trial, rung, chosen: outcome(0.5 + 0.1 * trial, 0.0, flags=("catastrophic-overfitting",))
    )
    plan = Plan(trials=2, budget=1, objective="clean")
    assert tune(settings(), ETA, plan, name="x", folder=tmp_path / "t").best.trial == 1


def test_the_best_weights_may_be_from_before_a_collapse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripted(monkeypatch, lambda trial, rung, chosen: outcome(0.9, 0.5, flags=("catastrophic-overfitting",)))
    tree = settings("--training.eval_every=1", "--training.ema_decay=0.9")
    for weights, state in (("last", None), ("ema", None), ("best", "sound"), ("best-ema", "sound")):
        plan = Plan(trials=1, budget=1, weights=weights)  # type: ignore[arg-type]
        if state is None:
            with pytest.raises(LayerwiseError, match="trial 0 overfitted"):
                tune(tree, ETA, plan, name="x", folder=tmp_path / weights)
        else:
            assert tune(tree, ETA, plan, name="x", folder=tmp_path / weights).best.state == state


def test_other_weights_are_evaluated_as_the_command_does(layerwise: Command, tmp_path: Path) -> None:
    words = [
        "tune",
        "slat-digits",
        *QUICK,
        "--range",
        "method.num_probes=1,2",
        "--trials=1",
        "--budget=1",
        "--weights=ema",
    ]
    words += [
        "--training.ema_decay=0.99",
        "--training.eval_steps=2",
        "--training.max_steps=600",
        "--quiet",
    ]  # of 30 epochs
    said = layerwise(*words)
    assert said.code == 0, said.err
    assert "trial 0 (ema weights)" in said.out
    assert "runs/slat-digits-tuned --weights ema" in " ".join(said.out.split())
    folder = tmp_path / "runs" / "tune" / "slat-digits"
    (trial,) = read_trials(Store(folder / TRIALS))
    run = str((folder / trial.run).relative_to(tmp_path))
    shares = {}
    for which in ("ema", "last"):
        judged = layerwise("evaluate", run, "--weights", which, "--record", which, "--quiet")
        assert judged.code == 0, judged.err
        record = json.loads((tmp_path / run / f"{which}.json").read_text())
        shares[which] = [result["count"]["correct"] / result["count"]["total"] for result in record["results"]]
    assert [trial.clean, trial.robust] == [shares["ema"][0], shares["ema"][-1]]
    assert shares["ema"] != shares["last"]


def test_where_no_trial_is_sound_the_search_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gives(trial: int, rung: int, chosen: Any) -> Any:
        raise ValueError("no")

    scripted(monkeypatch, gives)
    with pytest.raises(
        LayerwiseError, match=r"not one of 2 trials of 1 epochs was sound \(trial 0 failed: ValueError: no"
    ):
        tune(settings(), ETA, Plan(trials=2, budget=1), name="x", folder=tmp_path / "t")


def test_a_search_that_is_interrupted_in_every_trial_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree, plan, stopped = settings(), Plan(trials=4, budget=3, seed=3), set[tuple[int, int]]()
    scripted(monkeypatch, lambda trial, rung, chosen: outcome(0.9, chosen.method.eta))
    whole = tune(tree, ETA, plan, name="x", folder=tmp_path / "whole")

    def gives(trial: int, rung: int, chosen: Any) -> Any:
        if (trial, rung) not in stopped:
            stopped.add((trial, rung))
            raise KeyboardInterrupt
        return outcome(0.9, chosen.method.eta)

    scripted(monkeypatch, gives)
    for _ in whole.trials:
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            tune(tree, ETA, plan, name="x", folder=tmp_path / "t", resume=True)
        with (tmp_path / "t" / TRIALS).open("a") as file:
            file.write('{"trial": 3, "ru')  # as a power failure leaves it
    resumed = tune(tree, ETA, plan, name="x", folder=tmp_path / "t", resume=True)
    assert without_time(resumed.trials) == without_time(whole.trials)
    assert read_trials(Store(tmp_path / "t" / TRIALS)) == list(resumed.trials)


def test_ctrl_c_while_the_reference_trains_says_how_the_search_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*args: Any, **options: Any) -> Path:
        raise KeyboardInterrupt("go on with: layerwise train --resume of the reference alone")

    monkeypatch.setattr(experiment, "run_of", stopped)
    plan = Plan(trials=1, budget=1, max_clean_drop=0.1)
    with pytest.raises(KeyboardInterrupt, match="typing the same again with --resume"):
        tune(settings("--model.start=standard-digits"), ETA, plan, name="x", folder=tmp_path / "t")


def test_only_the_same_search_is_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = scripted(monkeypatch, lambda trial, rung, chosen: outcome(0.9, 0.5))
    tree, plan = settings(), Plan(trials=1, budget=1)
    tune(tree, ETA, plan, name="x", folder=tmp_path / "t")
    with pytest.raises(CheckpointError, match="already holds a search; add --resume"):
        tune(tree, ETA, plan, name="x", folder=tmp_path / "t")
    for other, message in (
        ((settings("--training.batch_size=7"), ETA, plan), r"recipe\.training\.batch_size: 64 before, 7 now"),
        ((tree, {"method.eta": Interval(0.02, 1.0, log=True)}, plan), r"ranges\.method\.eta\.low: 0\.01 before"),
        ((tree, ETA, replace(plan, trials=2)), r"plan\.trials: 1 before, 2 now"),
    ):
        with pytest.raises(ConfigError, match=message):
            tune(*other, name="x", folder=tmp_path / "t", resume=True)
    tune(settings("--training.log_every=3"), ETA, plan, name="x", folder=tmp_path / "t", resume=True)
    assert len(runs) == 1
    # What an older version wrote is kept, and its trials are done again.
    (tmp_path / "t" / TRIALS).write_text('{"trial": 0, "rung": 0}\n')
    tune(tree, ETA, plan, name="x", folder=tmp_path / "t", resume=True)
    assert len(runs) == 2
    assert (tmp_path / "t" / f"{TRIALS}.aside-1").read_text() == '{"trial": 0, "rung": 0}\n'


@pytest.mark.parametrize(
    ("ranges", "plan", "more", "message"),
    [
        ({}, Plan(), (), "nothing to search"),
        ({"method.etaa": Choice((1,))}, Plan(), (), "there is no setting 'method.etaa'; did you mean 'method.eta'"),
        ({"method.eta": Choice((-1.0,))}, Plan(), (), "eta"),
        ({"training.epochs": Choice((1, 2))}, Plan(), (), "training.epochs cannot be searched"),
        ({"threat.eps": Choice((0.1,))}, Plan(), (), "threat.eps cannot be searched"),
        (ETA, Plan(max_clean_drop=0.1), (), "needs a network to compare with"),
        (ETA, Plan(), ("--data.validation=0",), "no validation images"),
        (ETA, Plan(weights="best"), (), "there are no best weights; type --training.eval_every 1"),
        (ETA, Plan(weights="ema"), (), "there are no ema ones; type --training.ema_decay 0.999"),
    ],
)
def test_a_search_that_cannot_begin_is_told(
    ranges: dict[str, Range], plan: Plan, more: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as told:
        tune(settings(*more), ranges, plan, name="x", folder=tmp_path / "t")
    assert message in str(told.value)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"trials": 0}, {"budget": 0}, {"seed": -1}, {"objective": "robst"}, {"weights": "bset"}, {"max_clean_drop": 1.0}],
)
def test_a_plan_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Plan(**wrong)


def test_without_optuna_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'layerwise\[tune\]'"):
        tune(settings(), ETA, Plan(), name="x", folder=tmp_path / "t")


def test_a_network_to_start_from_is_a_floor_and_is_evaluated_on_validation_too(
    no_test: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The reference is trained on the way, in the search's folder; what would read the test split raises.
    lines = ["extends: standard-digits", "model: {options: {width: 4}}", "training: {max_steps: 1, eval_every: 0}"]
    reference = tmp_path / "reference.yaml"
    reference.write_text("\n".join([*lines, "evaluation: {attacks: [clean], num_examples: 20}"]))
    tree = settings(f"--model.start={reference}", "--evaluation.measures=[rho steps=1, rho steps=2]")
    first = tmp_path / "first"
    plan = Plan(trials=1, budget=1, objective="rho", max_clean_drop=0.9)
    found = tune(tree, ETA, plan, name="x", folder=first)
    record = json.loads((first / "reference" / "evaluation.json").read_text())
    assert record["data"]["name"] == "digits validation"
    measured = Evaluation.read(first / found.best.run).found(Rho)
    assert [(m.num_steps, m.images) for m in measured] == [(2, 20)]
    assert f"rho_2 {found.best.rho:.4g}" in found.to_markdown()
    clean = record["results"][0]["count"]["correct"] / 20
    scripted(monkeypatch, lambda trial, rung, chosen: outcome(clean - 0.02 + 0.015 * trial, 0.9 - 0.1 * trial))
    plan = Plan(trials=3, budget=1, max_clean_drop=0.01)
    halved = tune(tree, ETA, plan, name="x", folder=tmp_path / "t", runs=first)
    assert [t.state for t in halved.trials] == ["inaccurate", "sound", "sound"]
    assert halved.best.trial == 1
    assert not (tmp_path / "t" / "reference").exists()  # the finished run beside it was used


def test_the_command_searches_without_the_test_split_and_writes_a_recipe(
    layerwise: Command, no_test: None, tmp_path: Path
) -> None:
    own = write(
        tmp_path,
        "# Mine.\nextends: slat-digits\ntune:\n  method.eta.conv1: {low: 0.003, high: 0.1, log: true}\n"
        "  training.optimizer.lr: [0.1, 0.2]\n  method.num_probes: [1, 2]\n",
    )
    words = [
        "tune",
        own,
        *QUICK,
        "--trials=3",
        "--budget=3",
        "--range",
        "training.batch_size=32:64",
        "--method.num_probes=1",
    ]
    said = layerwise(*words, "--quiet")
    assert said.code == 0, said.err
    folder = tmp_path / "runs" / "tune" / "own"
    trials = read_trials(Store(folder / TRIALS))
    assert [(t.trial, t.rung) for t in trials][:3] == [(0, 0), (1, 0), (2, 0)]
    assert trials[-1].rung == 1
    first = {"method.eta.conv1": 0.03, "training.optimizer.lr": 0.1, "training.batch_size": 64}
    assert trials[0].settings == first
    assert said.out.count("Best of 3: trial") == 1
    assert (folder / TABLE).is_file()
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    for t in trials:
        record = json.loads((folder / t.run / "evaluation.json").read_text())
        assert record["data"]["name"] == "digits validation"
        assert record["results"][0]["count"]["correct"] / 20 == t.clean
        assert not (folder / t.run / "checkpoints").exists()
    winner, tree = experiment.read(str(folder / BEST))
    won = trials[-1].settings
    assert {key: at(tree, key) for key in won} == won
    assert (winner.training.epochs, winner.evaluation.split, winner.evaluation.attacks) == (
        3,
        "test",
        ["clean", "fgsm", "pgd-20"],
    )
    told(layerwise(*words), "already holds a search")
    again = layerwise(*words, "--quiet", "--resume")
    assert again.out == said.out
    assert read_trials(Store(folder / TRIALS)) == trials


def test_the_best_recipe_trains_and_an_interruption_inside_a_trial_costs_nothing(
    layerwise: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["tune", "slat-digits", *QUICK, "--trials=1", "--budget=1", "--range", "method.eta=0.01,0.02", "--quiet"]
    words += [f"--{key}=0.02" for key in ("method.eta.conv1", "method.eta.layer1")]
    assert layerwise(*words, "--name=whole").code == 0
    best = "runs/tune/whole/best.yaml"
    assert layerwise("train", best, "--name", "tuned", "--evaluation.attacks=clean", "--quiet").code == 0
    assert (tmp_path / "runs" / "tuned" / "evaluation.json").is_file()

    def stopped(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "evaluate_run", stopped)
        said = layerwise(*words, "--name=t")
    assert (said.code, "--resume" in said.err) == (130, True)
    assert layerwise(*words, "--name=t", "--resume").code == 0
    one, other = (read_trials(Store(tmp_path / "runs" / "tune" / name / TRIALS)) for name in ("whole", "t"))
    assert without_time(one) == without_time(other)


def test_help_teaches(layerwise: Command) -> None:
    said = layerwise("tune", "--help")
    assert said.code == 0
    assert "best.yaml" in said.out
    assert said.out.startswith("usage: layerwise tune")
    assert max(map(len, said.out.splitlines())) <= 80
    told(layerwise("tune"), "tune needs a recipe")
    told(layerwise("tune", "slat-digits", "--range", "method.eta"), "is no range")
    told(layerwise("tune", "slat-digit"), "did you mean 'slat-digits'")
    told(layerwise("tune", "slat-digits", "--trial", "3"), "tune has no option '--trial'; did you mean '--trials'")
