from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from layerwise.core.threat import ThreatModel
from layerwise.errors import CheckpointError, ConfigError
from layerwise.methods import SLAT, Standard
from layerwise.training import Phase, Training, difference, load_weights, plain, read_config, versions
from layerwise.training.run import check_config, put_weights
from tests.networks import TinyConv, TinyMLP
from tests.training.fakes import Scripted, cheap, same, train, weights

data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def test_a_run_folder_holds_what_it_should(tmp_path: Path) -> None:
    net = TinyMLP()
    train(net, SLAT(sites=["fc1"], eta=0.1), cheap(eval_every=1), run=tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    wanted = {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "checkpoints",
        "model.safetensors",
        "best.safetensors",
    }
    assert names == wanted
    config = read_config(tmp_path / "run")
    assert config["method"]["name"] == "SLAT"
    assert config["method"]["eta"] == 0.1
    assert config["training"]["optimizer"] == {
        "name": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "decay_norms": True,
    }  # fmt: skip
    found = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert found["packages"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert found["device"] == "cpu"
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("epoch") == 2
    loaded = TinyMLP(seed=4)
    load_weights(loaded, tmp_path / "run")
    assert same(weights(net), weights(loaded))
    load_weights(loaded, tmp_path / "run", "best")
    load_weights(loaded, tmp_path / "run" / "best.safetensors")


def test_the_given_configuration_is_stored_as_it_is(tmp_path: Path) -> None:
    config = {"recipe": "mine", "method": {"eps": 8 / 255, "sites": ("a", "b")}, "none": None}
    train(TinyMLP(), Standard(), cheap(max_steps=1), run=tmp_path / "run", config=config)
    assert read_config(tmp_path / "run") == {
        "recipe": "mine", "method": {"eps": 8 / 255, "sites": ["a", "b"]}, "none": None,
    }  # fmt: skip


def test_a_configuration_that_could_not_be_read_back_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the configuration has .* characters; a configuration has at most"):
        train(TinyMLP(), Standard(), cheap(), run=tmp_path / "run", config={"x": "y" * 200_000})
    assert not (tmp_path / "run").exists()


@given(data)
def test_plain_data_survive_the_file(value: Any) -> None:
    written = plain({"x": value})
    assert yaml.safe_load(yaml.safe_dump(written)) == written


@given(data)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert difference({"x": value}, {"x": value}) == []


def test_differences_are_named() -> None:
    old = {"method": {"name": "SLAT", "eta": 0.03}, "training": {"epochs": 3, "log_every": 5}}
    new = {"method": {"name": "SLAT", "eta": 0.05, "k": 1}, "training": {"epochs": 3, "log_every": 7}}
    assert difference(old, new) == [
        "method.eta: 0.03 before, 0.05 now",
        "method.k: absent before, 1 now",
        "training.log_every: 5 before, 7 now",
    ]
    assert difference({"a": {"b": 1}}, {"a": 2}) == ["a: {'b': 1} before, 2 now"]
    with pytest.raises(
        ConfigError, match=r"runs/x was trained with other settings.*: method.eta: 0.03 before, 0.05 now; method.k"
    ):
        check_config(old, new, where="runs/x")
    check_config({"training": {"log_every": 1}}, {"training": {"log_every": 2}}, where="runs/x")


def test_what_an_older_run_has_not_written_is_what_it_had() -> None:
    new = {"training": {"epochs": 2, "batch_norm": "per-rank"}}
    check_config({"training": {"epochs": 2}}, {**new, "evaluation": {"trace": []}}, where="runs/x")
    with pytest.raises(ConfigError, match=r"training\.batch_norm: absent before, synchronised now$"):
        check_config(
            {"training": {"epochs": 2}}, {"training": {"epochs": 2, "batch_norm": "synchronised"}}, where="runs/x"
        )


def test_many_differences_are_cut_short() -> None:
    with pytest.raises(ConfigError, match=r"; and 3 more$"):
        check_config({}, {str(i): i for i in range(8)}, where="run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run: config.yaml is missing"),
        ("a: [1", "config.yaml cannot be read"),
        ("just text", "config.yaml is damaged: it holds a str"),
        ("a: !!python/object/apply:os.getcwd []", "config.yaml cannot be read"),
    ],
)
def test_a_damaged_configuration_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    train(TinyMLP(), Standard(), cheap(max_steps=1), run=tmp_path / "run")
    net = TinyConv()
    before = weights(net)
    with pytest.raises(CheckpointError, match=r"model.safetensors belongs to another network: it lacks 'conv1.weight'"):
        load_weights(net, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"there are no weights 'bets'; did you mean 'best'"):
        load_weights(net, tmp_path / "run", "bets")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"best.safetensors does not exist; .* has last$"):
        load_weights(TinyMLP(), tmp_path / "run", "best")
    with pytest.raises(CheckpointError, match=r"'conv1.weight' has shape \(2,\), the network's \(6, 3, 3, 3\)"):
        put_weights(net, {**net.state_dict(), "conv1.weight": torch.zeros(2)}, where="it")
    with pytest.raises(CheckpointError, match="it has 'more', which the network lacks"):
        put_weights(net, {**net.state_dict(), "more": torch.zeros(2)}, where="it")
    file = tmp_path / "run" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_weights(TinyMLP(), tmp_path / "run")
    assert same(before, weights(net))


