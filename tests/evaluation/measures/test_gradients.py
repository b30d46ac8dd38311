"""Alignment, landscape, feature gradients, linear approximation error and input gradients against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.attacks import FGSMAttack, ThreatModel
from layerwise.core.criteria import Criterion
from layerwise.core.random import Stream
from layerwise.errors import ConfigError, DataError, SiteError
from layerwise.evaluation.measures import (
    feature_gradient_norms,
    gradient_alignment,
    input_gradient_pictures,
    linear_approximation_error,
    loss_landscape,
)
from layerwise.evaluation.measures.landscape import rademacher
from tests.networks import TinyConv, TinyMLP, batch

pytestmark = pytest.mark.usefixtures("float64")
X, Y = batch(6)


class HalfSquare(Criterion):
    """||z||^2 / 2 of the logits: its gradient is z, its Hessian the identity."""

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        return logits.square().sum(dim=1) / 2


class First(Criterion):
    """The first logit: a loss that is linear in the logits."""

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        return logits[:, 0]


def linear(*weight: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


def test_a_linear_two_class_model_is_aligned_exactly() -> None:
    """Its gradient is (p - 1) w everywhere: only the length changes."""
    torch.manual_seed(0)
    found = gradient_alignment(nn.Linear(7, 2), torch.rand(20, 7), torch.randint(2, (20,)), eps=0.5)
    assert found.cosines == pytest.approx([1.0] * 20, abs=1e-14)
    assert found.mean == pytest.approx(1.0, abs=1e-14)
    assert found.dropped == 0


def test_a_gradient_that_turns_round_has_cosine_minus_one() -> None:
    class Kink(nn.Module):
        """Logits (|x|, 0): left and right of 0 the gradient has opposite signs."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.abs(), torch.zeros_like(x)], dim=1)

    found = gradient_alignment(Kink(), torch.full((400, 1), 1e-3), torch.zeros(400, dtype=torch.int64), eps=0.2)
    assert sorted({round(c, 9) for c in found.cosines}) == [-1.0, 1.0]
    assert found.mean == pytest.approx(0.0, abs=0.15)


def test_images_without_gradient_are_dropped_and_counted() -> None:
    model = nn.Sequential(nn.ReLU(), linear([1.0, 2.0], [0.0, 1.0]))
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, -2.0]])
    found = gradient_alignment(model, x, torch.zeros(4, dtype=torch.int64), eps=0.1)
    assert (found.dropped, len(found.cosines)) == (2, 2)
    assert found.mean == pytest.approx(1.0)
    assert "2 without a gradient left out" in found.figure().alt  # type: ignore[attr-defined]


def test_a_network_without_any_gradient_has_no_mean_and_still_a_figure() -> None:
    found = gradient_alignment(nn.Sequential(linear([1.0], [2.0])), torch.rand(3, 1), torch.zeros(3, dtype=torch.int64))
    assert found.mean == pytest.approx(1.0)

    class Round(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.round(), -x.round()], dim=1)

    none = gradient_alignment(Round(), torch.rand(3, 1), torch.zeros(3, dtype=torch.int64))
    assert (none.mean, none.cosines, none.dropped) == (None, (), 3)
    figure = none.figure()
    figure.draw_without_rendering()
    assert "no image has a gradient" in figure.alt  # type: ignore[attr-defined]


def test_the_landscape_begins_at_the_clean_loss_and_reaches_that_of_fgsm() -> None:
    model, eps = TinyConv().double().eval(), 0.2
    found = loss_landscape(model, X, Y, eps=eps, adversarial=[0, 1], random=[0])
    x_adv = FGSMAttack()(model, X, Y, ThreatModel(eps=eps))
    with torch.no_grad():
        logits = model(X), model(x_adv)
    assert [row[0] for row in found.loss] == pytest.approx([float(F.cross_entropy(z, Y)) for z in logits], rel=1e-12)
    assert [row[0] for row in found.accuracy] == [float((z.argmax(1) == Y).double().mean()) for z in logits]
    assert found.loss[1][0] > found.loss[0][0]


