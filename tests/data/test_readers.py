"""Readers of the distributed binary forms, on small files written here; broken and hostile ones."""

from __future__ import annotations

import gzip
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from layerwise.data import TensorSplit, batches, describe, load, names
from layerwise.data.holdout import hold_out, pixel_statistics
from layerwise.errors import ConfigError, DataError
from tests.data import writers


@pytest.fixture(autouse=True)
def no_other_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAYERWISE_DATA", raising=False)


def memory(split: object) -> TensorSplit:
    assert isinstance(split, TensorSplit)
    return split


def fails(make: Callable[[], object], *parts: str | Path) -> None:
    """Raises a DataError of one sentence that holds all of `parts`."""
    with pytest.raises(DataError) as error:
        make()
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


# --- MNIST and Fashion-MNIST


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_round_trip(tmp_path: Path, name: str, folder: str, packed: bool) -> None:
    held = writers.write_idx(tmp_path / folder, packed=packed)
    data = load(name, root=tmp_path, validation=0)
    for split, part in ((data.train, "train"), (data.test, "t10k")):
        assert memory(split).images[:, 0].numpy().tolist() == held[f"{part}-images-idx3"].tolist()
        assert memory(split).labels.tolist() == held[f"{part}-labels-idx1"].tolist()
    assert (data.name, data.shape, data.num_classes) == (name, (1, 28, 28), 10)
    assert len(load(name, root=tmp_path, validation=0.25).validation) == 5


def test_a_folder_of_idx_files_is_taken_by_its_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion = tmp_path / "datasets" / "fashion-mnist"
    writers.write_idx(fashion, packed=True)
    monkeypatch.setenv("LAYERWISE_DATA", str(fashion))
    assert len(load("fashion-mnist", validation=0).train) == 20
    fails(lambda: load("mnist"), "mnist: train-images-idx3-ubyte.gz", f"not found in {fashion / 'MNIST/raw'}")


def test_missing_files_tell_how_to_get_them(tmp_path: Path) -> None:
    fails(
        lambda: load("mnist", root=tmp_path),
        f"train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz not found in {tmp_path / 'MNIST/raw'}",
        "add --data.download true (in Python download=True) to fetch 11.6 MB into it",
        "LAYERWISE_DATA",
    )
    assert list(tmp_path.iterdir()) == []


def first_image_file(root: Path) -> Path:
    return root / "MNIST/raw/train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b[:-1],
            "holds 15,695 bytes, by its header 15,696 (20 images); it is cut off or corrupt: download it again",
        ),
        (lambda b: b + b"x", "holds 15,697 bytes, by its header 15,696 (20 images)"),
        (lambda b: b[:9], "has 9 bytes, its header alone needs 16; download it again"),
        (lambda b: b"", "has 0 bytes, its header alone needs 16"),
        (lambda b: struct.pack(">I", 2049) + b[4:], "starts with 2049, an IDX file of images starts with 2051"),
        (lambda b: b"\x1f\x8b" + b[2:], "an IDX file of images starts with 2051; download it again"),
        (
            lambda b: b[:8] + struct.pack(">2I", 32, 32) + b[16:],
            "says that it holds 20 items of 32 x 32, expected at most 60,000 of 28 x 28",
        ),
        (
            lambda b: b[:4] + struct.pack(">I", 4_000_000_000) + b[8:],
            "says that it holds 4,000,000,000 items of 28 x 28, expected at most 60,000 of 28 x 28",
        ),
    ],
)
def test_broken_idx_images(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    writers.write_idx(tmp_path / "MNIST/raw")
    path = first_image_file(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    fails(lambda: load("mnist", root=tmp_path), path, message)


def test_idx_labels_out_of_range_or_too_few(tmp_path: Path) -> None:
    writers.write_idx(tmp_path / "MNIST/raw")
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">2I", 2049, 10) + bytes([0, 1, 2, 17, 4, 5, 6, 7, 8, 9]))
    fails(lambda: load("mnist", root=tmp_path), path, "label 3 is 17; with 10 classes the labels must be 0 to 9")
    path.write_bytes(struct.pack(">2I", 2049, 9) + bytes(9))
    fails(lambda: load("mnist", root=tmp_path), "holds 10 images and", path, "9 labels; download both again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b[:-20],
            "is no whole gzip file (Compressed file ended before the end-of-stream marker was reached)",
        ),
        (lambda b: b"no gzip" + b, "is no whole gzip file (Not a gzipped file"),
        (lambda b: b[:10] + b"\xff" + b[11:], "is no whole gzip file (Error -3 while decompressing data"),
        (lambda b: b[:60] + bytes(8) + b[68:], "is no whole gzip file (CRC check failed"),
    ],
)
def test_broken_gzip(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    writers.write_idx(tmp_path / "MNIST/raw", packed=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    fails(lambda: load("mnist", root=tmp_path), path, message, "delete it and download it again")


def test_a_gzip_bomb_is_unpacked_to_the_expected_size_only(tmp_path: Path) -> None:
    writers.write_idx(tmp_path / "MNIST/raw", packed=True)
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">2I", 2049, 20) + bytes(5_000_000), 1))
    fails(lambda: load("mnist", root=tmp_path), path, "holds at least 60,009 bytes, by its header 28 (20 labels)")


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    writers.write_idx(tmp_path / "MNIST/raw")
    path = first_image_file(tmp_path)
    path.unlink()
    path.mkdir()
    fails(
        lambda: load("mnist", root=tmp_path),
        path,
        "cannot be read (is a directory); check the path and its permissions",
    )