def test_weights_of_a_quantised_network_are_told() -> None:
    net = TinyMLP()
    name, weight = next(iter(net.state_dict().items()))
    small = {**net.state_dict(), name: weight.to(torch.int8)}
    with pytest.raises(CheckpointError, match=rf"'{name}' holds torch.int8 numbers, as a quantised network has, the"):
        put_weights(net, small, where="it")
    half = {**net.state_dict(), name: weight.to(torch.bfloat16)}
    put_weights(net, half, where="it")
    assert net.state_dict()[name].dtype == torch.float32


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make the run folder"):
        train(TinyMLP(), Standard(), cheap(), run=tmp_path / "file" / "run")


def test_versions_name_what_a_bug_report_needs() -> None:
    found = versions()
    assert {"packages", "python", "platform", "threads", "gpus", "device"} <= found.keys()
    assert found["packages"]["layerwise"] != "not installed"


def test_what_is_no_data_is_named() -> None:
    assert plain({"criterion": torch.nn.functional.mse_loss, "method": Scripted}) == {
        "criterion": "mse_loss",
        "method": "Scripted",
    }


def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder_of_its_own(tmp_path: Path) -> None:
    def fail(model: object, number: int) -> None:
        raise LookupError("the user's own code")

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    for run in (tmp_path / "new", mine):
        with pytest.raises(LookupError, match="own code"):
            train(TinyMLP(), Scripted(hook=fail), cheap(), run=run)
    assert not (tmp_path / "new").exists()
    assert (mine / "notes.txt").read_text() == "keep me"


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(
            CheckpointError, match=r"^cannot make the run folder .*: (Not a directory|File name too long)$"
        ):
            train(TinyMLP(), Standard(), cheap(max_steps=1), run=run)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    train(TinyMLP(), Standard(), cheap(max_steps=1), run="~/run")
    assert read_config("~/run") == read_config(tmp_path / "run")
    load_weights(TinyMLP(), "~/run")
    load_weights(TinyMLP(), "~/run/model.safetensors")


def test_settings_of_a_fixed_class_are_written_without_its_name() -> None:
    """As recipes have them: a run of `fit` is read by commands."""
    assert plain(ThreatModel("linf", 0.1)) == {"norm": "linf", "eps": 0.1}
    written = plain(Training(epochs=3))
    assert "name" not in written
    assert written["optimizer"]["name"] == "SGD"
    assert "name" not in plain(Phase(epochs=1))
