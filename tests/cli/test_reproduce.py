"""`layerwise reproduce`: what it costs, what it says, and mistakes in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.costs import current

import layerwise as lw
from layerwise.attacks import AutoAttack, parse_attack
from layerwise.reproduce import costs, definitions, listed
from layerwise.reproduce.definitions import System, items
from layerwise.reproduce.scales import scale
from layerwise.reproduce.systems import resolve
from layerwise.trees import Tree
from tests.command import Command, layerwise, told
from tests.reproduce.cases import TINY, item

__all__ = ["layerwise"]

DIGITS = item(rows={"standard": "standard-digits", "SLAT": "slat-digits", "none": "no-recipe"})


@pytest.fixture
def only_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "items", lambda: {"slat/table-x": DIGITS})


def tree(recipe: str, name: str = "full") -> Tree:
    return costs._alone(resolve(System(recipe=recipe), scale(name), seed=0))


def test_training_costs_what_its_passes_do() -> None:
    gpu = costs.MACHINES["gpu"]
    standard, fgsm, pgd = (
        costs.training_seconds(tree(r), gpu) - gpu.start for r in ("standard-cifar10", "fgsm-cifar10", "pgd-cifar10")
    )
    assert fgsm / standard == pytest.approx(5 / 3)
    assert pgd / standard == pytest.approx((2 * 7 + 3) / 3)


def changed(recipe: str, **settings: object) -> Tree:
    found = tree(recipe)
    return {**found, "training": {**found["training"], **settings}}


def test_the_rates_are_those_that_were_measured() -> None:
    gpu, steps = costs.MACHINES["gpu"], 30 * 50_000 / 128

    def step(found: Tree) -> float:
        return (costs.training_seconds(found, gpu) - gpu.start) / steps

    assert step(changed("standard-cifar10", capture=False)) == pytest.approx(6.98e-3, rel=0.2)
    assert step(tree("standard-cifar10")) == pytest.approx(2.75e-3, rel=0.2)
    assert step(tree("slat-cifar10-wrn")) == pytest.approx(23.0e-3, rel=0.2)


def test_full_trains_in_bf16_where_no_gradient_is_differentiated_and_is_costed_so() -> None:
    gpu = costs.MACHINES["gpu"]
    assert [tree(r)["training"]["precision"] for r in ("slat-cifar10-wrn", "fgsm-ga-cifar10", "standard-mnist")] == [
        "bf16-mixed",
        "32-true",
        "32-true",
    ]
    fast, exact = tree("slat-cifar10-wrn"), changed("slat-cifar10-wrn", precision="32-true")
    ratio = (costs.training_seconds(exact, gpu) - gpu.start) / (costs.training_seconds(fast, gpu) - gpu.start)
    assert ratio == pytest.approx(gpu.training / gpu.evaluating)


def test_a_method_that_looks_at_all_classes_is_counted_for_those_of_the_data() -> None:
    method = lw.DeepDefense()
    backward = [method.among(classes).passes.activations for classes in (10, 1000)]
    assert backward[1] - backward[0] == 990 * method.num_steps
    assert method.passes == method.among(10).passes
    few = lw.DeepDefense(num_classes=5)
    assert few.among(1000) is few
    wrapped = lw.AWP(base=lw.SLAT(sites=["a"], base=lw.FGSM()))
    assert wrapped.among(1000) is wrapped


def test_what_falls_to_an_attack_drops_out() -> None:
    whole = parse_attack("autoattack")
    assert isinstance(whole, AutoAttack)
    first, *others = whole.members
    assert costs.passes_under(whole, 10, 1.0) == whole.passes(10)
    assert costs.passes_under(whole, 10, 0.0) == first.passes(10)
    assert costs.passes_under(whole, 10, 0.3) == pytest.approx(
        first.passes(10) + 0.3 * sum(member.passes(10) for member in others)
    )
    for text in ("clean", "fgsm", "eot-10:pgd-50-10", "pgd-50 stop_when_fooled=False"):
        assert costs.passes_under(parse_attack(text), 10, 0.1) == parse_attack(text).passes(10)


def test_the_printed_accuracy_says_how_many_drop_out_and_noisy_passes_are_counted() -> None:
    table = items()["lad/table-4"]
    found = {row.name: resolve(row.system, scale("full"), seed=0).tree for row in table.rows}
    noisy = {name: each["evaluation"]["inference"] for name, each in found.items()}
    assert any(noisy.values())
    for column in (column for column in table.columns if "attack" in column.options):
        attack = parse_attack(column.options["attack"])
        for row in table.rows:
            _, passes = costs._effort(column, scale("full"), found[row.name], costs._printed_share(table, row, column))
            if noisy[row.name]:  # a pass a gradient, and a hundred for the verdict
                assert passes == attack.passes(10) - 1 + 100
            else:
                assert passes <= attack.passes(10)


def test_phases_are_counted_one_by_one() -> None:
    gpu = costs.MACHINES["gpu"]
    whole = costs.training_seconds(tree("anp-cifar10"), gpu) - gpu.start
    clean = costs.training_seconds(tree("standard-cifar10-vgg-anp"), gpu) - gpu.start
    assert whole / clean == pytest.approx((40 * 1 + 50 * 3 + 50 * 5) / 140)


def test_a_plan_names_what_is_not_trained_and_what_is_not_there(tmp_path: Path) -> None:
    header, rows = costs.plan([DIGITS], TINY, tmp_path)
    assert header == ("system", "CPU hours", "first needed by")
    names = [row[0] for row in rows]
    assert [name.rpartition("-")[0] for name in names[:2]] == ["standard-digits", "slat-digits"]
    assert names[2:4] == ["evaluating slat/table-x", "slat/table-x: none"]
    assert rows[3][2].startswith("not available: there is no recipe 'no-recipe'")
    (tmp_path / names[0]).mkdir()
    (tmp_path / names[0] / "model.safetensors").touch()
    _, rest = costs.plan([DIGITS], TINY, tmp_path)
    assert names[0] not in [row[0] for row in rest]


def test_seeds_multiply_the_cost() -> None:
    table = items()["slat/table-3"]
    one, full = costs.cost(table, scale("reduced")), costs.cost(table, scale("full"))
    assert (len(one.systems), len(full.systems)) == (3, 12)


def test_the_list_has_a_time_at_each_scale(layerwise: Command) -> None:
    said = layerwise("reproduce", "list")
    assert said.code == 0
    assert "Times assume" in said.out
    first = [line.split()[0] for line in said.out.splitlines() if "/" in line.partition(" ")[0]]
    assert first == list(definitions.items())


@pytest.mark.slow
def test_what_is_listed_is_what_it_costs() -> None:
    assert listed.FILE.read_text(encoding="utf-8") == current(), "type: python -m benchmarks.costs"


@pytest.mark.usefixtures("only_digits")
def test_a_plan_runs_nothing(layerwise: Command, tmp_path: Path) -> None:
    said = layerwise("reproduce", "slat/table-x", "--scale", "full", "--plan", "--seeds", "2")
    assert said.code == 0
    assert "GPU hours" in said.out
    assert said.out.count("slat-digits-") == 2
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "runs").exists()


def test_render_shows_the_page_and_its_verdicts(layerwise: Command, tmp_path: Path) -> None:
    from layerwise.reproduce.render import write
    from tests.reproduce.test_record import made

    file = write(made(), tmp_path)
    body = json.loads(file.read_text())
    body["rows"][0]["cells"]["PGD"]["ours"][0].update(value=1.0, low=0.0, high=2.0)
    file.write_text(json.dumps(body))
    said = layerwise("reproduce", "render", str(file))
    assert said.code == 0
    assert "does not hold" in said.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["slat/tabel-1"], "there is no table or figure 'slat/tabel-1'; did you mean 'slat/table-1'"),
        (["slat/table-1", "--scale", "tiny"], "there is no scale 'tiny'"),
        (["slat/table-1", "--seeds", "0"], "--seeds=0 is too small; type a number of at least 1"),
        (["list", "slat"], "`reproduce list` takes nothing more, found 'slat'"),
        (["render"], "render needs records"),
        (["render", "nowhere.json"], "there is no file nowhere.json"),
        (["slat/table-1", "--scal", "full"], "reproduce has no option '--scal'; did you mean '--scale'"),
    ],
)
def test_mistakes_are_told(layerwise: Command, argv: list[str], message: str) -> None:
    told(layerwise("reproduce", *argv), message)


@pytest.mark.parametrize("axis", ["", "eta"])  # a table, and one that is drawn
def test_when_nothing_could_be_run_the_command_fails_and_names_the_whole_path(
    axis: str, layerwise: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = item(axis=axis, rows={"SLAT": {"recipe": "slat-mnist"}, "PGD": {"recipe": "pgd-mnist"}})
    monkeypatch.setattr(definitions, "items", lambda: {"slat/table-x": missing})
    monkeypatch.setattr(definitions, "find", lambda name: [missing])
    data = ["--data.root", str(tmp_path / "my data")]
    said = layerwise("reproduce", "slat/table-x", "--scale", "reduced", "--quiet", *data)
    assert said.code == 2
    assert said.err.endswith(
        "error: nothing could be run, and each reason is told above; mend it and type the same again\n"
    )
    assert said.err.count(f"not found in {tmp_path / 'my data'}/MNIST/raw") == 1
    record = (tmp_path / "results/reduced/slat/table-x.json").read_text()
    assert str(tmp_path) not in record
