"""A look at what the references' descents were made at."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from torch import Tensor

from tests.reference.common import mean_loss
from tests.reference.fixtures import Descents
from tests.reference.nets import Net, Noise


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
