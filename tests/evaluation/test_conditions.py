from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from layerwise.attacks import ThreatModel
from layerwise.data import TensorSplit, from_dataset, from_tensors, load
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation import evaluate
from layerwise.evaluation.conditions import Data, digest, evaluating
from tests.evaluation.problems import trained
from tests.networks import TinyConv, TinyMLP, batch

BACKENDS: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]


class Watching(nn.Module):
    """Notes the conditions under which it runs; fails from the given pass on."""

    def __init__(self, *, fail_at: int = 10**9) -> None:
        super().__init__()
        self.network, self.dropout = TinyConv(), nn.Dropout(0.5)
        self.network.bn1.eval()
        self.seen: list[tuple[Any, ...]] = []
        self.fail_at = fail_at

    def forward(self, x: Tensor) -> Tensor:
        if len(self.seen) == self.fail_at:
            raise ValueError("out of luck")
        precisions = tuple(b.fp32_precision for b in BACKENDS)
        modes = {m.training for m in self.modules()}
        self.seen.append(
            (modes, precisions, torch.is_autocast_enabled("cpu"), x.dtype, torch.is_inference_mode_enabled())
        )
        out: Tensor = self.network(self.dropout(x))
        return out


@pytest.fixture
def tf32() -> Iterator[None]:
    before = [b.fp32_precision for b in BACKENDS]
    for b in BACKENDS:
        b.fp32_precision = "tf32"
    yield
    for b, value in zip(BACKENDS, before, strict=True):
        b.fp32_precision = value


def state(net: nn.Module) -> tuple[Any, ...]:
    modes = [m.training for m in net.modules()]
    flags = [(p.requires_grad, p.grad is None) for p in net.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    values = [v.clone() for v in net.state_dict().values()]
    return modes, flags, hooks, [b.fp32_precision for b in BACKENDS], torch.get_rng_state().tolist(), digest(values)


@pytest.mark.parametrize("fail_at", [10**9, 0, 3])
def test_everything_is_put_back_also_after_an_error(tf32: None, fail_at: int) -> None:
    net = Watching(fail_at=fail_at).train()
    net.network.bn1.eval()
    net.network.conv2.weight.requires_grad_(False)
    torch.manual_seed(4321)
    before = state(net)
    data = batch(12, dtype=torch.float32)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            evaluate(net, data, attacks=["clean", "pgd-3", "latent"], progress=False)
            assert not torch.is_grad_enabled()

    if fail_at < 10**9:
        with pytest.raises(ValueError, match="out of luck"):
            run()
    else:
        run()
        assert {str(s) for s in net.seen} == {str(({False}, ("ieee", "ieee"), False, torch.float32, False))}
    assert state(net) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad])
def test_gradients_off_around_it_do_no_harm(around: Any) -> None:
    data = batch(12, dtype=torch.float32)
    net = trained(torch.float32)
    threat = ThreatModel("linf", 0.15)
    expected = evaluate(net, data, threat=threat, attacks=["pgd-3"], progress=False)
    assert expected["pgd-3"].accuracy < 1
    with around():
        assert evaluate(net, data, threat=threat, attacks=["pgd-3"], progress=False).accuracies == expected.accuracies


def test_wrapped_networks_are_judged_bare() -> None:
    net, data = trained(torch.float32), batch(40, seed=3, dtype=torch.float32)
    bare = evaluate(net, data, threat=ThreatModel("linf", 0.1), progress=False)
    wrapped = evaluate(nn.DataParallel(net), data, threat=ThreatModel("linf", 0.1), progress=False)
    assert wrapped.accuracies == bare.accuracies
    assert wrapped.model == bare.model
    assert bare.model.name == "TinyMLP"


def test_images_are_a_fixed_subset_in_an_order_drawn_by_the_seed() -> None:
    x, y = torch.arange(50).float().div(50).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8), torch.zeros(50, dtype=torch.int64)

    def chosen(**options: Any) -> list[float]:
        with evaluating(trained(torch.float32), (x, y), **options) as conditions:
            return [round(v.item() * 50) for b, _, _ in conditions.batches for v in b[:, 0, 0, 0]]

    everything = chosen()
    assert sorted(everything) == list(range(50))
    assert everything != list(range(50))
    assert chosen(num_examples=20) == chosen(num_examples=20, batch_size=3) == everything[:20]
    assert chosen(num_examples=20, seed=1) != everything[:20]
    assert chosen(num_examples=500) == everything


