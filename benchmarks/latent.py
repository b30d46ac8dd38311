"""Latent methods on transformers' own Llama, BERT and ViT: beside naive forms, trl's NEFTune, gradient checkpointing, PEFT.

    python -m benchmarks.latent [--only Llama] [--output benchmarks/results/latent.json]

Configurations are small and random, in float64, with padding in two of four sentences. Compared are weights after three
steps: with those of every algorithm written out in `tests/reference`, without and with LoRA adapters of PEFT (of which
only theirs move); and with those that the same method gives the network when it checkpoints its layers, which have to be
equal bit for bit. NEFTune is compared, bit for bit, with the hook that transformers has from trl, in float32 and in
bfloat16. Exits with 1 where any of it is not so.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tests.methods.latent_cases import METHODS, SGD, case, gap, images, sequences
from tests.reference.common import Batches
from tests.reference.hooked import Hooked
from torch import nn

import layerwise as lw
from layerwise.core.random import Stream

WORDS, CLASSES, SIDE, CLOSE = 50, 5, 16, 1e-10
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

Network = tuple[Callable[[], nn.Module], tuple[str, str], Batches, list[str]]


def made(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """One of transformers' classes with random weights, the same ones each time."""

    def make() -> nn.Module:
        library = import_module("transformers")
        torch.manual_seed(0)
        network: nn.Module = getattr(library, model)(getattr(library, config)(**SMALL, **options))
        return network

    return make


def pictures() -> Batches:
    """Called by name, as ViT is."""
    return [({"pixel_values": x}, y) for x, y in images(SIDE, CLASSES)]


NETWORKS: dict[str, Network] = {
    "Llama": (
        made("LlamaForCausalLM", "LlamaConfig", vocab_size=WORDS, num_key_value_heads=2),
        ("model.embed_tokens", "model.layers.0"),
        sequences(WORDS, None),
        ["q_proj", "v_proj"],
    ),
    "BERT": (
        made("BertForSequenceClassification", "BertConfig", vocab_size=WORDS, num_labels=CLASSES, **QUIET),
        ("bert.embeddings.word_embeddings", "bert.encoder.layer.0"),
        sequences(WORDS, CLASSES),
        ["query", "value"],
    ),
    "ViT": (
        made("ViTForImageClassification", "ViTConfig", image_size=SIDE, patch_size=8, num_labels=CLASSES, **QUIET),
        ("vit.embeddings", "vit.layers.0"),
        pictures(),
        ["q_proj", "v_proj"],
    ),
}
"""How each is made, its sites, its data, and what LoRA adapts."""


def adapted(network: nn.Module, targets: list[str]) -> tuple[nn.Module, str]:
    """With LoRA adapters that do something already, and what PEFT puts before the names of modules."""
    peft = import_module("peft")
    model: nn.Module = peft.get_peft_model(network, peft.LoraConfig(r=4, target_modules=targets))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model, "base_model.model."


def checkpointed(name: str, network: Network) -> float:
    """How far weights are from one another with and without checkpoints of the layers."""
    make, sites, batches, _ = network
    weights = []
    for wanted in (False, True):
        model: Any = make().double().train()
        if wanted:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        method, _ = case(name, Hooked.around(copy.deepcopy(model), sites), batches)
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        for number, (x, y) in enumerate(batches):
            lw.step(method, model, x, y, optimizer, generator=Stream(0, number))
        weights.append([weight.detach() for weight in model.parameters()])
    return max(float((a - b).abs().max()) for a, b in zip(*weights, strict=True))


def neftunes(network: Network, dtype: torch.dtype) -> int:
    """How many of 30 losses and sets of gradients differ from those under the hook of transformers and trl, in any bit."""
    make, (site, _), _, _ = network
    hook = import_module("transformers.integrations.neftune").neftune_post_forward_hook
    differing = 0
    for length in range(5, 35):
        found = []
        batch = torch.randint(WORDS, (3, length), generator=torch.Generator().manual_seed(length))
        for ours in (False, True):
            model: Any = make().to(dtype).train()
            x = {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
            method = (
                lw.NEFTune(sites=[site], criterion=lw.NextToken()) if ours else lw.Standard(criterion=lw.NextToken())
            )
            if ours:
                method.attach(model, x)
            else:
                model.get_submodule(site).neftune_noise_alpha = 5.0
                model.get_submodule(site).register_forward_hook(hook)
            torch.manual_seed(length)
            for loss in method.losses(model, x, batch):
                assert isinstance(loss, torch.Tensor)
                torch.autograd.backward(loss)
                found.append([loss.detach(), *(p.grad for p in model.parameters())])
        differing += not all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    return differing


def compare(network: Network) -> dict[str, Any]:
    """Every method on one network."""
    make, sites, batches, targets = network
    rows: dict[str, Any] = {}
    for name in METHODS:
        apart, moved = gap(name, make(), sites, batches)
        lora, prefix = adapted(make(), targets)
        lora_apart, lora_moved = gap(name, lora, [prefix + site for site in sites], batches)
        rows[name] = {
            "naive form": apart,
            "weights moved by": moved,
            "naive form, LoRA": lora_apart,
            "adapters moved by": lora_moved,
            "checkpointed": checkpointed(name, network),
        }
    return rows


def main() -> int:
    """Compare, print, write; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "networks": {},
    }
    wrong = 0
    for kind in arguments.only:
        record["networks"][kind] = compare(NETWORKS[kind])
        for name, row in record["networks"][kind].items():
            sound = max(row["naive form"], row["naive form, LoRA"]) < CLOSE and row["checkpointed"] == 0
            wrong += not (sound and min(row["weights moved by"], row["adapters moved by"]) > 1e-4)
            print(f"{kind:6} {name:22} " + "  ".join(f"{key} {value:.1e}" for key, value in row.items()), flush=True)
    if "Llama" in arguments.only:
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        found = {name: neftunes(NETWORKS["Llama"], dtype) for name, dtype in kinds.items()}
        record["NEFTune: batches of 30 that differ from transformers' hook"] = found
        wrong += sum(found.values())
        print(found)
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
