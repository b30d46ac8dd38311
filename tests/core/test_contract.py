"""The batch contract: what cannot be meant is told at the first batch, once, with what to type; what is right passes untouched."""

from __future__ import annotations

import copy
import logging
import random
import re
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.contract import Demands, check_batch
from layerwise.core.criteria import Criterion, CrossEntropy, NextToken, as_criterion
from layerwise.core.driving import step
from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from layerwise.methods import (
    ANP,
    AWP,
    FGSM,
    LAD,
    LAT,
    MART,
    NAT,
    PGD,
    SLAT,
    TRADES,
    DeepDefense,
    GaussianNoise,
    Method,
    Standard,
)
from tests.methods.cases import METHODS, backward, differing, make, resnet, train, unchecked
from tests.networks import AuxiliaryHead, Checkpointed, TinyMLP, TinyResNet, TokenClassifier, batch, tokens

X, Y = batch(6)


class Around(nn.Module):
    """A network whose input and output are changed."""

    def __init__(
        self,
        *,
        first: Callable[[Tensor], Tensor] = lambda x: x,
        last: Callable[[Tensor], Any] = lambda z: z,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network, self.first, self.last = network or TinyMLP().double(), first, last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.network(self.first(x)))


def losses(method: Method, model: nn.Module, x: Any, y: Any) -> list[float]:
    """What a user's own loop sees."""
    found: list[Any] = list(method.losses(model, x, y))
    return [float(getattr(loss, "loss", loss).detach()) for loss in found]


def in_place(x: Tensor) -> Tensor:
    x -= 0.5
    return x


NORMALISED = (
    "the inputs lie between -2 and 1.98, and FGSM moves them within [0, 1], where these would be "
    "clipped; give pixels in [0, 1] and let the network normalise them: "
    "layerwise.Normalized(model, mean, std). If it is meant, set check_inputs=False on the method"
)
HOT = F.one_hot(Y, 5)
WIDE = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)).double()
BCE = as_criterion(nn.BCEWithLogitsLoss())
MSE = as_criterion(nn.MSELoss())
ENTROPY = CrossEntropy()


