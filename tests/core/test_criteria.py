"""Criteria: any loss of torch or of the user's, with one unit: a mean is descended, probes take rows times it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.criteria import (
    Criterion,
    CrossEntropy,
    FromFunction,
    NextToken,
    TokenCrossEntropy,
    as_criterion,
    class_logits,
)
from layerwise.core.probe import Probe
from layerwise.core.registry import find
from layerwise.errors import ConfigError
from layerwise.methods import FGSM, SLAT, Standard
from tests.methods.cases import data, differing, train
from tests.networks import TinyMLP, batch

STREAM = torch.Generator().manual_seed(0)
LOGITS, Y = torch.randn(6, 5, generator=STREAM).double(), torch.arange(6) % 5
PIXELS, MASKS = torch.randn(6, 5, 3, 4, generator=STREAM).double(), torch.randint(5, (6, 3, 4), generator=STREAM)
TOKENS, TAGS = torch.randn(6, 7, 5, generator=STREAM).double(), torch.randint(5, (6, 7), generator=STREAM)
MANY = torch.randint(2, (6, 5), generator=STREAM).double()
MASKS[0, 0] = -100
TAGS[1, 3:] = -100
W = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()


def hinge(output: Tensor, y: Tensor) -> Tensor:
    """A loss of the user's, without a reduction."""
    return (1 - output.gather(1, y[:, None])[:, 0]).relu()


def squares(output: Tensor, y: Tensor) -> Tensor:
    return (output - y) ** 2


CASES: list[tuple[Any, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]] = [
    (CrossEntropy(), LOGITS, Y, F.cross_entropy),
    (CrossEntropy(), LOGITS, LOGITS.roll(1, 0).softmax(1), F.cross_entropy),
    (CrossEntropy(), PIXELS, MASKS, F.cross_entropy),
    (CrossEntropy(label_smoothing=0.1), PIXELS, MASKS, partial(F.cross_entropy, label_smoothing=0.1)),
    (TokenCrossEntropy(), TOKENS, TAGS, lambda z, y: F.cross_entropy(z.transpose(1, 2), y)),
    (NextToken(), TOKENS, TAGS, lambda z, y: F.cross_entropy(z[:, :-1].transpose(1, 2), y[:, 1:])),
    (nn.CrossEntropyLoss(), LOGITS, Y, F.cross_entropy),
    (nn.CrossEntropyLoss(reduction="sum"), LOGITS, Y, F.cross_entropy),
    (nn.CrossEntropyLoss(weight=W), LOGITS, Y, partial(F.cross_entropy, weight=W)),
    (nn.CrossEntropyLoss(ignore_index=2), LOGITS, Y, partial(F.cross_entropy, ignore_index=2)),
    (F.cross_entropy, LOGITS, Y, F.cross_entropy),
    (partial(F.cross_entropy, weight=W), LOGITS, Y, partial(F.cross_entropy, weight=W)),
    (nn.BCEWithLogitsLoss(), LOGITS, MANY, F.binary_cross_entropy_with_logits),
    (F.mse_loss, LOGITS, MANY, F.mse_loss),
    (hinge, LOGITS, Y, lambda z, y: hinge(z, y).mean()),
    (squares, LOGITS, MANY, F.mse_loss),
]


