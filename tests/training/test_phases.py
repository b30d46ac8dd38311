from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerwise.core.sites import Sites
from layerwise.errors import ConfigError
from layerwise.methods import ANP, AWP, LAD, LAT, PGD, SLAT, Method, Standard
from layerwise.training import Phase
from layerwise.training.phases import Phases, changed
from tests.methods.cases import backward
from tests.networks import TinyConv, batch
from tests.training.fakes import Scripted, cheap, train


def test_fields_change_at_the_first_epoch_of_a_phase_and_stay() -> None:
    method = ANP(eps=0.1, eta=0.2, k=5)
    clean = Standard()
    phases = Phases(
        method,
        [Phase(epochs=2, method=clean), Phase(epochs=1, fields={"k": 3}), Phase(epochs=2, fields={"eps": 9})],
        5,
    )
    found = [(phases.enter(epoch), method.k, method.eps, method.eta) for epoch in range(5)]
    assert found == [
        (clean, 5, 0.1, 0.2),
        (clean, 5, 0.1, 0.2),
        (method, 3, 0.1, 0.2),
        (method, 3, 9, 0.2),
        (method, 3, 9, 0.2),
    ]
    assert phases.methods == [method, clean]


def test_a_phase_keeps_what_the_method_carries_over() -> None:
    method = LAT()
    method._previous = {"conv1": torch.ones(2)}
    phases = Phases(method, [Phase(epochs=1), Phase(epochs=1, fields={"eps": 3.0})], 2)
    phases.enter(1)
    assert method.eps == 3.0
    assert method._previous.keys() == {"conv1"}


def test_fields_of_fields() -> None:
    method = changed(LAD(base=PGD(eps=0.1)), {"base.eps": "16/255", "base.probe.batch_norm": "eval", "eta": 5})
    assert isinstance(method, LAD)
    assert isinstance(method.base, PGD)
    assert (method.base.eps, method.base.probe.batch_norm, method.eta) == (16 / 255, "eval", 5)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (ANP(), {"esp": 1.0}, r"ANP has no field 'esp' \(in 'esp'\); did you mean 'eps'"),
        (LAD(), {"base.stps": 1}, r"PGD has no field 'stps' \(in 'base.stps'\); did you mean 'steps'"),
        (ANP(), {"eta.x": 1.0}, r"float has no field 'x'"),
        (ANP(), {"k": 0}, "k=0 is too small"),
        (ANP(), {"k": "five"}, "'k' is 5, found 'five'; type a number"),
        (ANP(), {"eps": "five"}, "'five' is not a radius"),
        (SLAT(), {"eta": 8}, "eta=8 is in units of 0 to 255 pixels"),
    ],
)
def test_fields_that_cannot_be_are_refused_before_anything_trains(
    method: Method, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Phases(method, [Phase(epochs=1), Phase(epochs=1, fields=fields)], 2)


def test_phases_have_to_add_up() -> None:
    with pytest.raises(ConfigError, match=r"the phases have 3 epochs and the run 4; type training.epochs=3"):
        Phases(ANP(), [Phase(epochs=3)], 4)
    with pytest.raises(ConfigError, match="a phase's epochs=0 is too small"):
        Phase(epochs=0)
    with pytest.raises(ConfigError, match="a method of its own or changes fields"):
        Phase(epochs=1, fields={"eps": 1.0}, method=Standard())


def test_a_method_that_is_no_dataclass_is_told() -> None:
    class Plain(Scripted):
        pass

    class Bare(Method):
        def batch_losses(self, *args: Any) -> Any: ...

        @property
        def passes(self) -> Any: ...

    Phases(Plain(), [], 1)
    with pytest.raises(ConfigError, match="Bare is no dataclass"):
        Phases(Bare(), [], 1)


def test_a_phase_cannot_move_the_sites(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"phase 2 would perturb conv1, the run perturbs conv1, conv2; the sites of a method"
    ):
        train(TinyConv(), ANP(layers=2), cheap(), phases=[Phase(epochs=1), Phase(epochs=1, fields={"layers": 1})])


def test_sites_of_all_methods_are_there_from_the_start_to_the_end() -> None:
    net = TinyConv()
    x = batch(2, dtype=torch.float32)[0]
    first, second = ANP(layers=2), SLAT(sites=["conv2"])
    phases = Phases(first, [Phase(epochs=1), Phase(epochs=1, method=second)], 2)
    with phases.attached(net, x):
        for epoch in range(2):
            phases.enter(epoch)
            assert [str(s) for sites in first.attached_sites() for s in sites] == ["conv1", "conv2"]
            assert [str(s) for sites in second.attached_sites() for s in sites] == ["conv2"]
    assert not first.attached_sites()
    assert not second.attached_sites()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_base_of_a_wrapper_keeps_its_sites_and_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    make = LAT.make_sites

    def counted(self: LAT, model: nn.Module, example: torch.Tensor) -> Sites:
        made.append(self.eps)
        return make(self, model, example)

    monkeypatch.setattr(LAT, "make_sites", counted)
    base = LAT(eps=2.0)
    method, net, x = AWP(base=base), TinyConv(), batch(2, dtype=torch.float32)[0]
    phases = Phases(method, [Phase(epochs=1), Phase(epochs=2, fields={"base.eps": 3.0, "gamma": 0.02})], 3)
    with phases.attached(net, x):
        assert made == [2.0, 3.0]  # the run's, and the one that phase 2 is compared with
        for epoch, expected in enumerate([(2.0, 0.01), (3.0, 0.02), (3.0, 0.02), (2.0, 0.01)]):
            phases.enter(epoch % 3)
            assert (base.eps, method.gamma, method.base is base) == (*expected, True)
            assert bool(base.state_dict()) is (epoch > 0)
            for loss in method.losses(net, x, torch.zeros(2, dtype=torch.int64)):
                backward(loss)
        phases.enter(1)
    assert (base.eps, method.gamma, len(made)) == (2.0, 0.01, 2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_phase_cannot_move_the_sites_of_a_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="phase 1 would perturb conv1, the run perturbs conv1, conv2"):
        train(
            TinyConv(),
            AWP(base=SLAT(sites=["conv1", "conv2"])),
            cheap(),
            phases=[Phase(epochs=2, fields={"base.sites": ["conv1"]})],
        )


def test_a_method_that_the_user_attached_stays_attached() -> None:
    net, method = TinyConv(), ANP(layers=1)
    method.attach(net, batch(2, dtype=torch.float32)[0])
    train(net, method, cheap(epochs=1))
    assert len(method.attached_sites()) == 1


def test_the_phases_are_in_the_metrics(tmp_path: Path) -> None:
    import json

    phases = [Phase(epochs=1, method=Standard()), Phase(epochs=1, fields={"scale": 2.0})]
    train(TinyConv(), Scripted(), cheap(), run=tmp_path / "run", phases=phases)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [(line["epoch"], line["method"], line["fields"]) for line in lines if line["kind"] == "phase"]
    assert found == [(1, "Standard", {}), (2, "Scripted", {"scale": 2.0})]
