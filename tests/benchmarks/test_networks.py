"""The table networks x methods, on a network of our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.networks import images, table, tokens, trained
from torch import nn


def plain() -> Any:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4), nn.Linear(4, 3)), images()


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(100, 4), nn.Linear(4, 4), nn.Linear(4, 100)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return {"logits": self.second(self.first(self.words(input_ids)))}


@pytest.mark.parametrize(
    ("method", "sites"), [("SLAT", ["words", "first"]), ("LAT", ["first", "second"]), ("LAD", None), ("ANP", None)]
)
def test_a_row_is_sites_and_losses_or_a_sentence(method: str, sites: list[str] | None) -> None:
    found = trained(lambda: (Words(), tokens()), method)
    assert ("refused" in found) == (sites is None)
    if sites is not None:
        assert len(found["losses"]) == 2


def test_the_table() -> None:
    found = {"plain": {"LAT": trained(plain, "LAT"), "LAD": trained(plain, "LAD")}}
    lines = table(found).splitlines()
    assert lines[2].startswith("| plain | LAT | 2: `1`, `2` | ")
    assert lines[3].startswith(
        "| plain | LAD | the network has no block outputs; name some, for example sites=['1', '2']"
    )