@pytest.mark.parametrize("kind", ["tensors", "uint8", "split", "stream", "data"])
def test_kinds_of_data(kind: str) -> None:
    x, y = batch(30, dtype=torch.float32)
    x = (255 * x).round() / 255
    kinds: dict[str, Data] = {
        "tensors": (x, y.to(torch.int32)),
        "uint8": ((255 * x).round().to(torch.uint8), y),
        "split": TensorSplit(x, y),
        "stream": from_dataset(TensorDataset(x, y), classes="abcde", test=TensorDataset(x, y), validation=0).test,
        "data": from_tensors(x, y, test=(x, y), validation=0, classes=list("abcde"), name="pictures"),
    }
    record = evaluate(trained(torch.float32), kinds[kind], attacks=["clean"], batch_size=8, progress=False)
    assert record.worst.total == record.data.size == 30
    assert record.data.name == ("pictures test" if kind == "data" else "data")
    expected = int((trained(torch.float32)(x).argmax(1) == y).sum())
    assert record.worst.correct == expected


X, Y = batch(6, dtype=torch.float32)


def broken(value: float) -> Tensor:
    x = X.clone()
    x[3, 1, 2, 5] = value
    return x


STREAMED = from_dataset(
    TensorDataset(X, Y), classes="abcde", test=TensorDataset(broken(1.5), Y), validation=0, value_range=None
).test


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (broken(37.0), Y),
            r"data: image 3 holds 37 \(channel 1, row 2, column 5\); this looks like pixels of 0 to 255",
        ),
        ((broken(-0.5), Y), r"image 3 holds -0.5 .*every pixel must lie in \[0, 1\]"),
        ((broken(float("nan")), Y), r"image 3 holds nan .*every pixel must be a finite number"),
        (TensorSplit(broken(1.5), Y), r"image 3 holds 1.5"),
        (STREAMED, "image 3 holds 1.5"),
        ((X, torch.full((6,), 5)), r"data: label \d is 5; with 5 classes the labels must be 0 to 4"),
        ((X, Y - 9), r"label 0 is -\d"),
        ((X, Y.float()), "class numbers are whole"),
        ((X[:0], Y[:0]), "there are no images"),
        (TensorSplit(X[:0], Y[:0]), "data holds no images"),
        (
            from_dataset(TensorDataset(X, Y), classes="abcdefgh", validation=0).test,
            "has 8 classes, the network 5 logits",
        ),
        ((X.numpy(), Y), "the images are a ndarray"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(trained(torch.float32), data, attacks=["clean"], batch_size=2, progress=False)


class Gives(nn.Module):
    """Gives whatever `make` makes of the images."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Gives(lambda x: ("x", x)), r"the network gives a tuple, and no logits; wrap it"),
        (Gives(lambda x: x), r"the network gives \(2, 3, 8, 8\) for 2 images; logits are \(B, C\)"),
        (Gives(lambda x: x.flatten(1)[:, :1]), r"the network gives \(2, 1\)"),
        (Gives(lambda x: x.flatten(1) * float("nan")), r"logits are not finite on clean images"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
            r"the network does not take images of shape \(3, 8, 8\): mat1 and mat2",
        ),
        (
            trained().half(),
            r"the network holds torch.float16; robustness is evaluated in float32: call model.float\(\) first",
        ),
        (TinyMLP().bfloat16(), r"the network holds torch.bfloat16"),
    ],
)
def test_bad_networks(model: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(model, (X, Y), attacks=["clean"], progress=False)


def test_bad_number_of_images() -> None:
    with pytest.raises(ConfigError, match="num_examples=0 leaves nothing to evaluate"):
        evaluate(trained(), (X, Y), num_examples=0, progress=False)


def test_networks_without_parameters() -> None:
    net = Gives(lambda x: x.flatten(1)[:, :5])
    record = evaluate(net, (X, Y), attacks=["clean", "fgsm"], device="cpu", progress=False)
    assert record.model.parameters == 0
    assert record.device == "cpu"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"device='gpu' is unknown; type 'cpu', 'cuda' or 'cuda:1'"),
        (
            "cuda:99",
            r"device='cuda:99' is not there: this machine has \d+ GPUs that torch can use; type another, or none",
        ),
    ],
)
def test_devices_that_are_not_there(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(trained(), (X, Y), attacks=["clean"], device=device, progress=False)


def test_the_embedded_digits() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    record = evaluate(net, load("digits"), attacks=["clean"], num_examples=50, progress=False)
    assert (record.data.name, record.data.size, record.worst.total) == ("digits test", 540, 50)
