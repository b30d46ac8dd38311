"""Phrases on small copies of the shapes that families of networks have: stages, gates, stems, attention, adapters, token ids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import layerwise
from layerwise.core.calling import Inputs
from layerwise.core.selection import Selection, select
from layerwise.core.tracing import trace
from layerwise.errors import SiteError
from layerwise.methods import ANP, LAD, LAT, SLAT, LayerMethod, Standard


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, z: Tensor) -> Tensor:
        weights: Tensor = self.fc2(self.fc1(z.mean((2, 3), keepdim=True)).relu())
        return z * weights.sigmoid()


class Gated(nn.Module):
    """An inverted residual: its gate has two layers, and is a numbered part."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), Gate(2 * width), nn.BatchNorm2d(2 * width), nn.Conv2d(2 * width, width, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = z + self.block(z)
        return out


class Stage(nn.Module):
    """A module of its own that is a list of blocks after a layer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 8, 2, 2)
        self.blocks = nn.Sequential(*(Gated() for _ in range(count)))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.down(z))
        return out


def staged() -> nn.Module:
    """A stem of two convolutions, two stages, one of them with a single block."""
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
    return nn.Sequential(stem, Stage(1), Stage(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class Attention(nn.Module):
    """A tuple comes out, as in transformers; the weights belong to no row."""

    def __init__(self, project: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.qkv, self.out = project(8, 24), project(8, 8)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(z).chunk(3, -1)
        weights = (q @ k.transpose(1, 2)).softmax(-1)
        return self.out(weights @ v), weights.flatten(0, 1)


class Layer(nn.Module):
    def __init__(self, project: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.attn = Attention(project)
        self.up, self.down = project(8, 16), project(16, 8)

    def forward(self, hidden: Tensor, *, mask: Tensor) -> tuple[Tensor]:
        hidden = hidden + self.attn(hidden)[0] * mask.unsqueeze(-1)
        return (hidden + self.down(self.up(hidden).relu()),)


class Language(nn.Module):
    """Token ids in, by name; positions are a table without rows; an object with logits out."""

    def __init__(self, project: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.layers = nn.ModuleList(Layer(project) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        z = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])[None])
        for layer in self.layers:
            (z,) = layer(z, mask=attention_mask)
        return {"logits": self.head(z.mean(1))}


class Conv1D(nn.Module):
    """GPT-2's linear layer, which is none of torch's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 4)

    def forward(self, z: Tensor) -> Tensor:
        return torch.matmul(z, self.weight)


class Adapter(nn.Module):
    """LoRA as PEFT lays it out."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.base_layer(z) + self.lora_B(self.lora_A(z))
        return out


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = {"input_ids": torch.arange(18).view(3, 6), "attention_mask": torch.ones(3, 6)}
BLOCKS = ["1.blocks.0", "2.blocks.0", "2.blocks.1"]
LINEAR = ["attn.qkv", "attn.out", "up", "down"]


def conv1d() -> nn.Module:
    return Language(Conv1D)


def adapted() -> nn.Module:
    return Language(Adapter)


TABLE: list[tuple[Callable[[], nn.Module], Inputs, Selection, list[str]]] = [
    (staged, IMAGES, "embeddings", ["0.0"]),
    (staged, IMAGES, "block outputs", BLOCKS),
    (staged, IMAGES, "residual-block outputs", BLOCKS),
    (staged, IMAGES, "block states", ["1.blocks.0:input", *BLOCKS]),
    (staged, IMAGES, "first(2) block outputs", BLOCKS[:2]),
    # What comes before the first block is one layer, its last; gates are none.
    (staged, IMAGES, "first(4)", ["1.down", "1.blocks.0.block.0", "1.blocks.0.block.3", "2.down"]),
    (Language, TOKENS, "embeddings", ["words"]),
    (Language, TOKENS, "block outputs", ["layers.0:output[0]", "layers.1:output[0]"]),
    (Language, TOKENS, "block states", ["layers.0:input[0]", "layers.0:output[0]", "layers.1:output[0]"]),
    (Language, TOKENS, "attention outputs", ["layers.0.attn:output[0]", "layers.1.attn:output[0]"]),
    (Language, TOKENS, "mlp outputs", ["layers.0.down", "layers.1.down"]),
    (Language, TOKENS, "first(4)", [f"layers.0.{name}" for name in LINEAR]),
    (conv1d, TOKENS, "affine outputs", [*(f"layers.{i}.{name}" for i in (0, 1) for name in LINEAR), "head"]),
    (adapted, TOKENS, "affine outputs", [*(f"layers.{i}.{name}" for i in (0, 1) for name in LINEAR), "head"]),
]


@pytest.mark.parametrize(("network", "x", "phrase", "expected"), TABLE)
def test_a_phrase_finds(network: Callable[[], nn.Module], x: Inputs, phrase: str, expected: list[str]) -> None:
    assert [str(c.site) for c in select(trace(network(), x), phrase)] == expected


def test_what_has_no_row_for_each_example_is_left_out_unless_there_is_nothing_else() -> None:
    class Windows(nn.Module):
        def __init__(self, many: int) -> None:
            super().__init__()
            self.many, self.first, self.second = many, nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x.reshape(-1, 4))
            out: Tensor = z if self.many == 1 else self.second(z.view(len(x), -1, 4))
            return out.reshape(len(x), -1)

    x = torch.rand(3, 8)
    assert [str(c.site) for c in select(trace(Windows(2), x), "affine outputs")] == ["second"]
    with pytest.raises(SiteError, match=r"^site 'first' has shape \(4, 4\) for a batch of 2: its first dimension"):
        select(trace(Windows(1), x), "affine outputs")


DEFAULTS: list[tuple[LayerMethod, Callable[[], nn.Module], Inputs, list[str]]] = [
    (SLAT(eta=0.1), staged, IMAGES, ["0.0", BLOCKS[0]]),
    (SLAT(eta=0.1, base=Standard()), Language, TOKENS, ["words", "layers.0:output[0]"]),
    (SLAT(eta=0.1), lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Linear(6, 5)), IMAGES, ["1", "2"]),
    (LAT(), staged, IMAGES, [f"{name}.block.2" for name in BLOCKS]),
    (LAT(), Language, TOKENS, ["layers.0:output[0]", "layers.1:output[0]"]),
    (LAT(), lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), IMAGES, ["1"]),
    (ANP(k=2), staged, IMAGES, ["1.down", "1.blocks.0.block.0", "1.blocks.0.block.3", "2.down"]),
    (ANP(k=2), conv1d, TOKENS, [f"layers.0.{name}" for name in LINEAR]),
    (LAD(base=Standard()), staged, IMAGES, BLOCKS),
    (LAD(base=Standard()), Language, TOKENS, ["layers.0:output[0]", "layers.1:output[0]"]),
]


@pytest.mark.parametrize(("method", "network", "x", "expected"), DEFAULTS)
def test_defaults_choose_sites_and_train(
    method: LayerMethod, network: Callable[[], nn.Module], x: Inputs, expected: list[str]
) -> None:
    torch.manual_seed(0)
    model, y = network(), torch.tensor([0, 1, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [p.detach().clone() for p in parameters(model)]
    losses = [layerwise.step(method, model, x, y, optimizer) for _ in range(2)]
    assert all(loss.isfinite() for loss in losses)
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    assert [str(site) for site in method.attached_sites()[0]] == expected
    method.detach()


def parameters(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]
