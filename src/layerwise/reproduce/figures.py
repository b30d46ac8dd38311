"""Figures in the papers' axes: a diagnostic of every row's network, or the columns of a table as curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise import models
from layerwise.attacks import InputAttack, PGDAttack, ThreatModel, parse_attack
from layerwise.attacks.base import is_correct
from layerwise.core import registry
from layerwise.core.checks import parse_radius
from layerwise.core.driving import step
from layerwise.core.random import Source, normal
from layerwise.data import load
from layerwise.data.batching import batches
from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation import measures as look
from layerwise.evaluation.corruptions import STANDARD, corrupt
from layerwise.evaluation.measurement import Curves, Measurement
from layerwise.evaluation.style import canvas, describe, legend_below, line, styled
from layerwise.files import atomic, writing
from layerwise.reproduce.bench import Bench, attempt
from layerwise.reproduce.definitions import Item, System
from layerwise.reproduce.record import Picture, RowRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOY_STEPS = 300
"""Descents of the toy networks, each on all points: a second."""

Found: TypeAlias = dict[str, Measurement]
"""What was found of one network, by panel."""

DOTS = 80
"""Dots per inch: a picture stays below 100 KiB."""


def draw(item: Item, bench: Bench, folder: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of a figure, one for all rows where a diagnostic holds several, else one a row; and what failed.

    Args:
        item: the figure.
        bench: where its systems are.
        folder: of the pictures.

    Raises:
        ConfigError: nothing draws it.
    """
    if item.draw == "curves":
        return _training_curves(item, bench, folder)
    if item.draw == "toy":
        return _toy(item, bench, folder), []
    if item.draw not in LOOKS:
        raise ConfigError(f"nothing draws {item.draw!r}; {did_you_mean(item.draw, LOOKS)}")
    panels: dict[str, Found] = {}
    failures = []
    for row in item.rows:
        found = attempt(looked_at, item.draw, item.options, bench, row.system)
        if isinstance(found, str):
            failures.append(f"{row.name}: {found}")
            continue
        for panel, diagnostic in found.items():
            panels.setdefault(panel, {})[row.name] = diagnostic
    pictures = []
    for panel, shown in panels.items():
        for name, figure in _figures(shown):
            file = _file(item, panel, name)
            data = {key: value.to_dict() for key, value in shown.items() if name in ("", key)}
            pictures.append(_saved(figure, folder / file, data))
    return pictures, failures


def looked_at(name: str, options: Mapping[str, Any], bench: Bench, system: System) -> Found:
    """What a diagnostic finds of a system, by panel; one alone has no name."""
    subject = bench.subject(system)
    count, find = images_of(name, bench), LOOKS[name][1]

    def make() -> dict[str, Any]:
        found = find(View(bench, subject.network, *subject.images(count), options))
        panels = {"": found} if isinstance(found, Measurement) else found
        return {panel: measurement.to_dict() for panel, measurement in panels.items()}

    stored = bench.cached(subject, ["figure", name, count, options], make)
    return {panel: Measurement.from_dict(found, source=str(subject.folder)) for panel, found in stored.items()}


def images_of(name: str, bench: Bench) -> int:
    """How many images a diagnostic looks at."""
    most = LOOKS[name][0]
    return min(most, bench.scale.few or most)


def _figures(shown: Found) -> Iterator[tuple[str, Figure]]:
    (first, head), *rest = shown.items()
    if isinstance(head, Curves):
        others = {name: found for name, found in rest if isinstance(found, type(head))}
        yield "", head.figure(name=first, others=others)
        return
    for name, found in shown.items():
        figure = found.figure()
        _head(figure, name)
        yield name, figure


def _head(figure: Figure, name: str) -> None:
    """Put a row's name before the title of the figure or, where it has none, of its first panel."""
    title = figure.get_suptitle()
    with styled():
        if title:
            figure.suptitle(f"{name}: {title}", x=0.01, ha="left", fontsize=9)
        else:
            figure.axes[0].set_title(f"{name}: {figure.axes[0].get_title('left')}")


