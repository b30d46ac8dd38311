"""CIFAR-10 in two parts of less than 64 MiB, without loss, for a machine that takes only so much at a time.

    python -m benchmarks.packed pack data build/packed      # cifar10-1.zip and cifar10-2.zip, about 49 MiB each
    python -m benchmarks.packed unpack build/packed data    # the six files again, checked by their digests

A thousand images at a time lie side by side in one picture, which WebP without loss codes in half the bytes; labels are kept as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from PIL import Image

from layerwise.cli.console import complain, say
from layerwise.data.cifar import CIFAR10, PIXELS, Records
from layerwise.errors import DataError, LayerwiseError
from layerwise.files import atomic

PARTS, LIMIT = 2, 64 * 2**20
AT_A_TIME, WIDTH = 1000, 25
"""Images in a picture, and in each of its rows."""
FILES = (*CIFAR10.train, CIFAR10.test)
DIGESTS = "digests.json"


def pack(data: Path, folder: Path) -> list[Path]:
    """Write the parts.

    Args:
        data: folder that holds `cifar-10-batches-bin`.
        folder: of the parts.

    Raises:
        DataError: a file is missing, or a part came out too large.
    """
    digests, pictures = {}, list[tuple[str, bytes]]()
    for name in FILES:
        content = _read(data / CIFAR10.folder / name)
        digests[name] = hashlib.sha256(content).hexdigest()
        records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR10.record)
        for start in range(0, len(records), AT_A_TIME):
            pictures += _coded(f"{name}/{start:05d}", records[start : start + AT_A_TIME])
    half = -(-len(pictures) // PARTS // 2) * 2  # a picture and its labels stay together
    parts = []
    for number in range(PARTS):
        parts.append(folder / f"cifar10-{number + 1}.zip")
        with atomic(parts[-1]) as partial, ZipFile(partial, "w", ZIP_STORED) as file:
            file.writestr(DIGESTS, json.dumps(digests))
            for name, coded in pictures[number * half : (number + 1) * half]:
                file.writestr(name, coded)
        if (size := parts[-1].stat().st_size) > LIMIT:
            raise DataError(f"{parts[-1]} has {size:,} bytes, more than {LIMIT:,}; raise PARTS")
    return parts


def unpack(folder: Path, data: Path) -> list[Path]:
    """Write the files again.

    Args:
        folder: that holds all the parts.
        data: where `cifar-10-batches-bin` is to be.

    Raises:
        DataError: a part is missing or damaged, or a file is not what it was.
    """
    coded: dict[str, bytes] = {}
    for number in range(PARTS):
        part = folder / f"cifar10-{number + 1}.zip"
        try:
            with ZipFile(part) as file:
                coded |= {name: file.read(name) for name in file.namelist()}
        except (OSError, BadZipFile) as error:
            raise DataError(f"{part}: {error}; bring all {PARTS} parts there and type the same again") from None
    digests, written = json.loads(coded.pop(DIGESTS)), []
    for name in FILES:
        pictures = sorted(key for key in coded if key.startswith(f"{name}/") and key.endswith(".webp"))
        content = b"".join(_decoded(coded[key], coded[key.removesuffix(".webp") + ".labels"]) for key in pictures)
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise DataError(f"{folder}: {name} is not what was packed; pack it again")
        with atomic(data / CIFAR10.folder / name) as partial:
            partial.write_bytes(content)
        written.append(data / CIFAR10.folder / name)
    return written


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; the binary version of CIFAR-10 is packed") from None
    if not content or len(content) % CIFAR10.record:
        raise DataError(f"{file} has {len(content):,} bytes, no multiple of {CIFAR10.record:,}; download it again")
    return content


def _coded(name: str, records: Records) -> list[tuple[str, bytes]]:
    """A picture of the records' pixels, and their labels; black fills the last row."""
    rows = -(-len(records) // WIDTH)
    pixels = np.zeros((rows * WIDTH, PIXELS), np.uint8)
    pixels[: len(records)] = records[:, 1:]
    tiles = pixels.reshape(rows, WIDTH, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    picture = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tiles).reshape(rows * 32, WIDTH * 32, 3)).save(picture, "webp", lossless=True)
    return [(f"{name}.webp", picture.getvalue()), (f"{name}.labels", records[:, 0].tobytes())]


def _decoded(picture: bytes, labels: bytes) -> bytes:
    with Image.open(io.BytesIO(picture), formats=["webp"]) as opened:
        tiles = np.asarray(opened.convert("RGB"))
    rows = len(tiles) // 32
    pixels = tiles.reshape(rows, 32, WIDTH, 32, 3).transpose(0, 2, 4, 1, 3).reshape(rows * WIDTH, PIXELS)
    return np.hstack([np.frombuffer(labels, np.uint8)[:, None], pixels[: len(labels)]]).tobytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path, help="pack: the folder of the data; unpack: that of the parts")
    parser.add_argument("target", type=Path, help="the other one")
    arguments = parser.parse_args(argv)
    try:
        for file in (pack if arguments.what == "pack" else unpack)(arguments.source, arguments.target):
            say(f"{file}: {file.stat().st_size:,} bytes")
    except LayerwiseError as error:
        complain(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
