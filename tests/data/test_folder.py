"""Pictures in folders: decoding, layouts, broken files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from layerwise.data import ImageFolder, StreamSplit, batches, load
from layerwise.data.folder import decode, scan
from layerwise.errors import ConfigError, DataError


def picture(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (8, 6), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes: 6 training, 2 validation and 2 test pictures each."""
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / part / name / f"{i}.png", seed=100 * len(part) + 10 * (name == "dog") + i)
    return tmp_path


def paths(split: object) -> list[str]:
    assert isinstance(split, StreamSplit)
    assert isinstance(split.dataset, ImageFolder)
    rows = range(len(split)) if split.rows is None else split.rows.tolist()
    return [split.dataset.files[row] for row in rows]


def test_the_layout_with_three_folders(root: Path) -> None:
    data = load("image-folder", root=root)
    assert (data.classes, data.shape) == (("cat", "dog"), (3, 6, 8))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 4, 4]
    for split, part in ((data.train, "train"), (data.validation, "val"), (data.test, "test")):
        assert all(path.startswith(str(root / part)) for path in paths(split))
        assert split.labels is not None
        for path, label in zip(paths(split), split.labels.tolist(), strict=True):
            assert Path(path).parent.name == data.classes[label]


@pytest.mark.parametrize("removed", ["val", "test"])
def test_the_layout_with_two_folders_holds_validation_out_of_train(root: Path, removed: str) -> None:
    (root / removed).rename(root / "unused")
    data = load("image-folder", root=root, validation=4)
    judge = "test" if removed == "val" else "val"
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8, 4, 4]
    assert all(path.startswith(str(root / "train")) for path in [*paths(data.train), *paths(data.validation)])
    assert all(path.startswith(str(root / judge)) for path in paths(data.test))
    assert len({*paths(data.train), *paths(data.validation)}) == 12
    assert data.validation.labels is not None
    assert data.validation.labels.tolist() == [0, 0, 1, 1]


def test_pixels_are_those_of_the_file(root: Path) -> None:
    data = load("image-folder", root=root)
    x, y = next(batches(data.test, 4, num_workers=1))
    for i, path in enumerate(paths(data.test)):
        expected = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
        assert torch.equal(x[i], expected.float() / 255)
    assert y.tolist() == [0, 0, 1, 1]


def test_pictures_of_other_kinds_become_rgb(tmp_path: Path) -> None:
    grey = decode(str(picture(tmp_path / "grey.png", mode="L")))
    assert grey.shape == (3, 6, 8)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    colour, clear = (picture(tmp_path / f"{mode}.png", mode=mode) for mode in ("RGB", "RGBA"))
    assert torch.equal(
        decode(str(clear)), torch.from_numpy(np.asarray(Image.open(clear))[..., :3].copy()).permute(2, 0, 1)
    )
    Image.open(colour).quantize(4).save(tmp_path / "palette.png", transparency=b"\x00\x80")
    assert decode(str(tmp_path / "palette.png")).shape == (3, 6, 8)
    Image.open(colour).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert decode(str(tmp_path / "cmyk.jpg")).shape == (3, 6, 8)


def test_resize_and_crop(tmp_path: Path) -> None:
    path = str(picture(tmp_path / "x.png", size=(40, 20)))
    assert decode(path, resize=10).shape == (3, 10, 20)
    assert decode(path, resize=10, crop=8).shape == (3, 8, 8)
    whole = decode(path)
    assert torch.equal(decode(path, crop=10), whole[:, 5:15, 15:25])
    flat = tmp_path / "flat.png"
    Image.new("RGB", (33, 50), (10, 200, 30)).save(flat)
    assert torch.equal(
        decode(str(flat), resize=7, crop=7).flatten(1), torch.tensor([10, 200, 30]).byte()[:, None].expand(3, 49)
    )


