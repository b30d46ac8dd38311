"""The conditions under which a network is evaluated: evaluation mode, exact arithmetic, a fixed set of checked images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from layerwise.attacks.base import Batch
from layerwise.core.calling import count_classes, logits_of
from layerwise.core.contract import refuse_meta
from layerwise.core.layout import fastest, laid_out
from layerwise.core.modes import evaluation_mode, exact_arithmetic
from layerwise.core.random import Stream
from layerwise.core.sites import unwrap
from layerwise.data.batching import batches, epoch_order, num_batches
from layerwise.data.checks import check_images, check_labels
from layerwise.data.custom import tensor_split, whole_split
from layerwise.data.splits import ImageData, Split, StreamSplit, TensorSplit
from layerwise.errors import ConfigError, DataError

Data: TypeAlias = ImageData | Split | tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]
"""What can be evaluated on: a data set (its test split), a split, images (N, C, H, W) in [0, 1] or uint8 with labels (N,), or a
torch Dataset or DataLoader (all of its dataset)."""


@dataclass(frozen=True)
class Batches:
    """The images in the order of the evaluation; can be gone through again and again.

    Args:
        split: the chosen images, already in order.
        batch_size: images a batch; the last one may be smaller.
        seed: of the random numbers; image i draws the same whatever the batch size.
        device: where the batches go.
        dtype: float32, or float64 for a network in float64.
        num_workers: processes that read a `StreamSplit`.
        first: how many batches at the beginning are left out; the others stay as they are.
    """

    split: Split
    batch_size: int
    seed: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    num_workers: int = 0
    first: int = 0

    def __len__(self) -> int:
        """Count the batches."""
        return num_batches(self.split, self.batch_size) - self.first

    def __iter__(self) -> Iterator[Batch]:
        """Give images, labels and the source of the rows' random numbers."""
        start, total = self.first * self.batch_size, len(self.split)
        rest = self.split.subset(range(start, total)) if start else self.split
        for x, y in batches(rest, self.batch_size, device=self.device, num_workers=self.num_workers):
            yield x.to(self.dtype), y, Stream(self.seed, start=start, total=total)
            start += len(x)

    def example(self, rows: int = 16) -> tuple[Tensor, Tensor]:
        """The first few images and labels."""
        split = self.split.subset(range(min(rows, len(self.split))))
        first = replace(self, split=split, batch_size=rows, num_workers=0, first=0)
        x, y, _ = next(iter(first))
        return x, y

    def after(self, first: int) -> Batches:
        """The batches from number `first` on."""
        return replace(self, first=first)


@dataclass(frozen=True)
class Conditions:
    """A network ready to be evaluated.

    Args:
        network: unwrapped, in evaluation mode, on the device.
        batches: the images.
        data: what the data are called.
        split: all the images, of which `batches` may hold a part.
    """

    network: nn.Module
    batches: Batches
    data: str
    split: Split

    def reseed(self, batch: int = 0) -> None:
        """Put PyTorch's generators of the CPU and of the device, which networks with randomness draw from, at the start of a batch."""
        # Four bytes: PyTorch's generator of the CPU looks at no more of a seed.
        drawn = hashlib.blake2b(f"{self.batches.seed}/{batch}".encode(), digest_size=4).digest()
        seed = int.from_bytes(drawn, "little")
        torch.default_generator.manual_seed(seed)
        if self.batches.device.type == "cuda":
            # Not torch.manual_seed: it moves the generators of every GPU, of which only this one is put back.
            with torch.cuda.device(self.batches.device):
                torch.cuda.manual_seed(seed)

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """The first so many images and labels, of the whole split: of a part there may be fewer."""
        rows = _order(self.split, self.batches.seed)[:count]
        return replace(self.batches, split=self.split.subset(rows), first=0).example(count)

    def fingerprint(self) -> str:
        """A digest of the network's weights and buffers."""
        return digest(chain.from_iterable(self.network.state_dict().items()))

    def data_fingerprint(self) -> str:
        """A digest of the first images and labels."""
        return digest(self.batches.example())


