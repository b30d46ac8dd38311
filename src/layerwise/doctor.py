"""What a bug report needs, and a check that the parts work together on this machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata

import torch

_NEEDED = "layerwise torch numpy lightning-fabric jsonargparse safetensors scikit-learn matplotlib pillow rich jinja2"
_OPTIONAL = "pyautoattack foolbox onnx onnxscript tensorboard"
PACKAGES = (*_NEEDED.split(), *_OPTIONAL.split())


def versions() -> dict[str, str]:
    """Python, system, device and package versions; `"not installed"` for what is missing."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"device": device_name()}


def device_name() -> str:
    """The accelerator, or the processor and its threads."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}, CUDA {torch.version.cuda}"
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def doctor() -> tuple[str, bool]:
    """The report, and whether every check passed."""
    lines = [f"{name:<18}{version}" for name, version in versions().items()]
    lines.append(f"{'data':<18}{os.environ.get('LAYERWISE_DATA', '~/.cache/layerwise (LAYERWISE_DATA is not set)')}")
    healthy = True
    for name, check in CHECKS.items():
        try:
            outcome = check()
        except Exception as error:  # a report has to come out whatever breaks
            outcome, healthy = f"FAILED: {type(error).__name__}: {error}", False
        lines.append(f"{name:<18}{outcome}")
    return "\n".join(lines), healthy


def _identity() -> str:
    """dL/dr = dL/dz at a site, in both precisions."""
    from layerwise.sites import Sites

    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
    x = torch.ones(2, 4, dtype=torch.float64)
    with Sites(net, ["0"], example=x) as sites:
        with sites.record(x) as recorded:
            z = net[0](x)
            net[2](net[1](z)).square().sum().backward(inputs=recorded.leaves)
        (g,) = recorded.gradients().values()
    z = z.detach().requires_grad_()
    net[2](net[1](z)).square().sum().backward(inputs=[z])
    assert z.grad is not None
    if not torch.equal(g, z.grad):
        raise ValueError("a recorded gradient differs from the activation's own")
    return "ok"


def _step() -> str:
    """One SLAT step on the embedded data."""
    from layerwise import data, models
    from layerwise.methods import SLAT

    digits = data.load("digits")
    model = models.build("digits_cnn", num_classes=10, shape=digits.shape)
    x, y = next(iter(data.batches(digits.train, 32)))
    for loss in SLAT(eta=0.1).losses(model, x, y):
        if not torch.is_tensor(loss) or not torch.isfinite(loss):
            raise ValueError(f"loss {loss}")
        loss.backward()  # type: ignore[no-untyped-call]
    return "ok"


def _folder() -> str:
    """The working folder takes files."""
    if not os.access(os.getcwd(), os.W_OK):
        raise ValueError(f"{os.getcwd()} is not writable; runs go to ./runs unless --runs says otherwise")
    return "ok"


CHECKS: dict[str, Callable[[], str]] = {"recording": _identity, "training step": _step, "folder": _folder}

if sys.flags.optimize:
    CHECKS["assertions"] = lambda: "off (python -O): invariants are not checked"
