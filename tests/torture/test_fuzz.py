"""Readers of everything that comes from outside, on broken and hostile variants: they read it, or say in one sentence why not."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from layerwise.attacks import ThreatModel
from layerwise.data import TensorSplit, load
from layerwise.data.folder import decode
from layerwise.evaluation import Count, Evaluation, Measured, Result, Rho
from layerwise.evaluation.corruptions import generate_frost, store
from layerwise.evaluation.corruptions.cache import Layout, open_stored
from layerwise.evaluation.corruptions.views import Maker
from layerwise.evaluation.record import DataRecord, ModelRecord
from layerwise.experiments import recipe
from layerwise.experiments import settings as blueprint
from layerwise.experiments.experiment import DataFacts, _read_facts
from layerwise.methods import LAT, SLAT
from layerwise.models import weights
from layerwise.report.runs import read as read_run
from layerwise.training import checkpoint, load_weights, read_config
from layerwise.trees import parse_yaml
from tests.data import writers
from tests.networks import TinyMLP
from tests.torture.fuzzing import EDITS, altered, cases, replaced, survives
from tests.torture.memory import bounded
from tests.torture.size import sized
from tests.training.fakes import cheap, pictures, train
from tests.training.test_checkpoint import seal
from tests.training.test_checkpoint import store as store_checkpoint

COUNTS = {
    "idx": 250,
    "cifar": 150,
    "archive": 100,
    "picture": 250,
    "cache": 150,
    "yaml": 350,
    "recipe": 60,
    "settings": 100,
    "altered checkpoint": 150,
    "hostile checkpoint": 150,
    "resumed checkpoint": 15,
    "weights": 100,
    "evaluation": 150,
    "run folder": 60,
}
"""Cases in every run, about 2,000; tenfold in torture."""


def count(name: str) -> int:
    return sized(COUNTS[name], 10 * COUNTS[name])


@pytest.fixture(autouse=True, scope="module")
def within_memory(figures: dict[str, Any]) -> Iterator[None]:
    with bounded(600):
        yield
    figures["fuzzing"] = {"cases": {name: count(name) for name in COUNTS}, "all": sum(map(count, COUNTS))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


NAMES = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]


@cache
def idx_files() -> dict[str, bytes]:
    found = {}
    for name in NAMES:
        array = writers.pixels(3, 28, 28) if "images" in name else np.arange(3, dtype=np.uint8)
        found[name] = writers.idx_bytes(array)
    return found


@cases(count("idx"), name=st.sampled_from(NAMES), edits=EDITS, packed=st.booleans(), inner=st.booleans())
def test_idx(place: Path, name: str, edits: Any, packed: bool, inner: bool) -> None:
    files = dict(idx_files())
    if inner or not packed:
        files[name] = altered(files[name], edits)
    content = {f"{key}-ubyte" + ".gz" * packed: gzip.compress(c, 1) if packed else c for key, c in files.items()}
    if packed and not inner:
        content[f"{name}-ubyte.gz"] = altered(content[f"{name}-ubyte.gz"], edits)
    folder = place / f"idx{packed}"
    replaced(folder / "MNIST", content)
    survives(lambda: load("mnist", root=folder, validation=0))


@cases(count("cifar"), edits=EDITS, hundred=st.booleans())
def test_cifar(place: Path, edits: Any, hundred: bool) -> None:
    files = writers.cifar10_files(2)
    if hundred:
        files = {f"cifar-100-binary/{n}.bin": writers.cifar_bytes(2, (20, 100)) for n in ("train", "test")}
    name = sorted(files)[-1]
    files[name] = altered(files[name], edits)
    replaced(place / "cifar", files)
    survives(lambda: load("cifar100" if hundred else "cifar10", root=place / "cifar", validation=0, allow_fewer=True))


@cases(count("archive"), edits=EDITS, inner=st.booleans())
def test_archives(place: Path, edits: Any, inner: bool) -> None:
    members = [writers.member(*item) for item in writers.cifar10_files(1).items()]
    members[0][0].pax_headers = {"size": str(len(members[0][1])), "mtime": "1.5", "comment": "ä"}
    content = gzip.decompress(writers.tar_bytes(members))
    content = gzip.compress(altered(content, edits), 1) if inner else altered(gzip.compress(content, 1), edits)
    replaced(place / "archive", {"cifar-10-binary.tar.gz": content})
    survives(lambda: load("cifar10", root=place / "archive", validation=0, allow_fewer=True))


@cache
def pictures_of_all_kinds() -> tuple[bytes, ...]:
    found = []
    colours = Image.fromarray(writers.pixels(9, 8, 3))
    for image in (
        colours,
        colours.convert("L"),
        colours.convert("P"),
        colours.convert("CMYK"),
        colours.convert("RGBA"),
    ):
        for form in ("PNG", "JPEG"):
            if (image.mode, form) not in (("CMYK", "PNG"), ("RGBA", "JPEG"), ("P", "JPEG")):
                buffer = io.BytesIO()
                image.save(buffer, form)
                found.append(buffer.getvalue())
    return tuple(found)


@cases(count("picture"), which=st.integers(0, 6), edits=EDITS, resize=st.sampled_from([None, 4, 9]))
def test_pictures(place: Path, which: int, edits: Any, resize: int | None) -> None:
    path = place / "picture.png"
    path.write_bytes(altered(pictures_of_all_kinds()[which], edits))
    survives(lambda: decode(str(path), resize=resize, crop=resize))


@cache
def stored(folder: Path) -> tuple[Layout, Maker, dict[str, bytes]]:
    split = TensorSplit(
        torch.arange(2 * 3 * 9 * 8).remainder(256).to(torch.uint8).view(2, 3, 9, 8), torch.tensor([0, 1])
    )
    frost = generate_frost()
    store(folder, split, names=["fog"], frost=frost)
    return Layout.of(split), Maker(frost=frost), {p.name: p.read_bytes() for p in folder.iterdir()}


@cases(count("cache"), name=st.sampled_from(["fog.npy", "fog.json", "labels.npy"]), edits=EDITS)
def test_corrupted_images(place: Path, name: str, edits: Any) -> None:
    layout, maker, files = stored(place / "good")
    replaced(place / "cache", {**files, name: altered(files[name], edits)})
    survives(lambda: open_stored(place / "cache", "fog", maker, layout))


RECIPES = ("slat-digits", "lat-cifar10", "deep-defense-mnist", "lad-trades-cifar10")


@cases(count("yaml"), name=st.sampled_from(RECIPES), edits=EDITS)
def test_yaml(name: str, edits: Any) -> None:
    text = altered(recipe.path_of(name).read_bytes(), edits).decode(errors="surrogateescape")
    survives(lambda: parse_yaml(text, "a.yaml"))


SMALL = b"""# a recipe
data: {name: digits, validation: 0.1, options: {}}
model: {name: cnn-small, options: {width: 8}}
method:
  name: SLAT
  sites: [conv1, layer1]
  eta: 8/255
  base: {name: FGSMRS, eps: 8/255}
