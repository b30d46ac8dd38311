"""Networks with any loss under attack: the losses that rise, the scores that fall, what is told instead."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import layerwise as lw
from layerwise.attacks.gradient import PGDAttack
from layerwise.core.criteria import as_criterion
from layerwise.errors import CheckpointError, ConfigError, DataError
from layerwise.evaluation import Evaluation, LossEvaluation
from layerwise.evaluation.losses import Posed
from tests.methods.test_losses import IMAGES, TASKS, WORDS, Tokens, pixels, vectors

THREAT = lw.ThreatModel(eps=0.1)
MOVED = ("segmentation", "several labels", "regression")


def evaluated(task: str, **options: Any) -> LossEvaluation:
    make, x, y, criterion = TASKS[task]
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(40):
        lw.step(lw.Standard(criterion=criterion), model.train(), x, y, optimizer)
    record: LossEvaluation = lw.evaluate(model, (x, y), criterion=criterion, threat=THREAT, batch_size=4, **options)
    return record


@pytest.mark.parametrize("task", MOVED)
def test_losses_rise_under_attack(task: str) -> None:
    record = evaluated(task, attacks=["clean", "fgsm", "pgd-10", "pgd-10-3", "bim-10", "mi-fgsm-10"])
    clean, pgd = record["clean"].loss.value, record["pgd-10-3"].loss.value
    assert 1.5 * clean < pgd <= record["worst case"].loss.value
    assert record["pgd-10"].loss.value <= pgd + 1e-12
    assert record.examples == 6
    assert not record.findings


def test_the_attack_climbs_as_one_that_is_written_out() -> None:
    make, x, y, criterion = TASKS["regression"]
    torch.manual_seed(0)
    model = make().eval()
    moved = x.clone()
    for _ in range(5):
        leaf = moved.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.mse_loss(model(leaf), y), leaf)
        moved = (x + (moved + 0.025 * g.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
    expected = F.mse_loss(model(moved), y).item()
    found = lw.evaluate(model, (x, y), criterion=criterion, threat=THREAT, attacks=["bim-5"])
    assert found["bim-5"].loss.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("task", "said", "share"),
    [
        ("segmentation", "positions correct", lambda output, y: (output.argmax(1) == y).double().mean()),
        ("several labels", "labels correct", lambda output, y: ((output > 0) == (y > 0.5)).double().mean()),
        ("next token", "positions correct", lambda output, y: (output[:, :-1].argmax(2) == y[:, 1:]).double().mean()),
    ],
)
def test_scores_count_what_is_correct(task: str, said: str, share: Callable[[Tensor, Tensor], Tensor]) -> None:
    make, x, y, criterion = TASKS[task]
    torch.manual_seed(0)
    model = make().eval()
    record = lw.evaluate(model, (x, y), criterion=criterion, attacks=["clean"], batch_size=4)
    output = model(**x)["logits"] if isinstance(x, dict) else model(x)
    assert record.score == said
    assert record["clean"].score is not None
    assert record["clean"].score.value == pytest.approx(share(output, y).item())


def test_tokens_without_a_label_do_not_count() -> None:
    _, x, y, criterion = TASKS["tags of tokens"]
    torch.manual_seed(0)
    model = Tokens(2).eval()
    record = lw.evaluate(model, [(x, y)], criterion=criterion, attacks=["clean"])
    output, counted = model(**x)["logits"], y != -100
    hits = ((output.argmax(2) == y) & counted).sum(1) / counted.sum(1)
    losses = lw.TokenCrossEntropy()(output, y).sum(1) / counted.sum(1)
    assert record["clean"].score is not None
    assert record["clean"].score.value == pytest.approx(hits.mean().item())
    assert record["clean"].loss.value == pytest.approx(losses.mean().item(), rel=1e-5)


def test_regression_has_no_score_unless_one_is_given() -> None:
    assert evaluated("regression", attacks=["clean"])["clean"].score is None
    record = evaluated(
        "regression", attacks=["clean", "pgd-5"], score=lambda output, y: ((output - y).abs() < 0.05).flatten()
    )
    clean, pgd = record["clean"].score, record["pgd-5"].score
    assert clean is not None
    assert pgd is not None
    assert clean.value > pgd.value


def test_token_ids_are_not_moved_and_the_audit_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="layerwise"):
        record = evaluated("next token", attacks=["clean", "pgd-5"], measures=["audit steps=2 radii=0.1", "rho"])
    assert [result.attack for result in record.results] == ["clean"]
    assert "pgd-5 is left out: whole numbers (token ids) carry no gradient; measures=['audit']" in caplog.text
    assert "rho is left out: it needs classes of images" in caplog.text
    assert [m.measure for m in record.measures] == ["audit steps=2 radii=0.1"]
    assert "Latent audit: " in record.to_markdown()


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "batches": lambda x, y: [(x[:4], y[:4]), (x[4:], y[4:])],
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
    "dataset": TensorDataset,
    "generator": lambda x, y: ((x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)),
    "by name": lambda x, y: [{"input": x, "labels": y}],
}


@pytest.mark.parametrize("form", FORMS)
def test_data_in_every_form_give_the_same(form: str) -> None:
    _, x, y, criterion = TASKS["segmentation"]
    torch.manual_seed(0)
    model = pixels()
    data = FORMS[form](x, y)
    record = lw.evaluate(model, data, criterion=criterion, threat=THREAT, attacks=["clean", "bim-3"], batch_size=4)
    whole = lw.evaluate(model, (x, y), criterion=criterion, threat=THREAT, attacks=["clean", "bim-3"])
    for attack in ("clean", "bim-3"):
        assert record[attack].loss.value == pytest.approx(whole[attack].loss.value, rel=1e-5)


def test_a_part_of_the_examples() -> None:
    _, x, y, criterion = TASKS["segmentation"]
    record = lw.evaluate(
        pixels(), [(x[:4], y[:4]), (x[4:], y[4:])], criterion=criterion, num_examples=5, attacks=["clean"]
    )
    assert record.examples == 5


def test_classes_of_texts_by_name() -> None:
    class Classifier(Tokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(input_ids, attention_mask)["logits"].mean(1)}

    torch.manual_seed(0)
    model, y = Classifier(3), torch.tensor([0, 1, 2, 0])
    record = lw.evaluate(model, [{**WORDS, "labels": y}], criterion=lw.CrossEntropy(), attacks=["clean"])
    hits = (model.eval()(**WORDS)["logits"].argmax(1) == y).double().mean().item()
    assert record.score == "correct"
    assert record["clean"].score is not None
    assert record["clean"].score.value == hits
    rows = [{**{name: value[i] for name, value in WORDS.items()}, "labels": y[i]} for i in range(4)]
    assert (
        lw.evaluate(model, rows, criterion=lw.CrossEntropy(), attacks=["clean"])["clean"].score == record["clean"].score
    )
    with pytest.raises(DataError, match="a tuple of batches, of examples by name or of token ids holds no images"):
        lw.evaluate(model, (WORDS["input_ids"], y))


def test_the_network_is_left_as_it_was() -> None:
    model = pixels().train()
    evaluated_ = lw.evaluate(
        model, (IMAGES, TASKS["segmentation"][2]), criterion=nn.CrossEntropyLoss(), attacks=["fgsm"]
    )
    assert evaluated_.model.name == "Sequential"
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_no_example_leaves_the_posed_problem_and_its_gradient_points_where_the_losss_does() -> None:
    _, x, y, criterion = TASKS["regression"]
    torch.manual_seed(0)
    model = vectors(1)
    posed = Posed(model, x, 1e4 * y, as_criterion(criterion))
    leaf = x.clone().requires_grad_()
    given = posed(leaf)
    assert (given.argmax(1) == 0).all()
    (g,) = torch.autograd.grad(F.cross_entropy(given, torch.zeros(6, dtype=torch.int64)), leaf)
    (wanted,) = torch.autograd.grad(((model(leaf) - 1e4 * y) ** 2).mean(), leaf)
    assert (torch.cosine_similarity(g.flatten(1), wanted.flatten(1)) > 0.999).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"attacks": ["deepfool"]},
            ConfigError,
            "deepfool-50 means classes of images, and criterion= is any loss; type one that climbs it",
        ),
        (
            {"attacks": [lambda model, x, y: PGDAttack(2)(model, x[:2], y[:2], THREAT)]},
            ConfigError,
            "a part of the batch",
        ),
        ({"attacks": [lambda model, x, y: (x + 0.5).clamp(0, 1)]}, ConfigError, "left the threat model"),
        ({"num_examples": 0}, ConfigError, "num_examples"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], error: type[Exception], message: str) -> None:
    _, x, y, criterion = TASKS["segmentation"]
    with pytest.raises(error, match=message):
        lw.evaluate(pixels(), (x, y), criterion=criterion, threat=THREAT, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "there are no examples"),
        ([{"a": IMAGES}], "the batch has a, and none of labels, label"),
        (3, "a int holds no examples; give batches"),
        ([3], "a batch is a int; give batches"),
        ([(2 * IMAGES, TASKS["segmentation"][2])], "and attacks keep them in \\[0, 1\\]; scale the data"),
    ],
)
def test_data_that_cannot_be_meant_are_told(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        lw.evaluate(pixels(), data, criterion=nn.CrossEntropyLoss())


class Texts(Dataset[dict[str, Tensor]]):
    """Examples by name, as people give them to transformers."""

    def __len__(self) -> int:
        return len(WORDS["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**{name: value[index] for name, value in WORDS.items()}, "labels": WORDS["input_ids"][index]}


NAMED: dict[str, Callable[[], Any]] = {
    "loader": lambda: DataLoader(Texts(), batch_size=2),
    "dataset": Texts,
    "list": lambda: [{**WORDS, "labels": WORDS["input_ids"]}],
    "mapping": lambda: {**WORDS, "labels": WORDS["input_ids"]},
    "pair": lambda: (WORDS, WORDS["input_ids"]),
}


@pytest.mark.parametrize("form", NAMED)
def test_examples_by_name_are_audited_and_evaluated_by_a_loss_that_is_asked_for(form: str) -> None:
    torch.manual_seed(0)
    model, data = Tokens(9), NAMED[form]()
    with pytest.raises(DataError, match=r"holds no images with classes; type criterion=layerwise.CrossEntropy\(\)"):
        lw.evaluate(model, data)
    with pytest.raises(
        DataError, match=r"about: type criterion=layerwise.TokenCrossEntropy\(\) or layerwise.NextToken"
    ):
        lw.audit(model, data)
    options: dict[str, Any] = {"criterion": lw.NextToken(), "radii": [0.2], "steps": 2}
    found = lw.audit(model, data, **options)
    whole = lw.audit(model, [{**WORDS, "labels": WORDS["input_ids"]}], **options)
    assert found.clean_loss == pytest.approx(whole.clean_loss)
    assert lw.evaluate(model, data, criterion=lw.NextToken(), attacks=["clean"]).examples == found.images


def test_a_network_without_gradients_is_found() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = pixels()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner((x * 4).round() / 4)
            return found

    data = (IMAGES.repeat(4, 1, 1, 1), TASKS["segmentation"][2].repeat(4, 1, 1))
    record = lw.evaluate(Steps(), data, criterion=nn.CrossEntropyLoss(), attacks=["clean", "fgsm"])
    assert [finding.name for finding in record.findings] == ["zero-gradient"]
    assert "> **Warning** zero-gradient" in record.to_markdown()


def test_the_record_is_json_and_markdown() -> None:
    record = evaluated("several labels", attacks=["clean", "pgd-3"], model_name="net", data_name="pictures")
    body = json.loads(record.to_json())
    assert (body["format"], body["model"]["name"], body["data"]) == ("layerwise-losses", "net", "pictures")
    assert body["results"][1]["loss"]["value"] == record["pgd-3"].loss.value
    text = record.to_markdown()
    assert text.startswith("**net** on pictures, 6 examples, BCEWithLogitsLoss(), linf, eps 0.1.")
    assert text.count("\n|") == 5


def test_the_record_is_written_printed_and_read(tmp_path: Path) -> None:
    record = evaluated("next token", attacks=["clean"], measures=["audit steps=1 radii=0.1"])
    assert str(record) == record.to_markdown()
    record.write(tmp_path)
    assert LossEvaluation.read(tmp_path) == record
    assert (tmp_path / "losses.md").read_text() == str(record)
    with pytest.raises(CheckpointError, match=r"holds no mine\.json; write it with record.write"):
        LossEvaluation.read(tmp_path, "mine")
    with pytest.raises(CheckpointError, match="is not the record of an evaluation by a loss"):
        LossEvaluation.from_json('{"format": "layerwise-evaluation"}')
    with pytest.raises(CheckpointError, match="the record has no examples"):
        LossEvaluation.from_json(record.to_json().replace(f'"examples": {record.examples},', ""))


def test_losses_that_are_no_numbers_stay_in_the_record_as_such() -> None:
    def broken(output: Tensor, y: Tensor) -> Tensor:
        return (output.flatten(1).mean(1) - y.flatten(1).double().mean(1)) * math.nan

    record = lw.evaluate(pixels(), (IMAGES, TASKS["segmentation"][2]), criterion=broken, attacks=["clean", "fgsm"])
    assert math.isnan(record["clean"].loss.value)
    assert json.loads(record.to_json())["results"][0]["loss"]["value"] is None
    assert math.isnan(LossEvaluation.from_json(record.to_json())["clean"].loss.value)


class Packed(nn.Module):
    """Gives its logits in something."""

    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.pack = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.inner(x))


@pytest.mark.parametrize(
    "pack",
    [lambda z: {"logits": z, "loss": None}, lambda z: (z, z.sum()), lambda z: [z]],
    ids=["mapping", "tuple", "list"],
)
def test_classes_of_images_in_whatever_the_network_gives(pack: Callable[[Tensor], Any]) -> None:
    data, y = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    options: dict[str, Any] = {"threat": THREAT, "attacks": ["clean", "pgd-5", "square queries=5"], "progress": False}

    def results(model: nn.Module) -> Evaluation:
        record: Evaluation = lw.evaluate(model, (data, y), measures=["landscape images=4 points=3"], **options)
        return record

    packed, plain = Packed(pack), Packed(lambda z: z)
    assert results(packed).accuracies == results(plain).accuracies
    assert not packed._forward_hooks
