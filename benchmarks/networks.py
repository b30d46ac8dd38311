"""Networks of other libraries under the layer-wise methods with their defaults: which sites they choose, and two steps' losses.

    python -m benchmarks.networks [--only bert] [--output benchmarks/results/networks.json]

Weights are random, configurations of transformers small. A library that is not installed is said and left out. What a method refuses
is told in its sentence; anything else that goes wrong is a fault of ours, and the script fails. Where a network has auxiliary heads,
the loss is `AuxiliaryHeads`, and that every one of them has moved is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.calling import Inputs
from layerwise.errors import LayerwiseError

ROWS, SIDE, CLASSES, WORDS, LENGTH = 2, 64, 10, 100, 12

Made: TypeAlias = tuple[nn.Module, Inputs]

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
"""Sizes of transformers' configurations."""


def images(side: int = SIDE) -> Tensor:
    """A batch of random pictures."""
    return torch.rand(ROWS, 3, side, side, generator=torch.Generator().manual_seed(0))


def tokens() -> dict[str, Tensor]:
    """A batch of random texts, the second with three places of padding."""
    ids = torch.randint(5, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def torchvision(name: str, side: int = SIDE, **options: Any) -> Made:
    """One of torchvision's classifiers."""
    return getattr(import_module("torchvision.models"), name)(num_classes=CLASSES, **options), images(side)


def timm(name: str, side: int = SIDE, **options: Any) -> Made:
    """One of timm's classifiers."""
    return import_module("timm").create_model(name, num_classes=CLASSES, **options), images(side)


def transformers(model: str, config: str, **options: Any) -> Made:
    """One of transformers' classes, in a small configuration."""
    library = import_module("transformers")
    made = getattr(library, config)(**options)
    return getattr(library, model)(made), {"pixel_values": images()} if "image_size" in options else tokens()


def peft(inner: Callable[[], Made], *targets: str) -> Made:
    """Another one, with LoRA around some of its layers."""
    library = import_module("peft")
    model, x = inner()
    return library.get_peft_model(model, library.LoraConfig(r=4, target_modules=list(targets))), x


def _bert() -> Made:
    return transformers("BertForSequenceClassification", "BertConfig", **SMALL, vocab_size=WORDS)


def _gpt2() -> Made:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 0}
    return transformers("GPT2LMHeadModel", "GPT2Config", **sizes)


def _llama() -> Made:
    return transformers("LlamaForCausalLM", "LlamaConfig", **SMALL, vocab_size=WORDS)


def _vit() -> Made:
    return transformers("ViTForImageClassification", "ViTConfig", **SMALL, image_size=SIDE, num_labels=CLASSES)


