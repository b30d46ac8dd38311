"""What the pages show runs: every block of Python, every command of `layerwise`, and what a block of settings says.

A page is read from top to bottom, as a reader does: its blocks share their names. What a page takes for granted ("your loader") stands
in `GIVEN`. Commands run as they are printed, with words at their end that make them small (`SMALL`).
"""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import own_method
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerwise as lw
from tests.command import QUICK, Command, finished, layerwise
from tests.data.writers import cifar10_files, pixels, write_files

__all__ = ["finished", "layerwise"]  # fixtures

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem != "roadmap"),
    *TUTORIALS,
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"^    (layerwise .*)$", re.M)


def blocks(page: Path, *kinds: str) -> list[str]:
    """The fenced blocks of a page, top down."""
    return [text for kind, text in FENCED.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def given() -> dict[str, Any]:
    """What pages take for granted: a network, digits, a loop's own objects."""
    torch.manual_seed(0)
    data = lw.load_data("digits")
    assert isinstance(data.train, lw.data.TensorSplit)
    assert data.train.labels is not None
    images, labels = data.train.images[:40], data.train.labels[:40]
    model = lw.build_model("digits_cnn", num_classes=10, shape=data.shape, width=4)
    loader = DataLoader(TensorDataset(images, labels), batch_size=20)
    return {
        "__name__": "page",
        "lw": lw,
        "layerwise": lw,
        "torch": torch,
        "data": data,
        "images": images,
        "labels": labels,
        "model": model,
        "method": lw.FGSM(eps=0.1),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": loader,
        "batches": list(loader),
        "x": images,
        "y": labels,
    }


def create_model(
    name: str, *, pretrained: bool, num_classes: int, img_size: int, patch_size: int, depth: int
) -> nn.Module:
    """In place of timm's, which needs a torchvision that does not exist for torch of CPUs here: a vision transformer of transformers."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=32, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=64)
    config.image_size, config.patch_size = img_size, patch_size

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit = ViTModel(config)
            self.blocks = next(
                part for part in vit.modules() if isinstance(part, nn.ModuleList)
            )  # timm's name for them
            self.vit, self.head = vit, nn.Linear(32, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.vit(pixel_values=x).last_hidden_state[:, 0])
            return logits

    return Classifier()


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning", "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: f"{page.parent.name}-{page.stem}"
)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("timm") is None:
        monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    # A tutorial takes nothing for granted.
    names: dict[str, Any] = {"__name__": "page"} if page in TUTORIALS else given()
    names |= dict(vars(own_method)) if page == ROOT / "docs/own-method.md" else {}  # "with its imports"
    for text in blocks(page, "python"):
        monkeypatch.setitem(sys.modules, "page", type(sys)("page"))  # a dataclass looks its own module up
        exec(compile(text, str(page), "exec", dont_inherit=True), names)  # noqa: S102 - our own pages


def commands() -> list[str]:
    """Every command of `layerwise` that a page shows, once."""
    found: list[str] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in ["\n".join(INDENTED.findall(text)), *blocks(page, "", "console", "sh")]:
            lines = block.replace("\\\n", " ").splitlines()
            typed = [re.split(" [#>] ", line)[0] for line in lines if line.startswith("layerwise ")]
            found += [" ".join(line.split()) for line in typed]
    return list(dict.fromkeys(found))


SMALL = {
    "demo": ["--help"],  # it takes a minute; tests/cli runs it
    "train": ["--dry-run"],
    "evaluate": ["--num-examples=4", "--quiet"],
    "tune": ["--trials=1", "--budget=1", *QUICK[:2], "--quiet"],
    "reproduce": ["--plan"],
    "bench": ["--methods", "Standard", "--rounds=1", "--seconds=0.01", "--batch=2", "--processes=1"],
}
"""What is typed behind a command here, so that it is small."""

FEWER = ["--data.options={allow_fewer: true}", "--data.validation=20"]
"""What lets CIFAR-10 be twenty images."""

HERE = {
    "my.yaml": "extends: slat-cifar10\ndata: {options: {allow_fewer: true}, validation: 20}\n",
    "runs/tune/slat-digits/best.yaml": "extends: slat-digits\n",
}
"""Files that commands read."""


@pytest.fixture
def reader(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader who has followed the pages so far: data, recipes, results."""
    write_files(tmp_path / "data", cifar10_files())
    write_files(tmp_path, {name: text.encode() for name, text in HERE.items()})
    write_files(tmp_path / "pictures", picture_files())
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path / "data"))
    return tmp_path


def picture_files() -> dict[str, bytes]:
    """Two classes, nine grey pictures of 8 x 8 of each."""
    made: dict[str, bytes] = {}
    for index in range(18):
        buffer = io.BytesIO()
        Image.fromarray(pixels(1, 8, 8, seed=index)[0]).save(buffer, "png")
        made[f"{'train' if index < 12 else 'test'}/{'ab'[index % 2]}/{index}.png"] = buffer.getvalue()
    return made


@pytest.mark.parametrize("line", commands())
def test_a_command_of_a_page_runs(line: str, finished: Path, layerwise: Command, reader: Path) -> None:
    command, *words = (word for word in shlex.split(line)[1:] if word != "--compile")  # minutes; tests/training has it
    for word in list(words):
        if command in ("evaluate", "report") and word.startswith("runs/"):
            names = [word.replace("*", str(index)) for index in range(2)]
            names += [other for other in words if word == "runs/*" and other.startswith("runs/") and "*" not in other]
            for name in dict.fromkeys(names):
                if not (reader / name).exists():
                    shutil.copytree(finished, reader / name)
                if command == "report" and "--record" in words:  # a command before it has made it
                    record = words[words.index("--record") + 1]
                    shutil.copy(finished / "evaluation.json", reader / name / f"{record}.json")
            if "*" in word:
                words[words.index(word) : words.index(word) + 1] = names
    words += FEWER if command == "train" and "cifar10" in line else []
    said = layerwise(command, *words, *([] if "--help" in words else SMALL.get(command, [])))
    assert said.code == 0, said.err
    assert said.out
