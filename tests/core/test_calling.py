"""How networks are called and what they give: tensors, mappings, tuples, and objects with logits."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.calling import (
    Inputs,
    call,
    carrier,
    count_classes,
    examples,
    key_of,
    logits,
    logits_of,
    move,
    real_positions,
    rows,
    shape_of,
    take,
    with_examples,
)
from layerwise.core.criteria import CrossEntropy
from layerwise.core.probe import Probe
from layerwise.core.sites import Sites
from layerwise.errors import ConfigError, SiteError
from tests.networks import AuxiliaryHead, ModelOutput, Outputs, TinyMLP, TokenClassifier, batch, tokens

X, Y = batch(4)
IDS, LABELS = tokens()
ONE, TWO = torch.ones(2, 3), torch.full((2, 3), 2.0)


class Reversed(nn.Module):
    """Two positional arguments."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


@pytest.mark.parametrize("x", [(ONE, TWO), [ONE, TWO], {"a": ONE, "b": TWO}])
def test_a_network_is_called_with_positions_or_names(x: Inputs) -> None:
    assert torch.equal(call(Reversed(), x), ONE - TWO)


@pytest.mark.parametrize(
    "output",
    [
        ONE,
        (ONE, TWO),
        [ONE, TWO],
        {"logits": ONE, "loss": TWO},
        OrderedDict(out=ONE, aux=TWO),
        ModelOutput(ONE),
        Outputs(ONE, TWO),
    ],
)
def test_one_tensor_is_meant_in_every_output(output: Any) -> None:
    assert logits_of(output) is ONE


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"loss": ONE}, r"^the network gives a dict of loss, and no logits; wrap it in a module that returns them as a tensor$"),
        ((None, ONE), r"^the network gives a tuple, and no logits"),
        ((), r"^the network gives a tuple, and no logits"),
        (None, r"^the network gives a NoneType, and no logits"),
    ],
)  # fmt: skip
def test_an_output_without_logits_is_an_error(output: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        logits_of(output)


@pytest.mark.parametrize(
    ("x", "key"),
    [
        (ONE, None),
        ((1, ONE, TWO), 1),
        ({"attention_mask": ONE, "input_ids": TWO}, "input_ids"),
        ({"input_ids": ONE, "pixel_values": TWO}, "pixel_values"),
        ({"n": 3, "mask": ONE, "x": TWO}, "x"),
        ({"mask": ONE}, "mask"),
    ],
)
def test_one_argument_holds_the_examples(x: Inputs, key: int | str | None) -> None:
    assert key_of(x) == key
    assert rows(x) == 2
    assert examples(with_examples(x, X)) is X
    assert type(with_examples(x, X)) is type(x)


@pytest.mark.parametrize("x", [{"n": 3}, (), "images"])
def test_inputs_without_a_tensor_are_an_error(x: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"^the network's input is a {type(x).__name__} without a tensor; give a tensor, a map"
    ):
        rows(x)


def test_rows_are_taken_from_every_tensor_that_has_them() -> None:
    taken = take({**IDS, "position_ids": torch.arange(6)[None], "n": 3}, slice(1, 3))
    assert isinstance(taken, dict)
    assert {k: getattr(v, "shape", v) for k, v in taken.items()} == {
        "input_ids": (2, 6),
        "attention_mask": (2, 6),
        "position_ids": (1, 6),
        "n": 3,
    }
    assert torch.equal(taken["input_ids"], IDS["input_ids"][1:3])
    moved = move((X, 3), "meta")
    assert isinstance(moved, tuple)
    assert moved[0].device.type == "meta"


def test_floating_examples_carry_the_gradient_and_token_ids_do_not() -> None:
    assert carrier(X) is X
    assert carrier(IDS) is None


def test_a_mask_says_which_positions_are_real() -> None:
    real = real_positions(IDS)
    assert real is not None
    assert real.dtype == torch.bool
    assert real.sum() == 23
    assert real_positions(X) is None


def test_shapes_are_those_of_one_example_of_every_tensor() -> None:
    assert shape_of(X) == shape_of(X[:2]) == (3, 8, 8)
    assert shape_of(IDS) == shape_of(take(IDS, slice(0, 1))) != shape_of(tokens(4, 5)[0])


# Probes and sites through it


def test_a_probe_of_tokens_records_what_the_embeddings_have() -> None:
    model = TokenClassifier().double()
    sites = Sites(model, ["embed", "encoder.1"], example=IDS)
    g_x, g = Probe()(model, IDS, LABELS, criterion=CrossEntropy(), sites=sites)
    h = model.embed(IDS["input_ids"]).detach().requires_grad_()
    output = model(inputs_embeds=h, attention_mask=IDS["attention_mask"])
    torch.autograd.backward(F.cross_entropy(output.logits, LABELS, reduction="sum"))
    assert h.grad is not None
    torch.testing.assert_close(next(iter(g.values())), h.grad, rtol=1e-12, atol=1e-15)
    assert [str(site) for site in g] == ["embed", "encoder.1"]
    assert not g_x.any()


def test_the_gradient_of_embeddings_that_are_given_is_that_of_the_input() -> None:
    model = TokenClassifier().double()
    x = {"inputs_embeds": model.embed(IDS["input_ids"]).detach(), "attention_mask": IDS["attention_mask"]}
    g_x, _ = Probe()(model, x, LABELS, criterion=CrossEntropy(), wrt_input=True)
    sites = Sites(model, "input", example=x)
    assert [str(site) for site in sites] == ['input["inputs_embeds"]']
    _, g = Probe()(model, x, LABELS, criterion=CrossEntropy(), sites=sites)
    assert torch.equal(next(iter(g.values())), g_x)
    assert bool(g_x.any())


def test_no_gradient_flows_through_token_ids() -> None:
    model = TokenClassifier().double()
    message = r"^the network's input holds torch.int64, through which no gradient flows; perturb a layer, such as the embeddings$"
    with pytest.raises(ConfigError, match=message):
        Probe()(model, IDS, LABELS, criterion=CrossEntropy(), wrt_input=True)
    with pytest.raises(SiteError, match=r'^site \'input\["input_ids"\]\' carries torch.int64'):
        Sites(model, "input", example=IDS)


def test_a_tuple_that_a_network_gives_in_training_is_no_obstacle() -> None:
    model = AuxiliaryHead().double()
    assert isinstance(model(X), Outputs)
    expected = model(X).logits
    assert torch.equal(logits(model, X), expected)
    g_x, _ = Probe()(model, X, Y, criterion=CrossEntropy(), wrt_input=True)
    assert bool(g_x.any())


def test_predictions_are_told_from_logits() -> None:
    class Predicts(TinyMLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).long()

    with pytest.raises(ConfigError, match=r"^the network gives torch.int64, predictions perhaps, where its logits are"):
        count_classes(Predicts(), X.float())
