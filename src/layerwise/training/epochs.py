"""What happens after an epoch: evaluation, the best weights, the method's own numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from layerwise.core.shards import weights_of
from layerwise.methods.base import Method
from layerwise.training.monitor import OVERFITTING
from layerwise.training.randomness import kept_random_states
from layerwise.training.ranks import from_the_first
from layerwise.training.session import Session
from layerwise.training.validation import score


def end_epoch(session: Session, method: Method) -> None:
    """Evaluate where it is due, watch for a collapse, keep the best weights, write the epoch's line, and move on to the next."""
    loss, correct, rows = session.sums
    values: dict[str, Any] = {"loss": loss / rows, "accuracy": correct / rows, "lr": session.lr}
    from_the_first(session.raw.buffers())  # each process may have running statistics of its own rows
    every = session.settings.eval_every
    if every and (session.done or (session.epoch + 1) % every == 0):
        values |= _evaluate(session)
        _watch(session)
    _diagnose(session, method)
    passes = method.among(session.data.num_classes).passes.total
    values |= {"method": type(method).__name__, "passes": passes, "flags": list(session.flags)}
    values |= {"seconds": session.clock.seconds, "planned": session.settings.epochs * session.per_epoch}
    session.history.append(session.record("epoch", values))
    if session.batch == session.per_epoch:
        session.epoch, session.batch, session.sums = session.epoch + 1, 0, [0.0, 0.0, 0.0]
    session.clock.restart()


def _evaluate(session: Session) -> dict[str, Any]:
    """Scores of the weights and of their average: on the validation split or, where there is none, on training images."""
    held = len(session.data.validation) > 0
    found: dict[str, Any] = {"split": "validation" if held else "train", **_scored(session, "best")}
    if session.average is not None:
        with session.average.applied():
            averaged = _scored(session, "best-ema")
        found |= {"ema_clean": averaged["clean"], "ema_robust": averaged["robust"]}
    if found["robust"] is not None:
        looked_at = {f"{found['split']}_{kind}": f"{found[kind]:.1%}" for kind in ("clean", "robust")}
        session.bar.update(session.step, **looked_at)
        if told := session.monitor.update(session.epoch + 1, found["robust"], clean=found["clean"]):
            session.flags.append(OVERFITTING)
            session.say(told)
    return found


def _watch(session: Session) -> None:
    """The caller's own numbers."""
    if session.watch is not None:
        with kept_random_states(session.place.device):
            session.record("diagnose", session.watch(session.raw))


def _scored(session: Session, which: str) -> dict[str, Any]:
    """Score the network as it is, and store its weights if no epoch was better under attack (without one: clean)."""
    place, data = session.place, session.data
    found = score(
        session.raw,
        data.validation if len(data.validation) else data.train,
        session.settings if data.value_range is not None else replace(session.settings, eval_steps=0),
        threat=session.threat,
        device=place.device,
        dtype=place.dtype,
        autocast=place.autocast,
        rows=(place.rank, place.world),
    )
    value = found["clean"] if found["robust"] is None else found["robust"]
    if which not in session.best or value > session.best[which]["score"]:
        session.best[which] = {"epoch": session.epoch + 1, "score": value, **found}
        if session.run is not None:
            session.run.save_weights(which, weights_of(session.raw))
    return dict(found)


def _diagnose(session: Session, method: Method) -> None:
    """The method's numbers on the last batch, and its warnings."""
    if session.seen is not None:
        with kept_random_states(session.place.device):
            numbers = method.diagnose(session.raw, *session.seen)
        if numbers:
            session.record("diagnose", numbers)
    for sentence in method.warnings():
        session.say(sentence)
