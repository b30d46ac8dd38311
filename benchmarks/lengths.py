"""A probe on a batch of a length never seen before, beside the one after it on the same batch; and the bare network likewise.

    python -m benchmarks.lengths [--output benchmarks/results/lengths.json]

Needs transformers. Times are of the processor, pairs follow one another, and the figure is the median over lengths, several networks
made anew: so another program on the machine disturbs both alike. What the bare network costs more on a new length (memory that is
asked for in new sizes) is none of ours.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import layerwise as lw

ROWS, WORDS, LENGTHS, NETWORKS = 8, 200, range(16, 80), 5


def network(seed: int) -> Any:
    """A small Llama with random weights."""
    import transformers

    torch.manual_seed(seed)
    sizes: dict[str, int] = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=WORDS)).eval()


def batch(length: int) -> dict[str, Tensor]:
    """Random tokens, none of them padding."""
    ids = torch.randint(WORDS, (ROWS, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def probing(model: Any) -> Callable[[dict[str, Tensor]], object]:
    """What a method asks for: gradients at the outputs of blocks."""
    sites, criterion = lw.Sites(model, "block outputs", example=batch(12)), lw.NextToken()
    return lambda x: lw.Probe()(model, x, x["input_ids"], criterion=criterion, sites=sites)


def bare(model: Any) -> Callable[[dict[str, Tensor]], object]:
    """The same passes without us: gradients at the embeddings."""
    criterion, embeddings = lw.NextToken(), model.get_input_embeddings()
    model.requires_grad_(False)

    def passes(x: dict[str, Tensor]) -> object:
        leaf = embeddings(x["input_ids"]).detach().requires_grad_()
        output = model(inputs_embeds=leaf, attention_mask=x["attention_mask"]).logits
        return torch.autograd.grad(criterion.sum(output, x["input_ids"]), leaf)

    return passes


def pairs(make: Callable[[Any], Callable[[dict[str, Tensor]], object]]) -> tuple[list[float], list[float]]:
    """Milliseconds on each new length, and right after it on the same batch."""
    new, same = [], []
    for seed in range(NETWORKS):
        act = make(network(seed))
        for length in torch.randperm(len(LENGTHS)).tolist():
            x = batch(LENGTHS[length])
            for kept in (new, same):
                began = time.process_time()
                act(x)
                kept.append(1000 * (time.process_time() - began))
    return new, same


def main(argv: list[str] | None = None) -> int:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description=__doc__)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": version("torch"), "transformers": version("transformers")}
    found["processor"] = platform.machine()
    for name, make in {"probe": probing, "bare network": bare}.items():
        new, same = pairs(make)
        ratio = statistics.median(a / b for a, b in zip(new, same, strict=True))
        medians = {"new length ms": statistics.median(new), "same length ms": statistics.median(same)}
        found[name] = {**medians, "median ratio": ratio, "pairs": len(new)}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