training: {epochs: 1, optimizer: {name: SGD, lr: 0.1}, schedule: {name: Constant}}
evaluation: {attacks: [clean, pgd-5], eps: 8/255}
"""


@cases(count("recipe"), edits=EDITS)
def test_recipes(place: Path, edits: Any) -> None:
    (place / "recipe.yaml").write_bytes(altered(SMALL, edits))
    survives(lambda: blueprint.read(str(place / "recipe.yaml")))


KEYS = [
    "method.eta",
    "method",
    "training.epochs",
    "training.optimizer.lr",
    "data.options.x",
    "evaluation.attacks",
    "phases",
]
WORDS = [
    "{a: 1}",
    "[1,2",
    "8/255",
    "1/0",
    "=",
    "'",
    "1e400",
    "[" * 400,
    "{a: " * 300,
    "9" * 5000,
    "&a [*a]",
    "!!python/name:os.system",
]
TEXTS = st.text(max_size=12) | st.sampled_from(WORDS)


@cases(count("settings"), key=st.sampled_from(KEYS) | st.text(max_size=8), value=TEXTS, joined=st.booleans())
def test_settings_on_the_command_line(key: str, value: str, joined: bool) -> None:
    tokens = [f"--{key}={value}"] if joined else [f"--{key}", value]
    survives(lambda: blueprint.read("slat-digits", tokens))


@cache
def two_checkpoints(folder: Path) -> dict[str, bytes]:
    """The files of the newer one; the older stays as it is."""
    store_checkpoint(folder, 1)
    newer = store_checkpoint(folder, 2, average={"w": torch.zeros(3)})
    return {p.name: p.read_bytes() for p in newer.iterdir()}


FILES = ["model.safetensors", "ema.safetensors", "state.safetensors", "rank-0.safetensors", "manifest.json"]


@cases(count("altered checkpoint"), name=st.sampled_from(FILES), edits=EDITS)
def test_altered_checkpoints_are_passed_over(place: Path, name: str, edits: Any) -> None:
    files = two_checkpoints(place / "checkpoints")
    content = altered(files[name], edits)
    replaced(place / "checkpoints" / "step-00000002", {**files, name: content})
    contents, said = checkpoint.load_latest(place / "checkpoints")
    assert contents is not None
    assert (contents.step, len(said)) == ((2, 0) if content == files[name] else (1, 1))


@cases(count("hostile checkpoint"), name=st.sampled_from(FILES[:4]), edits=EDITS)
def test_hostile_checkpoints(place: Path, name: str, edits: Any) -> None:
    """Their checksums are right, and everything else may be wrong."""
    files = two_checkpoints(place / "checkpoints")
    newer = place / "checkpoints" / "step-00000002"
    replaced(newer, {**files, name: altered(files[name], edits)})
    seal(newer)
    survives(lambda: checkpoint.read(newer))


@cache
def lat_run(folder: Path) -> dict[str, bytes]:
    train(TinyMLP(), LAT(sites=["fc1"]), cheap(epochs=1), pictures(16), run=folder, config={})
    newest = checkpoint.found(folder / "checkpoints")[-1]
    return {str(p.relative_to(folder)): p.read_bytes() for p in newest.iterdir()}


@cases(
    count("resumed checkpoint"),
    name=st.sampled_from(["state", "rank-0"]),
    place_=st.floats(0, 1),
    value=st.sampled_from([b"null", b"-1", b"{}", b'"x"', b"[]", b"1e9"]),
)
def test_runs_are_not_resumed_from_other_states(place: Path, name: str, place_: float, value: bytes) -> None:
    """A state that is whole, in which one value stands for another."""
    folder = place / "lat"
    files = lat_run(folder)
    path = next(key for key in files if key.endswith(f"{name}.safetensors"))
    replaced(folder, files)
    tensors = weights.unpack_tensors(folder / path)
    text = bytes(tensors["structure"].tolist())
    ends = [i for i, byte in enumerate(text) if byte in b",]}"]
    end = ends[int(place_ * (len(ends) - 1))]
    begin = max(text.rfind(b, 0, end) for b in (b" ", b"[", b"{")) + 1
    tensors["structure"] = torch.frombuffer(bytearray(text[:begin] + value + text[end:]), dtype=torch.uint8)
    (folder / path).write_bytes(weights.pack_tensors(tensors))
    seal((folder / path).parent)
    (folder / "metrics.jsonl").write_text("")
    survives(
        lambda: train(TinyMLP(), LAT(sites=["fc1"]), cheap(epochs=1), pictures(16), run=folder, config={}, resume=True)
    )


@cases(count("weights"), edits=EDITS)
def test_weights(place: Path, edits: Any) -> None:
    good = weights.pack_tensors(TinyMLP().state_dict())[: 1 << 20]
    (place / "w.safetensors").write_bytes(altered(good, edits))
    survives(lambda: load_weights(TinyMLP(), place / "w.safetensors"))


@cache
def evaluation() -> Evaluation:
    results = (Result("clean", {"name": "clean"}, Count(90, 99), 0.1), Result("pgd-5", {"steps": 5}, Count(9, 99), 0.1))
    return Evaluation(
        model=ModelRecord("net", 7, "aa"),
        data=DataRecord("digits", 540, 0, "bb"),
        threat=ThreatModel(eps=0.2),
        results=results,
        worst=Count(9, 99),
        findings=(),
        batch_size=10,
        eot=1,
        device="cpu",
        versions={"python": "3"},
    )


@cases(count("evaluation"), edits=EDITS)
def test_records_of_evaluations(edits: Any) -> None:
    text = altered(evaluation().to_json().encode(), edits)
    survives(lambda: Evaluation.from_json(text, source="a.json").to_markdown())


@cache
def evaluated_run(folder: Path) -> dict[str, bytes]:
    train(TinyMLP(), SLAT(sites=["fc1"]), cheap(epochs=1, eval_every=1), pictures(16), run=folder)
    facts = DataFacts(name="x", classes=("a", "b"), shape=(1, 8, 8), mean=(0.5,), std=(0.5,))
    (folder / "data.json").write_text(json.dumps(asdict(facts)))
    replace(evaluation(), measures=(Measured("rho steps=9", Rho(0.1, 50, 0, 0.0, 9, 2.0)),)).write(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


RUN_FILES = [
    "config.yaml",
    "metrics.jsonl",
    "versions.json",
    "data.json",
    "evaluation.json",
]


@cases(count("run folder"), name=st.sampled_from(RUN_FILES), edits=EDITS)
def test_run_folders(place: Path, name: str, edits: Any) -> None:
    files = evaluated_run(place / "evaluated")
    replaced(place / "read", {**files, name: altered(files[name], edits)})
    survives(lambda: read_run(place / "read", "evaluation"))
    survives(lambda: read_config(place / "read"))
    survives(lambda: _read_facts(place / "read" / "data.json"))