def ends(last: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Around(last=last)


def starts(first: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Around(first=first)


MISTAKES: dict[str, list[tuple[Method, Callable[[], nn.Module], Any, Any, str]]] = {
    "inputs": [
        (FGSM(), resnet, X * 255, Y, "where pixels from 0 to 255 would be clipped; divide them by 255$"),
        (LAT(sites=["input"]), resnet, X * 4, Y, "^the inputs lie between .* and LAT moves them"),
        (ANP(include_input=True), resnet, X * 4, Y, "^the inputs lie between .* and ANP moves them"),
        (GaussianNoise(sites="input"), resnet, X * 4, Y, "^the inputs lie .* GaussianNoise moves them"),
        (AWP(base=PGD()), resnet, X * 4, Y, "^the inputs lie between .* and AWP moves them"),
        (
            *(Standard(), resnet, (X * 255).to(torch.uint8), Y),
            r"^the inputs are uint8, pixels from 0 to 255; divide them by 255: x.float\(\) / 255$",
        ),
        (Standard(), resnet, X * torch.nan, Y, "^the inputs hold values that are not finite$"),
        (Standard(), resnet, X[:0], Y[:0], "^the batch is empty$"),
        (
            *(Standard(), resnet, X[:, :2], Y),
            r"^the network does not take inputs of shape \(6, 2, 8, 8\) and type torch.float64: .*channels",
        ),
        (
            *(PGD(), TokenClassifier, *tokens()),
            r"^PGD moves the network's inputs, and these are torch.int64 \(token ids\?\), which nothing can",
        ),
    ],
    "labels": [
        (Standard(), resnet, X, Y[:5], "^the batch has 6 inputs and 5 labels; give a label for each input$"),
        (FGSM(), resnet, X, Y.float(), r"^the labels are torch.float32, and classes are .* type y.long\(\)$"),
        (FGSM(), resnet, X, HOT, r"^the labels have shape \(6, 5\), as if .* type y.argmax\(dim=1\)$"),
        (FGSM(), resnet, X, Y[:, None], r"^the labels have shape \(6, 1\); type y.squeeze\(1\)$"),
        (
            *(FGSM(), resnet, X, Y + 1),
            "^the labels go from 1 to 5, and the network gives 5 logits: classes are numbered from 0 to 4$",
        ),
        (FGSM(), resnet, X, Y - 1, "^the labels go from -1 to 3, and the network gives 5 logits"),
        (FGSM(), resnet, X, Y.tolist(), r"^the labels are a list; give a tensor: torch.as_tensor\(labels\)$"),
        (
            *(SLAT(sites=["fc"]), resnet, X, (HOT + HOT.roll(1, 1)).double()),
            r"^cross entropy takes labels of .* their rows do not add up to 1 \(several labels an input\?\); .*BCEWithLogitsLoss",
        ),
        (
            *(SLAT(sites=["fc"]), ends(lambda z: z[:, :1]), X, Y[:, None].double()),
            "^the network gives one number for each input, and the softmax over a single class is always 1",
        ),
        (
            *(Standard(criterion=NextToken()), ends(lambda z: z[:, None, :].expand(-1, 4, -1)), X),
            *(torch.full((6, 4), 7), "^the labels go from 7 to 7, and the network gives 5 logits"),
        ),
    ],
    "outputs": [
        (FGSM(), ends(lambda z: {"loss": z}), X, Y, "^the network gives a dict of loss, and no logits"),
        (FGSM(), ends(lambda z: z.argmax(1)), X, Y, "^the network gives torch.int64, predictions perhaps, where"),
        (
            *(FGSM(), ends(lambda z: z[:, :1]), X, Y * 0),
            "^the network gives one number for each input, and the softmax over a single class is always 1;",
        ),
        (FGSM(), ends(lambda z: z[:, 0]), X, Y, r"^the network gives shape \(6,\), one number an input; cross"),
        (FGSM(), ends(lambda z: z[:, :, None, None]), X, Y, r"^the network gives shape .*end with flatten\(1\)$"),
        (
            *(FGSM(), ends(lambda z: z[:3]), X, Y),
            r"^the network gives shape \(3, 5\) for 6 inputs; its first dimension has to be theirs$",
        ),
        (FGSM(), ends(lambda z: z * torch.inf), X, Y, "^the network's outputs are not finite on a clean batch"),
    ],
    "gradients": [
        (FGSM(), ends(Tensor.detach), X, Y, "^no gradient flows from the network's output to its input: is there"),
        (Standard(), starts(lambda x: x.data.mul_(2)), X, Y, "^the network changes its input in place"),
        (Standard(), resnet, [X, X], Y, "^the network does not take inputs .*: .* takes 2 positional arguments but 3"),
        (FGSM(), starts(torch.zeros_like), X, Y, "^no gradient flows from the network's output to its input"),
        (FGSM(), starts(in_place), X, Y, "^the network changes its input in place, so that every pass would see"),
        (Standard(), starts(in_place), X, Y, "^the network changes its input in place"),
        (PGD(), lambda: nn.Sequential(nn.ReLU(inplace=True), resnet()), X, Y, "^the network changes its input"),
    ],
    "norms": [
        (
            *(FGSM(), lambda: WIDE, X[:1], Y[:1]),
            r"^a batch of 1 is too small for the statistics of batch norm \('2'\): give two images or more at once",
        ),
    ],
    "classes": [
        (
            *(TRADES(criterion=MSE), resnet, X, HOT.double()),
            r"^TRADES needs class probabilities: logits \(B, C\) of two classes or more, and labels \(B,\); the "
            r"network gives \(6, 5\), the labels are torch.float64 \(6, 5\); take another method, such as PGD$",
        ),
        (MART(criterion=BCE), resnet, X, HOT.double(), "^MART needs class probabilities"),
        (DeepDefense(criterion=BCE), resnet, X, HOT.double(), "^DeepDefense needs class probabilities"),
        (NAT(criterion=BCE), resnet, X, HOT.double(), "^NAT needs class probabilities"),
    ],
    "criterion": [
        (
            *(FGSM(criterion=BCE), resnet, X, Y.double()),
            r"^the criterion does not take outputs \(6, 5\) and labels torch.float64 \(6,\): ",
        ),
    ],
}


@pytest.mark.parametrize(
    ("method", "network", "x", "y", "message"),
    [pytest.param(*case, id=f"{kind} {i}") for kind, cases in MISTAKES.items() for i, case in enumerate(cases)],
)
def test_what_cannot_be_meant_is_told_at_the_first_batch(
    method: Method, network: Callable[[], nn.Module], x: Any, y: Any, message: str
) -> None:
    method, model = copy.deepcopy(method), network()
    for _ in range(2):  # a batch that was refused does not count as the first
        with pytest.raises(ConfigError, match=message):
            losses(method, model, x, y)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, in any pass without gradient
def test_reentrant_checkpoints_are_told() -> None:
    message = r"^the network's activation checkpoints give no gradients at inputs or layers; checkpoint with use_reentrant=False$"
    with pytest.raises(ConfigError, match=message):
        losses(FGSM(), Checkpointed(use_reentrant=True).double(), X, Y)


def test_rounding_may_leave_the_range_and_nothing_else_may() -> None:
    bright = X / X.max()
    losses(FGSM(), resnet(), bright * 1.00001, Y)
    with pytest.raises(ConfigError, match=r"^the inputs lie between 0.* and 1.01,"):
        losses(FGSM(), resnet(), bright * 1.01, Y)


def test_what_finds_the_input_is_checked_like_what_trains() -> None:
    with pytest.raises(ConfigError, match=r"^the inputs lie between"):
        PGD().perturb(resnet(), X * 4, Y)


@pytest.mark.parametrize("name", METHODS)
def test_a_check_leaves_no_trace(name: str) -> None:
    """The same bits with and without it, random numbers of Python and PyTorch included."""
    found = []
    for checked in (True, False):
        torch.manual_seed(3)
        random.seed(3)
        model, method = TinyResNet().double(), make(name)
        method.check_inputs = checked
        train(method, model, [(X, Y)])
        state = {k: v.clone() for k, v in model.state_dict().items()}
        found.append({**state, "drawn": torch.rand(1), "python": torch.tensor(random.random())})
    assert differing(*found) == []


def test_it_costs_one_pass_once_for_each_network() -> None:
    forwards: list[int] = []
    model, other, method = resnet(), resnet(), Standard()
    for network in (model, other):
        network.register_forward_hook(lambda module, args, output: forwards.append(len(output)))
    for _ in range(3):
        losses(method, model, X, Y)
    assert forwards == [6] * (1 + 3)
    losses(method, other, X, Y)
    assert forwards == [6] * (4 + 2)
    losses(unchecked(Standard()), model, X, Y)
    assert forwards == [6] * (6 + 1)


def test_one_look_at_the_device() -> None:
    """Reading a tensor stops the device: once in the first batch, never after."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        reads = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            self.reads += name in ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")
            return func(*args, **(kwargs or {}))

    model, method, counts = resnet(), FGSM(), []
    looked: list[int] = []
    original = torch.Tensor.tolist

    def tolist(self: Tensor) -> Any:
        looked.append(1)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", tolist)
        for index in range(2):
            with Count() as count:  # type: ignore[no-untyped-call]
                list(method.losses(model, X, Y, generator=Stream(0, index)))
            counts.append(count.reads)
    assert looked == [1]
    assert counts[1] == 0


def test_a_copy_of_a_method_has_seen_no_network() -> None:
    model, method = TinyMLP().double(), Standard()
    losses(method, model, X, Y)
    [sent] = ForkingPickler.loads(ForkingPickler.dumps([method]))  # as to another process
    for again in (copy.deepcopy(method), sent):
        with pytest.raises(ConfigError, match=r"^the labels go"):
            losses(again, model, X, Y + 1)


def test_left_out_it_says_nothing() -> None:
    assert len(losses(unchecked(FGSM()), resnet(), (X - 0.5) * 4, Y)) == 1


# What is right


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
@pytest.mark.parametrize("name", ["FGSM", "MART", "DeepDefense", "NAT"])
def test_labels_of_any_whole_number_train_alike(name: str, dtype: torch.dtype) -> None:
    found = [train(make(name), resnet(), [(X, y)]) for y in (Y, Y.to(dtype))]
    assert differing(*found) == []


@pytest.mark.parametrize("name", METHODS)
def test_inputs_that_came_out_of_an_attack_or_of_inference_train_alike(name: str) -> None:
    found = [train(make(name), resnet(), [(X, Y)])]
    found.append(train(make(name), resnet(), [(X.clone().requires_grad_(), Y)]))
    with torch.inference_mode():
        x, y = X.clone(), Y.clone()
    found.append(train(make(name), resnet(), [(x, y)]))
    assert differing(found[0], found[1]) == differing(found[0], found[2]) == []


@pytest.mark.parametrize(
    ("network", "y", "criterion"),
    [
        (AuxiliaryHead, Y, ENTROPY),
        (ends(lambda z: {"out": z, "aux": z}), Y, ENTROPY),
        (ends(lambda z: z[:, 0]), Y.double() / 5, MSE),
        (ends(lambda z: z[:, :1]), (Y[:, None] % 2).double(), BCE),
        (resnet, HOT.double(), BCE),
        (resnet, torch.full((6, 5), 0.2).double(), ENTROPY),
        (resnet, Y.masked_fill(Y == 0, -100), ENTROPY),
        (ends(lambda z: z[:, :, None].expand(-1, -1, 4)), Y[:, None].expand(-1, 4), ENTROPY),
    ],
)
def test_other_tasks_train(network: Callable[[], nn.Module], y: Tensor, criterion: Criterion) -> None:
    for method in (Standard(criterion=criterion), FGSM(criterion=criterion)):
        model = network().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = [float(step(method, model, X, y, optimizer)) for _ in range(8)]
        assert found[-1] < found[0]


LAYERS: list[Callable[[], Method]] = [
    Standard,
    lambda: LAT(sites=["embed", "encoder.0"]),
    lambda: SLAT(sites=["embed"], base=Standard()),
    lambda: ANP(sites=["embed", "encoder.0"], layers=2, k=2, noise_std=0.01),
    lambda: LAD(sites=["encoder.0", "encoder.1"], base=Standard()),
    lambda: GaussianNoise(sites=["embed"]),
    lambda: AWP(base=LAT(sites=["embed"])),
]


@pytest.mark.parametrize("method", LAYERS)
@pytest.mark.parametrize("lengths", [(6,), (6, 9, 4)])
def test_token_ids_of_any_length_train_where_layers_are_perturbed(
    method: Callable[[], Method], lengths: tuple[int, ...]
) -> None:
    model, one = TokenClassifier(), method()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for index in range(12):
        x, y = tokens(8, lengths[index % len(lengths)])
        found.append(float(step(one, model, x, y, optimizer, parts=1 + index % 2)))
    assert sum(found[-3:]) < sum(found[:3])


def test_lats_noise_reaches_the_positions_that_both_batches_have() -> None:
    """As if the shorter batch's noise were laid over the longer one's activation by hand."""
    model = TokenClassifier().double()
    method = unchecked(LAT(sites=["embed"], eps=1.0, relative=False))
    (short, y), (long, _) = tokens(4, 5), tokens(4, 8)
    for loss in method.losses(model, short, y):
        backward(loss)
    signs = method.state_dict()["embed"].sign()
    seen: list[Tensor] = []
    handle = model.embed.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    next(method.losses(model, long, y))
    handle.remove()
    torch.testing.assert_close(seen[0][:, :5], model.embed(long["input_ids"])[:, :5].detach() + signs)
    assert torch.equal(seen[0][:, 5:], model.embed(long["input_ids"])[:, 5:].detach())


def test_a_small_overshoot_of_rounding_passes() -> None:
    assert len(losses(FGSM(), resnet(), X.clamp(0, 1) * (1 + 1e-6), Y)) == 1


def test_a_sigmoid_and_a_gradient_of_zero_are_suspected(caplog: pytest.LogCaptureFixture) -> None:
    """A softmax has a sentence of its own; few classes, and a last layer that is zero so far, are no sign."""

    rounding = Around(first=lambda x: (255 * x).round() / 255)
    flat = Around(last=lambda z: 0 * z)
    for model, said in (
        (
            Around(last=lambda z: torch.sigmoid(z.repeat(1, 2))),
            "the network's outputs all lie between 0 and 1, as behind a sigmoid",
        ),
        (Around(last=lambda z: torch.sigmoid(z)), ""),
        (
            rounding,
            "the gradient at the network's input is exactly zero (rounding, steps?), so that FGSM moves nothing there",
        ),
        (flat, ""),
    ):
        caplog.clear()
        losses(FGSM(), model.double(), X, Y)
        assert [record.message.startswith(said) for record in caplog.records] == [True] * bool(said)


def test_probabilities_are_suspected_and_train(caplog: pytest.LogCaptureFixture) -> None:
    model = Around(last=lambda z: z.softmax(1))
    with caplog.at_level(logging.WARNING, logger="layerwise"):
        method = FGSM()
        losses(method, model, X, Y)
        losses(method, model, X, Y)
        losses(FGSM(), resnet(), X, Y)
    [said] = caplog.messages
    assert said.startswith(
        "the network's outputs look like probabilities, not negative and with the sum 1, and cross entropy"
    )


def test_weights_of_another_type_are_no_mistake() -> None:
    """A wrapper casts the inputs for them."""
    demands = Demands(method="FGSM", moves_inputs=True)
    assert check_batch(nn.DataParallel(TinyMLP().bfloat16()), X, Y, demands) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [Standard(), FGSM(), SLAT(sites=["fc2"])])
def test_inputs_of_another_type_are_told_without_a_wrapper(method: Method, dtype: torch.dtype) -> None:
    model = TinyMLP().float()
    with pytest.raises(
        ConfigError, match=r"and type torch.*; its weights are torch.float32: type x.to\(torch.float32\)$"
    ):
        step(copy.deepcopy(method), model, X.to(dtype), Y, torch.optim.SGD(model.parameters(), 0.1))


def test_a_network_that_casts_by_itself_takes_any_type() -> None:
    model = Around(network=TinyMLP().float(), first=Tensor.float)
    step(FGSM(), model, X.double(), Y, torch.optim.SGD(model.parameters(), 0.1))


def test_a_network_without_values_is_told() -> None:
    model = TinyMLP().to("meta")
    message = r"^the network is on the meta device, .*; type model.to_empty\(device='cpu'\) and load its weights$"
    for run in (
        lambda: step(FGSM(), model, X, Y, torch.optim.SGD(model.parameters(), 0.1)),
        lambda: lw.evaluate(model, (X, Y), attacks=["clean"], progress=False),
        lambda: lw.fit(model, FGSM(), (X, Y), progress=False),
    ):
        with pytest.raises(ConfigError, match=message):
            run()


# Generators that are left


def taken(method: Method, model: nn.Module, batches: int) -> Iterator[float]:
    """What an integration sees that takes `the` loss of a batch."""
    for _ in range(batches):
        loss: Any = next(method.losses(model, X, Y))
        yield float(getattr(loss, "loss", loss).detach())


@pytest.mark.parametrize("name", ["ANP", "LAT", "AWP", "FreeAT", "YOPO", "Parseval"])
def test_a_method_of_which_only_the_first_loss_is_taken_says_so_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="layerwise"):
        list(taken(make(name), resnet(), 1))
        assert caplog.messages == []
        list(taken(make(name), resnet(), 4))
    message = (
        f"the losses of {name} were left before their end: what it does after its first loss is missing, so that it may train as if it "
        "were off. Train with layerwise.step(method, model, x, y, optimizer), or go through all that losses gives"
    )
    assert caplog.messages == [message]


COME_BACK = {"ANP", "AWP", "FreeAT", "FreeLB", "LAT", "Parseval", "TargetedLAT", "YOPO"}
"""Methods that yield again, or do something after the step."""


def test_what_has_one_loss_and_nothing_after_it_may_be_taken_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="layerwise"):
        for name in METHODS:
            method = make(name)
            if name in COME_BACK:
                assert method._goes_on
            else:
                list(taken(method, resnet(), 3))
                assert not method._goes_on
    assert caplog.messages == []


@pytest.mark.parametrize("name", METHODS)
def test_who_drives_to_the_end_hears_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="layerwise"):
        train(make(name), resnet(), [(X, Y)] * 3, parts=(4, 2))
    assert caplog.messages == []


def test_the_messages_name_what_to_type() -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(NORMALISED)}$"):
        losses(FGSM(), resnet(), torch.linspace(-2, 1.98, X.numel()).double().reshape(X.shape), Y)
