"""Odd small networks for tests: images (B, 3, 8, 8) in, 5 logits out, the same weights for the same seed.

`batch(size)` makes something to feed them; `NETWORKS` lists the classes. Nothing here knows of layerwise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IMAGE = (3, 8, 8)
CLASSES = 5


def batch(size: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels that can be learnt: half the class's own random picture, half noise."""
    pictures = torch.rand(CLASSES, *IMAGE, generator=torch.Generator().manual_seed(1234), dtype=torch.float64)
    stream = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (size,), generator=stream)
    x = (pictures[y] + torch.rand(size, *IMAGE, generator=stream, dtype=torch.float64)) / 2
    return x.to(dtype), y


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The default initialisation from `seed`, the caller's random state left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def norm2d(channels: int, wanted: bool = True) -> nn.Module:
    """A batch norm whose weight and bias are not one and zero, since with those a mistake in them would not show."""
    if not wanted:
        return nn.Identity()
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    return norm


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class TinyMLP(nn.Module):
    """Three linear layers with ReLU; nothing odd."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.fc1 = nn.Linear(3 * 8 * 8, 16)
            self.fc2 = nn.Linear(16, 12)
            self.fc3 = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x.flatten(1)))
        out: Tensor = self.fc3(torch.relu(self.fc2(h)))
        return out


class TinyConv(nn.Module):
    """Twice convolution, batch norm, ReLU; its `relu` is called twice, and `batch_norm=False` puts identities there."""

    def __init__(self, seed: int = 0, *, batch_norm: bool = True) -> None:
        super().__init__()
        with seeded(seed):
            self.conv1 = conv3(3, 6)
            self.bn1 = norm2d(6, batch_norm)
            self.relu = nn.ReLU()
            self.conv2 = conv3(6, 8)
            self.bn2 = norm2d(8, batch_norm)
            self.pool = nn.AvgPool2d(4)
            self.fc = nn.Linear(8 * 2 * 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.relu(self.bn2(self.conv2(h)))
        out: Tensor = self.fc(self.pool(h).flatten(1))
        return out


class PreActBlock(nn.Module):
    """x -> shortcut(x) + conv2(relu(bn2(conv1(relu(bn1(x)))))): the shortcut takes x itself, not its activation."""

    is_residual_block: ClassVar[bool] = True

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, batch_norm: bool = True) -> None:
        super().__init__()
        self.bn1 = norm2d(inputs, batch_norm)
        self.conv1 = conv3(inputs, outputs, stride)
        self.bn2 = norm2d(outputs, batch_norm)
        self.conv2 = conv3(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(torch.relu(self.bn1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(torch.relu(self.bn2(h)))
        return out


class TinyResNet(nn.Module):
    """Pre-activation; the third of its four blocks changes the shape, so that its input's noise fits no output.

    With channels last it needs 8 channels: in oneDNN's gradient of the shortcut fewer kill the process on processors without AVX-512.
    """

    def __init__(self, seed: int = 0, *, batch_norm: bool = True, channels: int = 4) -> None:
        super().__init__()
        n, m = channels, channels + 2
        with seeded(seed):
            self.conv1 = conv3(3, n)
            widths = [(n, n, 1), (n, n, 1), (n, m, 2), (m, m, 1)]
            blocks = [PreActBlock(*width, batch_norm=batch_norm) for width in widths]
            self.blocks = nn.Sequential(OrderedDict((f"block{n}", block) for n, block in enumerate(blocks, 1)))
            self.bn = norm2d(m, batch_norm)
            self.fc = nn.Linear(m, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn(self.blocks(self.conv1(x))))
        out: Tensor = self.fc(h.mean((2, 3)))
        return out


class SharedReLU(nn.Module):
    """One `relu` module called three times, so that its name alone does not say which call."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.conv1, self.conv2 = conv3(3, 4), conv3(4, 4)
            self.fc1, self.fc2 = nn.Linear(4 * 8 * 8, 8), nn.Linear(8, CLASSES)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv2(self.relu(self.conv1(x))))
        out: Tensor = self.fc2(self.relu(self.fc1(h.flatten(1))))
        return out


