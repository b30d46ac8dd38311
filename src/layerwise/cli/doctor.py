"""`layerwise doctor`: what a bug report needs, and a check that the parts work together on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from layerwise.cli.arguments import Command
from layerwise.errors import LayerwiseError

MORE = ("rich", "matplotlib", "pillow", "jinja2", "pyautoattack", "foolbox", "onnx", "onnxscript", "tensorboard")
"""Packages that no result depends on, or that are optional."""


def facts() -> dict[str, str]:
    """Python, system, processor or accelerator, packages; `"not installed"` for what is missing."""
    import torch

    from layerwise.data.files import data_root
    from layerwise.training import versions

    found = versions()
    gpus = ", ".join(found["gpus"])
    device = f"{gpus}, CUDA {found['cuda']}" if gpus else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "python": found["python"],
        "system": found["platform"],
        "device": device,
        "cores": f"{os.cpu_count()}, torch uses {found['threads']} threads",
        "data": f"{data_root()}" + ("" if os.environ.get("LAYERWISE_DATA") else " (LAYERWISE_DATA is not set)"),
        **found["packages"],
        **{name: _version(name) for name in MORE},
    }


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def doctor() -> tuple[str, bool]:
    """The report, and whether every check passed."""
    lines = [f"{name:<18}{value}" for name, value in facts().items()]
    healthy = True
    for name, check in CHECKS.items():
        try:
            check()
            outcome = "ok"
        except Exception as error:  # a report has to come out whatever breaks
            outcome, healthy = f"FAILED: {type(error).__name__}: {error}", False
        lines.append(f"{'check ' + name:<18}{outcome}")
    return "\n".join(lines), healthy


def _identity() -> None:
    """dL/dr = dL/dz at a site."""
    import torch

    from layerwise.core.sites import Sites

    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
    x = torch.ones(2, 4, dtype=torch.float64)
    with Sites(net, ["0"], example=x) as sites:
        with sites.record(x) as recorded:
            net(x).square().sum().backward(inputs=recorded.leaves)
        (g,) = recorded.gradients().values()
    z = net[0](x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(net[2](net[1](z)).square().sum(), z)
    if not torch.equal(g, expected):
        raise ValueError("a recorded gradient differs from the activation's own")


def _step() -> None:
    """One SLAT step on the embedded data."""
    import torch

    from layerwise import data, models
    from layerwise.core.driving import step
    from layerwise.methods import SLAT

    digits = data.load("digits")
    model = models.build("digits_cnn", num_classes=10, shape=digits.shape)
    x, y = next(iter(data.batches(digits.train, 32)))
    loss = step(SLAT(eta=0.1), model, x, y, torch.optim.SGD(model.parameters(), lr=0.1))
    if not loss.isfinite():
        raise ValueError(f"the loss is {loss.item()}")


def _folder() -> None:
    """The working folder takes files."""
    if not os.access(os.getcwd(), os.W_OK):
        raise ValueError(f"{os.getcwd()} is not writable; runs go to ./runs unless --runs says otherwise")


CHECKS: dict[str, Callable[[], None]] = {"recording": _identity, "training": _step, "folder": _folder}


def run(arguments: Any, settings: list[str]) -> None:
    """Print the report."""
    from layerwise.cli.console import say

    report, healthy = doctor()
    say(report)
    if not healthy:
        raise LayerwiseError("a check failed; put what is above into a bug report")


COMMAND = Command(summary="print what a bug report needs, and check that the parts work together", run=run)
