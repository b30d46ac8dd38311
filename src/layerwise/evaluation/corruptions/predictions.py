"""What a network sees in every view of every image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from layerwise.data.batching import batches, epoch_order, num_batches
from layerwise.errors import ConfigError
from layerwise.evaluation.conditions import Conditions, Data, checked_split, evaluating
from layerwise.evaluation.corruptions.cache import FOUND, Layout, Stored, open_stored, source_folder
from layerwise.evaluation.corruptions.severities import table_for
from layerwise.evaluation.corruptions.views import Maker
from layerwise.evaluation.progress import Board, tracked
from layerwise.evaluation.record import DataRecord, ModelRecord

ON_THE_FLY = "generated as needed, not the published files"


@final
@dataclass(frozen=True)
class Predictions:
    """Predictions on the CPU, int64; -1 where logits are not finite.

    Args:
        model: the network.
        data: the images.
        labels: shape (N,).
        clean: predictions of the clean images, shape (N,).
        predictions: {corruption or sequence: predictions of its views, shape (N, views)}.
        sources: {corruption or sequence: where its images are from}.
        table: of severities.
    """

    model: ModelRecord
    data: DataRecord
    labels: Tensor
    clean: Tensor
    predictions: dict[str, Tensor]
    sources: dict[str, str]
    table: str


def predict(
    model: nn.Module,
    data: Data,
    names: Sequence[str],
    maker: Maker,
    *,
    folder: str | os.PathLike[str] | None = None,
    num_examples: int | None = None,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    progress: bool | Board = False,
    progress_name: str = "views",
    model_name: str | None = None,
    data_name: str | None = None,
) -> Predictions:
    """Predict every view, read from a folder or generated.

    Args:
        model: any classifier that takes pixels in [0, 1] and gives logits (B, C).
        data: a data set (its test split), a split, or images and labels.
        names: of corruptions or sequences.
        maker: generates what is not read.
        folder: files in CIFAR-10-C's or -P's layout, the published ones or `store`'s; what it lacks is generated as it is needed.
        num_examples: at most so many images, drawn by the maker's seed; each is corrupted as it is among all.
        batch_size: images a batch.
        device: where; None is where the network is.
        num_workers: processes that read streamed data.
        progress: show a bar with the estimated end on standard error, or move those of a board.
        progress_name: what the bar is called.
        model_name: for the record; by default the class.
        data_name: for the record.

    Raises:
        ConfigError: an unknown name, no logits.
        DataError: images outside [0, 1] or too small, files that are broken or belong to other data.
    """
    names = list(dict.fromkeys([names] if isinstance(names, str) else names))
    if not names:
        raise ConfigError("there is no corruption to evaluate under; give at least one, such as 'fog'")
    for name in names:
        maker.count(name)
    place, (split, called) = source_folder(folder), checked_split(data)
    if num_examples is not None and num_examples < 1:
        raise ConfigError(f"num_examples={num_examples} leaves nothing to evaluate; type 1 or more, or none for all")
    rows = epoch_order(len(split), shuffle=True, seed=maker.seed, epoch=0)[:num_examples].sort().values
    layout = Layout.of(split, num_workers=num_workers)
    found = {name: None if place is None else open_stored(place, name, maker, layout) for name in names}
    table = table_for(*layout.shape[1:], maker.table).name
    chosen = split.subset(rows)
    with (
        evaluating(model, chosen, seed=maker.seed, batch_size=batch_size, device=device) as conditions,
        torch.no_grad(),
    ):
        # A network with random numbers of its own draws the same ones each time.
        torch.manual_seed(maker.seed)
        feed = batches(chosen, batch_size, device=conditions.batches.device, num_workers=num_workers)
        seen: dict[str, list[Tensor]] = {name: [] for name in ("labels", "clean", *names)}
        keys = torch.split(rows, batch_size)
        steps = ((x, y, at, name) for (x, y), at in zip(feed, keys, strict=True) for name in ("clean", *names))
        total = num_batches(chosen, batch_size) * (1 + len(names))
        for x, y, at, name in tracked(steps, total, progress_name, progress):
            if name == "clean":
                seen["labels"].append(y.cpu())
                seen["clean"].append(_predict(conditions, x))
            else:
                views = _views(x, at, name, maker, found[name])
                seen[name].append(torch.stack([_predict(conditions, view) for view in views], dim=1))
        parameters = sum(p.numel() for p in conditions.network.parameters())
        record = ModelRecord(model_name or type(conditions.network).__name__, parameters, conditions.fingerprint())
    joined = {name: torch.cat(parts) for name, parts in seen.items()}
    return Predictions(
        model=record,
        data=DataRecord(data_name or called, len(split), maker.seed, layout.fingerprint),
        labels=joined.pop("labels"),
        clean=joined.pop("clean"),
        predictions=joined,
        sources={name: _source(maker, name, layout, stored) for name, stored in found.items()},
        table=table,
    )


def _source(maker: Maker, name: str, layout: Layout, stored: Stored | None) -> str:
    if stored is not None and stored.source == FOUND:
        return FOUND
    frost = maker.origin(name, *layout.shape[1:]).get("frost")
    return (ON_THE_FLY if stored is None else stored.source) + (f"; frost: {frost}" if frost else "")


def _views(x: Tensor, rows: Tensor, name: str, maker: Maker, stored: Stored | None) -> Iterator[Tensor]:
    if stored is None:
        return maker.views(x, name, rows.to(x.device))
    return stored.views(maker.count(name), rows)


def _predict(conditions: Conditions, x: Tensor) -> Tensor:
    logits: Any = conditions.network(x.to(conditions.batches.device, conditions.batches.dtype))
    predicted: Tensor = logits.argmax(dim=1).where(logits.isfinite().all(dim=1), -1)
    return predicted.cpu()
