"""Without any optional library: everything that needs none works, and each that is missing is told with the command that installs it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = '''
import json, sys
from pathlib import Path

OPTIONAL = set(sys.argv[1].split(","))

class Without:
    """Finds what another finds, but for these: as if they were not installed."""

    def __init__(self, inner):
        self.inner = inner

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in OPTIONAL else self.inner.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.inner, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

import torch
import layerwise as lw

folder = Path(sys.argv[2])
data = lw.load_data("digits")
model = lw.build_model("digits_cnn", num_classes=10, shape=data.shape)
lw.fit(model, lw.SLAT(eta=0.1), data, training=lw.Training(max_steps=2), run=folder / "run", progress=False)
record = lw.evaluate(model, data, num_examples=20, attacks=["clean", "pgd-2"], progress=False)
from layerwise.integrations import hub, lightning
hub.from_pretrained(hub.save_pretrained(model, folder / "saved", evaluation=record))
(folder / "page").mkdir()
from layerwise.report.page import report

def trainer():
    from layerwise.integrations.transformers import LayerwiseTrainer

def search():
    from layerwise.cli.main import main
    if main(["tune", "slat-digits", "--runs", str(folder / "tuned"), "--trials", "1"]):
        raise lw.LayerwiseError("as it was said")

acts = {
    "transformers": trainer,
    "huggingface_hub": lambda: hub.push_to_hub(folder / "saved", "me/net"),
    "timm": lambda: lw.build_model("timm:resnet10t", trust=True),
    "torchvision": lambda: lw.build_model("torchvision:resnet18", trust=True),
    "pyautoattack": lambda: lw.evaluate(model, data, attacks=["autoattack"], num_examples=2, progress=False),
    "foolbox": lambda: lw.evaluate(model, data, attacks=["cw"], num_examples=2, progress=False),
    "onnxscript": lambda: lw.export(model, folder / "net.onnx", example=torch.zeros(2, *data.shape)),
    "tensorboard": lambda: lw.fit(
        model, lw.Standard(), data, training=lw.Training(max_steps=1, tensorboard=True), run=folder / "logged", progress=False
    ),
    "optuna": search,
}
said = {}
for name, act in acts.items():
    try:
        act()
    except lw.LayerwiseError as error:
        said[name] = str(error)
print(json.dumps({"said": said, "seen": sorted(OPTIONAL & set(sys.modules))}))
'''

COMMANDS = {
    "transformers": "pip install transformers",
    "huggingface_hub": "pip install huggingface_hub",
    "timm": "pip install timm",
    "torchvision": "pip install torchvision",
    "pyautoattack": "pip install 'layerwise[eval]'",
    "foolbox": "pip install 'layerwise[eval]'",
    "onnxscript": "pip install layerwise[export]",
    "tensorboard": "pip install 'layerwise[tensorboard]'",
}
BESIDE = (
    "timm",
    "torchvision",
    "datasets",
    "huggingface_hub",
    "onnxscript",
    "torchattacks",
    "art",
    "submitit",
    "shtab",
)
"""Optional ones that no extra names under this name."""


def words(requirement: str) -> str:
    """The package that a requirement is of."""
    return requirement.partition(">")[0].partition("[")[0].partition(";")[0].strip()


def table() -> dict[str, list[str]]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = found["optional-dependencies"]
    return {"needed": found["dependencies"]} | extras


def test_what_is_needed_holds_nothing_optional() -> None:
    needed = {words(r) for r in table()["needed"]}
    optional = {words(r) for name, listed in table().items() for r in listed if name not in ("needed", "test", "docs")}
    assert not needed & (optional | set(BESIDE))


@pytest.mark.slow
def test_each_missing_library_is_told_with_its_command(tmp_path: Path) -> None:
    extras = {words(r) for name, listed in table().items() for r in listed if name not in ("needed", "test", "docs")}
    missing = ",".join(sorted((extras | set(BESIDE)) - {"layerwise"}))
    done = subprocess.run([sys.executable, "-c", SCRIPT, missing, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] == []
    for name, command in COMMANDS.items():
        assert command in found["said"][name], name
    assert "pip install 'layerwise[tune]'" in done.stderr + done.stdout
