"""Names, import paths, normalisation, and what is said when they are wrong."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerwise import models
from layerwise.core.registry import _ENTRIES, _IMPORTED, entries
from layerwise.errors import ConfigError
from layerwise.models import Normalize, Normalized, build, describe, names, register

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)

OWN = """
from torch import nn

from layerwise.models import register

class Net(nn.Module):
    def __init__(self, num_classes, width=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8)
        self.linear = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.linear(self.conv1(x).flatten(1))

def by_shape(shape):
    return nn.Conv2d(shape[0], 2, 1)

def anything(**options):
    return nn.Linear(options["inputs"], 2)

def wrong():
    return "a network"

made = nn.Linear(2, 2)

class Other:
    pass

def number() -> int:
    return 5

def said(num_classes) -> nn.Module:
    return nn.Flatten()

@register("own-registered")
def registered(*, num_classes, shape, normalize):
    "Mine."
    return nn.Sequential(normalize, nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))
"""


@pytest.fixture
def registry() -> Iterator[None]:
    """The registry, restored afterwards."""
    tables: list[dict[Any, Any]] = [_ENTRIES["model"], _IMPORTED]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> None:
    """A module `own_nets` on the import path."""
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_public_names() -> None:
    assert models.__all__ == ["Normalize", "Normalized", "build", "describe", "names", "register"]


def test_every_name_is_described_in_one_line() -> None:
    lines = [describe(name) for name in names()]
    assert len(set(lines)) == len(lines)
    assert all(10 < len(line) < 120 and "\n" not in line for line in lines)
    assert describe("wrn-16-4").endswith("depth=16; width=4")


def test_pattern_is_the_wide_resnet() -> None:
    torch.manual_seed(0)
    a = build("wrn-10-2", shape=(3, 8, 8), dropout=0.3)
    torch.manual_seed(0)
    b = build("wide_resnet", depth=10, width=2, shape=(3, 8, 8), dropout=0.3)
    assert str(a) == str(b)
    assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("path", ["own_nets:Net", "own_nets.Net"])
def test_own_network_by_import_path(path: str) -> None:
    plain = build(path, trust=True, num_classes=4, width=5)
    assert plain(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert not isinstance(plain, Normalized)
    wrapped = build(path, trust=True, num_classes=4, width=5, mean=MEAN, std=STD)
    assert isinstance(wrapped, Normalized)
    assert isinstance(wrapped.get_submodule("model.conv1"), nn.Conv2d)
    wrapped.model.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 8, 8)
    normal = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(wrapped(x), plain(normal))


@pytest.mark.usefixtures("own")
def test_own_network_gets_what_its_signature_has() -> None:
    assert build("own_nets:by_shape", trust=True, shape=(5, 4, 4)).in_channels == 5
    assert build("own_nets:anything", trust=True, inputs=7).in_features == 7


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("path", ["own_nets:registered", "own_nets:own-registered"])
def test_own_network_that_is_registered_is_found_by_import_path_too(path: str) -> None:
    """It takes `normalize`, as those of the package do."""
    network = build(path, trust=True, num_classes=4, shape=(1, 2, 2), mean=0.5)
    assert isinstance(network.get_submodule("0"), Normalize)
    assert network(torch.rand(2, 1, 2, 2)).shape == (2, 4)
    assert build("own-registered", shape=(1, 2, 2))(torch.rand(2, 1, 2, 2)).shape == (2, 10)


@pytest.mark.usefixtures("own")
def test_own_network_is_imported_only_where_it_is_trusted() -> None:
    with pytest.raises(ConfigError, match="'own_nets:Net', which would be executed; add --trust to allow it"):
        build("own_nets:Net")
    assert "own_nets" not in sys.modules


@pytest.mark.usefixtures("registry")
def test_register_a_network() -> None:
    def tiny(*, num_classes: int, shape: tuple[int, ...], extra: int = 0) -> nn.Module:
        """A tiny network.

        More about it.
        """
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2] + extra, num_classes))

    assert register("tiny")(tiny) is tiny
    register("tiny")(tiny)
    register("tiny-2", extra=2)(tiny)
    assert {"tiny", "tiny-2"} <= set(names())
    assert (describe("tiny"), describe("tiny-2")) == ("A tiny network", "A tiny network; extra=2")
    linear = build("tiny-2", num_classes=3, shape=(1, 2, 2)).get_submodule("1")
    assert isinstance(linear, nn.Linear)
    assert (linear.in_features, linear.out_features) == (6, 3)
    assert list(dict(build("tiny", shape=(1, 2, 2), std=0.5).named_children())) == ["normalize", "model"]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "the network name 'resnet18' is taken; register yours under another"),
        ("wrn-16-1", "the network name 'wrn-16-1' is taken; register yours under another"),
        ("my.net", "'my.net' cannot name a network: '.' and ':' mark import paths; type for example 'my-model'"),
    ],
)
def test_names_that_cannot_be_registered(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        register(name)(nn.Linear)
    assert str(caught.value) == message


IMAGES = "takes images of shape (channels, height, width) with sides"

ERRORS: list[tuple[str, dict[str, Any], str]] = [
    (
        "resnet19",
        {},
        "there is no network 'resnet19'; did you mean 'resnet18' or",
    ),
    ("resnet20", {"widht": 3}, "the network 'resnet20' has no option 'widht'; its options are width."),
    ("resnet20", {"depth": 8}, "the network 'resnet20' has no option 'depth'; its options are width."),
    ("convnet", {"width": 3}, "the network 'convnet' has no option 'width'; it has none."),
    ("wrn-16-1", {"width": 3}, "the network 'wrn-16-1' has no option 'width'; its options are dropout."),
    ("lenet", {"shape": (1, 8, 8)}, f"lenet {IMAGES} of at least 16, not (1, 8, 8)."),
    ("convnet", {"shape": (1, 28, 28)}, f"convnet {IMAGES} from 32 to 39, not (1, 28, 28)."),
    ("nin", {"shape": (3, 3, 9)}, f"nin {IMAGES} of at least 4, not (3, 3, 9)."),
    ("digits_cnn", {"shape": (64,)}, f"digits_cnn {IMAGES} of at least 4, not (64,)."),
    ("resnet18", {"shape": (2,)}, f"resnet {IMAGES} of at least 1, not (2,)."),
    ("preact_resnet20", {"shape": (2,)}, f"a pre-activation ResNet {IMAGES} of at least 1, not (2,)."),
    (
        "vgg16",
        {"shape": (1, 8, 8)},
        f"vgg16 with pools=5 {IMAGES} of at least 32, not (1, 8, 8); give fewer pools, for instance pools=3 for 8 x 8.",
    ),
    ("vgg16", {"pools": 6}, "pools is 6, but a VGG has five stages; give 0 to 5."),
    ("toy", {}, "toy takes points of shape (dimensions,), not (3, 32, 32); give shape=(2,)."),
    ("wide_resnet", {"depth": 27}, "wide_resnet takes a depth of 6n + 4 (10, 16, 22, 28, 34, 40, ...), not 27."),
    ("wide_resnet", {"depth": 4}, "depth is 4; give a whole number of at least 10."),
    ("wrn-28-0", {}, "width is 0; give a whole number of at least 1."),
    ("resnet18", {"width": 1.5}, "width is 1.5; give a whole number of at least 1."),
    ("preact_resnet18", {"dropout": 1.0}, "dropout is 1.0; give a number from 0 to below 1."),
    ("preact_resnet20", {"damping": "lambda"}, "there is no damping 'lambda'; did you mean 'lambda-in'?"),
    ("mlp", {"activation": "rely"}, "there is no activation 'rely'; did you mean 'relu'?"),
    ("mlp", {"hidden": (5, 0)}, "an entry of hidden is 0; give a whole number of at least 1."),
    ("mlp", {"num_classes": True}, "num_classes is True; give a whole number of at least 1."),
    ("mlp", {"shape": 28}, "shape is 28; give (channels, height, width), or (dimensions,) for points."),
    ("mlp", {"shape": ()}, "shape is (); give (channels, height, width), or (dimensions,) for points."),
    ("mlp", {"shape": (3, -1)}, "an entry of shape is -1; give a whole number of at least 1."),
    (
        "mlp",
        {"mean": 125.3},
        "mean holds 125.3, but pixels are in [0, 1], so give between -1 and 1 (divide 0-to-255 units by 255).",
    ),
    (
        "mlp",
        {"std": (0.2, 0.0, 0.2)},
        "std holds 0, but pixels are in [0, 1], so give above 0 and at most 1 (divide 0-to-255 units by 255).",
    ),
    ("mlp", {"std": float("nan")}, "std holds nan, but pixels are in [0, 1], so give above 0"),
    ("mlp", {"mean": ()}, "mean is empty; give one number a channel."),
    ("mlp", {"mean": MEAN, "shape": (1, 8, 8)}, "mean has 3 values, but images of shape (1, 8, 8) have 1 channels."),
    (
        "toy",
        {"mean": 0.5, "shape": (2,)},
        "mean and std need images of shape (channels, height, width), not (2,); leave them out.",
    ),
    (
        "own_nets:Nett",
        {},
        "own_nets holds no 'Nett'; did you mean 'Net'?",
    ),
    (
        "no_such_package.net",
        {},
        "'no_such_package:net' cannot be imported (No module named 'no_such_package'); is no_such_package installed,",
    ),
    ("vgg-16.5", {}, "'vgg-16:5' cannot be imported (No module named 'vgg-16')"),
    (":net", {}, "':net' is not an import path; type my_module:Name"),
    (
        "own_nets:made",
        {},
        "'own_nets:made' is a Linear, no network; name a class derived from torch.nn.Module, or a func",
    ),
    ("own_nets:nn", {}, "'own_nets:nn' is a module, no network; name a class derived from torch.nn.Module, or a func"),
    (
        "own_nets:Other",
        {},
        "'own_nets:Other' is Other, no network; name a class derived from torch.nn.Module, or a func",
    ),
    (
        "own_nets:number",
        {},
        "'own_nets:number' is a function that does not say that it makes a network; write: def num",
    ),
    ("own_nets:wrong", {}, "'own_nets:wrong' made a str; it has to return a torch.nn.Module."),
    ("own_nets:Net", {"wdth": 1}, "the network 'own_nets:Net' has no option 'wdth'; its options are width."),
    (
        "torch.nn:Linear",
        {},
        "the network 'torch.nn:Linear' needs the option 'in_features'; its options are in_features,",
    ),
    (
        "builtins:max",
        {},
        "'builtins:max' is a builtin_function_or_method, no network; name a class derived from torch.",
    ),
    # What another library starts, whoever trusts the name.
    ("subprocess:Popen", {"args": "false"}, "'subprocess:Popen' is Popen, no network; name a class derived from"),
    ("subprocess:run", {"args": "false"}, "'subprocess:run' is a function that does not say that it makes a network;"),
    ("os:system", {"command": "false"}, "'os:system' is a builtin_function_or_method, no network; name a class"),
    ("torch.hub:load", {"repo_or_dir": "."}, "'torch.hub:load' is a function that does not say that it makes a netw"),
]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("name", "options", "message"), ERRORS, ids=[f"{n}-{list(o)}" for n, o, _ in ERRORS])
def test_messages(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, trust=True, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", names())
def test_every_option_has_a_default(name: str) -> None:
    """So that a name alone is enough to build every network."""
    entry = entries("model")[name]
    offered = {"normalize", "num_classes", "shape", *entry.facts}
    parameters = inspect.signature(entry.thing).parameters.values()
    assert [p.name for p in parameters if p.default is p.empty and p.name not in offered] == []


def test_normalize_is_the_formula() -> None:
    layer = Normalize(MEAN, STD)
    x = torch.rand(2, 3, 4, 5)
    expected = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(layer(x), expected)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {"mean": (3, 1, 1), "std": (3, 1, 1)}
    assert list(layer.parameters()) == []


def test_statistics_travel_in_the_checkpoint() -> None:
    source = build("digits_cnn", shape=(1, 8, 8), mean=0.3, std=0.4).eval()
    target = build("digits_cnn", shape=(1, 8, 8), mean=0.0).eval()
    target.load_state_dict(source.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(target(x), source(x))


def test_one_number_serves_every_channel() -> None:
    network = build("resnet20", width=2, mean=0.5, std=0.25)
    assert isinstance(network.normalize, Normalize)
    assert tuple(network.normalize.mean.shape) == (3, 1, 1)


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 4, 4)])
def test_normalize_refuses_other_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        Normalize(MEAN, STD)(torch.rand(shape))
    assert str(caught.value) == f"Normalize has statistics of 3 channels, but its input has the shape {shape}."


def test_normalize_refuses_two_lengths() -> None:
    with pytest.raises(ConfigError) as caught:
        Normalize(MEAN, (0.2, 0.2))
    assert str(caught.value) == "mean has 3 values and std has 2; give one a channel in both."
