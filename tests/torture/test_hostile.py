"""Nothing in data, recipes or run folders is executed, and nothing that is small becomes large."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from layerwise.cli.main import main
from layerwise.data import load
from layerwise.data.folder import decode, scan
from layerwise.errors import CheckpointError, ConfigError, DataError, LayerwiseError
from layerwise.evaluation import Evaluation
from layerwise.experiments import experiment
from layerwise.experiments import settings as blueprint
from layerwise.report.runs import read as read_run
from layerwise.training import checkpoint, load_weights, read_config
from layerwise.trees import parse_yaml
from tests.data import writers
from tests.networks import TinyMLP
from tests.torture.memory import bounded
from tests.torture.test_fuzz import stored
from tests.training.test_checkpoint import seal, store


class Evil:
    """Pickles to a call that leaves a trace."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


EVIL = pickle.dumps(Evil())
YAML = "x: !!python/object/apply:os.mkdir [executed]\n"


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is refused leaves no trace, takes no time, and no memory."""
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    with bounded(400):
        yield
    assert not (tmp_path / "executed").exists()
    assert time.process_time() - begun < 10


def test_the_trace_would_be_seen(tmp_path: Path) -> None:
    pickle.loads(EVIL)  # noqa: S301 - to see that it does what the other tests rule out
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").rmdir()
    yaml.unsafe_load(YAML)
    (tmp_path / "executed").rmdir()


def torch_pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": Evil()}, buffer)
    return buffer.getvalue()


def numpy_pickle() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


PICKLES = {"plain": EVIL, "torch": torch_pickle(), "numpy": numpy_pickle(), "gzip": gzip.compress(EVIL)}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_in_place_of_anything(tmp_path: Path, kind: str) -> None:
    content = PICKLES[kind]

    def put(name: str) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def damaged(name: str, step: int) -> Path:
        folder = store(tmp_path / "c", step)
        (folder / name).write_bytes(content)
        seal(folder)
        return folder

    weights, recipe = [put("w.safetensors"), put("w.pt")], put("recipe.yaml")
    folders = [damaged(f"{name}.safetensors", step) for step, name in enumerate(("model", "state", "rank-0"), 1)]
    put("MNIST/train-images-idx3-ubyte.gz" if kind == "gzip" else "MNIST/train-images-idx3-ubyte")
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        put(f"MNIST/{name}-ubyte")
    put("cifar-10-binary.tar.gz")
    put("cifar-100-binary/train.bin")
    put("cifar-100-binary/test.bin")
    picture, run = put("a.png"), put("run/config.yaml").parent
    reads: list[Callable[[], object]] = [
        *(partial(load_weights, TinyMLP(), file) for file in weights),
        *(partial(checkpoint.read, folder) for folder in folders),
        lambda: load("mnist", root=tmp_path),
        lambda: load("cifar10", root=tmp_path),
        lambda: load("cifar100", root=tmp_path, allow_fewer=True),
        lambda: decode(str(picture)),
        lambda: blueprint.read(str(recipe)),
        lambda: read_config(run),
        lambda: experiment.load(run),
        lambda: Evaluation.from_json(content),
    ]
    for read in reads:
        with pytest.raises(LayerwiseError):
            read()


@pytest.mark.parametrize("name", ["fog.npy", "fog.json", "labels.npy"])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_among_corrupted_images(tmp_path: Path, name: str, kind: str) -> None:
    from layerwise.evaluation.corruptions.cache import open_stored

    layout, maker, _ = stored(tmp_path / "cache")
    (tmp_path / "cache" / name).write_bytes(PICKLES[kind])
    with pytest.raises(DataError):
        open_stored(tmp_path / "cache", "fog", maker, layout)
    stored.cache_clear()


def laughs(levels: int) -> str:
    """Nine aliases a level: a few hundred characters for 9 ** levels values."""
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "aliases": laughs(12),
    "merges": "a0: &a0 {x: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)),
    "depth": "a: " + "[" * 20_000,
    "depth in blocks": "".join("  " * i + "a:\n" for i in range(190)),
    "itself": "a: &a [*a, *a]",
    "size": "a: [" + "1, " * 200_000 + "1]",
    "digits": "a: " + "9" * 100_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_bombs(tmp_path: Path, bomb: str) -> None:
    text = BOMBS[bomb]
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        blueprint.read("recipe.yaml")
    assert len(str(error.value)) < 2000
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError):
        read_config(tmp_path / "run")


@pytest.mark.parametrize("bomb", ["aliases", "itself", "depth"])
@pytest.mark.parametrize("key", ["method.eta", "method.sites", "evaluation.attacks", "data.options", "training.epochs"])
def test_yaml_bombs_within_a_text(bomb: str, key: str) -> None:
    """Texts of a recipe are read once more, by the type of their setting."""
    text = "{" + BOMBS[bomb].replace("\n", ", ") + "}"
    with pytest.raises(ConfigError):
        blueprint.read("slat-digits", [f"--{key}={text}"])


def test_aliases_of_a_sane_size_are_welcome() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {x: 1}}", "it") == {"a": [1, 2], "b": [1, 2], "c": {"x": 1}}


def test_json_bombs(tmp_path: Path) -> None:
    deep = "[" * 100_000
    with pytest.raises(CheckpointError):
        Evaluation.from_json(deep)
    (tmp_path / "data.json").write_text(deep)
    with pytest.raises(CheckpointError):
        experiment._read_facts(tmp_path / "data.json")
    folder = store(tmp_path / "c", 1)
    (folder / "manifest.json").write_text(deep)
    with pytest.raises(CheckpointError):
        checkpoint.read(folder)
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"format": "layerwise-evaluation", "version": 1, "x": "9" * 10})
    )
    with pytest.raises(CheckpointError):
        read_run(tmp_path, "evaluation")


def header(entries: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(begin: int, end: int, shape: list[int] | None = None, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


LIES = {
    "length": header({}, length=2**63),
    "longer than the file": header({"w": entry(0, 400)}, bytes(4)),
    "overlap": header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "backwards": header({"a": entry(8, 0)}, bytes(8)),
    "negative": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]}}, bytes(4)),
    "shape": header({"a": entry(0, 4, [2**40, 2**40])}, bytes(4)),
    "type": header({"a": entry(0, 4, kind="OBJECT")}, bytes(4)),
    "depth": struct.pack("<Q", 50_000) + b"[" * 50_000,
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie(tmp_path: Path, lie: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(LIES[lie])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(TinyMLP(), tmp_path / "w.safetensors")
    folder = store(tmp_path / "c", 1)
    (folder / "rank-0.safetensors").write_bytes(LIES[lie])
    seal(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(folder)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "..", "a/b", ""])
def test_manifests_that_point_elsewhere(tmp_path: Path, name: str) -> None:
    folder = store(tmp_path / "c", 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0", "bytes": 0}
    (folder / "manifest.json").write_bytes(checkpoint._rendered({k: v for k, v in manifest.items() if k != "sha256"}))
    with pytest.raises(CheckpointError, match=r"is damaged: manifest\.json was altered|is missing"):
        checkpoint.read(folder)


def test_headers_that_announce_terabytes(tmp_path: Path) -> None:
    writers.write_idx(tmp_path / "MNIST")
    path = tmp_path / "MNIST/train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(100))
    with pytest.raises(DataError, match="says that it holds 4,294,967,295 items"):
        load("mnist", root=tmp_path)
    with (tmp_path / "MNIST/train-images-idx3-ubyte").open("wb") as file:  # a hole of a terabyte takes no room
        file.write(struct.pack(">4I", 2051, 60_000, 28, 28))
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="holds at least"):
        load("mnist", root=tmp_path)
    files = writers.cifar10_files(1)
    writers.write_files(tmp_path, files)
    os.truncate(tmp_path / "cifar-10-batches-bin/data_batch_1.bin", 1 << 40)
    with pytest.raises(DataError, match="has at least"):
        load("cifar10", root=tmp_path)


def test_archives_that_reach_outside(tmp_path: Path) -> None:
    name = "cifar-10-batches-bin/data_batch_1.bin"
    members = [
        writers.member("../outside", b"x"),
        writers.member("/absolute", b"x"),
        writers.member("link", b"", kind=tarfile.SYMTYPE, link=str(tmp_path / "elsewhere")),
        writers.member("link/through", b"x"),
        writers.member(name, b"", kind=tarfile.LNKTYPE, link="../../outside"),
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "cifar-10-binary.tar.gz").write_bytes(writers.tar_bytes(members))
    with pytest.raises(DataError, match="no regular file"):
        load("cifar10", root=tmp_path / "data")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["cifar-10-binary.tar.gz", "data", "elsewhere"]


def test_archives_that_unpack_to_anything(tmp_path: Path) -> None:
    """A small part of what it becomes."""
    name = "cifar-10-batches-bin/data_batch_1.bin"
    info = tarfile.TarInfo("filler")
    info.size = 1 << 33
    zeros = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = zeros.compress(info.tobuf()) + b"".join(zeros.compress(bytes(1 << 20)) for _ in range(190)) + zeros.flush()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed)
    with pytest.raises(DataError, match="unpacks to more than"):
        load("cifar10", root=tmp_path)
    huge = tarfile.TarInfo(name)
    huge.size = 1 << 50
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(huge.tobuf() + bytes(4096)))
    with pytest.raises(DataError, match=r"has 1,125,899,906,842,624 bytes, expected a file of at most"):
        load("cifar10", root=tmp_path)


def png(width: int, height: int, *, rows: bytes = b"") -> bytes:
    """A PNG that says it is so large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    sizes = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", sizes) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(30_000, 30_000), (10_000, 9_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)]
)
def test_pictures_that_unpack_to_anything(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "a.png").write_bytes(png(width, height))
    with pytest.raises(DataError, match=r"a\.png (has .* pixels to work on|cannot be decoded)"):
        decode(str(tmp_path / "a.png"))