# --- CIFAR


def write_archive(root: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    path = root / "cifar-10-binary.tar.gz"
    path.write_bytes(writers.tar_bytes(members))
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_round_trip(tmp_path: Path, packed: bool) -> None:
    files = writers.cifar10_files(20)
    if packed:
        write_archive(
            tmp_path,
            [
                writers.member("cifar-10-batches-bin/readme.html", b"hello"),
                *(writers.member(*item) for item in files.items()),
            ],
        )
    else:
        writers.write_files(tmp_path, files)
    data = load("cifar10", root=tmp_path, validation=0, allow_fewer=True)
    assert (len(data.train), len(data.test), data.shape, data.num_classes) == (100, 20, (3, 32, 32), 10)
    raw = b"".join(files.values())
    for i in (0, 27, 99):
        record = raw[i * 3073 : (i + 1) * 3073]
        assert memory(data.train).labels[i] == record[0] == i % 20 % 10
        assert memory(data.train).images[i].numpy().tobytes() == record[1:]
    assert memory(data.test).images.numpy().tobytes()[:3072] == raw[100 * 3073 + 1 : 101 * 3073]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "cifar-10-binary.tar.gz" if packed else "cifar-10-batches-bin"
    ]


@pytest.mark.parametrize("coarse", [False, True])
def test_cifar100_round_trip(tmp_path: Path, coarse: bool) -> None:
    for name, count in (("train.bin", 60), ("test.bin", 30)):
        writers.write_files(tmp_path, {f"cifar-100-binary/{name}": writers.cifar_bytes(count, (20, 100))})
    data = load("cifar100", root=tmp_path, validation=0, allow_fewer=True, coarse=coarse)
    assert data.num_classes == (20 if coarse else 100)
    assert memory(data.train).labels.tolist() == [i % (20 if coarse else 100) for i in range(60)]
    assert memory(data.test).images.numpy().tobytes()[:3072] == writers.cifar_bytes(30, (20, 100))[2:3074]


def test_a_cifar_file_cut_between_two_images_is_refused(tmp_path: Path) -> None:
    writers.write_files(tmp_path, writers.cifar10_files(20))
    path = tmp_path / "cifar-10-batches-bin/data_batch_1.bin"
    fails(
        lambda: load("cifar10", root=tmp_path),
        f"{path} has 61,460 bytes, expected 30,730,000 (10,000 images of 3,073); it is cut off or corrupt: download it again",
        "or set allow_fewer",
    )
    path.write_bytes(path.read_bytes()[:-100])
    fails(lambda: load("cifar10", root=tmp_path, allow_fewer=True), f"{path} has 61,360 bytes, expected 30,730,000")
    path.write_bytes(b"")
    fails(lambda: load("cifar10", root=tmp_path, allow_fewer=True), f"{path} has 0 bytes")
    path.unlink()
    fails(lambda: load("cifar10", root=tmp_path), f"{path.parent} lacks data_batch_1.bin; add --data.download true")


def test_a_cifar_file_that_is_too_long(tmp_path: Path) -> None:
    writers.write_files(
        tmp_path, writers.cifar10_files(20) | {"cifar-10-batches-bin/data_batch_1.bin": bytes(30_730_001)}
    )
    fails(
        lambda: load("cifar10", root=tmp_path, allow_fewer=True), "has at least 30,730,001 bytes, expected 30,730,000"
    )