@pytest.mark.parametrize(("given", "output", "y", "expected"), CASES)
def test_the_mean_is_the_losss_own_and_the_sum_is_rows_times_it(
    given: Any, output: Tensor, y: Tensor, expected: Callable[[Tensor, Tensor], Tensor]
) -> None:
    criterion = as_criterion(given)
    torch.testing.assert_close(criterion.mean(output, y), expected(output, y), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(criterion.sum(output, y), 6 * expected(output, y), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("given", "output", "y", "expected"), CASES)
def test_each_row_or_position_has_its_loss(given: Any, output: Tensor, y: Tensor, expected: object) -> None:
    losses = as_criterion(given)(output, y)
    assert len(losses) == 6
    one = torch.stack([as_criterion(given)(output[i : i + 1], y[i : i + 1])[0] for i in range(6)])
    torch.testing.assert_close(losses, one, rtol=1e-12, atol=1e-15)


def test_ignored_positions_have_no_loss() -> None:
    assert bool((CrossEntropy()(PIXELS, MASKS)[0, 0] == 0).all())
    assert NextToken()(TOKENS, TAGS).shape == (6, 6)
    assert bool((NextToken()(TOKENS, TAGS)[1, 2:] == 0).all())
    assert float(NextToken(ignore_index=int(TAGS[0, 1]))(TOKENS, TAGS.clamp(0))[0, 0]) == 0


def test_half_precision_logits_of_a_vocabulary_are_summed_in_float32() -> None:
    loss = NextToken().mean(TOKENS.bfloat16(), TAGS)
    assert loss.dtype == torch.float32


def test_torchs_cross_entropy_is_ours() -> None:
    assert as_criterion(nn.CrossEntropyLoss(label_smoothing=0.1)) == CrossEntropy(label_smoothing=0.1)
    assert as_criterion(F.cross_entropy) == CrossEntropy()
    assert isinstance(as_criterion(nn.CrossEntropyLoss(weight=W)), FromFunction)


def test_a_loss_that_is_given_stays_as_it_is() -> None:
    loss = nn.MSELoss()
    as_criterion(loss)(LOGITS, MANY)
    assert loss.reduction == "mean"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ce", "criterion='ce' gives no losses; type CrossEntropy(), or a function of (output, y)"),
        (CrossEntropy, "criterion=the class CrossEntropy gives no losses; type CrossEntropy()"),
        (nn.MSELoss, "criterion=the class MSELoss gives no losses; type MSELoss()"),
    ],
)
def test_what_is_no_criterion_says_so(given: object, message: str) -> None:
    for make in (as_criterion, lambda value: FGSM(criterion=value), lambda value: Probe(criterion=value)):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            make(given)


@pytest.mark.parametrize("function", [lambda z, y: F.mse_loss(z, y), lambda z, y: "loss", lambda z, y: z[:2, 0]])
def test_a_function_that_gives_no_losses_says_so(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"^the criterion gives .* for 6 examples; it has to give a loss for each of"):
        as_criterion(function)(LOGITS, MANY)


@pytest.mark.parametrize("method", [Standard, FGSM, lambda **more: SLAT(sites=["fc1"], **more)])
def test_a_method_takes_any_of_them(method: Callable[..., Any]) -> None:
    """Torch's module, torch's function and ours train to the same bits; another loss trains to others."""
    found = [
        train(method(criterion=criterion), TinyMLP().double(), data(3))
        for criterion in (CrossEntropy(), nn.CrossEntropyLoss(), F.cross_entropy, nn.MultiMarginLoss())
    ]
    assert differing(found[0], found[1]) == differing(found[0], found[2]) == []
    assert differing(found[0], found[3]) != []


def test_a_regression_has_gradients_of_each_examples_loss() -> None:
    model, (x, _) = TinyMLP().double(), batch(4)
    y = torch.linspace(0, 1, 20).double().reshape(4, 5)
    g, _ = Probe()(model, x, y, criterion=as_criterion(nn.MSELoss()), wrt_input=True)
    for i in range(4):
        leaf = x[i : i + 1].clone().requires_grad_()
        [own] = torch.autograd.grad(F.mse_loss(model(leaf), y[i : i + 1]), leaf)
        torch.testing.assert_close(g[i : i + 1], own, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    ("output", "y", "expected"),
    [
        (LOGITS, Y, True),
        (LOGITS, MANY, False),
        (LOGITS[:, :1], Y * 0, False),
        (LOGITS[:, 0], Y, False),
        (PIXELS, MASKS, False),
        (LOGITS, Y.double(), False),
        (LOGITS, {"y": Y}, False),
    ],
)
def test_classes_are_logits_and_labels(output: Tensor, y: object, expected: bool) -> None:
    assert class_logits(output, y) is expected


def test_criteria_are_found_by_name() -> None:
    found = find("criterion", "nexttoken").thing
    assert found is NextToken
    assert issubclass(found, Criterion)