def test_pictures_that_a_resize_would_blow_up(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(100_000, 1, rows=bytes(300_001)))
    assert decode(str(tmp_path / "a.png")).shape == (3, 1, 100_000)
    with pytest.raises(DataError, match=r"has 22,400,000 x 224 pixels to work on"):
        decode(str(tmp_path / "a.png"), resize=224, crop=224)


def test_pictures_of_other_formats_are_not_opened(tmp_path: Path) -> None:
    """Encapsulated PostScript is a program, which Pillow would hand to Ghostscript."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(executed) run\n"
    )
    with pytest.raises(DataError, match="not a picture"):
        decode(str(tmp_path / "a.png"))
    Image.new("RGB", (4, 4)).save(tmp_path / "b.gif")
    (tmp_path / "b.gif").rename(tmp_path / "b.png")
    with pytest.raises(DataError, match="not a picture"):
        decode(str(tmp_path / "b.png"))


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    os.mkfifo(tmp_path / "train/cat/a.png")
    (tmp_path / "train/cat/b.png").symlink_to("/dev/zero")
    found = scan(tmp_path / "train")
    for index in range(2):
        with pytest.raises(DataError, match="is missing or no regular file"):
            found[index]
    writers.write_idx(tmp_path / "MNIST")
    for target in ("/dev/zero", None):
        path = tmp_path / "MNIST/train-labels-idx1-ubyte"
        path.unlink()
        os.mkfifo(path) if target is None else path.symlink_to(target)
        with pytest.raises(DataError, match="is no regular file"):
            load("mnist", root=tmp_path)


def test_folders_that_hold_themselves(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "again").symlink_to("..", target_is_directory=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "cat" / "a.png")
    assert len(scan(tmp_path / "train")) == 1


def test_names_that_would_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "cat\x1b[2J").mkdir(parents=True)
        (tmp_path / part / "cat\x1b[2J" / "a\x07\udc80.png").write_bytes(b"nothing")
    arguments = ["train", "slat-digits", "--data", "image-folder", f"--data.root={tmp_path}", "--data.options.size=8"]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert r"cat\x1b[2J" in told
    assert r"a\x07\udc80.png cannot be decoded (not a picture)" in told.replace("\n", " ")
    assert "\x1b[2J" not in told
    assert "\x07" not in told


def test_zip_files_are_not_arrays(tmp_path: Path) -> None:
    from layerwise.evaluation.corruptions.cache import open_stored

    layout, maker, _ = stored(tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "cache" / "fog.npy", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside", bytes(1 << 24))
    with pytest.raises(DataError, match=r"no \.npy file"):
        open_stored(tmp_path / "cache", "fog", maker, layout)
    stored.cache_clear()