@contextmanager
def evaluating(
    model: nn.Module,
    data: Data,
    *,
    num_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    num_workers: int = 0,
) -> Iterator[Conditions]:
    """Evaluation mode, float32 (or float64, if that is the network's type) without TF32 and autocast, gradients on.

    Whatever is changed for the duration is put back, also after an error: every module's mode, the arithmetic, the device, PyTorch's
    random state.

    Args:
        model: the network, wrapped or not; the unwrapped one is evaluated.
        data: see `Data`.
        num_examples: at most so many images, drawn by the seed; None is all. The order is drawn by the seed in any case.
        seed: of the images and the attacks' random numbers.
        batch_size: images a batch.
        device: where to evaluate; None is where the network is.
        num_workers: processes that read a `StreamSplit`.

    Raises:
        DataError: images outside [0, 1] or not finite, labels that the network has no logit for.
        ConfigError: the network does not give finite logits (B, C) of at least two classes, or is in half precision.
    """
    network = unwrap(model)
    refuse_meta(network)
    split, name = checked_split(data)
    home, dtype = _home(network)
    place = home if device is None else find_device(device)
    if num_examples is not None and not isinstance(num_examples, int):
        raise ConfigError(f"num_examples={num_examples!r} is no whole number; type 1 or more, or None for all")
    if num_examples is not None and num_examples < 1:
        raise ConfigError(f"num_examples={num_examples} leaves nothing to evaluate; type 1 or more, or none for all")
    order = _order(split, seed)[:num_examples]
    chosen = Batches(split.subset(order), batch_size, seed, place, dtype, num_workers)
    cuda = [place] if place.type == "cuda" else []
    with exact_arithmetic(place), evaluation_mode(network), torch.random.fork_rng(cuda):
        try:
            if place != home:
                network.to(place)
            few = chosen.example(2)[0]
            with _giving_logits(network, few):
                _check_classes(name, split, count_classes(network, few))
                with laid_out(network, fastest(network, few)):
                    yield Conditions(network, chosen, name, split)
        finally:
            if place != home:
                network.to(home)


@contextmanager
def _giving_logits(network: nn.Module, x: Tensor) -> Iterator[None]:
    """A network that gives a mapping, a tuple or an object gives the logits in it for the duration: nothing else has to know."""
    try:
        with torch.no_grad():
            packed = not isinstance(network(x), Tensor)
    except RuntimeError:  # which `count_classes` tells
        packed = False
    hook = network.register_forward_hook(lambda module, given, output: logits_of(output)) if packed else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _order(split: Split, seed: int) -> Tensor:
    """The images' numbers in the order of the evaluation."""
    return epoch_order(len(split), shuffle=True, seed=seed, epoch=0)


def find_device(device: torch.device | str) -> torch.device:
    """The device called so.

    Raises:
        ConfigError: there is no such device, here or anywhere.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} is unknown; type 'cpu', 'cuda' or 'cuda:1'") from error
    count = torch.cuda.device_count()
    if place.type == "cuda" and (place.index or 0) >= count:
        raise ConfigError(
            f"device={str(device)!r} is not there: this machine has {count} GPUs that torch can use; type another, or none"
        )
    return place


def checked_split(data: Data) -> tuple[Split, str]:
    """The split to evaluate on and what it is called; its pixels are in [0, 1] (streamed ones are checked as they are read)."""
    name, split = (f"{data.name} test", data.test) if isinstance(data, ImageData) else ("data", whole_split(data))
    if isinstance(split, tuple):
        images, labels = split
        classes = int(labels.max()) + 1 if isinstance(labels, Tensor) and labels.numel() else 1
        split = tensor_split(name, images, labels, max(classes, 1), (0.0, 1.0))
    if len(split) == 0:
        raise DataError(f"{name} holds no images; give at least one")
    if isinstance(split, TensorSplit):
        check_images(name, split.images, (0.0, 1.0))
    if isinstance(split, StreamSplit):
        split = replace(split, value_range=(0.0, 1.0))
    return split, name


def _check_classes(name: str, split: Split, classes: int) -> None:
    if isinstance(split, StreamSplit) and split.num_classes > classes:
        raise DataError(
            f"{name} has {split.num_classes} classes, the network {classes} logits; it was made for other data"
        )
    if split.labels is not None:
        check_labels(name, split.labels, classes)


def _home(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the network is, and float32 or float64.

    Raises:
        ConfigError: half precision.
    """
    values = [v for v in chain(network.parameters(), network.buffers()) if v.is_floating_point()]
    if not values:
        return torch.device("cpu"), torch.float32
    if half := [v.dtype for v in values if v.dtype not in (torch.float32, torch.float64)]:
        raise ConfigError(f"the network holds {half[0]}; robustness is evaluated in float32: call model.float() first")
    return values[0].device, values[0].dtype


def draws(network: nn.Module, x: Tensor) -> bool:
    """Whether the network draws random numbers: two passes differ, by more than sums in another order do.

    With gradients to come, since some networks draw other numbers then.
    """
    leaf = x.detach().requires_grad_()
    first, second = (logits_of(network(leaf)).detach().double() for _ in range(2))
    return bool((first - second).abs().max() > 1e-4 * first.abs().max())


def digest(values: Iterable[Any]) -> str:
    """A short digest of tensors and names."""
    state = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, Tensor):
            header = f"{value.dtype}{tuple(value.shape)}"
            state.update(header.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            state.update(str(value).encode())
    return state.hexdigest()