def test_cifar_labels_out_of_range(tmp_path: Path) -> None:
    files = writers.cifar10_files(20)
    name = "cifar-10-batches-bin/data_batch_2.bin"
    files[name] = files[name][: 3 * 3073] + b"\x0b" + files[name][3 * 3073 + 1 :]
    writers.write_files(tmp_path, files)
    fails(lambda: load("cifar10", root=tmp_path, allow_fewer=True), tmp_path / name, "label 3 is 11; with 10 classes")


def test_missing_cifar_and_the_pickled_version(tmp_path: Path) -> None:
    fails(
        lambda: load("cifar10", root=tmp_path),
        f"cifar10: cifar-10-binary.tar.gz not found in {tmp_path}; add --data.download true",
        "fetch 170.1 MB",
    )
    (tmp_path / "cifar-10-batches-py").mkdir()
    fails(lambda: load("cifar10", root=tmp_path), "cifar-10-batches-py is the version in Python pickles", "is not read")
    fails(lambda: load("cifar100", root=tmp_path), "cifar-100-binary.tar.gz not found in")


def test_members_with_other_paths_are_passed_over(tmp_path: Path) -> None:
    files = writers.cifar10_files(20)
    members = [writers.member(f"../{name}", content) for name, content in files.items()]
    path = write_archive(tmp_path, [*members, writers.member("/etc/layerwise", b"x")])
    fails(lambda: load("cifar10", root=tmp_path), f"{path} does not hold cifar-10-batches-bin/data_batch_1.bin, ")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_a_link_is_refused(tmp_path: Path, kind: bytes) -> None:
    name = "cifar-10-batches-bin/data_batch_1.bin"
    path = write_archive(tmp_path, [writers.member(name, b"", kind=kind, link="/etc/passwd")])
    fails(lambda: load("cifar10", root=tmp_path), f"{path}: the member {name} is no regular file")


def test_a_member_that_is_too_large_is_refused(tmp_path: Path) -> None:
    name = "cifar-10-batches-bin/test_batch.bin"
    path = write_archive(tmp_path, [writers.member(name, bytes(30_730_001))])
    fails(
        lambda: load("cifar10", root=tmp_path),
        f"{path}: the member {name} has 30,730,001 bytes, expected a file of at most",
    )


def test_an_archive_bomb_is_stopped(tmp_path: Path) -> None:
    path = write_archive(tmp_path, [writers.member("zeros", bytes(190_000_000))])
    fails(
        lambda: load("cifar10", root=tmp_path), f"{path} unpacks to more than the 185,428,576 bytes that the data need"
    )


def test_a_broken_archive(tmp_path: Path) -> None:
    path = write_archive(tmp_path, [writers.member(*item) for item in writers.cifar10_files(20).items()])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(lambda: load("cifar10", root=tmp_path, allow_fewer=True), path, "is no whole .tar.gz", "download it again")
    path.write_bytes(gzip.compress(b"no archive" * 1000))
    fails(lambda: load("cifar10", root=tmp_path, allow_fewer=True), path, "is no whole .tar.gz")
    path.unlink()
    path.mkdir()
    fails(lambda: load("cifar10", root=tmp_path, allow_fewer=True), f"{path} cannot be read (is a directory)")


# --- embedded and generated


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data, bunch = load("digits"), load_digits()
    images = torch.cat([memory(split).images for split in (data.train, data.validation, data.test)])
    labels = torch.cat([memory(split).labels for split in (data.train, data.validation, data.test)])
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1131, 126, 540]

    def rows(pixels: object, classes: object) -> list[tuple[object, ...]]:
        return sorted((int(c), *map(float, p)) for p, c in zip(pixels, classes, strict=True))  # type: ignore[call-overload]

    assert rows(images.flatten(1) * 16, labels) == rows(bunch.data, bunch.target)
    assert memory(data.test).labels.bincount().tolist() == [54, 55, 53, 55, 54, 55, 54, 54, 52, 54]
    assert pixel_statistics(load("digits", validation=0).train) == (data.mean, data.std)


