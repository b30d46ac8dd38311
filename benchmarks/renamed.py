"""What is typed otherwise after a change: the file to edit when a comparison cannot build a side.

Empty tables say that everything is typed as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]


def _fraction(fields: Fields) -> Fields:
    """A step as a fraction of the radius, where it was a length."""
    rest = {name: value for name, value in fields.items() if name != "alpha"}
    return rest | ({"step": fields["alpha"] / fields["eps"]} if "alpha" in fields else {})


def _attacked(attack: str, **usual: Any) -> Callable[[str], Callable[[Fields], tuple[str, Fields]]]:
    """A method that has its attack in a field, where it had the attack's own fields."""

    def of(name: str) -> Callable[[Fields], tuple[str, Fields]]:
        def translated(fields: Fields) -> tuple[str, Fields]:
            from method_table import Spec

            steps = attack == "PGD"
            theirs = {"eps", "steps", "random_start", "probe", "alpha" if steps else "step"}
            moved = {k: v for k, v in fields.items() if k in theirs}
            rest = {k: v for k, v in fields.items() if k not in theirs}
            inner = Spec(attack, usual | (_fraction(moved) if steps else moved))
            return name, {**rest, "attack": inner}

        return translated

    return of


def _least_likely(name: str) -> Callable[[Fields], tuple[str, Fields]]:
    """NAT and EAT, whose single step was their own."""

    def translated(fields: Fields) -> tuple[str, Fields]:
        from method_table import Spec

        target = {"gradient": "label"}.get(fields.get("step", ""), "least-likely")
        eps, largest = fields["std"], fields["largest"]
        inner = {"eps": eps, "std": 1.0, "step": largest / eps, "target": target}
        rest = {k: v for k, v in fields.items() if k not in ("std", "largest", "step")}
        return name, {**rest, "attack": Spec("FGSM", inner)}

    return translated


CLASSES: dict[str, Callable[[Fields], tuple[str, Fields]]] = {
    "PGD": lambda fields: ("PGD", _fraction(fields)),
    "YOPO": lambda fields: ("YOPO", _fraction(fields)),
    "TRADES": _attacked("PGD")("TRADES"),
    "MART": _attacked("PGD")("MART"),
    "PAT": _attacked("PGD", random_start=False)("PAT"),
    "FGSOrig": _attacked("FGSM")("FGSOrig"),
    "FGSMCKPT": _attacked("FGSMRS")("FGSMCKPT"),
    "NAT": _least_likely("NAT"),
    "EAT": _least_likely("EAT"),
}
"""{name before: its fields -> (name, fields) after}, for methods, settings and functions alike.

A name may say where it is to be found: `core.criteria:CrossEntropy`.
"""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {}
"""{name in `method_table.py`: (class, fields) after}, where `CLASSES` does not say it all."""

STATE: dict[str, str] = {}
"""{key of a method's `state_dict` after: before}."""


def _look(text: str, *, model: Any, x: Any, y: Any, threat: Any, others: Any) -> Any:
    """A measure of images in their own order, which an evaluation shuffles."""
    from method_table import find

    order = find("data.batching:epoch_order")(len(x), shuffle=True, seed=0, epoch=0).argsort()
    with find("evaluation.conditions:evaluating")(model, (x[order], y[order])) as conditions:
        target = find("evaluation.measure:Target")(conditions, threat, others=others)
        return find("evaluation.measure:parse_measure")(text)(target)


LOOK: Callable[..., Any] | None = _look
"""How a diagnostic is measured after; None measures it as before."""

RECORD: dict[str, str] = {"correct": "right"}
"""{field of a record after: before}, the field that holds it before it where the name alone is not enough."""
