from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from layerwise.errors import DataError
from layerwise.evaluation.corruptions import corrupt, generate_frost, load_frost
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.frost import FILES, Frost


def pictures(folder: Path, size: tuple[int, int] = (300, 260)) -> Path:
    (folder / "frost").mkdir()
    for i, name in enumerate(FILES):
        mode = "RGBA" if name.endswith("png") else "RGB"
        Image.new(mode, size, (40 * i + 20, 7, 9, 0)[: len(mode)]).save(folder / "frost" / name)
    return folder


def test_the_user_s_pictures_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frost = load_frost(pictures(tmp_path))
    assert frost.source == "the pictures in the folder frost"
    # Opacity is dropped, not painted on black.
    assert [p.shape for p in frost.pictures] == [(3, 260, 300)] * 5
    assert int(frost.pictures[2][0, 0, 0]) == 100
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    black = torch.zeros(40, 3, 32, 32)
    reds = (corrupt(black, "frost", 1) * 255).round()[:, 0].flatten(1)
    # 0.2 times 20, 60, 100, 140 or 180 (the last two through JPEG), and every picture drawn.
    assert {round((float(red) - 4) / 8) for red in reds[:, 0]} == {0, 1, 2, 3, 4}
    assert (reds.amax(dim=1) == reds.amin(dim=1)).all()


def test_without_pictures_a_texture_is_generated(tmp_path: Path) -> None:
    frost = load_frost(tmp_path)
    assert frost is generate_frost()
    assert "generated" in frost.source
    assert len(frost.pictures) == 5
    for picture in frost.pictures:
        assert picture.dtype == torch.uint8
        assert picture.shape == (3, 512, 512)
        assert 15 < float(picture.float().std(dim=(1, 2)).mean()) < 50


@pytest.mark.parametrize(("size", "zoom"), [((32, 32), 0.2), ((224, 224), 1.0), ((300, 700), 1.0), ((8, 8), 0.05)])
def test_crops_cover_the_image_with_one_picture(size: tuple[int, int], zoom: float) -> None:
    ramp = torch.arange(200 * 300).view(1, 200, 300).remainder(256).expand(3, -1, -1).to(torch.uint8)
    flat = torch.full((3, 90, 500), 77, dtype=torch.uint8)
    crops = Frost((ramp, flat), "test").crops(Draws(0, "frost/1", torch.arange(12)), *size, zoom=zoom)
    assert crops.shape == (12, 3, *size)
    is_flat = (crops == 77 / 255).flatten(1).all(dim=1)
    assert 0 < int(is_flat.sum()) < 12


def test_at_a_fifth_pixels_are_picked(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 200, 200), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    crops = Frost((picture,), "test").crops(Draws(0, "frost/1", torch.arange(50)), 39, 39, zoom=0.2)
    assert torch.equal((crops[0] * 255).round(), picture[:, 2::5, 2::5][:, :39, :39].float())


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no readable picture"),
        (b"junk" * 100, "no readable picture"),
        (_png(100_000, 100_000), "no readable picture"),
        (_png(8000, 8000), "pixels"),
        (_png(20, 400), "pixels"),
        (_png(400, 400), "no readable picture"),
    ],
)
def test_broken_pictures_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    folder = pictures(tmp_path) / "frost"
    (folder / "frost2.png").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_frost(tmp_path)
    assert "frost2.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_incomplete_folder_is_no_folder_without_frost(tmp_path: Path) -> None:
    (pictures(tmp_path) / "frost" / "frost4.jpg").unlink()
    with pytest.raises(DataError, match=r"frost4\.jpg is missing"):
        load_frost(tmp_path)
