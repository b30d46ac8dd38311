"""MeanSparse, and noise in proportion at inference."""

from __future__ import annotations

import pytest
import torch

import layerwise as lw
from layerwise.core.latent import spread
from layerwise.core.sites import has_sites
from layerwise.errors import ConfigError
from tests.networks import TinyConv, TinyResNet, TokenClassifier, batch, tokens
from tests.reference.mean_sparse import mean_sparse
from tests.reference.nets import Net

X, Y = batch(12)
BATCHES = [(X[:5], Y[:5]), (X[5:], Y[5:])]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 3.0])
def test_values_near_their_channels_mean_become_it(threshold: float) -> None:
    model = TinyConv().double().eval()
    sparse = lw.MeanSparse(model, threshold=threshold).calibrate(BATCHES)
    with torch.no_grad():
        found, expected = (
            sparse(X),
            mean_sparse(Net.of(model), X, calibration=X, sites=["bn1", "bn2"], threshold=threshold),
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert float((found - model(X)).detach().abs().max()) > 1e-5


@pytest.mark.parametrize("make", [TinyConv, TinyResNet])
def test_threshold_zero_is_the_network_itself(make: type[torch.nn.Module]) -> None:
    for model in (make().eval(), make().double().eval()):
        x = X.to(next(model.parameters()).dtype)
        expected = model(x)
        sparse = lw.MeanSparse(model, threshold=0.0).calibrate([x])
        assert torch.equal(sparse(x), expected)
        assert torch.equal(model(x), expected)


def test_it_is_evaluated_as_any_network_and_kept_in_a_state_dict() -> None:
    model = TinyResNet().eval()
    sparse = lw.MeanSparse(model, threshold=0.3).calibrate([X.float()])
    record = lw.evaluate(sparse, (X.float(), Y), attacks=["clean", "fgsm"], progress=False)
    assert record["clean"].count.total == 12
    again = lw.MeanSparse(TinyResNet(seed=1).eval(), threshold=0.3).calibrate([X[:2].float()])
    again.load_state_dict(sparse.state_dict())
    assert torch.equal(again(X.float()), sparse(X.float()))
    assert has_sites(model)


def test_tokens_have_channels_too() -> None:
    x, _ = tokens()
    model = TokenClassifier().eval()
    sparse = lw.MeanSparse(model, sites=["encoder.0"], threshold=0.5).calibrate([x])
    assert sparse.means["encoder/0"].shape == (8,)
    assert not torch.equal(sparse(**x).logits, model(**x).logits)


def test_without_calibration_or_batches_it_says_so() -> None:
    with pytest.raises(ConfigError, match="MeanSparse knows no means yet; call calibrate"):
        lw.MeanSparse(TinyConv())(X.float())
    with pytest.raises(ConfigError, match="there is no batch to calibrate with"):
        lw.MeanSparse(TinyConv()).calibrate([])
    with pytest.raises(ConfigError, match="threshold=-1 is too small"):
        lw.MeanSparse(TinyConv(), threshold=-1)


def test_noise_at_inference_may_be_in_proportion_to_the_activations() -> None:
    model = TinyConv().double().eval()
    noisy = lw.NoisyAverage(model, sites=["conv1"], std=0.25, passes=1, relative=True)
    torch.manual_seed(0)
    found = noisy(X)
    torch.manual_seed(0)
    z = model.conv1(X)
    z = z + 0.25 * spread(z) * torch.randn(z.shape, dtype=z.dtype)
    h = model.relu(model.bn2(model.conv2(model.relu(model.bn1(z)))))
    torch.testing.assert_close(found, model.fc(model.pool(h).flatten(1)), rtol=0, atol=1e-12)
