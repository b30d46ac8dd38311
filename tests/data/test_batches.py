"""Batches: order, ranks, resume, streams; augmentation against a loop over images."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from layerwise.data import Augment, Split, StreamSplit, TensorSplit, batches, num_batches, rank_rows
from layerwise.errors import ConfigError, DataError


def numbered(count: int) -> TensorSplit:
    """Image i is filled with i and has label i."""
    labels = torch.arange(count)
    return TensorSplit(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), labels)


class Items(Dataset[tuple[Tensor, int]]):
    """A map-style dataset of given items, counting reads."""

    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.labels, self.reads = images, labels, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return self.images[index], self.labels[index]


def random_splits(count: int = 23) -> tuple[TensorSplit, StreamSplit]:
    """The same images in memory and as a stream."""
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 4
    return TensorSplit(images, labels), StreamSplit(
        dataset=Items(images, labels.tolist()), shape=(3, 6, 5), num_classes=4
    )


def order(split: Split, size: int, **options: object) -> list[int]:
    return [int(label) for _, y in batches(split, size, **options) for label in y]  # type: ignore[arg-type]


def equal(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(p, q) for left, right in zip(a, b, strict=True) for p, q in zip(left, right, strict=True)
    )


sizes = st.integers(1, 60)


@settings(deadline=None, max_examples=40)
@given(
    count=sizes, size=st.integers(1, 20), shuffle=st.booleans(), seed=st.integers(0, 2**40), epoch=st.integers(0, 99)
)
def test_an_epoch_visits_every_image_once(count: int, size: int, shuffle: bool, seed: int, epoch: int) -> None:
    split = numbered(count)
    seen = order(split, size, shuffle=shuffle, seed=seed, epoch=epoch)
    assert sorted(seen) == list(range(count))
    assert shuffle or seen == list(range(count))
    assert seen == order(split, size, shuffle=shuffle, seed=seed, epoch=epoch)
    dropped = order(split, size, shuffle=shuffle, seed=seed, epoch=epoch, drop_last=True)
    assert dropped == seen[: count // size * size]
    options: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "epoch": epoch, "join_last": True}
    assert order(split, size, **options) == seen
    lengths = [len(y) for _, y in batches(split, size, **options)]
    assert len(lengths) == num_batches(split, size, join_last=True) == max(1, count // size)
    assert lengths[:-1] == [size] * (len(lengths) - 1)
    assert [len(y) for _, y in batches(split, size, start=len(lengths) - 1, **options)] == lengths[-1:]


@settings(deadline=None, max_examples=40)
@given(count=sizes, size=st.integers(1, 20), data=st.data())
def test_a_resumed_epoch_continues_where_it_stopped(count: int, size: int, data: st.DataObject) -> None:
    split, total = numbered(count), -(-count // size)
    start = data.draw(st.integers(0, total))
    augment = Augment(crop=1)
    whole = list(batches(split, size, shuffle=True, epoch=3, augment=augment))
    assert len(whole) == num_batches(split, size) == total
    assert equal(list(batches(split, size, shuffle=True, epoch=3, augment=augment, start=start)), whole[start:])


@settings(deadline=None, max_examples=40)
@given(count=sizes, world=st.integers(1, 6), more=st.integers(0, 14), drop_last=st.booleans())
def test_ranks_together_see_the_global_batches(count: int, world: int, more: int, drop_last: bool) -> None:
    size, split = world + more, numbered(count)
    options = {"shuffle": True, "seed": 5, "augment": Augment(crop=1), "drop_last": drop_last}
    whole = list(batches(split, size, **options))  # type: ignore[arg-type]
    ranks = [list(batches(split, size, rows=(rank, world), **options)) for rank in range(world)]  # type: ignore[arg-type]
    joined = [
        (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])) for parts in zip(*ranks, strict=True)
    ]
    assert equal(joined, whole)


@given(size=st.integers(0, 500), world=st.integers(1, 40))
def test_the_rows_of_ranks_differ_by_one_at_most(size: int, world: int) -> None:
    lengths = [len(range(size)[rank_rows(size, (rank, world))]) for rank in range(world)]
    assert sum(lengths) == size
    assert max(lengths) - min(lengths) <= 1


def test_seeds_and_epochs_give_different_orders() -> None:
    split = numbered(200)
    orders = [order(split, 32, shuffle=True, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(o) for o in orders}) == 4


def test_pixels_are_divided_by_255_exactly() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    ((x, _),) = batches(TensorSplit(levels, torch.tensor([0])), 1)
    assert x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.tensor([v / 255 for v in range(256)]))


def test_float_images_pass_unchanged() -> None:
    images = torch.rand(5, 2, 3, 3) * 7 - 3
    ((x, _),) = batches(TensorSplit(images, torch.arange(5)), 5)
    assert torch.equal(x, images)


def test_memory_format() -> None:
    split, _ = random_splits()
    plain, last = (next(batches(split, 8, memory_format=f))[0] for f in (torch.contiguous_format, torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert torch.equal(plain, last)


def test_batches_leave_the_split_and_the_global_random_state_alone() -> None:
    memory, stream = random_splits()
    before, state = memory.images.clone(), torch.get_rng_state()
    for split in (memory, stream):
        for x, _ in batches(split, 4, shuffle=True, augment=Augment()):
            x.zero_()
    assert torch.equal(memory.images, before)
    assert torch.equal(torch.get_rng_state(), state)


# --- augmentation


def looped(images: Tensor, draws: Tensor, crop: int, *, reflect: bool = False) -> Tensor:
    """Crops and mirror images, one image and one pixel row at a time."""
    out = torch.zeros_like(images)
    height, width = images.shape[2:]
    for i, (down, right, mirror) in enumerate(draws.T.tolist()):
        for row in range(height):
            for column in range(width):
                target = width - 1 - column if mirror else column
                y, x = row + down - crop, column + right - crop
                if reflect:  # the edge itself is not repeated
                    y, x = (height - 1 - abs(height - 1 - abs(y))), (width - 1 - abs(width - 1 - abs(x)))
                if 0 <= y < height and 0 <= x < width:
                    out[i, :, row, target] = images[i, :, y, x]
    return out


@settings(deadline=None, max_examples=25)
@given(crop=st.integers(0, 3), flip=st.booleans(), reflect=st.booleans(), seed=st.integers(0, 1000))
def test_augmentation_is_that_of_a_loop_over_images(crop: int, flip: bool, reflect: bool, seed: int) -> None:
    split, _ = random_splits(7)
    augment = Augment(crop=crop, flip=flip, padding="reflect" if reflect else "zeros")
    draws = augment.draw(7, torch.Generator().manual_seed(seed))
    assert torch.equal(augment(split.images, draws), looped(split.images, draws, crop, reflect=reflect))


def test_draws_cover_all_offsets_and_half_of_the_images_are_mirrored() -> None:
    draws = Augment(crop=2).draw(4000, torch.Generator().manual_seed(0))
    for offsets in draws[:2]:
        assert sorted(set(offsets.tolist())) == [0, 1, 2, 3, 4]
        assert offsets.double().mean().sub(2).abs() < 0.1
    assert draws[2].double().mean().sub(0.5).abs() < 0.03


def test_switching_flips_off_leaves_the_crops() -> None:
    with_flip, without = (Augment(flip=f).draw(50, torch.Generator().manual_seed(3)) for f in (True, False))
    assert torch.equal(with_flip[:2], without[:2])
    assert with_flip[2].any()
    assert not without[2].any()


def test_no_crop_and_no_flip_is_the_identity() -> None:
    split, _ = random_splits()
    plain, augmented = (list(batches(split, 8, augment=a)) for a in (None, Augment(crop=0, flip=False)))
    assert equal(plain, augmented)


def test_augmentation_changes_with_the_epoch_and_the_batch() -> None:
    same = TensorSplit(
        torch.arange(400, dtype=torch.uint8).view(4, 1, 10, 10)[:1].repeat(64, 1, 1, 1), torch.zeros(64).long()
    )
    first, second = islice(batches(same, 32, augment=Augment()), 2)
    other = next(batches(same, 32, augment=Augment(), epoch=1))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])


# --- streams


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_the_batches_of_a_tensor_split(workers: int) -> None:
    memory, stream = random_splits()
    options = {"shuffle": True, "seed": 2, "epoch": 1, "augment": Augment(crop=2)}
    expected = list(batches(memory, 6, **options))  # type: ignore[arg-type]
    assert equal(list(batches(stream, 6, num_workers=workers, **options)), expected)  # type: ignore[arg-type]
    resumed = list(batches(stream, 6, num_workers=workers, start=2, **options))  # type: ignore[arg-type]
    assert equal(resumed, expected[2:])


def test_a_rank_of_a_stream_reads_its_own_rows_only() -> None:
    memory, stream = random_splits(23)
    assert isinstance(stream.dataset, Items)
    parts = list(batches(stream, 10, rows=(1, 4), shuffle=True))
    assert equal(parts, list(batches(memory, 10, rows=(1, 4), shuffle=True)))
    assert stream.dataset.reads == sum(len(y) for _, y in parts) == 7
    assert [len(y) for _, y in batches(stream, 10, rows=(0, 10))] == [1, 1, 0]


def test_a_subset_of_a_subset_holds_the_right_items() -> None:
    memory, stream = random_splits()
    for split in (memory, stream):
        inner = split.subset([5, 3, 11, 2]).subset(torch.tensor([2, 0]))
        ((x, y),) = batches(inner, 4)
        assert torch.equal(x, memory.images[[11, 5]].float().div(255))
        assert y.tolist() == [11 % 4, 5 % 4]
        assert list(batches(split.subset([]), 4)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_item_of_a_stream_is_named_in_one_sentence(workers: int) -> None:
    images = torch.rand(9, 1, 2, 2)
    images[7, 0, 1, 0] = 1.5
    stream = StreamSplit(dataset=Items(images, [0] * 9), shape=(1, 2, 2), num_classes=2)
    with pytest.raises(DataError) as error:
        list(batches(stream, 3, num_workers=workers))
    assert str(error.value) == (
        "the dataset: image 7 holds 1.5 (channel 0, row 1, column 0); this looks like pixels of 0 to 255: divide by 255"
    )


def test_bad_labels_and_shapes_of_a_stream() -> None:
    labels = StreamSplit(dataset=Items(torch.rand(3, 1, 2, 2), [0, 1, 2]), shape=(1, 2, 2), num_classes=2)
    with pytest.raises(DataError, match=r"^the dataset: label 2 is 2; with 2 classes the labels must be 0 to 1$"):
        list(batches(labels, 2))
    shapes = StreamSplit(dataset=Items(torch.rand(3, 1, 2, 2), [0, 1, 1]), shape=(1, 4, 4), num_classes=2)
    with pytest.raises(
        DataError, match=r"^image 0 has shape \(1, 2, 2\), the first one \(1, 4, 4\); give all one shape"
    ):
        list(batches(shapes, 2))


# --- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"start": 4}, "start is 4; the epoch has 3 batches, so give 0 to 3"),
        ({"rows": (2, 2)}, r"rows is \(2, 2\); give \(rank, world\) with 0 <= rank < world <= batch_size 4"),
        ({"rows": (0, 5)}, "world <= batch_size 4"),
        ({"num_workers": -1}, "num_workers is -1; give 0 or more"),
    ],
)
def test_wrong_settings_are_refused_at_the_call(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batches(numbered(10), **{"batch_size": 4, **options})  # type: ignore[arg-type]


def test_a_negative_crop_is_refused() -> None:
    with pytest.raises(ConfigError, match="Augment: crop is -1; give the padding in pixels, 0 or more"):
        Augment(crop=-1)


def test_paddings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="padding='mirror' is unknown; type one of 'zeros', 'reflect'"):
        Augment(padding="mirror")  # type: ignore[arg-type]
    augment = Augment(crop=4, padding="reflect")
    with pytest.raises(ConfigError, match="images of 4 x 9 cannot be mirrored by 4 pixels; give a smaller crop"):
        augment(torch.zeros(1, 1, 4, 9), augment.draw(1, torch.Generator()))


def test_tensor_splits_refuse_other_types_and_lengths() -> None:
    with pytest.raises(DataError, match=r"the images are torch.float64 of shape \(2, 1, 1, 1\)"):
        TensorSplit(torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.zeros(2).long())
    with pytest.raises(DataError, match=r"the labels are torch.int64 of shape \(3,\); give int64 of shape \(2,\)"):
        TensorSplit(torch.zeros(2, 1, 1, 1), torch.zeros(3).long())
