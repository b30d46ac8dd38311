"""What all measures have in common: they leave the model alone, give the same numbers again, and can be read and drawn."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn

from layerwise.core.sites import has_sites
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measures import Curves, InputGradients
from tests.evaluation.measures.cases import BATCHED, CASES, SEEDED, UNSEEDED, X, Y
from tests.networks import TinyResNet


def network(seed: int = 0) -> nn.Module:
    """In training mode, but for one module, and trainable, but for one parameter."""
    model = TinyResNet(seed).double()
    model.get_submodule("blocks.block2").eval()
    model.fc.bias.requires_grad_(False)
    return model


def state(model: nn.Module) -> tuple[Any, ...]:
    modes = [module.training for module in model.modules()]
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return modes, flags, {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[:2] == after[:2]
    assert before[2].keys() == after[2].keys()
    assert all(torch.equal(v, after[2][k]) for k, v in before[2].items())
    assert torch.equal(before[3], after[3])


def numbers(value: Any) -> list[Any]:
    """The leaves of what `to_dict` gave, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *numbers(value[key]))]
    return [leaf for item in value for leaf in numbers(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", CASES)
def test_the_model_and_the_random_state_are_left_alone(name: str) -> None:
    model = network()
    before = state(model)
    CASES[name](model, 4, 0)
    assert_same(before, state(model))
    assert not has_sites(model)


@pytest.mark.parametrize("name", CASES)
def test_also_after_an_error_in_the_middle(name: str) -> None:
    model = network()
    passes = 0

    def fail(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise ZeroDivisionError

    handle = model.register_forward_hook(fail)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        CASES[name](model, 2, 0)
    handle.remove()
    assert_same(before, state(model))
    assert not has_sites(model)


@pytest.mark.parametrize("name", CASES)
def test_a_network_that_draws_random_numbers_leaves_the_random_state_alone(name: str) -> None:
    model = network()
    model.register_forward_hook(lambda module, args, output: output + 1e-3 * torch.rand_like(output))
    before = torch.get_rng_state()
    CASES[name](model, 4, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_again_in_json(name: str) -> None:
    first, again = (json.dumps(CASES[name](network(), 4, 0).to_dict(), allow_nan=False) for _ in range(2))
    assert first == again
    assert json.loads(first)["kind"] == type(CASES[name](network(), 4, 0)).__name__


@pytest.mark.parametrize("name", SEEDED | UNSEEDED)
def test_the_batch_size_does_not_matter(name: str) -> None:
    one, two = (numbers(CASES[name](network(), size, 0).to_dict()) for size in (6, 4))
    assert one == [pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value for value in two]


@pytest.mark.parametrize("name", sorted(set(SEEDED) - {"radius"}))
def test_the_seed_does(name: str) -> None:
    one, two = (CASES[name](network(), 6, seed).to_dict() for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize("name", CASES)
def test_every_figure_has_labels_that_fit_and_a_sentence(name: str) -> None:
    result = CASES[name](network(), 4, 0)
    figures = [result.figure()]
    beside = CASES[name](network(1), 4, 0)
    if isinstance(result, Curves) and isinstance(beside, Curves):
        figures.append(result.figure(name="one", others={"another network": beside}))
    if isinstance(result, InputGradients) and isinstance(beside, InputGradients):
        figures.append(result.figure(name="one", others={"another network": beside}))
    for figure in figures:
        figure.draw_without_rendering()
        labels: list[Text] = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label, axes.title)]
        assert any(axes.get_ylabel() for axes in figure.axes)
        assert any(axes.get_xlabel() for axes in figure.axes) or figure.get_supxlabel()
        for text in labels:
            if text.get_text():
                box = text.get_window_extent()
                assert figure.bbox.x0 <= box.x0
                assert box.x1 <= figure.bbox.x1
                assert figure.bbox.y0 <= box.y0
                assert box.y1 <= figure.bbox.y1
        sentence = figure.alt  # type: ignore[attr-defined]
        assert sentence.startswith(result.title)
        assert sentence.endswith(".")
        assert "nan" not in sentence
    if len(figures) == 2:
        assert "another network" in figures[1].alt  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted((SEEDED | UNSEEDED | BATCHED).keys() - {"plane"}))
def test_no_images_wrong_rows_and_whole_numbers_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.evaluation.measures import cases

    monkeypatch.setattr(cases, "X", X.mul(255).to(torch.uint8))
    monkeypatch.setattr(cases, "NOISY", X.mul(255).to(torch.uint8))
    with pytest.raises(DataError, match=r"uint8; give floating-point pixels in \[0, 1\]"):
        CASES[name](network(), 4, 0)
    if name != "jacobian":
        monkeypatch.setattr(cases, "X", X[:5])
        with pytest.raises(DataError, match=r"5|6"):
            CASES[name](network(), 4, 0)
    monkeypatch.setattr(cases, "X", X[:0])
    monkeypatch.setattr(cases, "NOISY", X[:0])
    monkeypatch.setattr(cases, "Y", Y[:0])
    with pytest.raises((DataError, ConfigError)):
        CASES[name](network(), 4, 0)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_size_of_zero_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="batch_size=0 is too small; type 1 or more"):
        CASES[name](network(), 0, 0)


def test_the_settings_of_the_caller_come_back() -> None:
    with mpl.rc_context({"font.size": 7.0, "axes.grid": False}):
        figure = CASES["jacobian"](network(), 4, 0).figure()
        assert figure.axes[0].xaxis.label.get_fontsize() == 9.0
        assert (mpl.rcParams["font.size"], mpl.rcParams["axes.grid"]) == (7.0, False)


def test_the_package_costs_neither_matplotlib_nor_scikit_learn_and_pyplot_is_never_loaded() -> None:
    program = (
        "import sys, torch, layerwise.evaluation.measures as d\n"
        "assert not {'matplotlib', 'sklearn'} & sys.modules.keys()\n"
        "x, y = torch.rand(6, 4), torch.zeros(6, dtype=torch.int64)\n"
        "d.gradient_alignment(torch.nn.Linear(4, 2), x, y).figure()\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_numbers_that_are_not_finite_are_null() -> None:
    from layerwise.evaluation.measurement import plain

    assert plain((math.inf, {1: float("nan")}, torch.tensor([math.inf]))) == [None, {"1": None}, [None]]
