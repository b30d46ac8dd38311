from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerwise.data.splits import StreamSplit, TensorSplit
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.corruptions import corrupt, generate_frost, perturb, store
from layerwise.evaluation.corruptions.cache import FOUND, GENERATED, Layout, open_stored
from layerwise.evaluation.corruptions.views import Maker

MAKER = Maker(frost=generate_frost())


def split(size: int = 7, channels: int = 3) -> TensorSplit:
    generator = torch.Generator().manual_seed(size)
    images = torch.randint(0, 256, (size, channels, 9, 8), generator=generator).to(torch.uint8)
    return TensorSplit(images, torch.arange(size) % 3)


def opened(folder: Path, name: str = "fog", data: TensorSplit | None = None, maker: Maker = MAKER) -> Any:
    return open_stored(folder, name, maker, Layout.of(data or split()))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions_are_stored_as_cifar_10_c_is(tmp_path: Path, channels: int) -> None:
    data = split(channels=channels)
    store(tmp_path, data, names=["fog", "frost"], seed=4, frost=generate_frost(), batch_size=3)
    assert files(tmp_path) == ["fog.json", "fog.npy", "frost.json", "frost.npy", "labels.npy"]
    found = np.load(tmp_path / "frost.npy", allow_pickle=False)
    assert found.dtype == np.uint8
    assert found.shape == (35, 9, 8, channels)
    for severity in (1, 4):
        expected = corrupt(data.images.float() / 255, "frost", severity, seed=4, frost=generate_frost())
        rows = torch.from_numpy(found[(severity - 1) * 7 : severity * 7]).permute(0, 3, 1, 2)
        assert torch.equal(rows.float(), (expected * 255).round())
    assert np.load(tmp_path / "labels.npy").tolist() == (np.arange(7) % 3).tolist() * 5
    note = json.loads((tmp_path / "frost.json").read_text())
    assert note["note"] == GENERATED
    assert note["seed"] == 4
    assert "generated" in note["frost"]


def test_sequences_are_stored_as_cifar_10_p_is(tmp_path: Path) -> None:
    data = split()
    store(tmp_path, data, names=["translate", "snow"], sequences=True, seed=2, batch_size=3)
    assert files(tmp_path) == ["snow.json", "snow.npy", "translate.json", "translate.npy"]
    found = np.load(tmp_path / "snow.npy", allow_pickle=False)
    assert found.shape == (7, 31, 9, 8, 3)
    expected = torch.stack(list(perturb(data.images.float() / 255, "snow", seed=2)), dim=1)
    assert torch.equal(torch.from_numpy(found).permute(0, 1, 4, 2, 3).float(), (expected * 255).round())


@pytest.mark.parametrize("sequences", [False, True])
def test_what_was_stored_is_what_is_generated(tmp_path: Path, sequences: bool) -> None:
    name, data = "brightness", split()
    maker = Maker(sequences)
    store(tmp_path, data, names=[name], sequences=sequences)
    stored = opened(tmp_path, name, data, maker)
    rows = torch.tensor([5, 0, 3])
    x = data.images[rows].float() / 255
    read = list(stored.views(maker.count(name), rows))
    made = list(maker.views(x, name, rows))
    assert stored.source == GENERATED
    assert len(read) == len(made) == maker.count(name)
    for a, b in zip(read, made, strict=True):
        assert torch.equal(a, b)


def test_a_stored_file_is_not_made_again(tmp_path: Path) -> None:
    store(tmp_path, split(), names=["fog"])
    before = (tmp_path / "fog.npy").stat()
    store(tmp_path, split(), names=["fog", "contrast"])
    after = (tmp_path / "fog.npy").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert (tmp_path / "contrast.npy").exists()


