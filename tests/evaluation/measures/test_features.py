"""Features under layer-wise noise, by hand on a small network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measures import feature_clouds, features
from tests.networks import TinyMLP, batch

X, Y = batch(12)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The features of every cloud, in place of their t-SNE."""
    found: list[Tensor] = []

    def keep(z: Tensor, *rest: Any) -> tuple[tuple[float, ...], ...]:
        found.append(z)
        return ((0.0, 0.0),) * len(z)

    monkeypatch.setattr(features, "_embedded", keep)
    return found


def test_adversarial_noise_is_the_sign_of_the_image_before(seen: list[Tensor]) -> None:
    model = TinyMLP().double().eval()
    z1 = model.fc1(X.flatten(1)).detach().requires_grad_()
    loss = F.cross_entropy(model.fc3(torch.relu(model.fc2(torch.relu(z1)))), Y, reduction="sum")
    (g,) = torch.autograd.grad(loss, z1)
    found = feature_clouds(model, X, Y, eps=[0.3], sites=["fc1"])
    with torch.no_grad():
        expected = torch.relu(model.fc2(torch.relu(z1 + 0.3 * g.sign().roll(1, 0))))
        right = (model.fc3(expected).argmax(1) == Y).double().mean()
    assert torch.allclose(seen[0], expected)
    assert found.clouds[0].accuracy == float(right)
    assert (found.site, found.noisy, found.clouds[0].noise) == ("fc3:input", ("fc1",), "adversarial")


def test_random_noise_has_the_intensity_asked_for_and_zero_is_no_noise(seen: list[Tensor]) -> None:
    model = TinyMLP().double().eval()
    with torch.no_grad():
        clean = model.fc1(X.flatten(1))
    found = feature_clouds(model, X, Y, eps=[0.0, 2.0], sites=["fc1"], features="fc1")
    adversarial, random = seen[:2], seen[2:]
    assert torch.equal(adversarial[0], clean)
    assert torch.equal(random[0], clean)
    assert found.clouds[0].accuracy == found.clouds[2].accuracy
    accuracies = tuple(100 * cloud.accuracy for cloud in found.clouds)
    assert (found.adversarial, found.random) == (accuracies[:2], accuracies[2:])
    assert [(c.noise, c.eps) for c in found.clouds] == [
        (kind, eps) for kind in ("adversarial", "random") for eps in (0.0, 2.0)
    ]


def test_the_default_sites_are_every_affine_layer_where_there_is_no_convolution(seen: list[Tensor]) -> None:
    found = feature_clouds(TinyMLP().double(), X, Y, eps=[1.0], classes=[0, 1, 2, 3])
    assert found.noisy == ("fc1", "fc2", "fc3")
    assert set(found.labels) <= {0, 1, 2, 3}
    assert len(seen[0]) == len(found.labels) == int((Y < 4).sum())


def test_the_points_are_those_of_scikit_learn() -> None:
    from sklearn.manifold import TSNE

    model = TinyMLP().double().eval()
    found = feature_clouds(model, X, Y, eps=[0.0], perplexity=2.0, seed=5)
    with torch.no_grad():
        z = torch.relu(model.fc2(torch.relu(model.fc1(X.flatten(1)))))
    expected = TSNE(perplexity=2.0, init="pca", random_state=5).fit_transform(z.numpy())
    assert found.clouds[0].points == tuple(map(tuple, expected.tolist()))
    assert found.clouds[0].points == found.clouds[1].points


def test_features_that_are_all_alike_stay_at_the_origin() -> None:
    found = feature_clouds(TinyMLP().double(), X[:1].repeat(6, 1, 1, 1), Y[:1].repeat(6), eps=[0.0])
    assert set(found.clouds[0].points) == {(0.0, 0.0)}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no intensity"):
        feature_clouds(TinyMLP().double(), X, Y, eps=[])
    with pytest.raises(DataError, match="0 images are left; t-SNE needs at least 6"):
        feature_clouds(TinyMLP().double(), X, Y, classes=[77])
