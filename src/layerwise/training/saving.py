"""A session's way into a checkpoint and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerwise.core.shards import weights_of
from layerwise.data import rank_rows
from layerwise.errors import CheckpointError
from layerwise.training import checkpoint
from layerwise.training.randomness import random_states, set_random_states
from layerwise.training.ranks import any_rank, from_the_first
from layerwise.training.run import put_weights, to_go_on
from layerwise.training.session import Session


def save(session: Session) -> None:
    """Write a checkpoint, if the run has a folder; every rank has to call."""
    if session.run is None:
        return
    from_the_first(session.raw.buffers())  # what a resumed run begins with
    shared = {
        name: getattr(session, name)
        for name in ("epoch", "batch", "sums", "lr", "history", "flags", "messages", "best")
    }
    shared |= {"monitor": session.monitor.state_dict(), "metrics": session.metrics.size}
    shared |= {"optimizer": session.shards.joined(session.optimizer)}
    shared |= {"ema_steps": 0 if session.average is None else session.average.steps}
    own = {
        "random": random_states(session.place.device),
        "methods": [method.state_dict() for method in session.phases.methods],
        "totals": session.totals.state_dict(),
    }
    checkpoint.save(
        session.run.checkpoints,
        step=session.step,
        weights=weights_of(session.raw),
        average=None if session.average is None else session.average.state_dict(),
        state=shared,
        own=own,
        keep=session.settings.keep,
        rank=session.place.rank,
        device=session.place.device,
    )


def keep(session: Session) -> None:
    """Save where it is due, and stop after Ctrl-C or SIGTERM; every rank has to call.

    Raises:
        KeyboardInterrupt: after a wish to stop, with what to type to go on.
    """
    # Asking the other ranks costs a synchronisation, so with several the wish waits for a line of metrics.
    ask = session.place.world == 1 or session.logged
    asked = ask and any_rank(session.interrupt.requested is not None, session.place.device)
    if asked or session.done or session.due(session.settings.checkpoint_every):
        save(session)
    if asked and not session.done:
        by = session.interrupt.requested or "another rank"
        where = f"stopped by {by} after batch {session.step} of {session.total_steps}"
        if session.run is None:
            raise KeyboardInterrupt(f"{where}; {to_go_on(None)}")
        raise KeyboardInterrupt(f"{where} and saved; {to_go_on(session.run.path)}")


def restore(session: Session) -> None:
    """Go back to the newest whole checkpoint, if there is one."""
    if session.run is None:
        return
    place = session.place
    contents, damaged = checkpoint.load_latest(session.run.checkpoints, rank=place.rank, world=place.world)
    if contents is None:
        session.metrics.truncate(0)
    else:
        try:
            _take_up(session, contents)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint of step {contents.step} in {session.run.checkpoints} is whole, but of another kind of run: "
                f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}; start a new run"
            ) from error
    for sentence in damaged:
        session.say(sentence)


def _take_up(session: Session, contents: checkpoint.Contents) -> None:
    assert session.run is not None
    state, device = contents.state, session.place.device
    put_weights(session.raw, contents.weights, where=f"the checkpoint of {session.run.path}")
    session.optimizer.load_state_dict(session.shards.divided(session.optimizer, state["optimizer"]))
    for group in session.optimizer.param_groups:
        # It was loaded on the CPU; the fused kernels want it beside the weights.
        group["lr"] = group["lr"].to(device)
    for weight, kept in session.optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                # Files hold rows one after the other. The fused kernels go through memory as it lies, and mix up what lies otherwise.
                kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
    if session.average is not None and contents.average is not None:
        session.average.load_state_dict(contents.average, state["ema_steps"])
    for name in ("epoch", "batch", "sums", "lr", "history", "flags", "messages", "best"):
        setattr(session, name, state[name])
    session.monitor.load_state_dict(state["monitor"])
    lost = session.metrics.truncate(state["metrics"])
    own = own_share(contents, session.place.rank, session.place.world)
    for method, kept in zip(session.phases.methods, own["methods"], strict=True):
        method.load_state_dict({name: value.to(device) for name, value in kept.items()})
    session.totals.load_state_dict(own["totals"])
    if "random" in own:
        set_random_states(own["random"], device)
    if lost:
        session.say(lost)


def own_share(contents: checkpoint.Contents, rank: int, world: int) -> dict[str, Any]:
    """This rank's entry; with another number of ranks, its rows of the methods' noise, and random states that start anew.

    What a method keeps is taken to have the batch's rows first, as LAT's noise has.
    """
    if contents.world == world:
        return contents.ranks[0]
    methods = []
    for states in zip(*(entry["methods"] for entry in contents.ranks), strict=True):
        whole = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        methods.append({name: value[rank_rows(len(value), (rank, world))] for name, value in whole.items()})
    # Sums that were not read yet are rank 0's from now on; all ranks did the same number of batches.
    totals = [entry["totals"] for entry in contents.ranks]
    share = 1 if rank == 0 else 0
    merged = {"sums": share * sum(t["sums"] for t in totals), "rows": share * sum(t["rows"] for t in totals)}
    merged |= {"good": min(t["good"] for t in totals), "batches": totals[0]["batches"]}
    return {"methods": methods, "totals": merged}
