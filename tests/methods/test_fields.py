"""What single fields do where the references do not go, and what each method says when it is set up wrongly."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.ascent import random_start
from layerwise.core.cost import Passes
from layerwise.core.norms import norm
from layerwise.core.random import Stream, normal
from layerwise.core.sites import Sites
from layerwise.errors import CheckpointError, ConfigError, SiteError
from layerwise.methods import (
    ANP,
    FGSM,
    FGSMRS,
    LAD,
    LAT,
    NFGSM,
    PGD,
    SLAT,
    TRADES,
    DeepDefense,
    FGSInter,
    FGSOrig,
    GaussianNoise,
    InputMethod,
    LayerMethod,
    Method,
    Standard,
)
from tests.methods.cases import METHODS, data, hooks_of, make, train, unchecked
from tests.networks import Attention, TinyConv, TinyMLP, TinyResNet, VisionTransformer, batch

X, Y = batch(6)


def resnet() -> TinyResNet:
    return TinyResNet(batch_norm=False).double()


def added(method: LayerMethod, model: nn.Module, site: str, *, batches: int = 1) -> Tensor:
    """What the last descent added at a site: the difference between what left it and what went on."""
    before, after = [], []
    module = model.get_submodule(site)
    first = module.register_forward_hook(lambda m, a, output: before.append(output.detach()))
    method.attach(model, X)
    last = module.register_forward_hook(lambda m, a, output: after.append(output.detach()))
    for step in range(batches):
        for loss in method.losses(model, X, Y, generator=Stream(0, step)):
            torch.autograd.backward(loss)  # type: ignore[arg-type]
    first.remove()
    last.remove()
    method.detach()
    r: Tensor = after[-1] - before[-1]
    return r


# Noise


@pytest.mark.parametrize("splitting", ["lie-trotter", "strang-marchuk"])
def test_the_stochastic_lad_blurs_the_block_outputs_and_not_the_stem(
    splitting: Literal["lie-trotter", "strang-marchuk"],
) -> None:
    method, model = LAD(eta=0.0, base=Standard(), splitting=splitting, noise_std=0.1), resnet()
    r = added(method, model, "blocks.block2")
    expected = 0.1 * normal(torch.zeros_like(r), Stream(0), key="blocks.block2")
    torch.testing.assert_close(r, expected, rtol=1e-12, atol=1e-14)
    method.attach(model, X)
    [sites] = method.attached_sites()
    sizes: dict[str, dict[str, Tensor]] = {}
    sites.monitor = sizes
    train(method, model, [(X, Y)])
    outputs = [f"blocks.block{n}" for n in (1, 2, 3, 4)]
    assert [sizes[site]["rms"].item() for site in outputs] == pytest.approx([0.1] * 4, rel=0.2)
    assert splitting == "lie-trotter" or sizes["blocks.block1:input"]["max"] == 0


def test_gaussian_noise_has_the_deviation_that_it_says() -> None:
    r = added(GaussianNoise(std=0.3), resnet(), "blocks.block1.conv1")
    expected = 0.3 * normal(torch.zeros_like(r), Stream(0), key="blocks.block1.conv1")
    torch.testing.assert_close(r, expected, rtol=1e-12, atol=1e-14)


PIXELS: list[LayerMethod] = [
    GaussianNoise(sites="input", std=0.5),
    GaussianNoise(sites=["input", "conv1"], std=0.5, base=FGSMRS()),
    LAT(sites=["input", "conv1"], eps=0.5, relative=False),
    FGSInter(sites=["input", "conv1"], eps=0.5, relative=False),
    ANP(include_input=True, eps=500.0, layers=1, k=2),
    ANP(include_input=True, eps=0.5, layers=1, k=2, apply="sign", noise_std=0.5),
]


@pytest.mark.parametrize("method", PIXELS, ids=repr)
def test_noise_at_the_input_leaves_the_pixels_in_range(method: LayerMethod) -> None:
    model = resnet()
    method.attach(model, X)
    seen: list[Tensor] = []
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    train(method, model, [(X, Y)] * 2)
    assert all(-1e-12 <= float(x.min()) <= float(x.max()) <= 1 + 1e-12 for x in seen)
    assert any(float((x - X).abs().max()) > 0.1 for x in seen)


@pytest.mark.parametrize("base", [Standard(), PGD(eps=0.03, step=1 / 3, steps=2)], ids=["Standard", "PGD"])
def test_slat_on_another_base_takes_its_gradients_at_that_bases_input(base: Standard | PGD) -> None:
    model = resnet()
    at = (
        X
        if isinstance(base, Standard)
        else PGD(eps=0.03, step=1 / 3, steps=1).perturb(model, X, Y, generator=Stream(0))[0]
    )
    with Sites(model, ["conv1"], example=X) as sites:
        _, g = base.probe(model, at, Y, criterion=base.criterion, sites=sites)
    expected = 0.1 * next(iter(g.values())).sign()
    torch.testing.assert_close(added(SLAT(sites=["conv1"], eta=0.1, base=base), model, "conv1"), expected)


def test_slat_with_more_probes_on_another_base_steps_on_by_eta() -> None:
    inside, eta = 0.25 + X / 2, 0.02
    model, base = resnet(), PGD(eps=0.05, step=0.2, steps=1, random_start=False)
    seen: list[Tensor] = []
    method = unchecked(SLAT(sites=["conv1"], eta=eta, num_probes=2, base=base))
    method.attach(model, inside)
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    train(method, model, [(inside, Y)])
    first, second, last = (x - inside for x in seen)
    assert not first.any()
    assert float(second.abs().max()) == pytest.approx(0.01)
    assert float(last.abs().max()) == pytest.approx(eta)


def test_pgd_in_l2_stays_in_its_ball_and_uses_it_up() -> None:
    inside = 0.25 + X / 2
    model = resnet()
    x_adv, _ = PGD(norm="l2", eps=0.2, step=0.5, steps=5).perturb(model, inside, Y, generator=Stream(0))
    assert norm(x_adv - inside).tolist() == pytest.approx([0.2] * 6)
    loss = nn.functional.cross_entropy
    assert loss(model(x_adv), Y) > loss(model(inside), Y)


def test_the_random_start_in_l2_fills_the_ball() -> None:
    many = torch.full((20_000, 1, 1, 3), 0.5, dtype=torch.float64)
    radius = norm(random_start(many, 0.4, "l2", Stream(0)) - many)
    assert float(radius.max()) <= 0.4 + 1e-12
    assert float((radius < 0.2).double().mean()) == pytest.approx(1 / 8, abs=0.01)


# Diagnoses and warnings


def test_lad_traces_the_ratio_of_equation_16() -> None:
    model, method = resnet(), LAD(reference_batch=64)
    x0 = model.conv1(X).detach().requires_grad_()
    x1 = model.blocks[0](x0)
    rest = model.blocks[1:](x1)
    loss = nn.functional.cross_entropy(model.fc(torch.relu(rest).mean((2, 3))), Y, reduction="sum")
    (g0,) = torch.autograd.grad(loss, x0)
    expected = float(x1.detach().norm() / (g0.norm() / 64))
    named = LAD(reference_batch=64, splitting="strang-marchuk", sites=["conv1", "block1", "block2"])
    assert method.diagnose(model, X, Y) == named.diagnose(model, X, Y) == {"eq16_ratio": pytest.approx(expected)}
    assert LAD(sites=["block1"]).diagnose(model, X, Y) == {}
    assert hooks_of(model) == 0


def test_lad_traces_the_ratio_at_the_states_that_are_named() -> None:
    names = ["blocks.block1:input", *(f"blocks.block{i}" for i in (1, 2, 3, 4))]
    named = LAD(reference_batch=64, splitting="strang-marchuk", sites=names).diagnose(resnet(), X, Y)
    assert named == LAD(reference_batch=64).diagnose(resnet(), X, Y)
    assert LAD(sites=names[1:]).diagnose(resnet(), X, Y) == {}  # x_0 is not among them


def test_a_method_without_diagnosis_or_warnings_says_nothing() -> None:
    assert FGSM().diagnose(resnet(), X, Y) == {}
    assert FGSM().warnings() == []


def test_deep_defense_counts_clamped_exponents_and_blank_images() -> None:
    model, method = TinyMLP().double(), DeepDefense(d=1e6, num_steps=2)
    x, y = X.clone(), (model(X).argmax(1) + 1) % 5
    x[2] = 0
    for loss in method.losses(model, x, y):
        assert isinstance(loss, Tensor)
        assert bool(loss.isfinite())
        torch.autograd.backward(loss)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert method.warnings() == [
        "Deep Defense clamped 5 exponents at 80: the wrong examples' weight d=1000000.0 is too large",
        "Deep Defense left out 1 blank images, which have no relative perturbation size",
    ]
    assert method.warnings() == []


def test_deep_defense_moves_one_layer_by_its_regulariser_and_all_by_the_loss() -> None:
    model = TinyMLP().double()
    value = DeepDefense(layer="fc2").penalty(model, X, Y)
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    moved = [n for (n, _), g in zip(model.named_parameters(), found, strict=True) if g is not None]
    assert moved == ["fc2.weight", "fc2.bias"]


# Attachment


def test_slat_without_hidden_sites_attaches_nothing() -> None:
    model = resnet()
    for sites in ((), ("input",), "input"):
        method = SLAT(sites=sites)
        method.attach(model, X)
        assert method.attached_sites() == []
        assert hooks_of(model) == 0


def test_the_default_sites_of_lat_are_what_the_network_has() -> None:
    found = {}
    for model in (TinyConv(), TinyConv(batch_norm=False), TinyMLP()):
        with LAT().make_sites(model.double(), X) as sites:
            found[str(model)] = [str(s) for s in sites]
    assert list(found.values()) == [["bn1", "bn2"], ["conv1", "conv2"], ["fc1", "fc2", "fc3"]]


def test_the_sites_of_lad_are_the_blocks_or_those_that_are_named() -> None:
    blocks = [f"blocks.block{n}" for n in (1, 2, 3, 4)]
    cases: list[tuple[LAD, list[str]]] = [
        (LAD(), blocks),
        (LAD(splitting="strang-marchuk"), ["blocks.block1:input", *blocks]),
        (LAD(sites=["conv1", "block2"]), ["conv1", "blocks.block2"]),
    ]
    for method, expected in cases:
        with method.make_sites(resnet(), X) as sites:
            assert [str(s) for s in sites] == expected


def test_anp_counts_affine_layers_from_the_input() -> None:
    cases: list[tuple[ANP, list[str]]] = [
        (ANP(layers=2), ["conv1", "blocks.block1.conv1"]),
        (ANP(layers=1, include_input=True), ["input", "conv1"]),
        (
            ANP(layers=None, sites=r"blocks\.block3\..*conv\d|.*shortcut"),
            ["blocks.block3.conv1", "blocks.block3.conv2"],
        ),
    ]
    for method, expected in cases:
        with method.make_sites(resnet(), X) as sites:
            assert [str(s) for s in sites] == expected
    with ANP(layers=None, include_shortcuts=True).make_sites(resnet(), X) as sites:
        assert [str(s) for s in sites if "shortcut" in str(s)] == ["blocks.block3.shortcut"]


@pytest.mark.parametrize("name", ["SLAT", "ANP", "LAT", "FGSInter", "GaussianNoise"])
def test_layerwise_methods_train_a_vision_transformer(name: str) -> None:
    fields = {"sites": ["encoder.0", "encoder.1.mlp"]} if name == "SLAT" else {}
    model = VisionTransformer().double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = train(make(name, **fields), model, data(2))
    assert all(bool(v.isfinite().all()) for v in after.values())
    assert not torch.equal(after["head.weight"], before["head.weight"])


class Fused(Attention):
    """The same attention in PyTorch's fused form, whose kernels have no second derivative."""

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split(layer(tokens)) for layer in (self.query, self.key, self.value))
        out: Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


