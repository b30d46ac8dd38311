"""Small transformers in the forms of BERT and Llama, called as those of transformers are: by name, giving an object with logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks import CLASSES, Attention, ModelOutput, seeded

WORDS = 20


class Masked(Attention):
    """Attention that leaves positions out."""

    def attend(self, tokens: Tensor, allowed: Tensor, turned: Tensor | None = None) -> Tensor:
        """`allowed` (B, 1, L or 1, L) says who sees whom; `turned` (L, d / 2) are the angles of rotary positions."""
        q, k, v = (self.split(layer(tokens)) for layer in (self.query, self.key, self.value))
        if turned is not None:
            q, k = rotated(q, turned), rotated(k, turned)
        scores = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(~allowed, float("-inf"))
        out: Tensor = self.out((torch.softmax(scores, 3) @ v).transpose(1, 2).flatten(2))
        return out


def rotated(v: Tensor, angles: Tensor) -> Tensor:
    """Pairs of entries turned by the angles of their positions."""
    a, b = v.chunk(2, 3)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], 3)


class BertLayer(nn.Module):
    """Post-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Masked(width, 2), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, allowed: Tensor) -> Tensor:
        h = self.norm1(h + self.attention.attend(h, allowed))
        out: Tensor = self.norm2(h + self.mlp(h))
        return out


class SmallBert(nn.Module):
    """Learnt positions, a norm after the embeddings, layers, a pooler on the first token, classes."""

    def __init__(self, seed: int = 0, *, width: int = 8) -> None:
        super().__init__()
        with seeded(seed):
            self.words, self.positions, self.norm = (
                nn.Embedding(WORDS, width),
                nn.Embedding(12, width),
                nn.LayerNorm(width),
            )
            self.layers = nn.ModuleList([BertLayer(width), BertLayer(width)])
            self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
        h = self.norm(self.words(input_ids) + self.positions.weight[: input_ids.shape[1]])
        for layer in self.layers:
            h = layer(h, attention_mask[:, None, None].bool())
        return ModelOutput(self.classifier(torch.tanh(self.pooler(h[:, 0]))))


class RMSNorm(nn.Module):
    """A learnt scale, and no mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h: Tensor) -> Tensor:
        return self.weight * h * (h.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


class LlamaLayer(nn.Module):
    """Pre-norm, rotary positions, a gated mlp; gives a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = RMSNorm(width), Masked(width, 2), RMSNorm(width)
        self.gate, self.up, self.down = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, h: Tensor, allowed: Tensor, turned: Tensor) -> tuple[Tensor]:
        h = h + self.attention.attend(self.norm1(h), allowed, turned)
        n = self.norm2(h)
        return (h + self.down(nn.functional.silu(self.gate(n)) * self.up(n)),)


class SmallLlama(nn.Module):
    """A causal language model: logits of the next token at every position."""

    def __init__(self, seed: int = 0, *, width: int = 8) -> None:
        super().__init__()
        with seeded(seed):
            self.embed_tokens = nn.Embedding(WORDS, width)
            self.layers = nn.ModuleList([LlamaLayer(width), LlamaLayer(width)])
            self.norm, self.lm_head = RMSNorm(width), nn.Linear(width, WORDS, bias=False)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
        h, length = self.embed_tokens(input_ids), input_ids.shape[1]
        angles = torch.arange(length)[:, None] * torch.tensor([1.0, 0.1], dtype=h.dtype)
        seen = torch.ones(length, length).tril().bool() & (attention_mask[:, None, None] == 1)
        allowed = seen | torch.eye(length).bool()  # a position of padding sees itself
        for layer in self.layers:
            (h,) = layer(h, allowed, angles)
        return ModelOutput(self.lm_head(self.norm(h)))
