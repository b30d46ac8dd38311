"""Objects of the wrong kind are told with what to give, wherever they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import layerwise as lw
from layerwise.errors import ConfigError
from layerwise.training import fit
from tests.networks import TinyMLP
from tests.training.fakes import cheap, pictures

X, Y = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
ANY: Any = lw
"""The library without its types, which would tell the same."""


def fitted(**changes: Any) -> object:
    given: dict[str, Any] = {"method": lw.Standard(), "training": cheap(max_steps=1), "progress": False}
    given |= changes
    return fit(TinyMLP(), given.pop("method"), pictures(), **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fitted(method="SLAT"), r"^the method is 'SLAT'; give layerwise.SLAT\(\)$"),
        (lambda: fitted(method=lw.SLAT), r"^the method is the class SLAT; give layerwise.SLAT\(\)$"),
        (lambda: fitted(training={"epochs": 1}), r"^training is {'epochs': 1}; give layerwise.Training\(epochs=10\)$"),
        (lambda: fitted(threat=0.1), r"^threat is 0.1; give layerwise.ThreatModel\(eps=8/255\)$"),
        (lambda: fitted(phases=lw.Phase(epochs=1)), r"^phases is Phase\(.*; give \[layerwise.Phase\(epochs=5\), "),
        (lambda: fitted(run=3), r"^run is 3; give 'runs/mine'$"),
        (lambda: ANY.evaluate(TinyMLP(), (X, Y), threat=0.1), r"^threat is 0.1; give layerwise.ThreatModel"),
        (
            lambda: ANY.evaluate(TinyMLP(), (X, Y), attacks=[lw.PGD()]),
            r"^'?PGD\(.* is no attack; give ",
        ),
        (
            lambda: ANY.build_model(TinyMLP()),
            r"^a network's name is TinyMLP\(.*; give 'digits_cnn'; a network of your own",
        ),
        (lambda: ANY.AWP(base="PGD"), r"^base is 'PGD'; give layerwise.PGD\(\)$"),
        (lambda: ANY.AWP(base=lw.PGD), r"^base is the class PGD; give layerwise.PGD\(\)$"),
        (lambda: ANY.Training(batch_size=None), r"^batch_size=None is not a number; leave it out for the default$"),
        (lambda: ANY.Training(epochs="10"), r"^epochs='10' is not a number"),
    ],
)
def test_it_is_told(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
