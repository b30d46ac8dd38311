"""What was measured beside the attacks: corruptions, diagnostics, adversarial examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from layerwise.evaluation.examples import Example, Examples
from layerwise.evaluation.measures import (
    Alignment,
    BoundaryDistance,
    Curves,
    Diagnostic,
    FeatureClouds,
    FeatureGradients,
    InputGradients,
    Landscape,
    Linearity,
    NoiseInsensitivity,
    RadiusCurve,
    RepresentationInsensitivity,
    Spectrum,
)
from layerwise.evaluation.measures.style import pixels
from layerwise.report.document import Block, Gallery, Table, Triple, shorten
from layerwise.report.figures import drawable, labels, picture, thumbnail, unescaped
from layerwise.report.runs import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kinds = tuple[type[Diagnostic], ...]

SECTIONS: dict[str, Kinds] = {
    "Accuracy over radius": (RadiusCurve,),
    "Loss landscape": (Landscape,),
    "Gradient alignment": (Alignment,),
    "Feature gradients": (FeatureGradients,),
    "Boundary distance": (BoundaryDistance,),
    "Insensitivity": (NoiseInsensitivity, RepresentationInsensitivity),
    "Jacobian spectrum": (Spectrum,),
    "Features (t-SNE)": (FeatureClouds,),
    "Input gradients": (InputGradients,),
}
"""The sections that have diagnostics; what belongs to none goes into one of its own."""

CAPTIONS: dict[type[Diagnostic], str] = {
    RadiusCurve: "A curve that does not fall to 0 at large radii is a sign of gradient masking.",
    Landscape: "Smooth and flat is good. A jagged loss, or one that rises more along the random direction, is a sign of gradient masking.",
    Alignment: "Far to the right is good: the gradient points the same way nearby. Near 0, attacks and training by a single step fail.",
    FeatureGradients: "To the left is good: the loss depends less on the layer's activation.",
    BoundaryDistance: "Higher is good: the prediction changes farther away from the image.",
    NoiseInsensitivity: "Lower is good: the loss changes less per unit of noise.",
    RepresentationInsensitivity: "To the left is good: the layer changes less when the image is attacked.",
    Linearity: "To the left is good: the loss is closer to its tangent, so one gradient step finds what many would.",
    Spectrum: "Lower is good: the features stretch small changes of the image less.",
    FeatureClouds: "Classes that stay apart as the noise grows are good. Axes have no unit, and distances between clouds mean nothing.",
    InputGradients: "Gradients of robust networks look like the object, those of others like noise.",
}  # fmt: skip
"""How to read each figure."""

SETTINGS = ("unit", "eps", "eta", "direction", "encoder", "treatment", "deviations")
"""Fields of a diagnostic that say how it was measured: figures are shared only where they agree."""

FEW = 8
"""Examples of a run that are shown."""


def diagnostics(entries: Sequence[Entry], kinds: Kinds) -> Iterator[Block]:
    """The figures of some kinds of diagnostics, of each recipe's first seed, in one figure where it can hold several networks."""
    several = any(len(entry.runs) > 1 for entry in entries)
    found: dict[Any, dict[str, Diagnostic]] = {}
    for entry, name in zip(entries, labels(e.name for e in entries), strict=True):
        for diagnostic in entry.first.judgement.diagnostics:
            if isinstance(diagnostic, kinds):
                shares = isinstance(diagnostic, Curves | InputGradients)
                settings = tuple(repr(getattr(diagnostic, s, None)) for s in SETTINGS)
                key = (kinds.index(type(diagnostic)), settings, _images(diagnostic), None if shares else name)
                found.setdefault(key, {})[name] = drawable(diagnostic)
    for key in sorted(found, key=lambda k: k[0]):
        named = found[key]
        (name, first), *others = named.items()
        shared = isinstance(first, Curves | InputGradients)
        said = [
            "" if shared or len(entries) == 1 else f"{unescaped(name)}:",
            f"{_images(first)} images." if _images(first) else "",
        ]
        said += [CAPTIONS.get(type(first), ""), "Of several seeds, the first." if several else ""]
        caption = " ".join(filter(None, said))
        yield picture(partial(_draw, first, name, dict(others)), title=first.title, caption=caption)