def test_the_landscape_of_a_linear_loss_is_a_plane_in_the_adversarial_direction() -> None:
    """Binary cross entropy of margin m = w x: log(1 + exp(-m)), and the step moves m by -a eps ||w||_1."""
    w = torch.tensor([1.0, -2.0, 0.5])
    model = linear(w.tolist(), [0.0, 0.0, 0.0])
    x = torch.tensor([[0.3, 0.1, 0.9]])
    found = loss_landscape(model, x, torch.tensor([0]), eps=0.1, adversarial=[-1, 0, 0.5, 1], random=[0, 1], clip=False)
    margins = [float(x @ w) - a * 0.1 * 3.5 for a in found.adversarial]
    assert [row[0] for row in found.loss] == pytest.approx([float(F.softplus(torch.tensor(-m))) for m in margins])
    r = rademacher(x, Stream(0, start=0, total=1))
    assert found.loss[1][1] == pytest.approx(float(F.softplus(-((x + 0.1 * r) @ w))))


def test_the_landscape_is_clipped_to_pixels_unless_told_otherwise() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    model.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    loss_landscape(model, X, Y, eps=0.9, adversarial=[1], random=[1])
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen)
    loss_landscape(model, X, Y, eps=0.9, adversarial=[1], random=[1], clip=False)
    assert seen[-1].max() > 1


def test_rademacher_entries_are_one_or_minus_one_and_each_row_has_its_own() -> None:
    r = rademacher(torch.zeros(50, 40), Stream(3))
    assert set(r.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(r.mean())) < 0.1
    assert not torch.equal(r[0], r[1])


def test_a_landscape_needs_points() -> None:
    with pytest.raises(ConfigError, match="at least one value along each direction"):
        loss_landscape(TinyMLP(), X, Y, random=[])


def test_a_flat_landscape_can_be_drawn() -> None:
    found = loss_landscape(linear([0.0], [0.0]), torch.rand(3, 1), torch.zeros(3, dtype=torch.int64))
    found.figure().draw_without_rendering()
    assert found.loss[0][0] == pytest.approx(float(torch.tensor(2.0).log()))


def test_feature_gradients_are_those_of_autograd() -> None:
    model = TinyMLP().double().eval()
    z1 = model.fc1(X.flatten(1)).detach().requires_grad_()
    z2 = model.fc2(torch.relu(z1))
    loss = F.cross_entropy(model.fc3(torch.relu(z2)), Y, reduction="sum")
    expected = [float(g.abs().sum()) / 6 for g in torch.autograd.grad(loss, [z1, z2])]
    found = feature_gradient_norms(model, X, Y, sites=["fc1", "fc2"])
    assert found.sites == ("fc1", "fc2")
    assert found.norms == pytest.approx(expected)
    assert (found.entries, found.images) == ((16, 12), 6)


def test_the_default_sites_are_the_input_and_every_affine_layer() -> None:
    assert feature_gradient_norms(TinyMLP().double(), X, Y).sites == ("input", "fc1", "fc2", "fc3")


def test_a_site_that_does_not_exist_is_named() -> None:
    with pytest.raises(SiteError, match="no site matches 'fc9'"):
        feature_gradient_norms(TinyMLP().double(), X, Y, sites=["fc9"])


