"""The last layer's features under noise at every layer, as pictures in the plane."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import is_correct
from layerwise.core.ascent import scaled_signs
from layerwise.core.criteria import CrossEntropy
from layerwise.core.passes import Noise
from layerwise.core.probe import Probe
from layerwise.core.random import Stream, normal
from layerwise.core.registry import register
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites, block_sites
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures.base import activations, attached, batches, examining, place
from layerwise.evaluation.measures.jacobian import last_features
from layerwise.evaluation.style import canvas, describe, scatter, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["adversarial", "random"]


@final
@dataclass(frozen=True)
class Cloud:
    """The features of all images under one noise.

    Args:
        noise: `"adversarial"` or `"random"`.
        eps: its intensity, unit of the activations.
        points: t-SNE coordinates of each image's features, no unit.
        accuracy: of the network under this noise, in [0, 1].
    """

    noise: str
    eps: float
    points: tuple[tuple[float, ...], ...]
    accuracy: float


@final
@dataclass(frozen=True)
class FeatureClouds(Measurement):
    """Features under adversarial and random layer-wise noise.

    Args:
        clouds: one for each noise and intensity.
        labels: of the images.
        site: of the features.
        noisy: sites that noise is added at.
        perplexity: of t-SNE.
    """

    title: ClassVar[str] = "Features under layer-wise noise"
    section: ClassVar[str] = "Features (t-SNE)"
    rank: ClassVar[int] = 35
    caption: ClassVar[str] = (
        "Classes that stay apart as the noise grows are good. Axes have no unit, and distances between clouds mean nothing."
    )

    clouds: tuple[Cloud, ...]
    labels: tuple[int, ...]
    site: str
    noisy: tuple[str, ...]
    perplexity: float

    def figure(self) -> Figure:
        """A panel for each cloud: a row for each kind of noise, a column for each intensity."""
        kinds = list(dict.fromkeys(cloud.noise for cloud in self.clouds))
        columns = len(self.clouds) // len(kinds)
        with styled():
            figure, panels = canvas(len(kinds), columns, width=2.3 * columns + 0.3, height=2.3)
            for axes, cloud in zip(panels, self.clouds, strict=True):
                self._panel(axes, cloud)
            for row, kind in enumerate(kinds):
                panels[row * columns].set_ylabel(f"{kind}\nt-SNE (no unit)")
            for axes in panels[-columns:]:
                axes.set_xlabel("t-SNE (no unit)")
            handles = panels[0].get_legend_handles_labels()
            figure.suptitle(self.title, x=0.01, ha="left", fontsize=9)
            figure.legend(*handles, loc="outside lower center", ncols=5, title="class", markerscale=2)
        return describe(figure, f"{self.title}: {self.sentence()}")

    @property
    def total(self) -> int:
        """The images."""
        return len(self.labels)

    @property
    def adversarial(self) -> tuple[float, ...]:
        """Accuracy under adversarial noise at each intensity, in percent."""
        return self._accuracies("adversarial")

    @property
    def random(self) -> tuple[float, ...]:
        """The same under random noise."""
        return self._accuracies("random")

    def _accuracies(self, noise: Kind) -> tuple[float, ...]:
        return tuple(100 * cloud.accuracy for cloud in self.clouds if cloud.noise == noise)

    def sentence(self) -> str:
        """What is drawn, and the accuracies."""
        found = ", ".join(f"{100 * c.accuracy:.0f} % under {c.noise} noise of {c.eps:.3g}" for c in self.clouds)
        return (
            f"t-SNE of the features at {self.site} for {len(self.labels)} images of {len(set(self.labels))} classes. "
            f"Accuracy is {found}."
        )

    def _panel(self, axes: Axes, cloud: Cloud) -> None:
        scatter(axes, cloud.points, self.labels, size=7)
        for k in sorted(set(self.labels)):
            x, y = (
                statistics.median(p[i] for p, label in zip(cloud.points, self.labels, strict=True) if label == k)
                for i in (0, 1)
            )
            axes.text(x, y, str(k), fontsize=9, fontweight="bold", ha="center", va="center")
        axes.set(title=f"noise {cloud.eps:.3g}: {100 * cloud.accuracy:.0f} % correct", xticks=[], yticks=[])


@register("measure", "features", passes=lambda size: 24 * size.images)
def _measure(target: Target, *, images: int = 200, classes: int = 0) -> FeatureClouds:
    """The last features as t-SNE pictures under noise at every layer (LAT, figure 1); classes=0 takes all."""
    x, y = target.images(10 * images)  # of a choice of classes there are fewer
    seen = sorted(set(y.tolist()))[: classes or None]
    kept = torch.isin(y, torch.tensor(seen, device=y.device)).nonzero().flatten()[:images]
    return feature_clouds(target.model, x[kept], y[kept], seed=target.seed)


def feature_clouds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float] = (0.0, 0.05, 0.1, 0.2),
    classes: Sequence[int] | None = None,
    features: str | None = None,
    sites: Selection | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
    batch_size: int = 250,
) -> FeatureClouds:
    """t-SNE of the last features while noise is added at every layer: eps sign(g) of another image, or eps N(0, 1).

    The adversarial noise is LAT's: g is the gradient at the site for the image before in the batch (the last one for the first), taken
    in a clean pass, so that it needs labels but not the image's own gradient. Each cloud has its own embedding, as in the paper: its
    clusters can be compared between panels, its positions cannot.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1]; t-SNE takes seconds for a thousand.
        y: labels, shape (N,).
        eps: intensities, unit of the activations.
        classes: only the images of these classes (two in the paper); None is all.
        features: site of the features; None is the input of the last convolution or linear layer.
        sites: where noise is added; None takes batch-norm outputs, or convolution outputs without batch norm, or affine outputs.
        perplexity: of t-SNE, at most a third of the images.
        seed: of the random noise and of t-SNE.
        batch_size: images at a time; the adversarial noise depends on it a little, at the first row of each batch.

    Raises:
        DataError: fewer than six images are left.
        ConfigError: there is no intensity.

    Reference: Sankaranarayanan et al. 2018 (LAT), figure 1.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> found = feature_clouds(net, torch.rand(8, 4), torch.tensor([0, 1] * 4), eps=[0.1])
    >>> [cloud.noise for cloud in found.clouds], found.site
    (['adversarial', 'random'], '2:input')
    """
    if not eps:
        raise ConfigError("there is no intensity; type eps=[0.0, 0.1]")
    if classes is not None:
        kept = torch.isin(y, torch.tensor(list(classes), device=y.device))
        x, y = x[kept], y[kept]
    if len(x) < 6:
        raise DataError(f"{len(x)} images are left; t-SNE needs at least 6")
    perplexity = min(perplexity, (len(x) - 1) / 3)
    clouds = []
    with examining(model, x, y) as network:
        site = last_features(network, place(network, x[:2])) if features is None else features
        with attached(network, [site], x) as read, block_sites(network, place(network, x[:2]), sites) as noisy:
            for kind in ("adversarial", "random"):
                for size in eps:
                    found = [
                        (z.flatten(1).cpu(), is_correct(logits, labels).cpu())
                        for z, logits, labels in _under_noise(
                            network, read, noisy, x, y, kind=kind, eps=size, seed=seed, batch_size=batch_size
                        )
                    ]
                    accuracy = torch.cat([ok for _, ok in found]).double().mean().item()
                    points = _embedded(torch.cat([z for z, _ in found]), perplexity, seed)
                    clouds.append(Cloud(kind, float(size), points, accuracy))
            names = tuple(map(str, noisy))
    return FeatureClouds(tuple(clouds), tuple(y.tolist()), site, names, perplexity)


def _under_noise(
    network: nn.Module,
    read: Sites,
    noisy: Sites,
    x: Tensor,
    y: Tensor,
    *,
    kind: str,
    eps: float,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, logits and labels of every batch."""
    for images, labels, source in batches(network, x, y, batch_size=batch_size, seed=seed):
        noise: Noise
        if kind == "random":
            noise = {site: eps * _gaussian(images, noisy.shape(site), source, str(site)) for site in noisy}
        else:
            _, g = Probe()(network, images, labels, criterion=CrossEntropy(), sites=noisy)
            before = {site: gradient.roll(1, dims=0) for site, gradient in g.items()}
            noise = scaled_signs(before, eps=eps, reference_batch=1, relative=False)
        with torch.no_grad(), noisy.perturb(noise):
            logits, found = activations(network, read, images)
        (z,) = found.values()
        yield z, logits, labels


def _gaussian(x: Tensor, shape: torch.Size, source: Stream, key: str) -> Tensor:
    return normal(x.new_empty(len(x), *shape), source, key=key)


def _embedded(z: Tensor, perplexity: float, seed: int) -> tuple[tuple[float, ...], ...]:
    """t-SNE coordinates; features alike up to rounding would be divided by that, so they stay at the origin."""
    from sklearn.manifold import TSNE

    if (z - z[:1]).abs().max() <= 1e-5 * z.abs().max():
        return ((0.0, 0.0),) * len(z)
    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(z.double().numpy())
    return tuple(map(tuple, found.tolist()))