class SharedConv(nn.Module):
    """One convolution `conv` called twice: its weights get gradients from both calls."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.stem, self.conv = conv3(3, 4), conv3(4, 4)
            self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(torch.relu(self.stem(x))))
        out: Tensor = self.fc(torch.relu(self.conv(h)).mean((2, 3)))
        return out


class InPlaceReLU(nn.Module):
    """ReLU and the residual sum overwrite what the layers before them returned."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.conv1, self.bn1 = conv3(3, 4), norm2d(4)
            self.conv2, self.bn2 = conv3(4, 4), norm2d(4)
            self.fc = nn.Linear(4, CLASSES)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.relu1(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(skip))
        h += skip
        out: Tensor = self.fc(self.relu2(h).mean((2, 3)))
        return out


class Split(nn.Module):
    """Returns a tuple of two tensors of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv3(3, 4), conv3(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


class TupleOutput(nn.Module):
    """The submodule `split` returns two tensors, and the logits use both."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.split = Split()
            self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x)
        out: Tensor = self.fc(torch.relu(torch.cat([left, right], 1)).mean((2, 3)))
        return out


class DictEncoder(nn.Module):
    """Returns {"a": ..., "b": ...}."""

    def __init__(self) -> None:
        super().__init__()
        self.split = Split()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.split(x)
        return {"a": a, "b": b}


class DictOutput(nn.Module):
    """The submodule `enc` returns a dict of two tensors, and the logits use both."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.enc = DictEncoder()
            self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found = self.enc(x)
        out: Tensor = self.fc(torch.relu(torch.cat([found["a"], found["b"]], 1)).mean((2, 3)))
        return out


class KeywordEncoder(nn.Module):
    """A convolution that wants its tensor by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv3(4, 4)

    def forward(self, *, x: Tensor, scale: float) -> Tensor:
        return torch.relu(self.conv(x)) * scale


class DictInput(nn.Module):
    """The submodule `enc` is called with keywords only, one of them a tensor: `enc(x=..., scale=...)`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.stem = conv3(3, 4)
            self.enc = KeywordEncoder()
            self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enc(x=self.stem(x), scale=2.0)
        out: Tensor = self.fc(h.mean((2, 3)))
        return out


class TwoCallBlock(nn.Module):
    """`conv1` and `conv2` are called once, `relu` twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3(4, 4), conv3(4, 4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.relu(self.conv1(x))))
        return out


class Checkpointed(nn.Module):
    """`block` is run again in the backward pass; `enabled=False` is the same network without checkpointing."""

    def __init__(self, seed: int = 0, *, use_reentrant: bool = False, enabled: bool = True) -> None:
        super().__init__()
        self.use_reentrant, self.enabled = use_reentrant, enabled
        with seeded(seed):
            self.stem = conv3(3, 4)
            self.block = TwoCallBlock()
            self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = checkpoint(self.block, h, use_reentrant=self.use_reentrant) if self.enabled else self.block(h)
        out: Tensor = self.fc(h.mean((2, 3)))
        return out


class ZeroBranch(nn.Module):
    """The last layer of the residual `branch` is zero: at first, noise inside the branch changes nothing."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.stem = conv3(3, 4)
            self.branch = nn.Sequential(conv3(4, 4), nn.ReLU(), conv3(4, 4))
            self.fc = nn.Linear(4, CLASSES)
        for parameter in self.branch[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        out: Tensor = self.fc(torch.relu(h + self.branch(h)).mean((2, 3)))
        return out


class DeadBranch(nn.Module):
    """`dead` is called but the logits ignore it; `unused` is registered and never called."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.conv, self.dead, self.unused = conv3(3, 4), conv3(4, 4), conv3(4, 4)
            self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x))
        self.dead(h)
        out: Tensor = self.fc(h.mean((2, 3)))
        return out