@pytest.mark.parametrize(("size", "resize", "crop"), [((61, 47), 32, 24), ((20, 33), 40, 40), ((50, 50), 25, 7)])
def test_the_square_is_that_of_the_resized_picture(
    tmp_path: Path, size: tuple[int, int], resize: int, crop: int
) -> None:
    path = str(picture(tmp_path / "x.png", size=size))
    whole = decode(path, resize=resize)
    top, left = ((side - crop) // 2 for side in whole.shape[1:])
    expected = whole[:, top : top + crop, left : left + crop].int()
    # Pillow computes with other roundings where it starts inside the picture.
    assert (decode(path, resize=resize, crop=crop).int() - expected).abs().max() <= 1
    with pytest.raises(DataError, match="too few for a square of 99; crop less"):
        decode(path, resize=resize, crop=99)


def test_pictures_of_several_sizes_need_the_option_size(root: Path) -> None:
    odd = picture(root / "train" / "dog" / "9.png", size=(30, 30))
    with pytest.raises(
        DataError, match=r"image 12 \(.*9.png\) has shape \(3, 30, 30\), the first one \(3, 6, 8\); .*option size"
    ):
        load("image-folder", root=root)
    sized = load("image-folder", root=root, size=4, resize=6)
    assert sized.shape == (3, 4, 4)
    assert odd.name in {Path(path).name for path in paths(sized.train)}
    assert sum(len(x) for x, _ in batches(sized.train, 5)) == 13


@pytest.mark.parametrize("suffix", ["png", "JPEG"])
@pytest.mark.parametrize("change", ["cut", "noise", "empty"])
def test_a_corrupt_picture_names_its_file(root: Path, suffix: str, change: str) -> None:
    path = picture(root / "train" / "cat" / f"bad.{suffix}", size=(64, 64))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "noise": b"no picture", "empty": b""}[change])
    data = scan(root / "train")
    with pytest.raises(DataError) as error:
        data[data.files.index(str(path))]
    assert str(error.value).startswith(f"{path} cannot be decoded (")
    assert str(error.value).endswith("; replace or remove it")
    assert "\n" not in str(error.value)


def test_a_corrupt_picture_found_by_a_worker_is_told_in_one_sentence(root: Path) -> None:
    data = load("image-folder", root=root)
    bad = Path(paths(data.train)[8])
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError) as error:
        list(batches(data.train, 4, num_workers=1))
    assert str(error.value) == f"{bad} cannot be decoded (not a picture); replace or remove it"


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)
    with pytest.raises(
        DataError, match=r"deep.png has more than 8 bits a channel \(mode I;16\); convert it to 8 bits first"
    ):
        decode(str(path))


def test_a_picture_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "large.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"large.png cannot be decoded \(Image size \(4096 pixels\) exceeds limit"):
        decode(str(path))


def test_other_files_are_passed_over_and_subfolders_are_not(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "images" / "a.JPEG")
    picture(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "cat" / "boxes.txt").write_text("1 2 3 4")
    (tmp_path / ".cache").mkdir()
    assert scan(tmp_path).files == (str(tmp_path / "cat" / "images" / "a.JPEG"),)


def test_wrong_layouts(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(DataError) as error:
            load("image-folder", root=tmp_path)
        return str(error.value)

    train, test = tmp_path / "train", tmp_path / "test"
    assert message() == f"image-folder: {train} is no folder; put the pictures of each class under {train}/CLASS"
    train.mkdir()
    picture(train / "a.png")
    assert message() == f"image-folder: {train} holds no folders; put the pictures of each class under {train}/CLASS"
    (train / "cat").mkdir()
    assert message().startswith(f"image-folder: {train / 'cat'} holds no picture (.jpg, .jpeg, .png)")
    picture(train / "cat" / "a.png")
    assert (
        message()
        == f"image-folder: {tmp_path} has no folder test or val; put pictures to evaluate on under {test}/CLASS"
    )
    picture(test / "cow" / "a.png")
    assert message().startswith(f"image-folder: {test / 'cow'} is a class that the training set lacks")


@pytest.mark.parametrize("options", [{"size": 0}, {"resize": 8}, {"size": 8, "resize": 4}])
def test_wrong_sizes(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give size 1 or more, and resize not below size"):
        load("image-folder", root=root, **options)
