"""The numbers and the picture of the README, from records; a test holds the numbers current.

python -m benchmarks.front
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerwise.evaluation.intervals import mean_of, wilson
from layerwise.experiments import experiment

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/_static/front.png"
DEMO, STRENGTHS, IMAGES = "results/demo/test.json", "results/comparison/strengths.json", 1000
HOME = "https://github.com/layerwise/layerwise/blob/main/"
SHOWN = {"lat": "LAT", "fgsm": "FGSM", "slat": "SLAT", "anp-sign": "ANP, signs", "lad": "LAD on PGD-10"}
FEW = {"standard": "standard training", "fgsm": "FGSM", "slat": "SLAT", "n-fgsm": "N-FGSM"}
FAILING = {
    "anp": "ANP as printed",
    "lad-natural": "LAD without an attack at the input",
    "lat": "LAT",
    "gaussian-noise": "Gaussian noise at the layers",
}


@dataclass(frozen=True)
class Tried:
    """A method of the comparison at the best of the strengths that were tried.

    Args:
        name: of its recipe.
        passes: of a batch.
        clean: share of the images.
        attacked: the same under PGD-20.
    """

    name: str
    passes: float
    clean: float
    attacked: float

    @property
    def ends(self) -> tuple[float, float]:
        """Of Wilson's interval of `attacked`."""
        return wilson(round(IMAGES * self.attacked), IMAGES)

    @property
    def said(self) -> str:
        """In per cent."""
        low, high = self.ends
        return f"{100 * self.attacked:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def tried() -> dict[str, Tried]:
    """Every method whose strengths have all been tried, the cheapest first."""
    record: dict[str, Any] = json.loads((ROOT / STRENGTHS).read_text())
    found = []
    for name, entry in record.items():
        if "chosen" in entry:
            best = max(entry["trials"], key=lambda each: float(each["pgd-20"]))
            passes = experiment.read(f"{name}-fashion-mnist")[0].method.passes.total
            found.append(Tried(name, passes, best["clean"], best["pgd-20"]))
    return {each.name: each for each in sorted(found, key=lambda each: (each.passes, each.attacked))}


def table() -> str:
    """Five methods, and what five seeds on the test images say of two of them."""
    text = "| method | passes a batch (standard: 3) | clean, % | under PGD-20, % |\n|---|---:|---:|---:|\n"
    found = tried()
    for name in (name for name in found if name in SHOWN):
        each = found[name]
        text += f"| {SHOWN[name]} | {each.passes:g} | {100 * each.clean:.1f} | {each.said} |\n"
    demo = {name: mean_of([100 * v for v in entry["pgd-20"]]) for name, entry in _read(DEMO).items()}
    means = ", ".join(f"{FEW[name]} {mean.value:.1f} ± {mean.half_width:.1f}" for name, mean in demo.items())
    return text + (
        "\nFashion-MNIST, linf 0.1: a short training (200 batches, one seed), the best of four strengths, 1,000 validation images,\n"
        f"95 % interval ([record]({HOME}{STRENGTHS})). On 100 labelled digits PGD-20\n"
        f"leaves, in %: {means}; 540 test images, five seeds, each method at the strength\n"
        f"that was best on validation images ([record]({HOME}{DEMO})).\n"
        "So where every method is tuned alike, SLAT and FGSM are level, and N-FGSM is not worse.\n"
    )


def failures() -> str:
    """What withstands little at every strength that was tried."""
    found = tried()
    told = ", ".join(f"{shown} {found[name].said} %" for name, shown in FAILING.items() if name in found)
    return f"in the same comparison, at the best strength, PGD-20 leaves of\n{told}."


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / name).read_text())
    return found


def readme(text: str) -> str:
    """The README with what the records say now."""
    text = re.sub(r"(<!-- front -->\n).*?(<!-- /front -->)", lambda m: m[1] + table() + m[2], text, flags=re.S)
    return re.sub(r"(<!-- not -->).*?(<!-- /not -->)", lambda m: m[1] + failures() + m[2], text, flags=re.S)


def draw() -> None:
    """Accuracy under attack over cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    labels: dict[tuple[float, int], list[Tried]] = {}
    for each in tried().values():
        low, high = each.ends
        arms = [[100 * (each.attacked - low)], [100 * (high - each.attacked)]]
        color = "#b3261e" if each.name.split("-")[0] in ("slat", "anp", "lad", "lat") else "#44546a"
        axes.errorbar(each.passes, 100 * each.attacked, yerr=arms, fmt="o", color=color, capsize=2, markersize=4)
        # Points that lie on each other share a label.
        labels.setdefault((round(each.passes / 1.5), round(each.attacked * 12)), []).append(each)
    for group in labels.values():
        level, right = group[-1].attacked, max(each.passes for each in group)
        near = any(right < each.passes < 1.5 * right and abs(each.attacked - level) < 0.03 for each in tried().values())
        place, side = ((right / 1.03, 100 * level), "right") if near else ((right * 1.03, 100 * level), "left")
        axes.annotate("\n".join(each.name for each in group[::-1]), place, fontsize=7, va="center", ha=side)
    axes.set(
        xscale="log", xlabel="passes a batch (standard training: 3)", ylabel="accuracy under PGD-20, %", xlim=(2.8, 34)
    )
    axes.set_title("Fashion-MNIST, 200 batches, one seed, 1,000 validation images; red: of the five papers", fontsize=8)
    axes.set_xticks([3, 5, 10, 20, 30], ["3", "5", "10", "20", "30"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=150, metadata={"Software": None})


def main() -> int:
    """Write both."""
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