@pytest.mark.parametrize("name", ["DeepDefense", "GradAlign"])
def test_second_order_methods_differentiate_fused_attention(name: str) -> None:
    found = []
    for kind in (Attention, Fused):
        model = VisionTransformer().double()
        for encoder in model.encoder:
            encoder.attention.__class__ = kind
        found.append(train(make(name), model, data(2)))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value)


# Costs


def test_costs_are_those_of_the_design() -> None:
    """Standard 3, SLAT = FGSM 5, LAT 3, ANP-k 3k (shifted 3k + 2), PGD-n 2n + 3."""
    table: list[tuple[Method, int]] = [
        (Standard(), 3),
        (FGSM(), 5),
        (SLAT(), 5),
        (SLAT(num_probes=3), 9),
        (SLAT(base=PGD(steps=4)), 11),
        (PGD(steps=7), 17),
        (LAT(), 3),
        (LAT(joint=True), 6),
        (FGSInter(), 8),
        (FGSOrig(), 8),
        (GaussianNoise(), 3),
        (GaussianNoise(base=FGSM()), 5),
        (TRADES(attack=PGD(steps=1)), 9),
        (ANP(k=5), 15),
        (ANP(k=5, descend_at="shifted"), 17),
        (ANP(k=5, update="last-step"), 11),
        (ANP(k=5, update="after-probes"), 13),
        (ANP(k=1, base=FGSM()), 5),
        (LAD(base=PGD(steps=10)), 25),
        (LAD(base=TRADES(attack=PGD(steps=1))), 14),
        (LAD(base=TRADES(attack=PGD(steps=1)), gamma=1.0), 11),
        (LAD(base=Standard(), num_inner_steps=2), 7),
    ]
    assert [method.passes.total for method, _ in table] == [total for _, total in table]