def test_published_files_carry_no_note_and_are_believed(tmp_path: Path) -> None:
    np.save(tmp_path / "fog.npy", np.zeros((35, 9, 8, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(7) % 3, 5))
    assert opened(tmp_path).source == FOUND
    assert opened(tmp_path, "snow") is None


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Maker, x: Tensor, name: str, rows: Tensor) -> Any:
        yield x
        raise KeyboardInterrupt

    monkeypatch.setattr(Maker, "views", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, split(), names=["fog"])
    assert files(tmp_path) == ["labels.npy"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        store(tmp_path / "file", split(), names=["fog"])


def test_labels_of_a_stream_are_read_from_it(tmp_path: Path) -> None:
    whole = split()
    pairs = [(image, int(label)) for image, label in zip(whole.images, whole.labels, strict=True)]
    stream = StreamSplit(dataset=pairs, shape=(3, 9, 8), num_classes=3)  # type: ignore[arg-type]
    store(tmp_path, stream, names=["contrast"])
    assert opened(tmp_path, "contrast", whole).source == GENERATED


@pytest.mark.parametrize(
    ("maker", "words"),
    [
        (Maker(seed=1), "generated with seed '0', asked for is '1'"),
        (Maker(table="imagenet"), "generated with table 'cifar'"),
        (Maker(sequences=True), "not uint8 of shape"),
    ],
)
def test_files_made_otherwise_are_refused(tmp_path: Path, maker: Maker, words: str) -> None:
    store(tmp_path, split(), names=["snow"])
    with pytest.raises(DataError, match=words):
        opened(tmp_path, "snow", maker=maker)


def test_files_of_other_data_are_refused(tmp_path: Path) -> None:
    store(tmp_path, split(), names=["fog"])
    with pytest.raises(DataError, match=r"fog\.npy holds uint8 of shape \(35, 9, 8, 3\), not"):
        opened(tmp_path, data=split(8))
    data = split()
    with pytest.raises(DataError, match="class 1 for row 1, these images' labels say 2"):
        opened(tmp_path, data=TensorSplit(data.images, torch.tensor([0, 2, 1, 0, 1, 2, 0])))
    with pytest.raises(DataError, match="generated with fingerprint"):
        opened(tmp_path, data=TensorSplit(255 - data.images, data.labels))
    with pytest.raises(DataError, match="belongs to other data"):
        store(tmp_path, split(8), names=["contrast"])


def _npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def _header(text: str, version: bytes = b"\x01\x00") -> bytes:
    content = text.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + len(content).to_bytes(2, "little") + content


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("fog.npy", _npy(np.zeros((35, 9, 8, 3), np.uint8)))
    return file.getvalue()


WHOLE = _npy(np.zeros((35, 9, 8, 3), np.uint8))
HOSTILE = {
    "empty": b"",
    "text": b"not an array\n" * 50,
    "zip": _zip(),
    "pickle": _npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "cut in the header": WHOLE[:40],
    "cut in the pixels": WHOLE[:-1],
    "too long": WHOLE + b"\0",
    "floats": _npy(np.zeros((35, 9, 8, 3), np.float32)),
    "signed": _npy(np.zeros((35, 9, 8, 3), np.int8)),
    "channels first": _npy(np.zeros((35, 3, 9, 8), np.uint8)),
    "Fortran order": _npy(np.asfortranarray(np.zeros((35, 9, 8, 3), np.uint8))),
    "huge": _header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 9, 8, 3)}"),
    "negative": _header("{'descr': '|u1', 'fortran_order': False, 'shape': (-35, 9, 8, 3)}"),
    "code": _header("__import__('os').abort()"),
    "nested": _header("[" * 5000),
    "no shape": _header("{'descr': '|u1', 'fortran_order': False}"),
    "strange type": _header("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (35, 9, 8, 3)}"),
    "version": b"\x93NUMPY\x09\x00" + WHOLE[8:],
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_broken_files_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fog.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"fog\.npy") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert (tmp_path / "fog.npy").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"[" * 60_000, b"\xff\xfe"])
def test_broken_notes_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    store(tmp_path, split(), names=["fog"])
    (tmp_path / "fog.json").write_bytes(content)
    with pytest.raises(DataError, match=r"fog\.json") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", _npy(np.zeros(35)), _npy(np.zeros((5, 7), np.uint8)), _npy(np.zeros(34, np.uint8))]
)
def test_broken_labels_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fog.npy").write_bytes(WHOLE)
    (tmp_path / "labels.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.npy"):
        opened(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "fog.npy").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path)


def _flip(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + bytes([value]) + content[at + 1 :]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    edit=st.builds(
        lambda at, value: lambda content: _flip(content, at, value), st.integers(0, 127), st.integers(0, 255)
    )
)
def test_a_header_with_any_byte_changed_is_read_or_refused(tmp_path: Path, edit: Callable[[bytes], bytes]) -> None:
    (tmp_path / "fog.npy").write_bytes(edit(WHOLE))
    try:
        shape = opened(tmp_path).array.shape
    except DataError as error:
        shape = (35, 9, 8, 3) if "\n" not in str(error) else ()
    assert shape == (35, 9, 8, 3)


def test_unknown_names_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        store(tmp_path / "new", split(), names=["fog", "contrst"])
    assert not (tmp_path / "new").exists()