class Attention(nn.Module):
    """Multi-head self-attention out of linear layers, without the fused path that skips hooks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def split(self, h: Tensor) -> Tensor:
        return h.reshape(*h.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(layer(tokens)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5, 3)
        out: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return out


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class VisionTransformer(nn.Module):
    """Tokens instead of space: four patches and a class token, two encoder blocks, LayerNorm."""

    def __init__(self, seed: int = 0, *, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        with seeded(seed):
            self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
            self.class_token = nn.Parameter(0.1 * torch.randn(1, 1, width))
            self.position = nn.Parameter(0.1 * torch.randn(1, 5, width))
            self.encoder = nn.Sequential(Encoder(width, heads), Encoder(width, heads))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], 1) + self.position
        out: Tensor = self.head(self.norm(self.encoder(tokens))[:, 0])
        return out


class SequentialNet(nn.Sequential):
    """A plain nn.Sequential: its layers are named by numbers."""

    def __init__(self, seed: int = 0) -> None:
        with seeded(seed):
            head = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, CLASSES)]
            super().__init__(conv3(3, 4), norm2d(4), nn.ReLU(), conv3(4, 4), nn.ReLU(), *head)


class Outputs(NamedTuple):
    """What `AuxiliaryHead` gives in training."""

    logits: Tensor
    aux_logits: Tensor


class Skipping(nn.Module):
    """Stochastic depth as it was first described: in training each block is left out at random, not only its result."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                h = h + torch.relu(block(h))
        out: Tensor = self.fc(h.mean((2, 3)))
        return out


class AuxiliaryHead(nn.Module):
    """As GoogLeNet: in training a second head, and `relu` called once more than in evaluation; then a tensor comes, else a tuple."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.conv, self.relu = conv3(3, 4), nn.ReLU()
            self.fc, self.aux = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        h = self.conv(x).mean((2, 3))
        logits = self.fc(self.relu(1 + h))
        return Outputs(logits, self.aux(self.relu(1 - h))) if self.training else logits


class ModelOutput:
    """An output with attributes, as those of transformers."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class TokenClassifier(nn.Module):
    """Called as those of transformers: `model(input_ids=..., attention_mask=...)`, or with `inputs_embeds`; gives an object."""

    def __init__(self, seed: int = 0, *, width: int = 8) -> None:
        super().__init__()
        with seeded(seed):
            self.embed = nn.Embedding(20, width)
            self.encoder = nn.Sequential(Encoder(width, 2), Encoder(width, 2))
            self.head = nn.Linear(width, CLASSES)

    def forward(
        self,
        *,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> ModelOutput:
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None:
            h = h * attention_mask[:, :, None]
        return ModelOutput(self.head(self.encoder(h).mean(1)))


class Windows(nn.Module):
    """As Swin: `mix` sees a row for each half of an image, so that its first dimension is not the batch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.stem, self.mix, self.fc = conv3(3, 4), conv3(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        halves = self.mix(torch.cat(h.chunk(2, 3)))
        out: Tensor = self.fc(torch.cat(halves.chunk(2), 3).mean((2, 3)))
        return out


def tokens(size: int = 4, length: int = 6, *, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Sentences of tokens with a mask, of which the last position of the first is not real, and labels."""
    stream = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, length, dtype=torch.int64)
    mask[0, -1] = 0
    ids = torch.randint(20, (size, length), generator=stream)
    return {"input_ids": ids, "attention_mask": mask}, torch.randint(CLASSES, (size,), generator=stream)


NETWORKS: tuple[type[nn.Module], ...] = (
    TinyMLP,
    TinyConv,
    TinyResNet,
    SharedReLU,
    SharedConv,
    InPlaceReLU,
    TupleOutput,
    DictOutput,
    DictInput,
    Checkpointed,
    ZeroBranch,
    DeadBranch,
    VisionTransformer,
    SequentialNet,
)