# Errors

WRONG: list[tuple[Callable[[], Method], str]] = [
    (lambda: FGSM(eps=8), "eps=8 is in units of 0 to 255 pixels, ours are 0 to 1; type eps=8/255"),
    (lambda: FGSMRS(eps=-1), "eps=-1 is not a radius; type a number that is not negative, such as 8/255"),
    (lambda: NFGSM(eps=math.nan), "eps=nan is not a radius; type a number that is not negative, such as 8/255"),
    (lambda: PGD(norm="l1"), "norm='l1' is unknown; type one of 'linf', 'l2', None"),  # type: ignore[arg-type]
    (lambda: PGD(steps=0), "steps=0 is too small; type a number of at least 1"),
    (lambda: PGD(step=-1.0), "step=-1.0 is too small; type a number of at least 0"),
    (lambda: TRADES(beta=-1.0), "beta=-1.0 is too small; type a number of at least 0"),
    (lambda: SLAT(num_probes=0), "num_probes=0 is too small; type a number of at least 1"),
    (lambda: SLAT(eta={"conv1": 8.0}), "conv1=8 is in units of 0 to 255 pixels, ours are 0 to 1; type conv1=8/255"),
    (lambda: SLAT(base=FGSM(), input_step=0.9), "input_step=0.9 has no effect with base=FGSM; set its step"),
    (lambda: ANP(norm="l1"), "norm='l1' is unknown; type one of 'l2', 'l2-batch', 'sign'"),  # type: ignore[arg-type]
    (lambda: ANP(apply="abs"), "apply='abs' is unknown; type one of 'raw', 'sign'"),  # type: ignore[arg-type]
    (lambda: ANP(update="once"), "update='once' is unknown; type one of 'every-step', 'last-step', 'after-probes'"),  # type: ignore[arg-type]
    (lambda: ANP(descend_at="end"), "descend_at='end' is unknown; type one of 'printed', 'shifted'"),  # type: ignore[arg-type]
    (lambda: ANP(update="last-step", descend_at="shifted"), "descend_at='shifted' has no effect with update='last-step'; "
     "type update=every-step"),
    (lambda: ANP(k=0), "k=0 is too small; type a number of at least 1"),
    (lambda: ANP(eps=-1.0), "eps=-1.0 is too small; type a number of at least 0"),
    (lambda: LAD(splitting="euler"), "splitting='euler' is unknown; type one of 'lie-trotter', 'strang-marchuk'"),  # type: ignore[arg-type]
    (lambda: LAD(gamma=1.5), "gamma=1.5 is not a share; type a number from 0 to 1"),
    (lambda: LAD(num_inner_steps=2, splitting="strang-marchuk"), "num_inner_steps > 1 is defined for the Lie-Trotter splitting only; "
     "type splitting=lie-trotter"),
    (lambda: LAT(alpha=-0.1), "alpha=-0.1 is not a share; type a number from 0 to 1"),
    (lambda: FGSInter(reference_batch=0), "reference_batch=0 is too small; type a number of at least 1"),
    (lambda: FGSOrig(alpha=2.0), "alpha=2.0 is not a share; type a number from 0 to 1"),
    (lambda: GaussianNoise(std=-1.0), "std=-1.0 is too small; type a number of at least 0"),
    (lambda: DeepDefense(p=1.0), "p=1.0 has no smooth DeepFool step; type a number above 1, or inf"),
    (lambda: DeepDefense(regulariser="log"), "regulariser='log' is unknown; type one of 'exp', 'linear'"),  # type: ignore[arg-type]
    (lambda: DeepDefense(treat_wrong="as right"), "treat_wrong='as right' is unknown; type one of 'separately', 'alike'"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("make_it", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_setting_that_cannot_be_meant_is_an_error(make_it: Callable[[], Method], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_it()


@pytest.mark.parametrize(
    ("method", "network", "error", "message"),
    [
        (SLAT(sites=["fc"], clamp_to_activation_range=True), TinyConv, ConfigError, "clamp_to_activation_range: site 'fc' has shape (5,), "
         "no space to take the range over, so the clamp would erase the noise; leave the site out or the clamp off"),
        (SLAT(sites=["conv1"], eta={"input": 0.1, "conv2": 0.1}), TinyConv, ConfigError, "eta names no step for site 'conv1'; "
         "did you mean 'conv2'?"),
        (SLAT(sites=["conv1"], eta={"conv1": 0.1, "conv9": 0.1}), TinyConv, SiteError,
         "no site matches 'conv9'; did you mean 'conv2' or 'conv1' or 'conv2:input'? "
         "(`layerwise sites MODEL` lists all)"),
        (SLAT(sites=["conv1"]), TinyMLP, SiteError, "no site matches 'conv1'; did you mean 'fc1'? (`layerwise sites MODEL` lists all)"),
        (LAD(), TinyMLP, SiteError, "the network has no block outputs; name some, for example sites=['fc1', 'fc2']; "
         "`layerwise sites MODEL` lists all"),
        (ANP(), TinyMLP, SiteError, "first=4 of 'affine outputs' is not possible: type a number from 1 to 3"),
        (DeepDefense(layer="fc9"), TinyMLP, ConfigError, "layer='fc9' is no module of the network; did you mean 'fc3' or 'fc2' or 'fc1'?"),
    ],
)  # fmt: skip
def test_a_method_that_does_not_fit_the_network_says_why(
    method: Method, network: type[nn.Module], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        next(iter(method.losses(network().double(), X, Y)))


def test_stored_gradients_of_another_network_are_refused() -> None:
    method, model = LAT(sites=["fc1"]), TinyMLP().double()
    method.load_state_dict({"fc1": torch.zeros(6, 3)})
    message = "LAT's stored gradient for site 'fc1' should have shape (16,), found shape (3,)"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        next(iter(method.losses(model, X, Y)))
    method.load_state_dict({"conv1": torch.zeros(6, 3)})
    with pytest.raises(CheckpointError, match=r"for site 'fc1' should have shape \(16,\), found nothing$"):
        next(iter(method.losses(model, X, Y)))


def test_methods_go_by_their_class_names_and_these_perturb_the_input() -> None:
    assert [cls.__name__ for cls in METHODS.values()] == list(METHODS)
    inputs = {name for name, cls in METHODS.items() if issubclass(cls, InputMethod)}
    assert inputs >= {"Standard", "FGSM", "FGSMRS", "NFGSM", "PGD", "TRADES", "FGSOrig"}


def test_passes_add_up() -> None:
    assert Passes(1, 2, 3, 4) + Passes() == Passes(2, 3, 4, 5)
    assert Passes(1, 2, 3, 4).total == 6
