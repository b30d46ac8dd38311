"""Arguments that a call does not have: the sentence names what was meant; what is right passes unseen."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import layerwise as lw
from layerwise.attacks import PGDAttack
from layerwise.errors import ConfigError
from layerwise.training import SGD, Cosine

NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
X, Y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
DATA = (X, Y)
ANY: Any = lw
"""The package, whose names and arguments a type checker would find out."""

MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: ANY.PGD(ep=0.1), r"PGD has no argument 'ep'; did you mean 'eps'"),
    (lambda: ANY.SLAT(eps=0.1), r"SLAT has no argument 'eps'; known: base, .*eta"),
    (
        lambda: ANY.TRADES(attack=PGDAttack(10)),
        r"attack is PGDAttack\(steps=10.*; give an object, such as layerwise.PGD\(\)",
    ),
    (lambda: ANY.TRADES(attack=lw.FGSM()), r"attack is FGSM\(.*; give an object, such as layerwise.PGD\(\)"),
    (lambda: ANY.SLAT(base=PGDAttack(10)), r"base is PGDAttack\(steps=10.*; give an object, such as layerwise.PGD\(\)"),
    (lambda: ANY.MeanSparse(NET, 0.1), r"MeanSparse was given 0.1 without a name; type the name too, such as sites="),
    (lambda: ANY.PGD("8/255"), r"PGD was given '8/255' without a name; type the name too, such as eps=\.\.\."),
    (lambda: ANY.PGD(steps="ten"), r"steps='ten' is not a number; type for example steps=5, without quotation marks"),
    (lambda: ANY.PGD(steps=2.5), r"steps=2.5 is not a whole number; type steps=2"),
    (lambda: ANY.Training(epoch=5), r"Training has no argument 'epoch'; did you mean 'epochs'\?"),
    (lambda: ANY.Training(lr=0.1), r"no argument 'lr'; it belongs to optimizer=layerwise.training.SGD\(lr=\.\.\.\)"),
    (lambda: ANY.Phase(method=lw.Standard()), r"Phase needs epochs; add epochs=\.\.\."),
    (lambda: ANY.training.SGD(learning_rate=0.1), r"SGD has no argument 'learning_rate'"),
    (lambda: ANY.training.Cosine(warmup_epochs=1), r"Cosine has no argument 'warmup_epochs'"),
    (lambda: ANY.attacks.PGDAttack(20, restart=3), r"PGDAttack has no argument 'restart'; did you mean 'restarts'"),
    (lambda: ANY.ThreatModel(epsilon=0.1), r"ThreatModel has no argument 'epsilon'; did you mean 'eps'"),
    (lambda: ANY.ThreatModel(eps=None), r"eps=None is no radius; leave it out for 8/255"),
    (lambda: ANY.ThreatModel(norm="l2", eps=None), r"eps=None is no radius"),
    (
        lambda: ANY.fit(NET, lw.Standard(), DATA, epochs=5),
        r"it belongs to training=layerwise.Training\(epochs=\.\.\.\)",
    ),
    (lambda: ANY.fit(NET, lw.Standard(), DATA, 5), r"fit was given 5 without a name; type the name too"),
    (lambda: ANY.fit(NET, lw.Standard()), r"fit needs data; add data=\.\.\."),
    (lambda: ANY.evaluate(NET, DATA, eps=0.1), r"it belongs to threat=layerwise.ThreatModel\(eps=\.\.\.\)"),
    (lambda: ANY.evaluate(NET, DATA, attacks=[lw.PGD()]), r"PGD\(.* trains and is no attack; give .*'pgd-20'"),
    (lambda: ANY.evaluate(NET, DATA, attacks=lw.PGD), r"the class PGD trains and is no attack"),
    (lambda: ANY.evaluate(NET, DATA, attacks=[5]), r"5 is no attack; give a name such as 'pgd-20'"),
    (lambda: ANY.evaluate(NET, DATA, measures=[lw.audit]), r"a measure is <function audit.*; give a name"),
    (lambda: ANY.evaluate(NET, DATA, num_examples="all"), r"num_examples='all' is no whole number; .*None for all"),
    (lambda: ANY.step(lw.Standard(), NET, X, Y, None), r"the optimizer is None; give torch.optim.SGD\("),
    (lambda: ANY.step(lw.PGD, NET, X, Y, None), r"the method is the class PGD; give layerwise.SLAT\(\)"),
    (lambda: ANY.step("PGD", NET, X, Y, None), r"the method is 'PGD'; give layerwise.SLAT\(\)"),
    (lambda: ANY.load_data(5), r"the name of a data set is 5; give one as text, such as"),
    (lambda: ANY.load(5), r"the run is 5; give its folder"),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_told(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(("name", "meant"), [("Slat", "SLAT"), ("treatmodel", "ThreatModel"), ("fitt", "fit")])
def test_a_name_that_is_near_is_told(name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"'layerwise' has no attribute '{name}'; did you mean '{meant}'"):
        getattr(lw, name)
    assert not hasattr(lw, name)


@pytest.mark.parametrize(
    "thing", [lw.PGD(steps=3), lw.ThreatModel("l2", 0.5), lw.Training(optimizer=SGD(lr=0.3)), Cosine()]
)
def test_what_is_right_is_made_copied_and_read_back(thing: object) -> None:
    assert copy.copy(thing) == copy.deepcopy(thing) == thing == pickle.loads(pickle.dumps(thing))  # noqa: S301
    assert list(inspect.signature(type(thing)).parameters) == [f for f in vars(thing) if not f.startswith("_")]


def test_functions_keep_their_signatures_and_examples() -> None:
    for function in (lw.fit, lw.evaluate):
        assert next(iter(inspect.signature(function).parameters)) == "model"
        assert function.__doc__ is not None
        assert ">>> " in function.__doc__


def test_one_attack_and_one_measure_may_stand_without_a_list() -> None:
    # Two rows, as there is no batch norm; the network is not trained.
    record = ANY.evaluate(NET, DATA, attacks=PGDAttack(1), measures="calibration images=4", progress=False)
    assert [str(result.attack) for result in record.results] == ["pgd-1"]
    assert [each.measure for each in record.measures] == ["calibration images=4"]


MORE: list[tuple[Callable[[], object], str]] = [
    (lambda: ANY.TRADES(attack="pgd"), r"attack is 'pgd'; give an object, such as layerwise.PGD\(\)"),
    (lambda: ANY.Training(augment="crop"), r"augment is 'crop'; give layerwise.data.Augment\(\)"),
    (lambda: ANY.Training(optimizer=torch.optim.Adam), r"optimizer is a torch.optim.adam.Adam; give settings of which"),
    (
        lambda: ANY.Probe(batch_norm="evaluation"),
        r"batch_norm='evaluation' is unknown; type one of 'batch', 'train', 'eval'",
    ),
    (lambda: ANY.Probe(batchnorm="eval"), r"Probe has no argument 'batchnorm'; did you mean 'batch_norm'"),
    (
        lambda: ANY.fit(NET, lw.Standard(), DATA, phases=[{"epochs": 1}]),
        r"a phase is \{'epochs': 1\}; give layerwise.Phase\(",
    ),
    (lambda: ANY.step(lw.Standard(), NET, X, Y), r"step needs optimizer; add optimizer=\.\.\."),
    (lambda: ANY.step(lw.Standard(), NET, X, Y, None, 0.5), r"step was given 0.5 without a name; type the name too"),
    (lambda: ANY.evaluate(NET, DATA, others=[NET]), r"others is \[Sequential.*; give \{name: network\}"),
    (
        lambda: ANY.load("runs/a", NET),
        r"load was given Sequential.* without a name; type the name too, such as model=\.\.\.",
    ),
    (lambda: ANY.load_weights(NET, 5), r"the path is 5; give that of a file or a run folder"),
    (lambda: ANY.audit(NET, DATA, radii=0.1), r"radii is 0.1; give a list, such as \[0.1, 0.3\]"),
    (lambda: ANY.audit(NET), r"audit needs data; add data=\.\.\."),
    (lambda: ANY.export(NET, "x.onnx"), r"export needs example; add example=\.\.\."),
    (lambda: ANY.from_tensors(images=X, targets=Y), r"from_tensors has no argument 'targets'"),
    (lambda: ANY.load_data("digits", val=0.2), r"no option 'val'; it has none; all have root, validation"),
]


@pytest.mark.parametrize(("call", "message"), MORE)
def test_more_mistakes_are_told(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_type_error_of_ones_own_code_stays_what_it_is() -> None:
    class Broken(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            raise TypeError("theirs")

    with pytest.raises(TypeError, match=r"^theirs$"):
        lw.step(lw.Standard(), NET, X, Y, Broken(NET.parameters(), lr=0.1))
