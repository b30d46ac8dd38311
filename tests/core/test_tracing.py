"""Which sites a network has, what they are called, and how a selection chooses among them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.phrases import is_residual_block
from layerwise.core.selection import Selection, select
from layerwise.core.tracing import INPUT, Site, trace
from layerwise.errors import SiteError
from tests.networks import (
    NETWORKS,
    AuxiliaryHead,
    Checkpointed,
    DeadBranch,
    DictInput,
    DictOutput,
    SequentialNet,
    SharedConv,
    SharedReLU,
    TinyConv,
    TinyMLP,
    TinyResNet,
    TokenClassifier,
    TupleOutput,
    VisionTransformer,
    batch,
)

X = batch(3)[0]
BLOCKS = ["blocks.block1", "blocks.block2", "blocks.block3", "blocks.block4"]


def chosen(
    network: Callable[[], nn.Module], selection: Selection, first: int | None = None, exclude: Selection = ()
) -> list[str]:
    found = trace(network().double(), X)
    return [str(c.site) for c in select(found, selection, first=first, exclude=exclude)]


TABLE: list[tuple[Callable[[], nn.Module], Selection, int | None, Selection, list[str]]] = [
    # A list holds exact names, in any order; the sites come in the order of the calls.
    (TinyMLP, ["fc2"], None, (), ["fc2"]),
    (TinyMLP, ["fc3", "input", "fc1"], None, (), ["input", "fc1", "fc3"]),
    (TinyMLP, ("fc1", "fc1"), None, (), ["fc1"]),
    (TinyMLP, ["fc2:input"], None, (), ["fc2:input"]),
    (TinyMLP, ["model"], None, (), ["model"]),
    (SequentialNet, ["0", "3"], None, (), ["0", "3"]),
    # ... or dotted suffixes, used only where no name is exactly that.
    (TinyResNet, ["block2.conv1"], None, (), ["blocks.block2.conv1"]),
    (TinyResNet, ["conv1"], None, (), ["conv1"]),
    (TinyResNet, ["shortcut"], None, (), [f"{block}.shortcut" for block in BLOCKS]),
    (Checkpointed, ["conv2"], None, (), ["block.conv2"]),
    (VisionTransformer, ["attention"], None, (), ["encoder.0.attention", "encoder.1.attention"]),
    (VisionTransformer, ["0.mlp:input"], None, (), ["encoder.0.mlp:input"]),
    # A module called several times is chosen call by call.
    (SharedReLU, ["relu#1"], None, (), ["relu#1"]),
    (SharedReLU, ["relu#2", "relu#0:input"], None, (), ["relu#0:input", "relu#2"]),
    (SharedReLU, r"relu#\d", None, (), ["relu#0", "relu#1", "relu#2"]),
    (SharedConv, "affine outputs", None, (), ["stem", "conv#0", "conv#1", "fc"]),
    (Checkpointed, ["relu#1"], None, (), ["block.relu#1"]),
    # One tensor of several.
    (TupleOutput, ["split:output[1]"], None, (), ["split:output[1]"]),
    (DictOutput, ['enc:output["a"]'], None, (), ['enc:output["a"]']),
    (DictOutput, ["enc.split:output[0]", "left"], None, (), ["enc.split.left", "enc.split:output[0]"]),
    (DictInput, ["enc:input", "enc"], None, (), ["enc:input", "enc"]),
    (DictInput, ['enc:input["x"]'], None, (), ["enc:input"]),
    # A string is a regular expression for the whole name; the network's input is no part of it.
    (TinyConv, r"conv\d", None, (), ["conv1", "conv2"]),
    (TinyConv, r"conv\d.*", None, (), ["conv1:input", "conv1", "conv2:input", "conv2"]),
    (TinyConv, "bn1|fc", None, (), ["bn1", "fc"]),
    (TinyMLP, r".*put", None, (), ["fc1:input", "fc2:input", "fc3:input"]),
    (TinyResNet, r"blocks\.block\d", None, (), BLOCKS),
    (TupleOutput, r"split:output\[.\]", None, (), ["split:output[0]", "split:output[1]"]),
    # Phrases.
    (TinyMLP, "input", None, (), ["input"]),
    (TinyMLP, "affine outputs", None, (), ["fc1", "fc2", "fc3"]),
    (TinyConv, "affine outputs", None, (), ["conv1", "conv2", "fc"]),
    (TinyConv, "convolution outputs", None, (), ["conv1", "conv2"]),
    (TinyConv, "batch-norm outputs", None, (), ["bn1", "bn2"]),
    (TinyResNet, "residual-block outputs", None, (), BLOCKS),
    (TinyResNet, "residual-block states", None, (), ["blocks.block1:input", *BLOCKS]),
    (TinyConv, "first(2)", None, (), ["conv1", "conv2"]),
    (TinyResNet, "first(6)", None, (), ["conv1", *(f"{b}.conv{i}" for b in BLOCKS[:2] for i in (1, 2)), f"{BLOCKS[2]}.conv1"]),
    (TinyConv, ["input", "first(1)", "batch-norm outputs"], None, (), ["input", "conv1", "bn1", "bn2"]),
    # Only the first so many, the network's input not counted.
    (TinyMLP, "affine outputs", 2, (), ["fc1", "fc2"]),
    (TinyMLP, ["input", "affine outputs"], 1, (), ["input", "fc1"]),
    (VisionTransformer, "affine outputs", 2, (), ["patch_embed", "encoder.0.attention.query"]),
    # What is left out goes before the count; a pattern may exclude nothing.
    (TinyConv, "affine outputs", None, ["fc"], ["conv1", "conv2"]),
    (TinyConv, "affine outputs", 2, "conv1", ["conv2", "fc"]),
    (TinyConv, "affine outputs", None, "batch-norm outputs", ["conv1", "conv2", "fc"]),
    (TinyConv, "affine outputs", None, "shortcut.*", ["conv1", "conv2", "fc"]),
    (TinyResNet, "affine outputs", 3, r".*\.block1\..*", ["conv1", "blocks.block2.conv1", "blocks.block2.conv2"]),
    (TinyMLP, ["input", "fc1"], None, "input", ["fc1"]),
]  # fmt: skip


@pytest.mark.parametrize(("network", "selection", "first", "exclude", "expected"), TABLE)
def test_a_selection_chooses(
    network: Callable[[], nn.Module], selection: Selection, first: int | None, exclude: Selection, expected: list[str]
) -> None:
    assert chosen(network, selection, first, exclude) == expected


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.__name__))
def test_every_name_chooses_its_own_site_and_no_other(network: type[nn.Module]) -> None:
    found = trace(network().double(), X)
    names = [str(c.site) for c in found]
    assert len(set(names)) == len(names)
    for name in names:
        assert [str(c.site) for c in select(found, [name])] == [name]


class Odd(nn.Module):
    """Sites that cannot be perturbed: integers, a scalar, a table without rows, and a module that is called `input`."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.table, self.total, self.fc = nn.Identity(), nn.Identity(), nn.Identity(), nn.Linear(4, 2)
        self.input = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.input(x.flatten(1)[:, :4])
        tokens, table, total = self.tokens((h * 9).long()), self.table(h.T), self.total(h.sum())
        out: Tensor = self.fc(h) + tokens.sum() + table.sum() + total
        return out


