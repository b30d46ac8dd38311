"""Exported networks compute what the network computes, for any batch size, and exporting leaves no trace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from layerwise import Sites, models
from layerwise.errors import ConfigError
from layerwise.models.export import Format, export


@pytest.fixture
def net() -> nn.Module:
    """A small network with a normalisation layer, in training mode but for one frozen part, its statistics away from their start."""
    torch.manual_seed(0)
    network = models.build("digits_cnn", num_classes=10, shape=(1, 8, 8), mean=0.3, std=0.4, width=4)
    network(images(16))
    network.get_submodule("layer1").eval()
    return network


def images(number: int) -> Tensor:
    return torch.rand(number, 1, 8, 8, generator=torch.Generator().manual_seed(number))


def expected(net: nn.Module, x: Tensor) -> Tensor:
    modes = [(m, m.training) for m in net.modules()]
    with torch.no_grad():
        y: Tensor = net.eval()(x)
    for module, mode in modes:
        module.training = mode
    return y


def test_weights_under_their_own_names(net: nn.Module, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in net.state_dict().items()}
    path = export(net, tmp_path / "net", example=images(1))
    assert path == tmp_path / "net.safetensors"
    found = load_file(path)
    assert set(found) == set(state)
    assert all(torch.equal(found[k], state[k]) for k in state)
    fresh = models.build("digits_cnn", num_classes=10, shape=(1, 8, 8), mean=0.3, std=0.4, width=4)
    fresh.load_state_dict(found)
    assert torch.equal(expected(fresh, images(5)), expected(net, images(5)))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_torch_export_program(net: nn.Module, tmp_path: Path, rows: int) -> None:
    modes = {name: m.training for name, m in net.named_modules()}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    program: Any = torch.export.load(export(net, tmp_path / "net.pt2", example=images(rows)))
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert set(program.state_dict) == set(state)
    again = program.module()
    for number in (1, 2, 7):
        torch.testing.assert_close(again(images(number)), expected(net, images(number)), rtol=1e-6, atol=1e-6)
    x = images(2).requires_grad_()
    (found,) = torch.autograd.grad(again(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(net.eval()(x).square().sum(), x)
    torch.testing.assert_close(found, wanted)


def test_onnx(net: nn.Module, tmp_path: Path) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    modes = {name: m.training for name, m in net.named_modules()}
    path = export(net, tmp_path / "net.onnx", example=images(3))
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert {name: m.training for name, m in net.named_modules()} == modes
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {i.name for i in model.graph.initializer} >= {"conv1.weight", "linear.weight", "normalize.mean"}
    evaluator = ReferenceEvaluator(model)
    (name,) = [i.name for i in model.graph.input]
    assert (name, [o.name for o in model.graph.output]) == ("pixels", ["logits"])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for number in (1, 5):
        (found,) = evaluator.run(None, {name: images(number).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(net, images(number)), rtol=1e-5, atol=1e-5)


class ByName(nn.Module):
    """Called as language models are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head((self.words(input_ids) * attention_mask[..., None]).sum(1))}


def test_onnx_of_a_network_that_is_called_by_name(tmp_path: Path) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    ids = torch.arange(15).reshape(3, 5) % 9
    x, model = {"input_ids": ids, "attention_mask": torch.ones(3, 5)}, ByName()
    written = onnx.load(export(model, tmp_path / "words.onnx", example=x))
    assert [i.name for i in written.graph.input] == list(x)
    assert [o.name for o in written.graph.output] == ["logits"]
    assert {i.type.tensor_type.shape.dim[0].dim_param for i in written.graph.input} == {"batch"}
    (found,) = ReferenceEvaluator(written).run(None, {name: value[:2].numpy() for name, value in x.items()})
    expected = model(**{name: value[:2] for name, value in x.items()})["logits"]
    torch.testing.assert_close(torch.from_numpy(found), expected.detach())


def test_onnx_says_what_to_install(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(
        ConfigError, match=re.escape("ONNX needs two more packages; type: pip install layerwise[export]")
    ):
        export(net, tmp_path / "net", example=images(2), format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_sites_have_to_be_removed_first(net: nn.Module, tmp_path: Path) -> None:
    with Sites(net, ["conv1"], example=images(2)), pytest.raises(ConfigError, match="sites are still attached"):
        export(net, tmp_path / "net", example=images(2))
    assert list(tmp_path.iterdir()) == []
    assert export(net, tmp_path / "net", example=images(2)).is_file()


class Branching(nn.Module):
    """Its way depends on a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_exported_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the network cannot be exported: ") as caught:
        export(Branching(), tmp_path / "net.pt2", example=images(2))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_wrappers_are_left_out(net: nn.Module, tmp_path: Path) -> None:
    wrapped = nn.DataParallel(net)
    assert set(load_file(export(wrapped, tmp_path / "net", example=images(2)))) == set(net.state_dict())


def test_tied_weights_are_stored_as_both(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    found = load_file(export(tied, tmp_path / "net", example=torch.rand(2, 3)))
    assert torch.equal(found["0.weight"], found["1.weight"])


@pytest.mark.parametrize(
    ("name", "format", "file"),
    [
        ("a.v2", None, "a.v2.safetensors"),
        ("a.v2", "state_dict", "a.v2.safetensors"),
        ("a.safetensors", None, "a.safetensors"),
    ],
)
def test_the_suffix(net: nn.Module, tmp_path: Path, name: str, format: Format | None, file: str) -> None:
    assert export(net, tmp_path / name, example=images(2), format=format).name == file


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("a", "pickle", "format 'pickle' is unknown; type one of state_dict, onnx, torch.export"),
        ("a.onnx", "state_dict", "a.onnx ends like onnx, the format is state_dict; type "),
    ],
)
def test_formats_that_do_not_fit(net: nn.Module, tmp_path: Path, name: str, format: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        export(net, tmp_path / name, example=images(2), format=format)
    assert list(tmp_path.iterdir()) == []