TRANSFORMER = {"image_size": SIDE, "patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}

NETWORKS: dict[str, Callable[[], Made]] = {
    "torchvision resnet18": lambda: torchvision("resnet18"),
    "torchvision vgg11_bn": lambda: torchvision("vgg11_bn"),
    "torchvision densenet121": lambda: torchvision("densenet121"),
    "torchvision regnet_y_400mf": lambda: torchvision("regnet_y_400mf"),
    "torchvision squeezenet1_1": lambda: torchvision("squeezenet1_1"),
    "torchvision mobilenet_v3_small": lambda: torchvision("mobilenet_v3_small"),
    "torchvision efficientnet_b0": lambda: torchvision("efficientnet_b0"),
    "torchvision convnext_tiny": lambda: torchvision("convnext_tiny"),
    "torchvision swin_t": lambda: torchvision("swin_t"),
    "torchvision VisionTransformer": lambda: torchvision("VisionTransformer", **TRANSFORMER),
    "torchvision googlenet": lambda: torchvision("googlenet", init_weights=False),
    "torchvision inception_v3": lambda: torchvision("inception_v3", side=299, init_weights=False),
    "timm resnet10t": lambda: timm("resnet10t"),
    "timm resnet18": lambda: timm("resnet18"),
    "timm convnext_atto": lambda: timm("convnext_atto"),
    "timm vit_tiny_patch16_224": lambda: timm("vit_tiny_patch16_224", img_size=SIDE),
    "timm deit_tiny_patch16_224": lambda: timm("deit_tiny_patch16_224", img_size=SIDE),
    "timm swin_tiny_patch4_window7_224": lambda: timm("swin_tiny_patch4_window7_224", side=224),
    "timm efficientnet_lite0": lambda: timm("efficientnet_lite0"),
    "timm mixer_s16_224": lambda: timm("mixer_s16_224", img_size=SIDE),
    "transformers ViT": _vit,
    "transformers BERT": _bert,
    "transformers GPT-2": _gpt2,
    "transformers Llama": _llama,
    "PEFT ViT": lambda: peft(_vit, "q_proj", "v_proj"),
    "PEFT GPT-2": lambda: peft(_gpt2, "c_attn"),
    "PEFT Llama": lambda: peft(_llama, "q_proj", "v_proj"),
}
"""How each is made."""


def methods(x: Inputs, criterion: lw.Criterion) -> dict[str, Callable[[], lw.LayerMethod]]:
    """The four, with their defaults; where nothing can move the input (token ids), around a base that does not."""
    words = isinstance(x, Mapping) and "input_ids" in x
    base = lw.Standard(criterion=criterion) if words else None
    attack = base or lw.PGD(eps=8 / 255, steps=2, criterion=criterion)
    return {
        "SLAT": lambda: lw.SLAT(eta=8 / 255, base=base, criterion=criterion),
        "LAT": lambda: lw.LAT(criterion=criterion),
        "ANP": lambda: lw.ANP(k=2, criterion=criterion),
        "LAD": lambda: lw.LAD(base=attack),
    }


def trained(make: Callable[[], Made], name: str) -> dict[str, Any]:
    """Two steps of one method on a fresh network: its sites and losses, or the sentence with which it refuses."""
    torch.manual_seed(0)
    model, x = make()
    model.train()
    language = isinstance(x, Mapping) and "input_ids" in x and "Classification" not in type(model).__name__
    y = x["input_ids"] if language else torch.tensor([0, 1])  # type: ignore[call-overload,index]
    heads = [module for child, module in model.named_children() if child.lower().startswith("aux")]
    criterion = lw.AuxiliaryHeads() if heads else lw.NextToken() if language else lw.CrossEntropy()
    method = methods(x, criterion)[name]()
    before = [[p.detach().clone() for p in head.parameters()] for head in heads]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    try:
        losses = [float(lw.step(method, model, x, y, optimizer)) for _ in range(2)]
    except LayerwiseError as error:
        return {"refused": str(error)}
    for head, old in zip(heads, before, strict=True):
        assert not any(torch.equal(p, was) for p, was in zip(head.parameters(), old, strict=True)), "a head stood still"
    sites = [str(site) for attached in method.attached_sites() for site in attached]
    return {"sites": sites, "losses": losses, **({"heads": len(heads)} if heads else {})}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The record as Markdown."""
    lines = ["| network | method | sites | losses |", "|---|---|---|---|"]
    for network, found in rows.items():
        for method, row in found.items():
            if "refused" in row:
                lines.append(f"| {network} | {method} | {row['refused']} | |")
                continue
            sites = row["sites"]
            shown = ", ".join(f"`{s}`" for s in sites[:2]) + (f" ... `{sites[-1]}`" if len(sites) > 2 else "")
            losses = ", ".join(f"{loss:.3g}" for loss in row["losses"])
            losses += f"; auxiliary heads that moved: {row['heads']}" if "heads" in row else ""
            lines.append(f"| {network} | {method} | {len(sites)}: {shown} | {losses} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--only", help="networks whose name holds this")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it as Markdown")
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for network, make in NETWORKS.items():
        if arguments.only and arguments.only not in network:
            continue
        library = network.split()[0].lower()
        try:
            import_module(library)
        except ImportError:
            print(f"{library} is not installed: pip install {library}", file=sys.stderr)
            continue
        rows[network] = {name: trained(make, name) for name in ("SLAT", "LAT", "ANP", "LAD")}
        print(f"{network} done", file=sys.stderr)
    text = table(rows)
    print(text)
    if arguments.output:
        used = {name: version(name) for name in ("torch", *{network.split()[0].lower() for network in rows})}
        versions = dict(sorted(used.items()))
        arguments.output.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
        listed = ", ".join(f"{k} {v}" for k, v in versions.items())
        arguments.output.with_suffix(".md").write_text(
            f"{table(rows)}\n\n{listed}; two steps at rate 0.01, {ROWS} examples.\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
