from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from layerwise.methods import ANP, FGSMRS, LAD, LAT, PGD, SLAT, Method, Standard
from layerwise.training import SGD
from tests.networks import TinyConv, TinyResNet
from tests.training.fakes import cheap, train, weights


@pytest.mark.parametrize(
    "method",
    [
        SLAT(sites=["conv1", "blocks.block1"], eta=8 / 255, base=FGSMRS()),
        ANP(eps=0.3),
        LAD(base=PGD(steps=2)),
        LAT(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_noise_survives_mixed_precision(method: Method, tmp_path: Path) -> None:
    net = TinyResNet()
    result = train(net, method, cheap(precision="bf16-mixed", eval_every=1), run=tmp_path / "run")
    assert all(v.dtype in (torch.float32, torch.int64) and v.isfinite().all() for v in weights(net).values())
    assert result.history[-1]["loss"] < result.history[0]["loss"] * 1.2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    survival = [s["survival"] for line in lines if line["kind"] == "sites" for s in line["sites"].values()]
    assert survival
    assert min(survival) >= 0.9
    assert not result.messages


class Seeing(nn.Module):
    """Notes the types of what comes in and of what a convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 8), nn.Linear(2, 5)
        self.seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.training:
            self.seen.add((x.dtype, h.dtype))
        out: Tensor = self.fc(h.flatten(1))
        return out


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [
        ("32-true", (torch.float32, torch.float32)),
        ("bf16-mixed", (torch.float32, torch.bfloat16)),
        ("64-true", (torch.float64, torch.float64)),
    ],
)
def test_pixels_keep_their_precision(precision: str, wanted: tuple[torch.dtype, torch.dtype]) -> None:
    net = Seeing()
    train(net, Standard(), cheap(precision=precision, eval_every=1))
    assert net.seen == {wanted}


def test_mixed_precision_learns_what_full_precision_learns() -> None:
    scores = {}
    for precision in ("32-true", "bf16-mixed"):
        settings = cheap(epochs=6, precision=precision, eval_every=6, optimizer=SGD(lr=0.1))
        scores[precision] = train(TinyConv(), Standard(), settings).history[-1]["loss"]
    assert scores["bf16-mixed"] == pytest.approx(scores["32-true"], rel=0.1)
