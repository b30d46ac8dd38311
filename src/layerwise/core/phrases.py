"""What phrases such as `"block outputs"` stand for: the structure of a network, read from one forward pass of it.

Nothing here knows an architecture. Blocks are the repeated parts that networks are built of, layers are convolutions and linear layers,
a gate is a layer in a block that sees one position where the block gives many (squeeze and excitation).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from layerwise.core.tracing import Candidate, Trace

_BLOCK_CLASSES = ("BasicBlock", "Bottleneck", "PreActBlock", "PreActBottleneck", "ResidualBlock")

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)


def meaning(found: Trace, phrase: str) -> list[Candidate] | None:
    """The sites that a phrase stands for, in the order of the calls; None where the text is no phrase.

    Left out as long as there is something else: what cannot be perturbed (whole numbers, and tensors without a row for each example),
    and what only training calls, such as auxiliary heads, on which the logits do not depend.
    """
    if phrase not in PHRASES:
        return None
    every = PHRASES[phrase](found)
    every = [c for c in every if c.site.module not in found.extra] or every
    return [c for c in every if c.refusal(found.batch) is None] or every


def is_residual_block(module: nn.Module) -> bool:
    """Whether a module says so (`is_residual_block = True`) or has one of the usual class names."""
    return bool(getattr(module, "is_residual_block", False)) or type(module).__name__ in _BLOCK_CLASSES


def is_affine(module: nn.Module) -> bool:
    """Whether a module is a convolution or a linear layer, or an adapter (LoRA) around one, which it calls `base_layer`."""
    around = module._modules.get("base_layer")
    if around is not None:
        return is_affine(around)
    return (
        isinstance(module, _ConvNd | nn.Linear) or type(module).__name__ == "Conv1D"
    )  # GPT-2's linear layer, transposed


def counted(found: Trace, chosen: Sequence[Candidate]) -> list[Candidate]:
    """Those of the chosen sites that count as layers of the network: gates do not, and what comes before the first block counts once.

    So the layers of a stem that some networks have in place of one convolution are one layer, its last.
    """
    blocks = _blocks(found)
    gates = {id(c) for c in _gates(found, blocks)}
    place = {id(c): position for position, c in enumerate(found)}
    start = next((place[id(c)] for c in found if blocks.intersection([c.site.module, *_parents(c.site.module)])), 0)
    stem = [c for c in chosen if place[id(c)] < start][:-1]
    left_out = gates | {id(c) for c in stem}
    return [c for c in chosen if id(c) not in left_out]


def _outputs(found: Trace) -> list[Candidate]:
    """Every call's output; where it gives several tensors, the first."""
    seen: set[tuple[str, int | None]] = set()
    chosen = []
    for c in found:
        call = (c.site.module, c.site.call)
        if c.site.side == "output" and call not in seen:
            seen.add(call)
            chosen.append(c)
    return chosen


def _outermost(outputs: Iterable[Candidate], meant: Callable[[Candidate], bool]) -> list[Candidate]:
    """Those that are meant, without what lies inside another of them."""
    chosen = [c for c in outputs if meant(c)]
    names = {c.site.module for c in chosen}
    return [c for c in chosen if not any(parent in names for parent in _parents(c.site.module))]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _affine(found: Trace) -> list[Candidate]:
    return _outermost(_outputs(found), lambda c: is_affine(c.module))


def _embeddings(found: Trace) -> list[Candidate]:
    """What the network first makes of its input: the output of the first layer, or of a table of embeddings."""
    first = (c for c in _outputs(found) if is_affine(c.module) or isinstance(c.module, nn.Embedding))
    return [c for c in first if c.refusal(found.batch) is None][:1]


def _blocks(found: Trace) -> set[str]:
    """The names of the network's blocks.

    A block says so, or is one of several numbered parts with two layers or more inside, such as `layer1.0` and `layer2.0`. A stage,
    most of whose layers lie in numbered parts of its own, is none; neither is a list of modules, nor what lies inside a block.
    """
    outputs = {c.site.module: c for c in _outputs(found) if c.site.module and c.refusal(found.batch) is None}
    layers = {name: _count_layers(c.module) for name, c in outputs.items()}
    kinds = {name: re.sub(r"\d+", "#", name) for name in outputs}
    numbered = {
        name
        for name, c in outputs.items()
        if layers[name] > 1 and "#" in kinds[name].rpartition(".")[2] and not isinstance(c.module, _LISTS)
    }
    often = Counter(kinds[name] for name in numbered)
    likely = {name for name in numbered if often[kinds[name]] > 1}
    stages = {name for name in likely if 2 * sum(layers[part] for part in _inside(name, likely)) > layers[name]}
    said = {name for name, c in outputs.items() if is_residual_block(c.module)}
    chosen = (likely - stages) | said
    return {name for name in chosen if not chosen.intersection(_parents(name))}


def _count_layers(module: nn.Module) -> int:
    return 1 if is_affine(module) else sum(map(_count_layers, module.children()))


def _inside(name: str, names: set[str]) -> list[str]:
    """The outermost of the names that lie inside one of them."""
    inner = {n for n in names if n.startswith(name + ".")}
    return [n for n in inner if not inner.intersection(_parents(n))]


def _block_outputs(found: Trace) -> list[Candidate]:
    blocks = _blocks(found)
    return [c for c in _outputs(found) if c.site.module in blocks]


def _block_states(found: Trace) -> list[Candidate]:
    """The input of the first block, and the outputs."""
    blocks = _blocks(found)
    first = next((c for c in found if c.site.module in blocks and c.site.side == "input"), None)
    return ([] if first is None else [first]) + _block_outputs(found)


def _attention_outputs(found: Trace) -> list[Candidate]:
    return _outermost(_outputs(found), lambda c: _ATTENTION.search(type(c.module).__name__) is not None)


def _mlp_outputs(found: Trace) -> list[Candidate]:
    """What the last layer of a block that has attention gives, attention's own layers left out."""
    attention = {c.site.module for c in _attention_outputs(found)}
    with_attention = _blocks(found) & {parent for name in attention for parent in _parents(name)}
    layers = [c for c in _affine(found) if not attention.intersection(_parents(c.site.module))]
    last = {parent: c for c in layers for parent in with_attention.intersection(_parents(c.site.module))}
    return list(last.values())


def _gates(found: Trace, blocks: set[str]) -> list[Candidate]:
    wide = {c.site.module for c in _outputs(found) if c.site.module in blocks and c.shape[2:].numel() > 1}
    layers = [c for c in _affine(found) if c.shape[2:].numel() == 1]
    return [c for c in layers if wide.intersection(_parents(c.site.module))]


PHRASES: dict[str, Callable[[Trace], list[Candidate]]] = {
    "input": lambda found: found.inputs,
    "embeddings": _embeddings,
    "affine outputs": _affine,
    "convolution outputs": lambda found: [c for c in _outputs(found) if isinstance(c.module, _ConvNd)],
    "batch-norm outputs": lambda found: [c for c in _outputs(found) if isinstance(c.module, _NormBase)],
    "block outputs": _block_outputs,
    "block states": _block_states,
    "residual-block outputs": _block_outputs,
    "residual-block states": _block_states,
    "attention outputs": _attention_outputs,
    "mlp outputs": _mlp_outputs,
}
"""The phrases, and how each finds its sites in what one forward pass has reached."""
