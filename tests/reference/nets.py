"""Networks without modules: weights in a dict, every hidden value handed through `p(name, z)`, which adds the noise.

Names of weights and sites are those of the twins in `tests.networks`, so that weights can be copied in and out.
Float64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

Noise = Mapping[str, Tensor | Callable[[Tensor], Tensor]]
Replaced = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass
class Pass:
    """One forward pass: `p(site, z)` remembers z and returns z + r; r may depend on z, but carries no gradient. What is `replaced` does.

    `bn` is "train" (batch statistics, the running ones move), "frozen" (batch statistics, the running ones stay) or
    "eval" (running statistics).
    """

    net: Net
    noise: Noise
    bn: str
    replaced: Replaced
    z: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, site: str, z: Tensor) -> Tensor:
        self.z[site] = z
        if site in self.replaced:
            return self.replaced[site](z)
        r = self.noise.get(site)
        if r is None:
            return z
        return z + (r if isinstance(r, Tensor) else r(z)).detach()

    def linear(self, name: str, h: Tensor) -> Tensor:
        w = self.net.weights
        return self(name, h @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    def conv(self, name: str, h: Tensor, *, stride: int = 1, padding: int = 1) -> Tensor:
        w = self.net.weights
        return self(name, F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=padding))

    def norm(self, name: str, h: Tensor) -> Tensor:
        """Batch norm with momentum 0.1 and eps 1e-5; the identity where the network has none of that name."""
        w, b = self.net.weights, self.net.buffers
        if f"{name}.weight" not in w:
            return self(name, h)
        mean, var = b[f"{name}.running_mean"], b[f"{name}.running_var"]
        if self.bn != "eval":
            mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
        if self.bn == "train":
            count = h.numel() // h.shape[1]
            unbiased = var.detach() * count / (count - 1)
            b[f"{name}.running_mean"] = 0.9 * b[f"{name}.running_mean"] + 0.1 * mean.detach()
            b[f"{name}.running_var"] = 0.9 * b[f"{name}.running_var"] + 0.1 * unbiased
            b[f"{name}.num_batches_tracked"] = b[f"{name}.num_batches_tracked"] + 1
        unit = (h - per_channel(mean)) / (per_channel(var) + 1e-5).sqrt()
        return self(name, unit * per_channel(w[f"{name}.weight"]) + per_channel(w[f"{name}.bias"]))


def per_channel(v: Tensor) -> Tensor:
    return v[None, :, None, None]


def tiny_mlp(p: Pass, x: Tensor) -> Tensor:
    h = p("input", x).flatten(1)
    h = p.linear("fc1", h).relu()
    h = p.linear("fc2", h).relu()
    return p.linear("fc3", h)


def tiny_conv(p: Pass, x: Tensor) -> Tensor:
    h = p("input", x)
    h = p.norm("bn1", p.conv("conv1", h)).relu()
    h = p.norm("bn2", p.conv("conv2", h)).relu()
    return p.linear("fc", F.avg_pool2d(h, 4).flatten(1))


def tiny_resnet(p: Pass, x: Tensor) -> Tensor:
    """States x_0 = "conv1", x_n = "blocks.block{n}"; "blocks.block{n}:input" is x_{n-1} on its way into block n."""
    h = p.conv("conv1", p("input", x))
    for n in (1, 2, 3, 4):
        name, stride = f"blocks.block{n}", 2 if n == 3 else 1
        h = p(f"{name}:input", h)
        f = p.conv(f"{name}.conv1", p.norm(f"{name}.bn1", h).relu(), stride=stride)
        f = p.conv(f"{name}.conv2", p.norm(f"{name}.bn2", f).relu())
        shortcut = p.conv(f"{name}.shortcut", h, stride=2, padding=0) if n == 3 else h
        h = p(name, shortcut + f)
    h = p.norm("bn", h).relu()
    return p.linear("fc", h.mean((2, 3)))


FORWARD = {"TinyMLP": tiny_mlp, "TinyConv": tiny_conv, "TinyResNet": tiny_resnet}

AFFINE = {
    "TinyMLP": ("fc1", "fc2", "fc3"),
    "TinyConv": ("conv1", "conv2", "fc"),
    "TinyResNet": ("conv1", *(f"blocks.block{n}.conv{i}" for n in (1, 2, 3, 4) for i in (1, 2)), "fc"),
}


@dataclass
class Net:
    """A functional network: leaves `weights`, batch-norm statistics `buffers`, and the module's name that it follows."""

    name: str
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module) -> Net:
        """Weights and statistics copied out of a TinyMLP, TinyConv or TinyResNet."""
        weights = {k: v.detach().double().clone().requires_grad_() for k, v in module.named_parameters()}
        buffers = {k: v.double() if v.is_floating_point() else v.clone() for k, v in module.named_buffers()}
        return cls(type(module).__name__, weights, {k: v.clone() for k, v in buffers.items()})

    def clone(self) -> Self:
        weights = {k: v.detach().clone().requires_grad_() for k, v in self.weights.items()}
        return replace(self, weights=weights, buffers={k: v.clone() for k, v in self.buffers.items()})

    def copy_to(self, module: nn.Module) -> None:
        """Weights and statistics copied into the twin."""
        module.load_state_dict({k: v.detach() for k, v in (self.weights | self.buffers).items()})

    def distance(self, module: nn.Module) -> float:
        """The largest difference to the twin, over weights and statistics."""
        state = module.state_dict()
        ours = {k: v.detach() for k, v in (self.weights | self.buffers).items()}
        assert ours.keys() == state.keys()
        return max(float((ours[k] - state[k]).abs().max()) for k in ours)

    @property
    def affine(self) -> tuple[str, ...]:
        """The affine outputs counted from the input, shortcut convolutions left out."""
        return AFFINE[self.name]

    def passes(
        self, x: Tensor, noise: Noise | None = None, *, bn: str = "train", replaced: Replaced | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and the value of every site before its own noise was added."""
        p = Pass(self, noise or {}, bn, replaced or {})
        logits = FORWARD[self.name](p, x)
        return logits, p.z

    def logits(
        self, x: Tensor, noise: Noise | None = None, *, bn: str = "train", replaced: Replaced | None = None
    ) -> Tensor:
        return self.passes(x, noise, bn=bn, replaced=replaced)[0]