def _draw(diagnostic: Diagnostic, name: str, others: Mapping[str, Any]) -> Figure:
    if isinstance(diagnostic, Curves | InputGradients):
        return diagnostic.figure(name=name, others=others)
    return diagnostic.figure()


def _images(diagnostic: Diagnostic) -> int:
    """Images that a diagnostic is over, 0 where it does not say."""
    for name in ("images", "labels", "minima"):
        value = getattr(diagnostic, name, None)
        if value is not None:
            return value if isinstance(value, int) else len(value)
    if isinstance(diagnostic, Alignment):
        return len(diagnostic.cosines) + diagnostic.dropped
    return diagnostic.counts[0].total if isinstance(diagnostic, RadiusCurve) and diagnostic.counts else 0


def galleries(entries: Sequence[Entry]) -> Iterator[Block]:
    """Adversarial examples of each recipe's first seed."""
    for entry in entries:
        examples = entry.first.judgement.examples
        if examples is not None and examples.items:
            yield _gallery(entry.name, examples)


def _gallery(name: str, examples: Examples) -> Block:
    pairs = [(a.numpy().astype(int), b.numpy().astype(int)) for a, b in examples.pictures()][:FEW]
    largest = max((int(abs(b - a).max()) for a, b in pairs), default=0)
    factor = max(1, 127 // largest) if largest else 1
    items = [
        _triple(examples, item, [a, b, (128 + factor * (b - a)).clip(0, 255)], factor)
        for item, (a, b) in zip(examples.items, pairs, strict=False)
    ]
    caption = (
        f"The first {len(items)} images of the evaluation, none left out, under {shorten(examples.attack)} ({examples.threat}): original, "
        f"adversarial, and their difference times {factor}, grey where there is none. Pixels are rounded to 1/255."
    )
    return Gallery(name, caption, tuple(items))


def _triple(examples: Examples, item: Example, pictures: Sequence[Any], factor: int) -> Triple:
    label, before, after = (shorten(examples.class_name(k), 24) for k in (item.label, item.predicted, item.attacked))
    distance = item.distance if examples.threat.norm == "l2" else pixels(item.distance).removeprefix("eps ")
    shown = f"{distance:.3g}" if isinstance(distance, float) else distance
    return Triple(
        tuple(thumbnail(p.astype("uint8")) for p in pictures),  # type: ignore[arg-type]
        (f"Image of class {label}", "The same image under attack", f"Their difference, times {factor}"),
        f"{label}: seen as {before} ({100 * item.confidence:.0f} %), attacked as {after} "
        f"({100 * item.attacked_confidence:.0f} %), {examples.threat.norm} distance {shown}",
        item.attacked != item.label,
    )


def measures(entries: Sequence[Entry]) -> Iterator[Block]:
    """Deep Defense's figures, which have no picture."""
    sizes = tuple(
        (entry.name, str(r.num_steps), f"{r.value:.4g}", str(r.images), str(r.blank or ""), f"{100 * r.unfooled:.1f}")
        for entry in entries
        for r in entry.first.judgement.rho
    )
    if sizes:
        caption = (
            "Deep Defense's rho_2, the mean of ||Delta||_2 / ||x||_2 over the images, Delta DeepFool's perturbation; larger is better. "
            "Of several seeds, the first."
        )
        header = ("run", "DeepFool steps", "rho_2", "images", "blank, left out", "unfooled, %")
        yield Table(header, sizes, caption).without_empty_columns()
    found = [(entry.name, r) for entry in entries if (r := entry.first.judgement.eps_ref) is not None]
    if found:
        fractions = sorted({f for _, r in found for f in r.accuracies}, reverse=True)
        rows = tuple(
            (name, f"{r.eps:.4g}", *(f"{100 * r.accuracies[f].accuracy:.1f}" if f in r.accuracies else "" for f in fractions))
            for name, r in found
        )  # fmt: skip
        caption = (
            "eps_ref, the radius at which FGSM halves the accuracy, and accuracy in % under FGSM at fractions of it."
        )
        yield Table(("run", "eps_ref", *(f"at {f:g}" for f in fractions)), rows, caption)