@pytest.mark.parametrize(
    ("network", "selection", "options", "message"),
    [
        (TinyMLP, ["fc9"], {}, "no site matches 'fc9'; did you mean 'fc3' or 'fc2' or 'fc1'? (`layerwise sites MODEL` lists all)"),
        (TinyMLP, "cnv.*", {}, "no site matches 'cnv.*'; known: fc1, fc1:input, fc2, fc2:input, fc3, fc3:input, input, model. "
         "(`layerwise sites MODEL` lists all)"),
        (TinyMLP, "fc(", {}, "the site pattern 'fc(' is not a regular expression: missing ), unterminated subpattern at position 2"),
        (TinyMLP, [], {}, "no site is chosen; name some, for example sites=['input', 'conv1'], or 'batch-norm outputs'"),
        (SharedReLU, ["relu"], {}, "site 'relu' is called 3 times in one forward pass; name the call: relu#0, relu#1, relu#2"),
        (SharedReLU, ["relu:input"], {}, "site 'relu:input' is called 3 times in one forward pass; name the call: "
         "relu#0:input, relu#1:input, relu#2:input"),
        (TupleOutput, ["split"], {}, "site 'split' is ambiguous: 2 tensors pass there; name one: split:output[0], split:output[1]"),
        (DictOutput, ["enc"], {}, "site 'enc' is ambiguous: 2 tensors pass there; name one: enc:output[\"a\"], enc:output[\"b\"]"),
        (DeadBranch, ["unused"], {}, "site 'unused' is registered in the network but never called in a forward pass"),
        (TinyMLP, "batch-norm outputs", {}, "the network has no batch-norm outputs; name some, for example sites=['fc1', 'fc2']; "
         "`layerwise sites MODEL` lists all"),
        (TinyMLP, "residual-block outputs", {}, "the network has no residual-block outputs; name some, for example "
         "sites=['fc1', 'fc2']; `layerwise sites MODEL` lists all"),
        (TinyMLP, "residual-block states", {}, "the network has no residual-block states; name some, for example "
         "sites=['fc1', 'fc2']; `layerwise sites MODEL` lists all"),
        (TinyMLP, ["fc1"], {"exclude": "fc.*"}, "exclude='fc.*' leaves none of the 1 sites that ['fc1'] chose"),
        (TinyMLP, ["fc1", "fc2"], {"exclude": ["fc9"]}, "no site matches 'fc9'; did you mean 'fc3' or 'fc2' or 'fc1'? "
         "(`layerwise sites MODEL` lists all)"),
        (TinyMLP, "affine outputs", {"first": 4}, "first=4 of 'affine outputs' is not possible: type a number from 1 to 3"),
        (TinyMLP, "affine outputs", {"first": 0}, "first=0 of 'affine outputs' is not possible: type a number from 1 to 3"),
        (TinyMLP, "first(7)", {}, "first=7 of 'affine outputs' is not possible: type a number from 1 to 3"),
        (Odd, ["tokens"], {}, "site 'tokens' carries torch.int64 of shape (2, 4); only floating-point values can be perturbed"),
        (Odd, ["table"], {}, "site 'table' has shape (4, 2) for a batch of 2: its first dimension is not the batch"),
        (Odd, ["total"], {}, "site 'total' has shape () for a batch of 2: its first dimension is not the batch"),
    ],
)  # fmt: skip
def test_a_selection_that_cannot_be_meant_says_why(
    network: Callable[[], nn.Module], selection: Selection, options: dict[str, object], message: str
) -> None:
    found = trace(network().double(), X)
    with pytest.raises(SiteError, match=f"^{re.escape(message)}$"):
        select(found, selection, **options)  # type: ignore[arg-type]


