from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.errors import ConfigError
from layerwise.training import Constant, Cosine, Cyclic, MultiStep, OneCycle, Schedule

progress = st.floats(0, 1)
inside = st.floats(0.01, 0.99)
EVERY = st.one_of(
    st.just(Constant()),
    st.builds(Cyclic, peak_at=st.floats(0, 1)),
    st.builds(MultiStep, milestones=st.lists(inside).map(lambda m: tuple(sorted(m))), factor=progress),
    st.builds(Cosine, warmup=st.floats(0, 0.99), final=progress),
    st.builds(OneCycle, peak_at=st.floats(0, 1), start=progress, final=progress),
)


@given(EVERY, progress)
def test_a_multiplier_lies_between_0_and_1(schedule: Schedule, p: float) -> None:
    assert -1e-12 <= schedule(p) <= 1 + 1e-12


@given(inside)
def test_cyclic_rises_from_0_to_1_and_falls_to_0(peak: float) -> None:
    schedule = Cyclic(peak_at=peak)
    assert [schedule(0), schedule(peak), schedule(1)] == pytest.approx([0, 1, 0])
    assert schedule(peak / 2) == pytest.approx(0.5)
    assert schedule((1 + peak) / 2) == pytest.approx(0.5)


@given(inside, progress)
def test_cosine_ends_where_it_should(warmup: float, final: float) -> None:
    schedule = Cosine(warmup=warmup, final=final)
    assert [schedule(0), schedule(warmup), schedule(1)] == pytest.approx([0, 1, final], abs=1e-12)
    assert schedule((1 + warmup) / 2) == pytest.approx((1 + final) / 2)


@given(inside, progress, progress)
def test_one_cycle_ends_where_it_should(peak: float, start: float, final: float) -> None:
    schedule = OneCycle(peak_at=peak, start=start, final=final)
    assert [schedule(0), schedule(peak), schedule(1)] == pytest.approx([start, 1, final], abs=1e-12)
    assert schedule(peak / 2) == pytest.approx((1 + start) / 2)


def test_one_cycle_is_pytorch_s() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=101, cycle_momentum=False, pct_start=0.3)
    # PyTorch puts the peak at step pct * total - 1 of total - 1.
    ours = OneCycle(peak_at=(0.3 * 101 - 1) / 100)
    for step in range(100):
        assert ours(step / 100) == pytest.approx(float(theirs.get_last_lr()[0]), abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("p", "wanted"), [(0, 1), (0.29, 1), (0.3, 0.1), (0.59, 0.1), (0.6, 0.01), (1, 0.01)])
def test_multi_step_drops_at_its_milestones(p: float, wanted: float) -> None:
    for milestones in ((0.3, 0.6), (60, 120), (0.3, 120)):
        assert MultiStep(milestones=milestones).over(200)(p) == pytest.approx(wanted)


def test_a_milestone_in_epochs_is_met_exactly() -> None:
    schedule = MultiStep(milestones=(60,), factor=0.0).over(200)
    batches = 391
    assert schedule((60 * batches - 1) / (200 * batches)) == 1
    assert schedule(60 * batches / (200 * batches)) == 0


def test_warm_up_in_epochs() -> None:
    schedule = Cosine(warmup=5).over(50)
    assert [schedule(0.05), schedule(0.1)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiStep(milestones=(60, 300)).over(200), "milestone 300 lies after the last of 200 epochs"),
        (lambda: MultiStep(milestones=(0.9, 20)).over(200), r"milestones=\(0.9, 20\) do not rise over 200 epochs"),
        (lambda: MultiStep(milestones=(60,))(0.5), "milestone 60 is in epochs; call over"),
        (lambda: Cosine(warmup=50).over(10), "warmup 50 lies after the last of 10 epochs"),
        (lambda: Cosine(final=2), "final=2 is out of range; type a number from 0 to 1"),
        (lambda: Cyclic(peak_at=math.nan), "peak_at=nan is out of range"),
        (lambda: OneCycle(start=-1), "start=-1 is out of range"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()
