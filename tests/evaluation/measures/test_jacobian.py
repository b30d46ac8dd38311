"""Singular values of linear encoders, and of a network against torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError, SiteError
from layerwise.evaluation.measures import jacobian_spectrum
from tests.networks import TinyConv, TinyMLP, batch

pytestmark = pytest.mark.usefixtures("float64")


def mlp() -> tuple[nn.Sequential, Tensor]:
    """A network and the weight of its first layer."""
    first = nn.Linear(6, 4)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2)), first.weight.detach()


class Stepped(TinyMLP):
    """Step functions instead of ReLUs."""

    def forward(self, x: Tensor) -> Tensor:
        h = (self.fc1(x.flatten(1)) > 0).to(x)
        out: Tensor = self.fc3((self.fc2(h) > 0).to(x))
        return out


def test_a_linear_encoder_has_the_singular_values_of_its_matrix() -> None:
    torch.manual_seed(0)
    model, w = mlp()
    expected = torch.linalg.svdvals(w)
    found = jacobian_spectrum(model, torch.rand(5, 6), encoder="0")
    assert found.values == pytest.approx(expected.tolist())
    assert found.frobenius == pytest.approx(float(torch.linalg.matrix_norm(w)))
    assert (found.encoder, found.shape, found.images) == ("0", (4, 6), 5)
    assert jacobian_spectrum(model, torch.rand(5, 6), encoder="0", top=2).values == found.values[:2]


def test_the_spectrum_is_the_mean_of_the_images_own() -> None:
    """After a ReLU, J = diag(active) W, different for each image."""
    torch.manual_seed(1)
    (model, w), x = mlp(), torch.randn(5, 6)
    active = (model[0](x) > 0).double().detach()
    expected = torch.linalg.svdvals(active[:, :, None] * w).mean(0)
    found = jacobian_spectrum(model, x)
    assert found.encoder == "2:input"
    assert found.values == pytest.approx(expected.tolist())


def test_a_network_with_batch_norm_agrees_with_torch_func() -> None:
    model, (x, _) = TinyConv().double().eval(), batch(3)

    def encoder(image: Tensor) -> Tensor:
        h = torch.relu(model.bn1(model.conv1(image[None])))
        out: Tensor = model.pool(torch.relu(model.bn2(model.conv2(h))))
        return out.flatten()

    jacobians = torch.stack([torch.func.jacrev(encoder)(image).flatten(1) for image in x])
    expected = torch.linalg.svdvals(jacobians.detach())
    found = jacobian_spectrum(model, x, encoder="pool", top=7)
    assert found.shape == (32, 192)
    assert found.values == pytest.approx(expected.mean(0)[:7].tolist())
    assert found.frobenius == pytest.approx(float(torch.linalg.vector_norm(jacobians.detach(), dim=(1, 2)).mean()))


def test_what_cannot_be_is_refused() -> None:
    x, _ = batch(3)
    with pytest.raises(ConfigError, match="top=0 keeps no singular value"):
        jacobian_spectrum(TinyConv().double(), x, top=0)
    with pytest.raises(SiteError, match="no site matches 'encoder'"):
        jacobian_spectrum(TinyConv().double(), x, encoder="encoder")
    with pytest.raises(ConfigError, match=r"is 2 sites \(conv1, conv2\); name one"):
        jacobian_spectrum(TinyConv().double(), x, encoder="convolution outputs")
    with pytest.raises(ConfigError, match="no gradient goes from 'fc3:input' back to the input"):
        jacobian_spectrum(Stepped().double(), x)
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        jacobian_spectrum(nn.Flatten(), x)