def _file(item: Item, *parts: str) -> str:
    name = "-".join([item.id.partition("/")[2], *(part for part in parts if part)])
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name) + ".png"


def _saved(figure: Figure, file: Path, data: dict[str, Any]) -> Picture:
    with writing(file), atomic(file) as partial:
        figure.savefig(partial, dpi=DOTS, format="png")
    return Picture(file=file.name, alt=getattr(figure, "alt", ""), data=_rounded(data))


def _rounded(value: Any) -> Any:
    """Numbers with three digits: records stay small, and no picture shows more."""
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _attacked(text: str) -> Callable[[nn.Module, Tensor, Tensor, float, Source], Tensor]:
    attack = parse_attack(text)
    if not isinstance(attack, InputAttack):
        raise ConfigError(f"attack {text!r} makes no images")
    return lambda model, x, y, eps, source: attack(model, x, y, ThreatModel(eps=eps), generator=source)


def _gaussian(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source) -> Tensor:
    del model, y
    return (x + eps / 3 * normal(x, source, key="gaussian")).clamp(x - eps, x + eps).clamp(0, 1)


def _shot(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source) -> Tensor:
    """Shot noise of the benchmark, severity 3, cut to the radius."""
    del model, y, source
    return corrupt(x, "shot_noise", 3).clamp(x - eps, x + eps)


NOISES: dict[str, Any] = {"uniform": look.uniform_noise, "fgsm": look.fgsm, "gaussian": _gaussian, "shot": _shot}


def _noise(name: str) -> Any:
    return NOISES[name] if name in NOISES else _attacked(name)


@final
@dataclass(frozen=True)
class View:
    """What a diagnostic looks at.

    Args:
        bench: where other systems are.
        model: the network.
        x: test images.
        y: their labels.
        options: of the figure.
    """

    bench: Bench
    model: nn.Module
    x: Tensor
    y: Tensor
    options: Mapping[str, Any]

    @property
    def first(self) -> tuple[nn.Module, Tensor, Tensor]:
        """What every diagnostic begins with."""
        return self.model, self.x, self.y


def _radius(view: View) -> Measurement:
    attack = _attacked(view.bench.scale.attack(view.options["attack"]))
    return look.accuracy_over_radius(
        *view.first, attack, radii=[parse_radius(radius) for radius in view.options["radii"]]
    )


def _reassignment(view: View) -> Found:
    other = view.bench.row(view.options["other"]).network
    noisy = [corrupt(view.x, name, 3) for name in STANDARD]
    shares: dict[str, Any] = {
        "clean": _share,
        "fgsm": lambda network, x, y: _share(
            network, look.fgsm(network, x, y, 8 / 255, None), y
        ),  # of the weights it has then
        "corrupted": lambda network, x, y: sum(_share(network, images, y) for images in noisy) / len(noisy),
    }
    return {
        name: look.layer_reassignment(view.model, other, view.x, view.y, measure=share)
        for name, share in shares.items()
    }


