"""The naive forms on any module: its weights in a dict, a plain hook of torch's own at every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn
from torch.func import functional_call

from tests.reference.nets import Net, Noise, Replaced


@dataclass
class Hooked(Net):
    """A network that is run by calling its module with our weights; it has no batch norm, so that `bn` is nothing to it.

    Args:
        module: called as it is, its own weights untouched.
        sites: names of modules, whose outputs (the first of a tuple) are the sites.
    """

    module: nn.Module = field(default_factory=nn.Identity)
    sites: tuple[str, ...] = ()

    @classmethod
    def around(cls, module: nn.Module, sites: Sequence[str]) -> Self:
        """With a copy of those of the module's weights that are trained."""
        weights = {k: v.detach().clone().requires_grad_() for k, v in module.named_parameters() if v.requires_grad}
        return cls(type(module).__name__, weights, {}, module, tuple(sites))

    def passes(
        self, x: Any, noise: Noise | None = None, *, bn: str = "train", replaced: Replaced | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and what was seen at every site."""
        z: dict[str, Tensor] = {}

        def at(name: str) -> Any:
            def hook(module: nn.Module, args: object, out: Any) -> Any:
                value = out if isinstance(out, Tensor) else out[0]
                # Behind frozen weights alone nothing asks for a gradient yet.
                z[name] = value = value if value.requires_grad else value.detach().requires_grad_()
                if replaced and name in replaced:
                    value = replaced[name](value)
                elif noise and name in noise:
                    r = noise[name]
                    value = value + (r if isinstance(r, Tensor) else r(value)).detach()
                return value if isinstance(out, Tensor) else (value, *out[1:])

            return hook

        handles = [self.module.get_submodule(name).register_forward_hook(at(name)) for name in self.sites]
        try:
            by_name = isinstance(x, Mapping)
            out: Any = functional_call(self.module, self.weights, () if by_name else x, dict(x) if by_name else None)
        finally:
            for handle in handles:
                handle.remove()
        return out if isinstance(out, Tensor) else out.logits, z

    def distance(self, module: nn.Module) -> float:
        """The largest difference to the trained module's weights."""
        trained = {k: v for k, v in module.named_parameters() if v.requires_grad}
        assert trained.keys() == self.weights.keys()
        return max(float((w.detach() - trained[name].detach()).abs().max()) for name, w in self.weights.items())