def test_the_test_set_of_digits_never_changes() -> None:
    first, second = (load("digits", seed=seed, validation=v) for seed, v in ((0, 0.1), (7, 300)))
    assert torch.equal(memory(first.test).images, memory(second.test).images)
    assert not torch.equal(memory(first.train).images[:800], memory(second.train).images[:800])
    # The permutation itself is a promise: these rows must not change with any version of anything.
    _, held = hold_out(1797, 540, key="digits/test")
    assert held[:8].tolist() == [1, 6, 7, 8, 9, 11, 17, 21]


def test_the_validation_split_follows_the_seed() -> None:
    one, same, other = (memory(load("digits", seed=seed).validation).images for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_gaussians_have_the_asked_moments() -> None:
    mean, covariance = (2.0, -0.5), ((1.0, 0.3), (0.3, 0.5))
    data = load("gaussians", mean=mean, covariance=covariance, size=20_000, test_size=100, validation=0, seed=3)
    split = memory(data.train)
    assert (data.shape, data.value_range, data.num_classes, len(data.test)) == ((2, 1, 1), None, 2, 100)
    for label, sign in ((0, 1), (1, -1)):
        points = split.images[split.labels == label].flatten(1).double()
        assert torch.allclose(points.mean(0), sign * torch.tensor(mean).double(), atol=0.05)
        assert torch.allclose(points.T.cov(), torch.tensor(covariance).double(), atol=0.05)
    ((x, _),) = batches(data.test, 100)
    assert x.min() < 0
    assert torch.equal(memory(load("gaussians", seed=3).test).images, memory(load("gaussians", seed=3).test).images)


@pytest.mark.parametrize(
    "options",
    [{"covariance": ((1.0, 2.0), (2.0, 1.0))}, {"covariance": ((1.0, 0.1), (0.0, 1.0))}, {"mean": (1.0,)}],
)
def test_wrong_gaussians(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give 2 numbers, and a symmetric positive 2 x 2 matrix"):
        load("gaussians", **options)
    with pytest.raises(ConfigError, match="size is 1 and test_size 1000; give 2 points or more each"):
        load("gaussians", size=1)


# --- names


def test_every_name_is_described() -> None:
    small = {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100"}
    assert set(names()) == {*small, "image-folder", "tiny-imagenet", "gaussians"}
    for name in names():
        assert "Files: " in describe(name)
        assert "Held out for validation" in describe(name)
    assert "Options: coarse=False, allow_fewer=False." in describe("cifar100")


def test_unknown_names_and_options() -> None:
    with pytest.raises(ConfigError, match=r"^there is no data set 'cifar-10'; did you mean 'cifar10' or 'cifar100'\? "):
        load("cifar-10")
    with pytest.raises(ConfigError, match=r"^data set 'cifar100' has no option 'course'; did you mean 'coarse'\?$"):
        load("cifar100", course=True)
    with pytest.raises(
        ConfigError, match=r"^data set 'digits' has no option 'size'; it has none; all have root, valid"
    ):
        load("digits", size=8)
    with pytest.raises(
        ConfigError, match=r"^validation is 1257; give a fraction below 1 or a whole number of images below the 1257"
    ):
        load("digits", validation=1257)


def test_a_data_set_of_ones_own_is_found_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_sets.py").write_text(
        "import torch\n"
        "from layerwise.data import ImageData, from_tensors\n"
        "def noise(root, seed, size=40):\n"
        "    y = torch.arange(size) % 2\n"
        "    return from_tensors(torch.rand(size, 1, 4, 4), y, test=(torch.rand(4, 1, 4, 4), y[:4]), name=f'{root.name}-{seed}')\n"
        "def number() -> int:\n"
        "    return 5\n"
        "def lies() -> ImageData:\n"
        "    return 5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_sets", raising=False)
    with pytest.raises(ConfigError, match=r"'own_sets:noise', which would be executed; add --trust to allow it"):
        load("own_sets:noise")
    assert load("own_sets:noise", trust=True, root="here", size=30).name == "here-0"
    with pytest.raises(ConfigError, match=r"^data set 'own_sets:noise' has no option 'sise'; did you mean 'size'"):
        load("own_sets:noise", trust=True, sise=3)
    with pytest.raises(
        ConfigError, match=r"'own_sets:number' is a function that does not say that it makes a data set; wr"
    ):
        load("own_sets:number", trust=True)
    with pytest.raises(
        ConfigError, match=r"data set 'own_sets:lies' gave a int; it has to give a layerwise.data.ImageDa"
    ):
        load("own_sets:lies", trust=True)
