"""The references judged by themselves: closed forms, special cases, finite differences, the modules they follow."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.networks import IMAGE, NETWORKS, Checkpointed, TinyConv, TinyMLP, TinyResNet, batch
from tests.reference import anp as anp_file
from tests.reference import lad as lad_file
from tests.reference import lat as lat_file
from tests.reference import slat as slat_file
from tests.reference.anp import anp, unit
from tests.reference.common import gradients, mean_loss
from tests.reference.deep_defense import deep_defense, deepfool, rho_2, row_logits
from tests.reference.fgsm import fgsm, fgsm_rs, n_fgsm
from tests.reference.lad import STATES, lad, layer_noise, lie_trotter, strang_marchuk
from tests.reference.lat import fgs_inter, fgs_orig, lat
from tests.reference.nets import Net
from tests.reference.pgd import pgd, pgd_attack
from tests.reference.slat import slat
from tests.reference.standard import standard
from tests.reference.trades import kl, trades, trades_attack

BATCHES = [batch(6, seed=seed) for seed in range(3)]
UNIFORM = list(2 * torch.rand(3, 6, *IMAGE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
LEARNING = [batch(64, seed=seed) for seed in range(10)] * 4
X, Y = BATCHES[0]
EPS = 8 / 255
LR = 0.5
Descents = list[tuple[Tensor, dict[str, Tensor]]]
Plain = Callable[[], nn.Module]
TWINS: list[Plain] = [
    TinyMLP,
    TinyConv,
    lambda: TinyConv(batch_norm=False),
    TinyResNet,
    lambda: TinyResNet(batch_norm=False),
]


def net(module: type[nn.Module], **options: bool) -> Net:
    return Net.of(module(**options).double())


def same(a: Net, b: Net, *, weights_only: bool = False) -> bool:
    """Bitwise."""
    return all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights) and (
        weights_only or all(torch.equal(a.buffers[k], b.buffers[k]) for k in a.buffers)
    )


def apart(a: Net, b: Net) -> float:
    return max((a.weights[k] - b.weights[k]).abs().max().item() for k in a.weights)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], Descents]:
    """What a file's descents were made at: the input and the noise that each site really got."""

    def install(file: ModuleType) -> Descents:
        seen: Descents = []

        def watched(net: Net, x: Tensor, y: Tensor, noise: Noise | None = None) -> Tensor:
            _, z = net.passes(x, noise, bn="frozen")
            added = {s: r if isinstance(r, Tensor) else r(z[s]) for s, r in (noise or {}).items()}
            seen.append((x, {s: r.detach() for s, r in added.items()}))
            return mean_loss(net, x, y, noise)

        monkeypatch.setattr(file, "mean_loss", watched)
        return seen

    return install


# networks, loss and optimiser


def test_nothing_here_imports_the_package() -> None:
    here = Path(__file__).parent
    files = [here.parent / "networks.py", *here.glob("*.py")]
    assert len(files) > 10
    assert [f.name for f in files if re.search(r"^\s*(from|import) layerwise", f.read_text(), re.M)] == []


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.__name__))
def test_networks_repeat_and_run_in_both_precisions(network: type[nn.Module]) -> None:
    for dtype in (torch.float32, torch.float64):
        first, again, other = network().to(dtype), network().to(dtype), network(1).to(dtype)
        x, _ = batch(4, dtype=dtype)
        assert first(x).shape == (4, 5)
        assert first(x).dtype == dtype
        assert torch.equal(network().to(dtype)(x), again(x))
        assert not torch.equal(other(x), again(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing_without_noise(use_reentrant: bool) -> None:
    found = []
    for module in (Checkpointed(use_reentrant=use_reentrant).double(), Checkpointed(enabled=False).double()):
        torch.autograd.backward(nn.functional.cross_entropy(module(X), Y))
        found.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    assert all(g is not None for grads in found for g in grads)


@pytest.mark.parametrize("twin", TWINS)
def test_training_equals_the_module_under_torch_sgd(twin: Plain) -> None:
    module = twin().double()
    ours = standard(Net.of(module), BATCHES, lr=LR, momentum=0.9, weight_decay=0.01)
    assert ours.distance(module) > 1e-2
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, weight_decay=0.01)
    for x, y in BATCHES:
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(x), y))
        optimiser.step()
    assert ours.distance(module) < 1e-12
    module.eval()
    assert torch.allclose(ours.logits(X, bn="eval"), module(X), atol=1e-12)


