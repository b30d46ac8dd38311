"""Experiments from Python: what a run leaves behind, how it goes on, and that a failed one leaves nothing half-made."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import layerwise
from layerwise import models
from layerwise.core import registry
from layerwise.data import ImageData
from layerwise.errors import CheckpointError, ConfigError, DataError, LayerwiseError
from layerwise.evaluation import Evaluation, Rho, rho
from layerwise.experiments import experiment
from layerwise.experiments.experiment import DataSettings, read
from layerwise.files import write_text
from layerwise.models.weights import unpack_tensors

QUICK = [
    "--training.max_steps=3",
    "--training.eval_every=0",
    "--training.batch_size=32",
    "--model.options.width=4",
    "--evaluation.attacks=clean",
    "--evaluation.num_examples=20",
]


def train(folder: Path, *overrides: str, recipe: str = "slat-digits", resume: bool = False) -> Evaluation:
    chosen, tree = read(recipe, [*QUICK, *overrides])
    return experiment.train(chosen, tree, folder=folder, resume=resume, progress=False)[1]


def weights(folder: Path) -> dict[str, Tensor]:
    return unpack_tensors(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it make a copy."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    train(folder)
    return folder


def test_a_run_leaves_its_record(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {
        "checkpoints",
        "config.yaml",
        "data.json",
        "evaluation.json",
        "evaluation.md",
        "metrics.jsonl",
        "model.safetensors",
        "versions.json",
    }
    record = Evaluation.from_json((finished / "evaluation.json").read_text())
    assert (record.model.name, record.data.name, record.data.size, record.worst.total) == ("done", "digits", 540, 20)
    assert read(str(finished / "config.yaml"))[0] == read("slat-digits", QUICK)[0]


def test_a_run_is_repeatable_and_leaves_the_random_state_alone(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert same(weights(tmp_path / "again"), weights(finished))
    train(tmp_path / "other", "--training.seed=1")
    assert not same(weights(tmp_path / "other"), weights(finished))


def test_a_run_is_loaded_without_its_data(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, data = experiment.open_run(finished)
    monkeypatch.setattr(experiment, "load_data", None)
    model = layerwise.load(finished)
    assert not model.training
    x = data.test.subset([0, 1]).images / 255.0  # type: ignore[attr-defined]
    assert torch.equal(model(x), expected.eval()(x))


def test_a_run_without_facts_is_loaded_through_its_data(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "data.json").unlink()
    assert same(dict(layerwise.load(run).state_dict()), weights(finished))


def test_opening_a_run_changes_settings_of_the_evaluation_only(finished: Path) -> None:
    chosen, _, _ = experiment.open_run(finished, ["--threat.eps", "4/255"])
    assert chosen.threat.eps == 4 / 255
    with pytest.raises(ConfigError, match="the run is trained already, so --training has no effect"):
        experiment.open_run(finished, ["--training.epochs", "3"])


def test_an_unfinished_run_is_not_evaluated(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "model.safetensors").unlink()
    for call in (
        lambda: experiment.open_run(run),
        lambda: layerwise.load(run),
        lambda: layerwise.load(run, which="best"),
    ):
        with pytest.raises(
            CheckpointError,
            match=rf"has not finished \(\d+ of \d+ epochs\); go on with: layerwise train --resume {re.escape(str(run))}",
        ):
            call()


def test_a_finished_run_is_not_begun_again(finished: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"already holds a run; type --resume {finished}")):
        train(finished)
    with pytest.raises(ConfigError, match=re.escape("training.max_steps: 3 before, 4 now")):
        train(finished, "--training.max_steps=4", resume=True)


def test_seeds_are_runs_of_their_own(finished: Path, tmp_path: Path) -> None:
    _, tree = read("slat-digits", QUICK)
    folders = experiment.train_seeds(tree, folder=tmp_path / "s", seeds=2, progress=False)
    assert [f.name for f in folders] == ["s-seed0", "s-seed1"]
    assert same(weights(folders[0]), weights(finished))
    assert not same(weights(folders[1]), weights(finished))
    with pytest.raises(CheckpointError, match="s-seed0 already holds a run; add --resume"):
        experiment.train_seeds(tree, folder=tmp_path / "s", seeds=3, progress=False)
    kept = (folders[0] / "evaluation.json").stat().st_mtime_ns
    assert len(experiment.train_seeds(tree, folder=tmp_path / "s", seeds=3, resume=True, progress=False)) == 3
    assert (folders[0] / "evaluation.json").stat().st_mtime_ns == kept


def test_seeds_count_from_the_recipes(tmp_path: Path) -> None:
    _, tree = read("slat-digits", [*QUICK, "--training.seed=7"])
    folders = experiment.train_seeds(tree, folder=tmp_path / "s", seeds=1, progress=False)
    assert [f.name for f in folders] == ["s-seed7"]
    assert read(str(folders[0] / "config.yaml"))[0].training.seed == 7


def test_a_reference_is_trained_first_in_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = tmp_path / "reference.yaml"
    reference.write_text(
        "extends: standard-digits\nmodel: {options: {width: 4}}\ntraining: {max_steps: 2, eval_every: 0}\n"
        "evaluation: {attacks: [clean], num_examples: 9}\n"
    )
    monkeypatch.chdir(tmp_path)
    asked: list[str | None] = []
    load_data = experiment.load_data

    def noted(settings: DataSettings) -> ImageData:
        asked.append(settings.root)
        return load_data(settings)

    monkeypatch.setattr(experiment, "load_data", noted)
    train(
        tmp_path / "runs" / "tuned", f"--model.start={reference}", "--data.root=/nowhere", "--training.optimizer.lr=0"
    )
    assert asked == ["/nowhere", "/nowhere"]
    tuned, start = weights(tmp_path / "runs" / "tuned"), weights(tmp_path / "runs" / "reference")
    # At rate 0 the weights stay what they started from.
    assert all(torch.equal(tuned[k], start[k]) for k in tuned if "weight" in k or "bias" in k)


def test_weights_to_start_from_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.start: there is no run, file or recipe 'slat-digit'; did you mean 'slat-digits'"
    ):
        train(tmp_path / "run", "--model.start=slat-digit")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["--method.sites", "[conv7]"],
        ["--method.eta", "{input: 0.1, conv1: 0.1}"],
        ["--model.name", "lenet", "--model.options", "{}"],
        ["--training.optimizer.lr", "1e30"],
    ],
    ids=["no such site", "eta without a site", "network too large", "diverged"],
)
def test_a_run_that_fails_leaves_nothing(tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(LayerwiseError):
        train(tmp_path / "runs" / "run", *overrides)
    assert not (tmp_path / "runs" / "run").exists()


def test_a_folder_with_something_else_in_it_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(LayerwiseError):
        train(tmp_path / "run", "--method.sites", "[conv7]")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A disk that takes as many files as the list's first entry says."""
    left = [10**6]
    fsync = os.fsync

    def sync(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", sync)
    return iter([left])


def test_a_disk_that_fills_up_at_any_file_leaves_a_run_that_goes_on(
    finished: Path, tmp_path: Path, disk: Iterator[list[int]]
) -> None:
    left, room, run = next(disk), 0, tmp_path / "run"
    told: list[str] = []
    while True:
        left[0] = room
        try:
            train(run)
            break
        except (LayerwiseError, OSError) as error:
            told.append(str(error))
        if run.exists():
            assert (run / "config.yaml").is_file()
            assert list(run.glob("checkpoints/step-*/manifest.json"))
            assert not [p for p in run.rglob("*") if ".part" in p.name or ".writing" in p.name]
            left[0] = 10**6
            train(run, resume=True)
            assert same(weights(run), weights(finished))
            assert (run / "evaluation.json").read_text().count('"correct"') == 2
            shutil.rmtree(run)
        # Every file and folder of a run is a place where the disk can be full; a third of them keeps the test short.
        room += 3
    assert len(told) > 4
    assert all("No space left on device" in sentence for sentence in told)


def test_ctrl_c_while_evaluating_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "evaluate_run", stop)
    with pytest.raises(
        KeyboardInterrupt, match=re.escape(f"evaluate the network with: layerwise evaluate {tmp_path / 'run'}")
    ):
        train(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_an_evaluation_holds_rho(finished: Path) -> None:
    chosen, model, data = experiment.open_run(finished, ["--evaluation.measures=[rho steps=2]"])
    evaluation = experiment.evaluate_run(model, data, chosen.evaluation, threat=chosen.threat, progress=False)
    (found,) = evaluation.found(Rho)
    assert found.value == pytest.approx(rho(model, data.test, num_steps=2, num_examples=20).value, rel=1e-6)
    assert f"rho_2 with 2 DeepFool steps: {found.value:.4g} over 20 images" in evaluation.to_markdown()


@pytest.mark.parametrize("record", ["data", "versions", "../evaluation", "a/b"])
def test_a_record_overwrites_nothing_else(finished: Path, record: str) -> None:
    chosen, model, data = experiment.open_run(finished)
    with pytest.raises(ConfigError, match=re.escape(f"a record cannot be called {record!r}")):
        experiment.evaluate_run(
            model, data, chosen.evaluation, threat=chosen.threat, folder=finished, record=record, progress=False
        )


def write_net(folder: Path, name: str) -> None:
    """A module of the user's, which leaves a trace when it is imported."""
    (folder / f"{name}.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "Path('imported').write_text('')\n"
        "def net(num_classes, shape):\n"
        "    size = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
    )


def test_a_network_of_the_users_is_trained_and_opened_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_net(tmp_path, "their_nets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_nets", raising=False)
    own = ["--model.name=their_nets:net", "--model.options={}", "--method.sites=[model.1]", "--method.eta=0.1"]
    train(tmp_path / "run", *own)
    (tmp_path / "imported").unlink()
    del sys.modules["their_nets"]
    monkeypatch.setattr(registry, "_IMPORTED", {})  # as in another process
    for call in (lambda: layerwise.load(tmp_path / "run"), lambda: experiment.open_run(tmp_path / "run")):
        with pytest.raises(
            ConfigError, match=r"the run names code of its own, 'their_nets:net', .* add --trust to allow it"
        ):
            call()
    assert not (tmp_path / "imported").exists()
    assert isinstance(layerwise.load(tmp_path / "run", trust=True), layerwise.Normalized)
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("facts", "message"),
    [("{", "is not JSON"), ("[]", "is corrupt"), ('{"name": 3}', "is corrupt"), ('{"name": "digits"}', "is corrupt")],
)
def test_damaged_facts_are_told(finished: Path, tmp_path: Path, facts: str, message: str) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "data.json").write_text(facts)
    with pytest.raises(CheckpointError, match=message):
        layerwise.load(run)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.options.shape=[1]", "model.options: 'shape' is none of the options; the data tell it"),
        ("--model.options.name=x", "model.options: 'name' is none of the options; type --model.name"),
        ("--data.options.root=x", "data.options: 'root' is none of the options; type --data.root"),
        ("--data.options.classes=3", "data set 'digits' has no option 'classes'"),
        ("--model.options.widht=3", "the network 'digits_cnn' has no option 'widht'; its options are width"),
    ],
)
def test_options_that_are_none(tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(tmp_path / "run", option)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_told(finished: Path, tmp_path: Path) -> None:
    for classes, width in ((7, 4), (10, 8)):
        net = models.build("digits_cnn", num_classes=classes, shape=(1, 8, 8), mean=0.5, std=0.5, width=width)
        path = layerwise.export(net, tmp_path / f"net{classes}", example=torch.zeros(2, 1, 8, 8))
        with pytest.raises(CheckpointError, match=r"belongs to another network: '.*' has shape .*, the network's"):
            train(tmp_path / "run", f"--model.start={path}")
    assert not (tmp_path / "run").exists()


IMAGES, LABELS = torch.rand(12, 1, 8, 8), torch.arange(12) % 3


def spoilt(images: Tensor, value: float) -> Tensor:
    images = images.clone()
    images[3, 0, 1, 2] = value
    return images


BAD_TENSORS: list[tuple[Tensor, Tensor, str]] = [
    (
        spoilt(IMAGES, float("nan")),
        LABELS,
        "image 3 holds nan (channel 0, row 1, column 2); every pixel must be a finite number",
    ),
    (spoilt(IMAGES, float("inf")), LABELS, "image 3 holds inf"),
    (spoilt(IMAGES, -0.5), LABELS, "image 3 holds -0.5"),
    (
        spoilt(IMAGES, 200.0),
        LABELS,
        "image 3 holds 200 (channel 0, row 1, column 2); this looks like pixels of 0 to 255",
    ),
]


@pytest.mark.parametrize(("images", "labels", "message"), BAD_TENSORS, ids=["nan", "inf", "negative", "0 to 255"])
def test_bad_tensors_are_refused_for_training_and_for_evaluating(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        layerwise.from_tensors(images, labels, test=0.2, classes=list("abc"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(DataError, match=re.escape(message)):
        layerwise.evaluate(net, (images, labels), attacks=["clean"], progress=False)


@pytest.mark.parametrize("labels", [LABELS - 1, LABELS + 1], ids=["-1", "3 of 3"])
def test_bad_labels_are_refused_for_training_and_for_evaluating(labels: Tensor) -> None:
    with pytest.raises(DataError, match="with 3 classes the labels must be 0 to 2"):
        layerwise.from_tensors(IMAGES, labels, test=0.2, classes=list("abc"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(DataError, match=r"label \d+ is (-1|3)"):
        layerwise.evaluate(net, (IMAGES, labels), attacks=["clean"], progress=False)


def test_every_number_of_a_run_is_json(finished: Path) -> None:
    for file in finished.glob("*.json"):
        json.loads(file.read_text(), parse_constant=pytest.fail)


def test_the_record_comes_last_so_that_where_it_is_the_rest_is_too(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(file: Path, text: str) -> None:
        order.append(file.name)
        write_text(file, text)

    monkeypatch.setattr(sys.modules["layerwise.evaluation.record"], "write_text", noted)
    chosen, model, data = experiment.open_run(finished)
    experiment.evaluate_run(model, data, chosen.evaluation, threat=chosen.threat, folder=tmp_path, progress=False)
    assert order[-1] == "evaluation.json"
    assert sorted(order) == sorted(p.name for p in tmp_path.iterdir())
