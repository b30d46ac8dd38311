"""What batch norm does in a probe: the arithmetic of training, no memory of it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.modes import BatchNormMode, batch_norm
from layerwise.errors import ConfigError
from tests.networks import TinyConv, batch

X, _ = batch(4)
NORMS = [
    (nn.BatchNorm1d(3), (5, 3)),
    (nn.BatchNorm2d(3), (5, 3, 2, 2)),
    (nn.BatchNorm2d(3, momentum=None), (5, 3, 2, 2)),
    (nn.BatchNorm3d(3, affine=False), (5, 3, 2, 2, 2)),
    (nn.InstanceNorm2d(3, track_running_stats=True), (5, 3, 2, 2)),
]


def buffers(model: nn.Module) -> list[Tensor]:
    return [b.clone() for b in model.buffers()]


def switches(model: nn.Module) -> list[tuple[bool, object]]:
    return [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]


@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=lambda value: type(value).__name__)
def test_batch_statistics_are_bitwise_those_of_training_and_the_running_ones_stay(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    norm = norm.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = buffers(norm)
    with batch_norm(norm, "batch"):
        found = norm(x)
    assert all(torch.equal(a, b) for a, b in zip(buffers(norm), before, strict=True))
    assert torch.equal(found, norm(x))
    assert not all(torch.equal(a, b) for a, b in zip(buffers(norm), before, strict=True))


def test_eval_takes_the_running_statistics_and_train_moves_them() -> None:
    model = TinyConv().double()
    model(X)
    before = buffers(model)
    expected = model.eval()(X)
    model.train()
    with batch_norm(model, "eval"):
        assert torch.equal(model(X), expected)
    assert all(torch.equal(a, b) for a, b in zip(buffers(model), before, strict=True))
    with batch_norm(model, "train"):
        model(X)
    assert not any(torch.equal(a, b) for a, b in zip(buffers(model), before, strict=True))


@pytest.mark.parametrize("mode", ["batch", "train", "eval"])
def test_every_switch_comes_back_also_after_an_error(mode: BatchNormMode) -> None:
    first = TinyConv()
    first.bn2.eval()
    model = nn.Sequential(first, nn.BatchNorm1d(5, track_running_stats=False), nn.Dropout())
    before = switches(model)
    with pytest.raises(ZeroDivisionError), batch_norm(model, mode):
        raise ZeroDivisionError
    assert switches(model) == before


@pytest.mark.parametrize("mode", ["batch", "train", "eval"])
def test_a_norm_in_evaluation_mode_stays_there(mode: BatchNormMode) -> None:
    model = TinyConv().double()
    model(X)
    expected = model.eval()(X)
    with batch_norm(model, mode):
        assert torch.equal(model(X), expected)


@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("outer", ["batch", "eval"])
@pytest.mark.parametrize("inner", ["batch", "train", "eval"])
def test_a_mode_inside_another_is_its_own(
    norm: nn.Module, shape: tuple[int, ...], outer: BatchNormMode, inner: BatchNormMode
) -> None:
    model = nn.Sequential(norm.double(), nn.BatchNorm1d(2))
    model[1].eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm(2 * x)  # so that running statistics and those of the batch differ
    before, modes = buffers(norm), switches(model)
    with batch_norm(model, "eval" if inner == "eval" else "batch"):
        alone = norm(x)
    with batch_norm(model, outer):
        outside, around = norm(x), switches(model)
        with batch_norm(model, inner):
            found = norm(x)
        assert torch.equal(norm(x), outside)
        assert switches(model) == around
    assert torch.equal(found, alone)
    assert torch.equal(found, outside) is ((inner == "eval") == (outer == "eval"))
    assert switches(model) == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers(norm), before, strict=True))


def test_another_network_inside_is_left_alone() -> None:
    model, other = TinyConv().double(), TinyConv().double()
    before = buffers(other)
    with batch_norm(model, "batch"), batch_norm(other, "train"):
        other(X)
    assert not any(torch.equal(a, b) for a, b in zip(buffers(other), before, strict=True))


def test_only_the_norms_are_switched() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    with batch_norm(model, "eval"):
        assert [m.training for m in model] == [True, False]


def test_an_earlier_pass_can_still_go_backward() -> None:
    """Which it could not, had the probe restored the buffers in place."""
    model = TinyConv().double()
    loss = model(X).sum()
    with batch_norm(model, "batch"):
        model(X)
    torch.autograd.backward(loss)
    assert all(p.grad is not None for p in model.parameters())


def test_an_unknown_mode_is_an_error() -> None:
    message = "batch-norm mode 'frozen' is unknown; type one of 'batch', 'train', 'eval'"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"), batch_norm(nn.Identity(), "frozen"):  # type: ignore[arg-type]
        pass