def test_the_linear_approximation_error_of_a_quadratic() -> None:
    """L = ||W x||^2 / 2: at the input R = ||W e||^2 / 2 with e = eta sign(W^T W x), at the output eta^2 / 2 an entry."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3, bias=False), torch.randn(5, 4)
    w, eta = model.weight.detach(), 0.3
    found = linear_approximation_error(
        model, x, torch.zeros(5), sites=["input", "model"], eta=eta, criterion=HalfSquare()
    )
    g = x @ w.T @ w
    e = eta * g.sign()
    assert found.sites == ("input", "model")
    assert found.errors == pytest.approx([float((e @ w.T).square().sum(1).mean()) / 2, 3 * eta**2 / 2])
    assert found.first_order == pytest.approx(
        [eta * float(g.abs().sum(1).mean()), eta * float((x @ w.T).abs().sum(1).mean())]
    )
    assert found.relative == pytest.approx([r / g for r, g in zip(found.errors, found.first_order, strict=True)])


def test_random_directions_have_entries_of_size_eta() -> None:
    """With W = 2 I, R = 2 ||e||^2 = 2 d eta^2, whatever the signs."""
    model = linear([2.0, 0.0], [0.0, 2.0])
    found = linear_approximation_error(
        model, torch.rand(3, 2), torch.zeros(3), sites="input", eta=0.1, direction="random", criterion=HalfSquare()
    )
    assert found.errors == pytest.approx([4 * 0.01])


def test_a_linear_loss_has_no_error_and_its_figure_no_logarithm_of_zero() -> None:
    found = linear_approximation_error(
        linear([2.0, 1.0], [0.0, 1.0]), torch.zeros(3, 2), torch.zeros(3), eta=0.5, criterion=First()
    )
    assert found.errors == (0.0, 0.0)
    figure = found.figure()
    figure.draw_without_rendering()
    assert figure.axes[0].get_xscale() == "linear"


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match="type 'adversarial' or 'random'"):
        linear_approximation_error(TinyMLP(), X, Y, direction="upwards")  # type: ignore[arg-type]


def test_pictures_are_scaled_and_clipped_and_nothing_else() -> None:
    """The gradient is (p - 1) w: a picture is 1/2 -/+ w / (2 k rms(w)), clipped."""
    w = torch.tensor([0.0, 1.0, -1.0, 10.0])
    model = nn.Sequential(nn.Flatten(), linear(w.tolist(), [0.0] * 4))
    found = input_gradient_pictures(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), deviations=1.5)
    expected = w / (3 * w.square().mean().sqrt())
    assert torch.allclose(found.pictures[0].flatten(), (0.5 - expected).clamp(0, 1))
    assert torch.allclose(found.pictures[1].flatten(), (0.5 + expected).clamp(0, 1))
    assert found.pictures[1].flatten()[3] == 1.0


def test_a_zero_gradient_is_grey_and_colours_of_any_number_can_be_drawn() -> None:
    model = nn.Sequential(nn.Flatten(), linear([0.0] * 8, [0.0] * 8))
    found = input_gradient_pictures(model, torch.rand(2, 2, 2, 2), torch.tensor([0, 1]))
    assert torch.equal(found.pictures, torch.full((2, 2, 2, 2), 0.5))
    found.figure().draw_without_rendering()


def test_gradients_at_the_edges_are_told_from_those_between_them() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1.0  # changes at columns 3 and 4
    at_edges, between = torch.full((8, 8), 0.0), torch.full((8, 8), 1.0)
    at_edges[:, 3:5], between[:, 3:5] = 1.0, 0.0
    zeros, biases = [0.0] * 64, [0.0, 0.0]
    for weights, expected in ((at_edges, 1.0), (between, -1.0), (torch.ones(8, 8), 0.0)):
        layer = nn.Linear(64, 2)
        layer.load_state_dict(
            {"weight": torch.stack([torch.tensor(zeros), weights.flatten()]), "bias": torch.tensor(biases)}
        )
        found = input_gradient_pictures(nn.Sequential(nn.Flatten(), layer), image, torch.tensor([0]))
        assert found.edges == pytest.approx((expected,), abs=1e-6)


def test_pictures_need_images_and_a_scale() -> None:
    with pytest.raises(DataError, match=r"pictures need images \(N, C, H, W\)"):
        input_gradient_pictures(linear([1.0]), torch.rand(2, 1), torch.tensor([0, 0]))
    with pytest.raises(ConfigError, match="deviations=0 cannot be"):
        input_gradient_pictures(TinyMLP().double(), X, Y, deviations=0)