def _share(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(is_correct(network(x), y).float().mean())


def _representation(view: View) -> Found:
    polluted = {"pgd": PGDAttack(10)(*view.first, ThreatModel()), "gaussian": corrupt(view.x, "gaussian_noise", 3)}
    sites = tuple(view.options["sites"])
    return {
        name: look.representation_insensitivity(view.model, view.x, images, sites=sites)
        for name, images in polluted.items()
    }


def _boundary(view: View) -> Measurement:
    directions = min(1000, view.bench.scale.few or 1000, view.x[0].numel())
    return look.boundary_distance(*view.first, directions=directions)


def _noise_insensitivity(view: View) -> Found:
    eps = [k / 255 for k in (2, 4, 8, 16)]
    return {
        name: look.noise_insensitivity(*view.first, eps=eps, pollute=_noise(name), copies=10)
        for name in view.options["noises"]
    }


ALL = 10_000
"""The test images, where the papers have all of them."""

LOOKS: dict[str, tuple[int, Callable[[View], Measurement | Found]]] = {
    "radius": (ALL, _radius),
    "landscape": (100, lambda view: look.loss_landscape(*view.first)),
    "feature-gradients": (
        ALL,
        lambda view: look.feature_gradient_norms(*view.first, sites=tuple(view.options["sites"])),
    ),
    "alignment": (1000, lambda view: look.gradient_alignment(*view.first)),
    "reassignment": (1000, _reassignment),
    "representation": (100, _representation),
    "input-gradients": (32, lambda view: look.input_gradient_pictures(view.model, *_some(view, "images"))),
    "boundary": (100, _boundary),
    "noise-insensitivity": (100, _noise_insensitivity),
    "clouds": (
        1000,
        lambda view: look.feature_clouds(*view.first, eps=view.options["eps"], classes=view.options.get("classes")),
    ),
    "linearity": (1000, lambda view: look.linear_approximation_error(*view.first, sites="input")),
    "spectrum": (ALL, lambda view: look.jacobian_spectrum(view.model, view.x)),
}
"""What draws a figure, by the name that definitions use: how many images it looks at, and what it finds of them, alone or by panel.

`curves` and `toy` are two others.
"""


def _some(view: View, option: str) -> tuple[Tensor, Tensor]:
    """As many images as an option says."""
    return view.x[: view.options[option]], view.y[: view.options[option]]


def _training_curves(item: Item, bench: Bench, folder: Path) -> tuple[list[Picture], list[str]]:
    """Curves over the epochs, from what training logged."""
    pictures, failures = [], []
    for key, label in item.options["series"].items():
        curves = {}
        for row in item.rows:
            found = attempt(_curve, bench, row.system, key, label)
            if isinstance(found, str):
                failures.append(f"{label}, {row.name}: {found}")
            else:
                curves[row.name] = found
        if curves:
            figure = plot(curves, title=item.title, x="epoch", y=label)
            pictures.append(_saved(figure, folder / _file(item, key), {"curves": curves}))
    return pictures, failures


def _curve(bench: Bench, system: System, key: str, label: str) -> list[tuple[float, float]]:
    """What training logged, in the label's unit; where it is an error, what is not right."""
    found = bench.subject(system).logged(key)
    if "%" not in label:
        return found
    return [(epoch, 100 * (1 - value if "error" in label else value)) for epoch, value in found]


def _toy(item: Item, bench: Bench, folder: Path) -> list[Picture]:
    """The decision boundaries of the two-layer network on points of the plane, trained right here: they take seconds.

    The points are brought to [0, 1], where input perturbations are defined, by one scale for both features; so are the radii.
    """
    split = load("gaussians").train
    x, y = next(batches(split, len(split)))
    low, high = x.min(), x.max()
    points, unit = (x - low) / (high - low), float(high - low)
    made: list[Picture] = []
    for name, options in item.options["methods"].items():
        kind = registry.find("method", name).thing
        radii = {key: value / unit for key, value in options.items() if isinstance(value, float)}
        method = kind(**{**options, **radii})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(bench.seed)
            model = models.build("toy", num_classes=2, shape=(2, 1, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(TOY_STEPS):
            step(method, model, points, y, optimizer)
        method.detach()
        found: Found = {name: look.decision_boundary(model.eval(), points, y, points=80)}
        for _, figure in _figures(found):
            made.append(_saved(figure, folder / _file(item, name), {name: found[name].to_dict()}))
    return made


def draw_sweep(item: Item, rows: Sequence[RowRecord], folder: Path) -> Picture:
    """The columns of a table as curves over the rows' places; rows without a place are lines across, or bars where no row has one.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not any(cell.ours for row in rows for cell in row.cells.values()):
        raise ConfigError("no row has a number, so there is nothing to draw")
    if "over" in item.options:
        return _saved(_scatter(item, rows), folder / _file(item), {})
    with styled():
        figure, panels = canvas(1, len(item.columns), width=max(5.2, 3.4 * len(item.columns)))
        for axes, column in zip(panels, item.columns, strict=True):
            _sweep_panel(axes, column.name, column.unit, item.axis, rows)
        if panels[0].get_legend_handles_labels()[1]:
            legend_below(figure, panels[0])
    words = "; ".join(f"{c.name} of {len(rows)} rows" for c in item.columns)
    describe(figure, f"{item.title}, over {item.axis}: {words}. The numbers are in the table.")
    return _saved(figure, folder / _file(item), {})


def _scatter(item: Item, rows: Sequence[RowRecord]) -> Figure:
    """The columns `shown` over the column `over`, a dot a row with its number; the names stand below."""
    over, shown = item.options["over"], item.options["shown"]
    units = {column.name: column.unit for column in item.columns}
    numbers = {row.name: n for n, row in enumerate(rows, start=1)}
    with styled():
        figure, panels = canvas(-(-len(shown) // 2), 2, width=10.0, height=3.6)
        for axes, column in zip(panels, shown, strict=True):
            for row in rows:
                x, y = (row.cells[name].measured(units[name]) for name in (over, column))
                if x is not None and y is not None:
                    color = line(0 if row.name in item.options.get("controls", ()) else 1)["color"]
                    axes.errorbar(
                        x.value, y.value, [[y.value - y.low], [y.high - y.value]], color=color, marker=".", alpha=0.6
                    )
                    axes.annotate(
                        str(numbers[row.name]), (x.value, y.value), (3, 2), textcoords="offset points", fontsize=7
                    )
            axes.set(xlabel=item.axis, ylabel=f"{column}, {units[column]}", xscale="log")
            axes.set_xticks(ticks := [3, 5, 8, 12, 24, 48, 84], [str(tick) for tick in ticks])
            axes.minorticks_off()
        names = [f"{number} {name}" for name, number in numbers.items()]
        lines = ["   ".join(names[start : start + 8]) for start in range(0, len(names), 8)]
        figure.supxlabel("\n".join(lines), fontsize=7)
    return describe(
        figure, f"{item.title}: {', '.join(shown)} over {item.axis}, {len(rows)} rows. The numbers are in the table."
    )


def _sweep_panel(axes: Any, name: str, unit: str, axis: str, rows: Sequence[RowRecord]) -> None:
    found = [(row, row.cells[name].measured(unit)) for row in rows]
    kept = [(row, number) for row, number in found if number is not None]
    for index, series in enumerate(dict.fromkeys(row.series for row, _ in kept)):
        points = [(row.at, n) for row, n in kept if row.series == series and row.at is not None]
        if points:
            xs, values = [x for x, _ in points], [n.value for _, n in points]
            errors = [[n.value - n.low for _, n in points], [n.high - n.value for _, n in points]]
            axes.errorbar(xs, values, yerr=errors, label=series or None, capsize=2, **line(index))
    if any(row.at is not None for row, _ in kept):
        for index, (row, number) in enumerate((row, n) for row, n in kept if row.at is None):
            axes.axhline(number.value, linestyle="--", color=line(index + 4)["color"], label=row.name)
    else:
        axes.bar([row.name for row, _ in kept], [n.value for _, n in kept], color=line(0)["color"])
    axes.set(xlabel=axis, ylabel=f"{name}, {unit}" if unit else name)


def plot(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x: str, y: str) -> Figure:
    """Named curves in one panel."""
    with styled():
        figure, (axes,) = canvas()
        for index, (name, points) in enumerate(curves.items()):
            axes.plot([p[0] for p in points], [p[1] for p in points], **{**line(index), "marker": "."}, label=name)
        axes.set(xlabel=x, ylabel=y, title=title)
        if len(curves) > 1:
            legend_below(figure, axes)
    ends = "; ".join(f"{name} ends at {points[-1][1]:.3g}" for name, points in curves.items() if points)
    return describe(figure, f"{title}: {y} over {x}. {ends}.")