def test_input_is_the_networks_even_if_a_module_has_that_name() -> None:
    found = trace(Odd().double(), X)
    assert [c.site for c in select(found, ["input"])] == [INPUT]
    assert [c.site for c in select(found, "(input)")] == [Site("input")]


@pytest.mark.parametrize(
    ("site", "name"),
    [
        (Site("conv1"), "conv1"),
        (Site("layer1.0.relu", call=1), "layer1.0.relu#1"),
        (Site("enc", key=0), "enc:output[0]"),
        (Site("enc", "input", key="x"), 'enc:input["x"]'),
        (Site("enc", "input", key=2, call=1), "enc#1:input[2]"),
        (INPUT, "input"),
        (Site("", "input", key=1), "input[1]"),
        (Site(""), "model"),
    ],
)
def test_a_site_is_written_as_selections_take_it(site: Site, name: str) -> None:
    assert str(site) == name


class Multi(nn.Module):
    """Takes two tensors and something else, returns a list."""

    def forward(self, a: Tensor, b: Tensor, c: str, *, d: Tensor) -> list[Tensor | None]:
        return [a + b, None, d]


class Label(nn.Module):
    """Neither takes nor returns a tensor."""

    def forward(self, letter: str) -> str:
        return letter


class Wide(nn.Module):
    """Every kind of argument."""

    def __init__(self) -> None:
        super().__init__()
        self.multi, self.label = Multi(), Label()

    def forward(self, x: Tensor) -> Tensor:
        first, _, second = self.multi(x, 2 * x, self.label("c"), d=3 * x)
        out: Tensor = (first + second).flatten(1)[:, :2]
        return out


def test_arguments_are_named_by_position_or_keyword() -> None:
    names = [str(c.site) for c in trace(Wide(), X)]
    assert names == [
        "input",
        "multi:input[0]",
        "multi:input[1]",
        'multi:input["d"]',
        "multi:output[0]",
        "multi:output[2]",
        "model",
    ]


def test_a_trace_shows_shape_type_and_layout() -> None:
    model = TinyConv().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = {str(c.site): c for c in trace(model, X.float().to(memory_format=torch.channels_last))}
    assert found["conv1"].shape == (2, 6, 8, 8)
    assert found["conv1"].dtype == torch.float32
    assert found["conv1"].memory_format is torch.channels_last
    assert found["fc"].memory_format is torch.contiguous_format
    assert found["relu#1"].module is model.relu


def test_a_trace_leaves_the_model_and_the_random_state_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(192), nn.Linear(192, 2)).double()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    trace(model, X)
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_trace_in_training_moves_no_buffer_and_breaks_no_earlier_pass() -> None:
    """Spectral norm writes its vectors in every training pass."""
    model = nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(192, 4)), nn.BatchNorm1d(4)
    ).double()
    loss = model(X).sum()
    before, buffers = {k: v.clone() for k, v in model.state_dict().items()}, list(model.buffers())
    trace(model, X[:1])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
    torch.autograd.backward(loss)


def test_a_trace_shows_the_mode_that_the_network_is_in() -> None:
    model = AuxiliaryHead().double()
    assert trace(model, X).calls == {"": 1, "conv": 1, "relu": 2, "fc": 1, "aux": 1}
    assert trace(model.eval(), X).calls == {"": 1, "conv": 1, "relu": 1, "fc": 1, "aux": 0}


def test_the_input_of_several_arguments_is_the_one_that_holds_the_examples() -> None:
    found = trace(TokenClassifier(), {"attention_mask": torch.ones(3, 5), "inputs_embeds": torch.zeros(3, 5, 8)})
    assert [str(c.site) for c in select(found, "input")] == ['input["inputs_embeds"]']


def test_a_trace_of_a_network_that_fails_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).double()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trace(model, X)
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_trace_uses_two_rows() -> None:
    sizes: list[int] = []
    model = TinyMLP().double()
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert [trace(model, batch(n)[0]).batch for n in (1, 2, 50)] == sizes == [2, 2, 2]


def test_a_block_is_residual_by_its_own_word_or_by_its_class_name() -> None:
    class BasicBlock(nn.Module):
        pass

    class Own(nn.Module):
        is_residual_block = True

    assert [is_residual_block(m) for m in (BasicBlock(), Own(), nn.Identity())] == [True, True, False]
