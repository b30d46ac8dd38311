"""Every latent method against its naive form on a small Llama, BERT and vision transformer, with padding: equal weights after three steps.

`benchmarks/latent.py` does the same with the classes of transformers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests.language import WORDS, SmallBert, SmallLlama
from tests.methods.latent_cases import METHODS, gap, images, sequences
from tests.networks import CLASSES, VisionTransformer
from tests.reference.common import Batches

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, str], Batches]] = {
    "Llama": (SmallLlama, ("embed_tokens", "layers.0"), sequences(WORDS, None)),
    "BERT": (SmallBert, ("words", "layers.0"), sequences(WORDS, CLASSES)),
    "ViT": (VisionTransformer, ("patch_embed", "encoder.0"), images(8, CLASSES)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_the_weights_are_those_of_the_algorithm_written_out(name: str, network: str) -> None:
    make, sites, batches = NETWORKS[network]
    apart, moved = gap(name, make(), sites, batches)
    assert moved > 1e-3
    assert apart < 1e-10
