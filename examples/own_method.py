"""A training method of your own: noise of a fixed share of each activation's length, along its gradient.

Run it: `python examples/own_method.py` trains it and standard training on the embedded digits and prints both tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

import layerwise as lw
from layerwise.core import norms
from layerwise.core.ascent import chain, normalize, scale
from layerwise.core.calling import Inputs
from layerwise.core.cost import Passes
from layerwise.evaluation import Evaluation
from layerwise.methods import Losses, Step


@dataclass(kw_only=True)
class RelativeNoise(lw.LayerMethod):
    """Every site continues with z + share ||z||_2 g / ||g||_2, on top of a base that perturbs the input.

    Args:
        share: length of the noise as a share of the activation's, for each example and site.
        sites: where.
        base: what perturbs the input, and whose last probe records g.
        criterion: each example's loss.
    """

    share: float = 0.05
    sites: str | list[str] = "batch-norm outputs"
    base: lw.InputMethod = field(default_factory=lw.FGSMRS)
    criterion: lw.Criterion = field(default_factory=lw.CrossEntropy)

    def make_sites(self, model: nn.Module, example: Inputs) -> lw.Sites:
        """Attach the sites, once."""
        return lw.Sites(model, self.sites, example=example)

    def batch_losses(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        """One probe, made by the base, and one descent."""
        sites = self.sites_on(model, x)
        x_adv, g = self.base.batch_perturb(model, x, y, step, record=sites)
        rule = chain(normalize("l2"), scale(self.share))
        with sites.perturb({site: rule(g[site]) for site in sites}, constraint=in_units_of_z):
            yield self.base.loss(model, x, x_adv, y)  # inside the `with`: it stays open until the trainer has stepped

    @property
    def passes(self) -> Passes:
        """Those of the base: recording costs nothing."""
        return self.base.passes


def in_units_of_z(r: Tensor, z: Tensor) -> Tensor:
    """A constraint sees the activation that flows now, and acts outside the gradient."""
    return norms.rows(norms.norm(z, "l2"), z) * r


def train_and_evaluate(method: lw.Method, *, epochs: int = 8, seed: int = 0) -> Evaluation:
    """Train a small network on the embedded digits, and evaluate it on images that it has not seen."""
    data = lw.load_data("digits")
    model = lw.build_model("digits_cnn", shape=data.shape, mean=data.mean, std=data.std)
    settings = lw.Training(epochs=epochs, batch_size=64, eval_every=0, seed=seed, accelerator="cpu")
    lw.fit(model, method, data, training=settings, progress=False)
    return lw.evaluate(model, data, threat=lw.ThreatModel(eps=0.2), attacks=["clean", "pgd-20"], progress=False)


if __name__ == "__main__":
    print(train_and_evaluate(lw.Standard()).to_markdown())  # noqa: T201
    print(train_and_evaluate(RelativeNoise(base=lw.FGSMRS(eps=0.2))).to_markdown())  # noqa: T201
