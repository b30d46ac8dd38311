"""The references tested by themselves: special cases, closed forms, and what their descents were made at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import TinyConv, TinyMLP, TinyResNet, batch
from tests.reference import anp as anp_file
from tests.reference import lad as lad_file
from tests.reference import lat as lat_file
from tests.reference import slat as slat_file
from tests.reference.anp import anp, unit
from tests.reference.common import gradient_of, gradients, mean_loss
from tests.reference.fgsm import fgsm, fgsm_rs, n_fgsm
from tests.reference.fixtures import BATCHES, EPS, LR, UNIFORM, Descents, X, Y, apart, net, same
from tests.reference.lad import STATES, lad, layer_noise, lie_trotter, strang_marchuk
from tests.reference.lat import fgs_inter, fgs_orig, lat
from tests.reference.nets import Net
from tests.reference.pgd import pgd, pgd_attack
from tests.reference.slat import in_activation_range, slat
from tests.reference.standard import standard
from tests.reference.trades import kl, trades, trades_attack

# methods on the input


def test_single_step_methods_without_noise_are_fgsm() -> None:
    zero = [torch.zeros_like(x) for x, _ in BATCHES]
    expected = fgsm(net(TinyConv), BATCHES, eps=EPS, lr=LR)
    assert same(fgsm_rs(net(TinyConv), BATCHES, uniform=zero, eps=EPS, alpha=1.0, lr=LR), expected)
    assert same(n_fgsm(net(TinyConv), BATCHES, uniform=zero, eps=EPS, lr=LR), expected)
    assert same(pgd(net(TinyConv), BATCHES, uniform=zero, eps=EPS, alpha=EPS, steps=1, lr=LR), expected)
    assert same(fgsm(net(TinyConv), BATCHES, eps=0.0, lr=LR), standard(net(TinyConv), BATCHES, lr=LR))
    assert apart(expected, standard(net(TinyConv), BATCHES, lr=LR)) > 1e-3


def test_pgd_stays_in_the_ball_and_the_pixels_and_hurts() -> None:
    reference = net(TinyConv)
    x_adv = pgd_attack(reference, X, Y, X + EPS * UNIFORM[0], eps=EPS, alpha=EPS / 4, steps=8)
    assert float((x_adv - X).abs().max()) == pytest.approx(EPS)
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    one = pgd_attack(reference, X, Y, X, eps=EPS, alpha=EPS, steps=1)
    clean, single, many = (mean_loss(reference, v, Y, bn="frozen").item() for v in (X, one, x_adv))
    assert clean < single < many


def test_trades_is_standard_without_its_weight_and_its_attack_raises_the_divergence() -> None:
    settings: dict[str, Any] = {"normal": UNIFORM, "eps": EPS, "alpha": EPS / 4, "steps": 5, "lr": LR}
    assert apart(trades(net(TinyMLP), BATCHES, beta=0.0, **settings), standard(net(TinyMLP), BATCHES, lr=LR)) < 1e-14
    reference = net(TinyMLP)
    clean, other = reference.logits(X), reference.logits(X.flip(0))
    expected = nn.functional.kl_div(other.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    assert torch.allclose(kl(clean, other), expected, atol=1e-14)
    start = X + 0.001 * UNIFORM[0]
    x_adv = trades_attack(reference, X, start, eps=EPS, alpha=EPS / 4, steps=5)
    assert float((x_adv - X).abs().max()) == pytest.approx(EPS)
    assert bool((kl(clean, reference.logits(x_adv)) > 10 * kl(clean, reference.logits(start))).all())


# SLAT


def test_slat_without_hidden_sites_is_its_base() -> None:
    def plain(base: str) -> Net:
        return slat(net(TinyConv), BATCHES, sites=[], eta=EPS, base=base, uniform=UNIFORM, lr=LR, momentum=0.9)

    assert same(plain("fgsm"), fgsm(net(TinyConv), BATCHES, eps=EPS, lr=LR, momentum=0.9))
    assert same(plain("fgsm-rs"), fgsm_rs(net(TinyConv), BATCHES, uniform=UNIFORM, eps=EPS, lr=LR, momentum=0.9))
    expected = n_fgsm(net(TinyConv), BATCHES, uniform=UNIFORM, eps=EPS, lr=LR, momentum=0.9)
    assert apart(plain("n-fgsm"), expected) < 1e-14
    assert apart(plain("fgsm"), expected) > 1e-3


def test_slat_raises_the_loss_by_eta_times_the_l1_norms(watch: Callable[[ModuleType], Descents]) -> None:
    """Equation 5, to first order."""
    seen, reference, etas = watch(slat_file), net(TinyConv), {"input": 1e-6, "conv1": 2e-6, "bn2": 3e-6}
    inside = 0.1 + 0.8 * X
    slat(reference, [(inside, Y)], sites=["conv1", "bn2"], eta=etas, lr=LR)
    [(x_adv, noise)] = seen
    g = gradients(reference, inside, Y, etas)
    expected = sum(float(etas[k] * g[k].abs().sum()) for k in etas) / len(X)
    rise = mean_loss(reference, x_adv, Y, noise, bn="frozen") - mean_loss(reference, inside, Y, bn="frozen")
    assert rise.item() == pytest.approx(expected, rel=1e-3)


def test_slat_clamps_to_the_range_of_each_example_and_channel(watch: Callable[[ModuleType], Descents]) -> None:
    seen, reference = watch(slat_file), net(TinyConv)
    slat(reference, [(X, Y)], sites=["conv1"], eta=0.3, clamp_to_activation_range=True, lr=LR)
    [(x_adv, noise)] = seen
    z = reference.passes(x_adv, bn="frozen")[1]["conv1"].detach()
    for row, r in zip(z.flatten(0, 1), noise["conv1"].flatten(0, 1), strict=True):
        assert float(row.min()) - 1e-12 <= float((row + r).min()) <= float((row + r).max()) <= float(row.max()) + 1e-12
    straight = gradients(reference, x_adv, Y, ["conv1"], {"conv1": partial(in_activation_range, noise["conv1"])})
    assert torch.equal(straight["conv1"], gradients(reference, x_adv, Y, ["conv1"], noise)["conv1"])
    sizes = noise["conv1"].abs()
    assert bool((sizes < 0.3 - 1e-9).any())
    assert float(sizes.max()) == pytest.approx(0.3)


def test_slat_with_more_probes_goes_on_from_the_noise_it_found(watch: Callable[[ModuleType], Descents]) -> None:
    seen, reference = watch(slat_file), net(TinyConv)
    for probes in (1, 2):
        slat(reference, [(X, Y)], sites=["conv1"], eta=0.2, input_step=0.75, num_probes=probes, lr=LR)
    (x1, one), (x2, two) = seen
    g = gradients(reference, x1, Y, ["input", "conv1"], one)
    assert torch.allclose(two["conv1"], (one["conv1"] + 0.2 * g["conv1"].sign()).clamp(-0.2, 0.2), atol=1e-14)
    assert torch.allclose(x2, (X + (x1 - X + 0.15 * g["input"].sign()).clamp(-0.2, 0.2)).clamp(0, 1), atol=1e-14)
    assert not torch.equal(one["conv1"], two["conv1"])


def test_slat_probe_in_train_mode_moves_the_statistics_twice() -> None:
    counts = {}
    for mode in ("frozen", "train"):
        counts[mode] = slat(net(TinyConv), BATCHES, sites=["conv1"], eta=EPS, probe_bn=mode, lr=LR)
    assert [int(v.buffers["bn1.num_batches_tracked"]) for v in counts.values()] == [3, 6]
    assert same(counts["frozen"], counts["train"], weights_only=True)


# ANP


@pytest.mark.parametrize("update", ["every-step", "last-step"])
def test_anp_with_one_printed_step_is_standard_training(update: str) -> None:
    ours, _ = anp(net(TinyConv), BATCHES, k=1, eta=0.5, eps=10.0, update=update, lr=LR, momentum=0.9)
    assert same(ours, standard(net(TinyConv), BATCHES, lr=LR, momentum=0.9))


def test_anp_shifted_by_one_step_is_one_probe_and_one_descent() -> None:
    settings: dict[str, Any] = {"k": 1, "eta": 0.5, "eps": 10.0, "lr": LR}
    shifted, _ = anp(net(TinyConv), BATCHES, descend_at="shifted", **settings)
    probed, _ = anp(net(TinyConv), BATCHES, update="after-probes", **settings)
    assert same(shifted, probed)
    assert apart(shifted, standard(net(TinyConv), BATCHES, lr=LR)) > 1e-3


@pytest.mark.parametrize(
    ("update", "descend_at", "used"),
    [
        ("every-step", "printed", [0, 1, 2]),
        ("every-step", "shifted", [1, 2, 3]),
        ("last-step", "printed", [2]),
        ("after-probes", "printed", [3]),
    ],
)
@pytest.mark.parametrize(("norm", "apply"), [("l2", "raw"), ("l2-batch", "raw"), ("sign", "raw"), ("l2", "sign")])
def test_anp_follows_equation_2(
    watch: Callable[[ModuleType], Descents], update: str, descend_at: str, used: list[int], norm: str, apply: str
) -> None:
    """With a learning rate of zero every r_t can be worked out beforehand."""
    seen, reference, k, eta, eps = watch(anp_file), net(TinyConv), 3, 0.4, 6.0
    _, last = anp(
        reference, [(X, Y)], k=k, eta=eta, eps=eps, m=2, norm=norm, apply=apply, update=update,
        descend_at=descend_at, lr=0.0,
    )  # fmt: skip
    sites, added, registers = ["conv1", "conv2"], [], []
    r = {s: torch.zeros_like(v) for s, v in gradients(reference, X, Y, sites).items()}
    for _ in range(k + 1):
        registers.append(r)
        added.append({s: eps / k * v.sign() for s, v in r.items()} if apply == "sign" else r)
        g = gradients(reference, X, Y, sites, added[-1])
        step = 1.0 if apply == "sign" else eps / k
        r = {s: (1 - eta) * r[s] + step * unit(g[s], norm) for s in sites}
    assert len(seen) == len(used)
    for t, (_, noise) in zip(used, seen, strict=True):
        assert all(torch.allclose(noise.get(s, torch.zeros(()).double()), added[t][s], atol=1e-12) for s in sites)
    ascents = 2 if update == "last-step" else 3
    assert all(torch.allclose(last[s], registers[ascents][s], atol=1e-12) for s in sites)


def test_anp_units_have_the_norm_that_they_say() -> None:
    g = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g[1] = 0
    assert torch.allclose(unit(g, "l2").flatten(1).norm(dim=1), torch.tensor([1.0, 0.0, 1.0, 1.0]).double())
    assert float(unit(g, "l2-batch").norm()) == pytest.approx(1.0)
    assert set(unit(g, "sign").flatten().tolist()) == {-1.0, 0.0, 1.0}


def test_anp_keeps_pixels_in_range_and_adds_gaussian_noise(watch: Callable[[ModuleType], Descents]) -> None:
    seen, reference = watch(anp_file), net(TinyConv)
    extra: Iterator[dict[str, Tensor]] = repeat({"input": UNIFORM[0], "conv1": torch.ones(6, 6, 8, 8).double()})
    _, r = anp(reference, [(X, Y)], k=2, eta=0.0, eps=9.0, m=1, include_input=True, gaussian=extra, lr=0.0)
    first, second = (noise for _, noise in seen)
    assert torch.equal(X + first["input"], (X + UNIFORM[0]).clamp(0, 1))
    assert torch.equal(first["conv1"], torch.ones_like(first["conv1"]))
    assert (second["conv1"] - 1).flatten(1).norm(dim=1).tolist() == pytest.approx([4.5] * 6)
    assert 0 <= float((X + second["input"]).min()) <= float((X + second["input"]).max()) <= 1
    assert sorted(r) == ["conv1", "input"]


# LAD


@pytest.mark.parametrize("splitting", ["lie-trotter", "strang-marchuk"])
def test_lad_without_eta_is_its_base(splitting: str) -> None:
    attack: dict[str, Any] = {"eps": EPS, "alpha": EPS / 4, "steps": 3, "lr": LR}
    off: dict[str, Any] = {"eta": 0.0, "splitting": splitting, "draws": UNIFORM, **attack}
    natural = lad(net(TinyResNet), BATCHES, base="natural", **off)
    assert same(natural, standard(net(TinyResNet), BATCHES, lr=LR))
    adversarial = lad(net(TinyResNet), BATCHES, base="pgd", **off)
    assert same(adversarial, pgd(net(TinyResNet), BATCHES, uniform=UNIFORM, **attack))
    on_trades = lad(net(TinyResNet), BATCHES, base="trades", gamma=1.0, **off)
    expected = trades(net(TinyResNet), BATCHES, normal=UNIFORM, beta=6.0, **attack)
    assert apart(on_trades, expected) < 1e-12
    assert apart(natural, adversarial) > 1e-4


def test_lad_totals_at_the_states_are_those_of_the_splitting() -> None:
    reference, eta = net(TinyResNet), 40.0
    g = [gradients(reference, X, Y, STATES)[s] for s in STATES]
    noise = strang_marchuk(g, eta)
    into = [noise[f"{s}:input"] for s in STATES[1:]] + [torch.zeros(())]
    total = [noise.get(s, torch.zeros(())) + r for s, r in zip(STATES, into, strict=True)]
    expected = [
        eta / 2 * g[0],
        eta * (3 / 4 * g[1] + g[0] / 4),
        eta * (3 / 4 * g[2] + g[1] / 4),
        eta * g[3],
        eta / 4 * (g[3] + g[4]),
    ]
    assert all(torch.allclose(a, b, atol=1e-15) for a, b in zip(total, expected, strict=True))
    one_site = dict(zip(STATES, total, strict=True))
    assert torch.allclose(reference.logits(X, noise), reference.logits(X, one_site), atol=1e-12)


@pytest.mark.parametrize(("splitting", "before", "after"), [("lie-trotter", 2.0, 2.0), ("strang-marchuk", 2.5, 1.5)])
def test_lad_on_a_linear_network_is_its_closed_form(splitting: str, before: float, after: float) -> None:
    """Branches silent, all ReLUs open: logits rise by (eta/128)/16 W (before S S^T + after 1) W^T (onehot - p)."""
    module = TinyResNet(batch_norm=False).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name == "conv1.bias":
                parameter.add_(10)
            if "conv2" in name:
                parameter.zero_()
            if name == "blocks.block3.shortcut.weight":
                parameter.abs_()
    reference, eta = Net.of(module), 30.0
    noise = layer_noise(reference, X, Y, eta=eta, splitting=splitting, num_inner_steps=1, bn="frozen")
    w, s = reference.weights["fc.weight"], reference.weights["blocks.block3.shortcut.weight"][:, :, 0, 0]
    logits = reference.logits(X)
    error = logits.softmax(1) - nn.functional.one_hot(Y, 5)
    gain = w @ (before * s @ s.T + after * torch.eye(6).double()) @ w.T / 16
    assert torch.allclose(reference.logits(X, noise) - logits, eta / 128 * error @ gain, atol=1e-12)
    assert (eta / 128 * error @ gain).abs().max().item() > 1e-3


def test_lad_inner_steps_add_up_gradients_at_the_perturbed_states(watch: Callable[[ModuleType], Descents]) -> None:
    seen, reference = watch(lad_file), net(TinyResNet)
    for steps in (1, 2):
        lad(reference, [(X, Y)], eta=50.0, num_inner_steps=steps, lr=LR)
    (_, one), (_, two) = seen
    g = gradients(reference, X, Y, STATES, one)
    more = lie_trotter([g[s] for s in STATES], 50 / 128)
    assert sorted(one) == sorted(STATES[1:])
    assert all(torch.allclose(two[s], one[s] + more[s], atol=1e-14) for s in two)


def test_lad_on_trades_mixes_three_losses(watch: Callable[[ModuleType], Descents]) -> None:
    seen, start = watch(lad_file), net(TinyResNet)
    attack: dict[str, Any] = {"eps": EPS, "alpha": EPS / 4, "steps": 3}
    stepped = lad(
        start, [(X, Y)], eta=50.0, base="trades", draws=UNIFORM[:1], gamma=0.25, lambda_=0.2, lr=1.0, **attack
    )
    x_adv = trades_attack(start, X, X + 0.001 * UNIFORM[0], **attack)
    noise = layer_noise(start, x_adv, Y, eta=50.0, splitting="lie-trotter", num_inner_steps=1, bn="frozen")
    [(x, added)] = seen
    assert torch.equal(x, x_adv)
    assert all(torch.equal(added[s], noise[s]) for s in noise)
    divergence = 5 * kl(start.logits(X), start.logits(x_adv)).mean()
    loss = 0.25 * mean_loss(start, X, Y) + 0.75 * mean_loss(start, x_adv, Y, noise) + divergence
    expected = gradient_of(loss, start)
    assert all(torch.allclose(start.weights[k] - stepped.weights[k], g, atol=1e-12) for k, g in expected.items())


def test_lad_eta_is_for_a_mean_loss_over_128(watch: Callable[[ModuleType], Descents]) -> None:
    seen, reference = watch(lad_file), net(TinyResNet, batch_norm=False)
    x, y = batch(128)
    lad(reference, [(x, y)], eta=50.0, lr=LR)
    _, z = reference.passes(x)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(z["fc"], y), z["blocks.block2"])
    assert torch.allclose(seen[0][1]["blocks.block2"], 50 * g, atol=1e-14)


# LAT

SITES = ["bn1", "bn2"]


def test_lat_without_noise_is_standard_training() -> None:
    expected = standard(net(TinyConv), BATCHES, lr=LR)
    assert same(lat(net(TinyConv), BATCHES, sites=SITES, eps=0.0, lr=LR)[0], expected)
    assert same(
        lat(net(TinyConv), BATCHES[:1], sites=SITES, eps=20.0, lr=LR)[0], standard(net(TinyConv), BATCHES[:1], lr=LR)
    )
    assert apart(lat(net(TinyConv), BATCHES, sites=SITES, eps=0.0, alpha=0.5, lr=LR)[0], expected) < 1e-14
    assert apart(fgs_inter(net(TinyConv), BATCHES, sites=SITES, eps=0.0, lr=LR), expected) < 1e-14
    assert apart(lat(net(TinyConv), BATCHES, sites=SITES, eps=20.0, alpha=1.0, lr=LR)[0], expected) < 1e-14
    assert apart(fgs_inter(net(TinyConv), BATCHES, sites=SITES, eps=20.0, alpha=1.0, lr=LR), expected) < 1e-14
    assert apart(fgs_orig(net(TinyConv), BATCHES, eps=EPS, alpha=1.0, lr=LR), expected) < 1e-14
    adversarial = fgsm(net(TinyConv), BATCHES, eps=EPS, lr=LR)
    assert apart(fgs_orig(net(TinyConv), BATCHES, eps=EPS, alpha=0.0, lr=LR), adversarial) < 1e-14
    assert apart(lat(net(TinyConv), BATCHES, sites=SITES, eps=20.0, lr=LR)[0], expected) > 1e-3


@pytest.mark.parametrize("relative", [True, False])
def test_lat_scales_by_the_range_of_a_mean_losss_gradient(relative: bool) -> None:
    reference = net(TinyConv, batch_norm=False)
    _, noise = lat(reference, [(X, Y)], sites=["conv1"], eps=20.0, relative=relative, reference_batch=6, lr=LR)
    _, z = reference.passes(X)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(z["fc"], Y), z["conv1"])
    size = 20 * (g.max() - g.min()) if relative else torch.tensor(20.0).double()
    assert torch.allclose(noise["conv1"], size * g.sign(), atol=1e-13)
    assert float(noise["conv1"].abs().max()) == pytest.approx(float(size))


def test_lat_rows_of_a_ragged_batch(watch: Callable[[ModuleType], Descents]) -> None:
    seen = watch(lat_file)
    sizes = (4, 2, 5)
    _, last = lat(net(TinyMLP), [batch(n, seed=n) for n in sizes], sites=["fc1"], eps=1.0, relative=False, lr=0.0)
    signs = [
        gradients(net(TinyMLP), *batch(n, seed=n), ["fc1"], noise) for n, (_, noise) in zip(sizes, seen, strict=True)
    ]
    first, short, long = (noise.get("fc1", torch.zeros(())) for _, noise in seen)
    assert not first.any()
    assert torch.equal(short, signs[0]["fc1"].sign()[:2])
    assert torch.equal(long, torch.cat([signs[1]["fc1"].sign(), torch.zeros(3, 16).double()]))
    assert torch.equal(last["fc1"], signs[2]["fc1"].sign())
    assert all(bool(v.any()) for v in (short, long, last["fc1"]))


def test_fgs_inter_perturbs_the_same_batch(watch: Callable[[ModuleType], Descents]) -> None:
    seen, reference = watch(lat_file), net(TinyConv)
    fgs_inter(reference, [(X, Y)], sites=["bn1"], eps=0.1, relative=False, lr=LR)
    (x, clean), (x_again, noise) = seen
    assert torch.equal(x, X)
    assert torch.equal(x_again, X)
    assert clean == {}
    assert torch.equal(noise["bn1"], 0.1 * gradients(reference, X, Y, ["bn1"])["bn1"].sign())