def test_frozen_statistics_normalise_by_the_batch_and_do_not_move() -> None:
    reference = net(TinyConv)
    before = reference.clone()
    frozen = reference.logits(X, bn="frozen")
    assert same(reference, before)
    assert torch.equal(frozen, reference.logits(X, bn="train"))
    assert not same(reference, before)
    assert not torch.allclose(frozen, reference.logits(X, bn="eval"), atol=1e-3)


def test_weights_copied_out_and_in_are_the_same() -> None:
    trained = standard(net(TinyConv), BATCHES, lr=LR)
    module = TinyConv(1).double()
    assert trained.distance(module) > 1e-2
    trained.copy_to(module)
    assert trained.distance(module) == 0
    assert same(Net.of(module), trained)


def test_gradient_at_a_site_is_that_of_its_noise_and_of_each_examples_own_loss() -> None:
    reference = net(TinyConv, batch_norm=False)
    g = gradients(reference, X, Y, ["conv1"])["conv1"]
    v = torch.randn(g.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rise = [mean_loss(reference, X, Y, {"conv1": h * v}).item() * len(X) for h in (1e-5, -1e-5)]
    assert (rise[0] - rise[1]) / 2e-5 == pytest.approx(float((g * v).sum()), rel=1e-6)
    alone = gradients(reference, X[2:3], Y[2:3], ["conv1"])["conv1"]
    assert torch.allclose(g[2:3], alone, atol=1e-14)


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
    anp(
        reference, [(X, Y)], k=k, eta=eta, eps=eps, m=2, norm=norm, apply=apply, update=update,
        descend_at=descend_at, lr=0.0,
    )  # fmt: skip
    sites, r, added = ["conv1", "conv2"], {}, []
    r = {s: torch.zeros_like(v) for s, v in gradients(reference, X, Y, sites).items()}
    for _ in range(k + 1):
        added.append({s: eps / k * v.sign() for s, v in r.items()} if apply == "sign" else r)
        g = gradients(reference, X, Y, sites, added[-1])
        step = 1.0 if apply == "sign" else eps / k
        r = {s: (1 - eta) * r[s] + step * unit(g[s], norm) for s in sites}
    assert len(seen) == len(used)
    for t, (_, noise) in zip(used, seen, strict=True):
        assert all(torch.allclose(noise.get(s, torch.zeros(()).double()), added[t][s], atol=1e-12) for s in sites)


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
    assert same(lat(net(TinyConv), BATCHES[:1], sites=SITES, eps=20.0, lr=LR)[0], standard(net(TinyConv), BATCHES[:1], lr=LR))
    assert apart(lat(net(TinyConv), BATCHES, sites=SITES, eps=0.0, alpha=0.5, lr=LR)[0], expected) < 1e-14
    assert apart(fgs_inter(net(TinyConv), BATCHES, sites=SITES, eps=0.0, lr=LR), expected) < 1e-14
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
    signs = [gradients(net(TinyMLP), *batch(n, seed=n), ["fc1"], noise) for n, (_, noise) in zip(sizes, seen, strict=True)]
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


# Deep Defense


def linear_net() -> tuple[Net, Tensor]:
    """A TinyMLP with all ReLUs open, and the matrix (5, 192) that it is but for a small bias."""
    reference = net(TinyMLP)
    b, w = ([reference.weights[f"fc{i}.{kind}"].detach() for i in (1, 2, 3)] for kind in ("bias", "weight"))
    b[0] += 50
    b[1] += 500
    b[2] -= w[2] @ (w[1] @ b[0] + b[1])
    return reference, w[2] @ w[1] @ w[0]


@pytest.mark.parametrize("p", [2.0, 3.0, torch.inf])
@pytest.mark.parametrize("classes", [2, None])
def test_deepfool_on_a_linear_network_is_its_closed_form(p: float, classes: int | None) -> None:
    """p = 2: 1.02 |f| / ||w||^2 w to the nearest plane; the length is 1.02 |f| / ||w||_q for every p."""
    reference, matrix = linear_net()
    q = 1.0 if p == torch.inf else p / (p - 1)
    for x in X:
        delta = deepfool(reference, x, None, p=p, num_classes=classes).flatten().detach()
        logits = row_logits(reference, x).detach()
        order = logits.argsort(descending=True).tolist()[:classes]
        planes = [(logits[k] - logits[order[0]], matrix[k] - matrix[order[0]]) for k in order[1:]]
        f, w = min(planes, key=lambda plane: float(plane[0].abs() / plane[1].norm(q)))
        assert float(delta.norm(p)) == pytest.approx(1.02 * float(f.abs() / w.norm(q)), rel=1e-8)
        assert float(delta @ w) == pytest.approx(-1.02 * float(f), rel=1e-8)
        if p == 2:
            assert torch.allclose(delta, 1.02 * f.abs() / w.square().sum() * w, rtol=1e-8, atol=1e-12)


def test_deepfool_leaves_the_prediction_or_reaches_the_label() -> None:
    trained, (linear, _) = standard(net(TinyMLP), LEARNING, lr=0.2), linear_net()
    x, y = batch(12, seed=3)
    for image, label in zip(x, y.tolist(), strict=True):
        now = int(row_logits(trained, image).argmax())
        assert int(row_logits(trained, image + deepfool(trained, image, now)).argmax()) != now
        assert int(row_logits(linear, image + deepfool(linear, image, label, iterations=20)).argmax()) == label or (
            label == int(row_logits(linear, image).argmax())
        )
    assert 0 < int((linear.logits(x).argmax(1) == y).sum()) < len(y)


def test_deepfool_stops_where_there_is_no_boundary() -> None:
    """All ReLUs shut: w = 0, and 0 / 0 would reach every weight."""
    shut = net(TinyMLP)
    shut.weights["fc2.bias"].data -= 50
    x, now = X[0], int(row_logits(shut, X[0]).argmax())
    assert not deepfool(shut, x, now).any()
    assert not deepfool(shut, x, (now + 1) % 5).any()


@pytest.mark.parametrize("regulariser", ["exp", "linear"])
@pytest.mark.parametrize("single", [False, True])
def test_deep_defense_goes_down_the_gradient_of_equation_6(regulariser: str, single: bool) -> None:
    """Against finite differences of the objective along a random direction, batch norm included."""
    start = standard(net(TinyConv), LEARNING, lr=0.2)
    x, _ = batch(4, seed=2)
    now = start.logits(x, bn="eval").argmax(1)
    y = torch.cat([now[:2], (now[2:] + 1) % 5])
    settings: dict[str, Any] = {"lambda_": 2.0, "c": 4.0, "d": 3.0, "regulariser": regulariser, "single_formula": single}
    stepped, rhos = deep_defense(start, [(x, y)], lr=1.0, **settings)

    def objective(reference: Net) -> float:
        total, ratios = 0.0, []
        for image, label, good in zip(x, y.tolist(), (True, True, False, False), strict=True):
            delta = deepfool(reference, image, None if single else label)
            ratios.append((delta.norm() / image.norm()).item())
            exponent = -4.0 * ratios[-1] if good or single else 3.0 * ratios[-1]
            total += math.exp(exponent) if regulariser == "exp" else exponent
        if reference is start:
            assert rhos == [pytest.approx(sum(ratios) / 4)]
        return mean_loss(reference, x, y, bn="eval").item() + 2.0 / 4 * total

    objective(start)
    stream = torch.Generator().manual_seed(0)
    direction = {k: torch.randn(w.shape, generator=stream, dtype=torch.float64) for k, w in start.weights.items()}
    moved = []
    for h in (1e-7, -1e-7):
        other = start.clone()
        for k, w in other.weights.items():
            w.data += h * direction[k]
        moved.append(objective(other))
    slope = sum((direction[k] * (start.weights[k] - stepped.weights[k])).sum().item() for k in direction)
    assert (moved[0] - moved[1]) / 2e-7 == pytest.approx(slope, rel=1e-5)


def test_deep_defense_options() -> None:
    x = X.clone()
    x[2] = 0
    plain, rhos = deep_defense(net(TinyMLP), [(x, Y)], lambda_=0.0, lr=LR)
    assert same(plain, standard(net(TinyMLP), [(x, Y)], lr=LR))
    masked, _ = deep_defense(net(TinyMLP), [(x, Y)], layer="fc2", lr=LR)
    changed = [k for k in plain.weights if not torch.equal(plain.weights[k], masked.weights[k])]
    assert changed == ["fc2.weight", "fc2.bias"]
    kept = [i for i in range(6) if i != 2]
    ratios = [deepfool(net(TinyMLP), x[i], int(Y[i])).norm() / x[i].norm() for i in kept]
    assert rhos == [pytest.approx(torch.stack(ratios).mean().item())]
    each = [deepfool(net(TinyMLP), v, None, iterations=50).norm() / v.norm() for v in X]
    assert rho_2(net(TinyMLP), X, iterations=50) == pytest.approx(torch.stack(each).mean().item())
