"""What a user may do wrong on the command line: one sentence on standard error, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layerwise import models
from layerwise.experiments import experiment
from layerwise.models.export import export
from tests.command import QUICK, Command, done, finished, layerwise, told

__all__ = ["done", "finished", "layerwise"]  # fixtures

TRAIN = ["train", "slat-digits", *QUICK]

MISTAKES = [
    # Commands and options.
    (["trian"], r"there is no command 'trian'; did you mean 'train'\?"),
    (["train"], r"train needs a recipe; `layerwise list recipes` shows them"),
    (["train", "slat-digits", "more"], r"train does not take 'more'; see `layerwise train --help`"),
    (["train", "slat-digits", "--seed", "3"], r"train has no option '--seed'; did you mean '--training.seed' or"),
    (["train", "slat-digits", "--nmae", "x"], r"train has no option '--nmae'; did you mean '--name'"),
    (["train", "slat-digits", "--eta=1"], r"train has no option '--eta'; did you mean '--method.eta'\?"),
    (
        ["train", "slat-digits", "--seeds", "x"],
        r"argument --seeds: 'x' is no whole number; see `layerwise train --help`",
    ),
    (["train", "slat-digits", "--seeds", "0"], r"seeds=0 trains nothing; type --seeds 3"),
    (["train", "slat-digits", "--seeds", "-2"], r"seeds=-2 trains nothing"),
    (["train", "--resume", "runs/nothing"], r"runs/nothing does not exist; train one with `layerwise train RECIPE`"),
    (["train", "."], r"\. is no run folder: it holds no config.yaml"),
    (["list", "recipies"], r"there is no list of 'recipies'; did you mean 'recipes'\?"),
    (["list", "networks"], r"there is no list of 'networks'; did you mean 'models'"),
    (["list"], r"list needs to know what: methods, models, .*; for example: layerwise list recipes"),
    (["train", "slat-digits", "--device", "cuda"], r"no option '--device'; type --training.accelerator cuda"),
    (["train", "--method.help"], r"those of method too; for example: layerwise train slat-digits --help"),
    (["report"], r"arguments are required: folders, for example: layerwise report runs/slat-digits runs/pgd-digits"),
    (["bench"], r"arguments are required: what, for example: layerwise bench step"),
    (["reproduce"], r"arguments are required: what, for example: layerwise reproduce list"),
    (
        [*TRAIN, "--name", ".."],
        r"--name '..' is no name; type a word, such as --name slat-2, and --runs FOLDER for ano",
    ),
    ([*TRAIN, "--name", "../there"], r"--name '../there' is no name"),
    ([*TRAIN, "--name", "a/../../b"], r"is no name"),
    ([*TRAIN, "--name", "/there"], r"--name '/there' is no name"),
    ([*TRAIN, "--name", "."], r"--name '.' is no name"),
    ([*TRAIN, "--name="], r"--name '' is no name"),
    ([*TRAIN, "--name", "~/mine"], r"--name '~/mine' is no name"),
    (
        ["tune", "slat-digits", "--range", "method.eta=0.1:0.5", "--range", "method.eta.conv1=0.1:0.2"],
        r"the ranges of method.eta and method.eta.conv1 set the same numbers; leave out one of them",
    ),
    (["tune", "slat-digits", "--name", "../../x"], r"--name '../../x' is no name"),
    (["train", "slat-digits", "--config", "my.yaml"], r"type the file in the recipe's place, .* train my.yaml"),
    (["train", "slat-digits", "--epsilon", "0.1"], r"no option '--epsilon'; type --threat.eps 8/255"),
    (["train", "slat-digits", "--amp"], r"no option '--amp'; type --training.precision bf16-mixed"),
    (["help", "trian"], r"there is no command 'trian'; did you mean 'train'\?"),
    (["list", "data", "--data.root", "x"], r"list has no option '--data.root'"),
    (["evaluate"], r"evaluate needs a run folder, for example"),
    (
        ["evaluate", "slat-digits"],
        r"slat-digits does not exist; it is a recipe: `layerwise train slat-digits` trains and",
    ),
    (["sites"], r"sites needs a network, for example: layerwise sites digits_cnn --shape 1,8,8"),
    (["evaluate", "runs/nothing"], r"runs/nothing does not exist; train one with"),
    (["report", "runs/nothing"], r"there is no folder runs/nothing; give a run folder, such as runs/"),
    # Recipes and settings.
    (["train", "slat-digit"], r"there is no recipe 'slat-digit'; did you mean 'slat-digits'"),
    (["train", "SLAT"], r"SLAT is a method; recipes: slat-awp-cifar10, .*slat-digits, .* takes it with --method SLAT"),
    (["train", "aNp"], r"ANP is a method; recipes: anp-"),
    (["train", "Parseval"], r"Parseval is a method; recipes: .*; any recipe takes it with --method Parseval"),
    (["train", "SLAT-Digits"], r"there is no recipe 'SLAT-Digits'; did you mean 'slat-digits'\? \("),
    (["train", "nowhere.yaml"], r"there is no file nowhere.yaml"),
    ([*TRAIN, "--method.etaa", "1"], r"there is no setting '--method.etaa'; did you mean 'method.eta'"),
    ([*TRAIN, "--method.eta"], r"--method.eta has no value; type --method.eta VALUE"),
    ([*TRAIN, "--method", "SLTA"], r"method: there is no 'SLTA'; did you mean 'SLAT'"),
    (
        [*TRAIN, "--method", "my_methods:Mine"],
        r"command line: method: 'my_methods:Mine' cannot be imported \(No module named 'my_methods'\); is my_methods installed",
    ),
    ([*TRAIN, "--method", "null"], r"method=null does not fit; type one of AdvTrainI, ANP"),
    ([*TRAIN, "--method.base.eps", "0.1"], r"method.base has settings but no class; name it, --method.base NAME"),
    ([*TRAIN, "--training.epochs", "ten"], r"training.epochs=ten does not fit; type a whole number"),
    ([*TRAIN, "--training.epochs", "0"], r"epochs=0 is too small; type a number of at least 1"),
    ([*TRAIN, "--training.seed", "-1"], r"training.seed=-1 is too small; type a number of at least 0"),
    ([*TRAIN, "--training.precision", "16"], r"training.precision=16 does not fit; type one of 32-true"),
    ([*TRAIN, "--training.schedule", "null"], r"training.schedule=null does not fit; type one of Constant"),
    ([*TRAIN, "--training.accelerator", "abacus"], r"training cannot start as asked: .*abacus.*=auto"),
    ([*TRAIN, "--data", "."], r"data.name: . is a folder; type --data image-folder --data.root \."),
    ([*TRAIN, "--phases", "[{epochs: 3}]"], r"the phases have 3 epochs and the run 20; type training.epochs=3"),
    # Radii.
    ([*TRAIN, "--method.eta", "8"], r"method: eta=8 is in units of 0 to 255 pixels, ours are 0 to 1; type eta=8/255"),
    ([*TRAIN, "--method.eta.conv1", "8"], r"conv1=8 is in units of 0 to 255 pixels"),
    ([*TRAIN, "--method", "FGSM", "--method.eps", "8"], r"method: eps=8 is in units of 0 to 255 pixels"),
    ([*TRAIN, "--threat.eps", "8"], r"threat: eps=8 is in units of 0 to 255 pixels"),
    (
        [*TRAIN, "--threat.eps", "8/ten"],
        r"threat.eps=8/ten does not fit; type a number or a fraction such as 8/255",
    ),
    ([*TRAIN, "--threat.eps", "-0.1"], r"threat: eps=-0.1 is not a radius"),
    ([*TRAIN, "--training.eval_step", "-1"], r"training: eval_step=-1.0 is too small"),
    ([*TRAIN, "--method.eta.conv9", "0.1"], r"no site matches 'conv9'; did you mean 'conv1'"),
    (
        [*TRAIN, "--method.eta.layer2", "0.1"],
        r"eta.layer2 has no effect: the method's sites are input, conv1, layer1; add 'layer2' to its sites, or give eta as",
    ),
    # What is not there, or cannot be searched.
    (
        ["train", "slat-digits", "--dry-run", "--model.start", "runs/no"],
        r"model.start: there is no run, file or recipe",
    ),
    (["train", "eat-digits", "--dry-run", "--method.sources", "[nowhere]"], r"method: there is no run, file or rec"),
    (
        ["tune", "pgd-digits"],
        r"nothing to search; type --range training.optimizer.lr=0.025:0.4:log, .* of PGD are method",
    ),
    (["tune", "slat-digits", "--range", "method.eta.conv9=0.1,0.2"], r"no site matches 'conv9'; did you mean 'conv1'"),
    (["tune", "slat-digits", "--range", "method.eta=0.1:20"], r"eta=20 is in units of 0 to 255 pixels"),
    (
        ["tune", "slat-digits", "--range", "training.batch_size=32,x"],
        r"training.batch_size=x does not fit; type a whole",
    ),
    # Sites.
    ([*TRAIN, "--method.sites", "[cnv1]"], r"no site matches 'cnv1'; did you mean 'conv1'"),
    ([*TRAIN, "--method.sites", "layer[89]"], r"no site matches 'layer\[89\]'"),
    ([*TRAIN, "--method.sites", "[relu.*"], r"the site pattern '\[relu\.\*' is not a regular expression"),
    ([*TRAIN, "--method.eta", "{input: 0.1, conv2: 0.1}"], r"eta names no step for site 'conv1'"),
    # Networks and data.
    ([*TRAIN, "--model.name", "digit_cnn"], r"there is no network 'digit_cnn'.* did you mean 'digits_cnn'"),
    ([*TRAIN, "--model.name", "no_such_module:net"], r"cannot be imported \(No module named 'no_such_module'\)"),
    ([*TRAIN, "--model.options.widht", "3"], r"has no option 'widht'; its options are width"),
    ([*TRAIN, "--model.options.width", "0"], r"give a whole number of at least 1"),
    ([*TRAIN, "--model.start", "runs/nothing"], r"model.start: there is no run, file or recipe 'runs/nothing'"),
    ([*TRAIN, "--model", "digit_cnn"], r"there is no network 'digit_cnn'.* did you mean 'digits_cnn'"),
    ([*TRAIN, "--data", "mnist"], r"mnist: train-images-idx3-ubyte.gz, .* not found in"),
    ([*TRAIN, "--threat", "linf"], r"threat=linf does not fit; set its parts: --threat.norm, --threat.eps"),
    ([*TRAIN, "--data.name", "digit"], r"there is no data set 'digit'; did you mean 'digits'\?"),
    ([*TRAIN, "--data.validation", "-1"], r"validation"),
    ([*TRAIN, "--data.options.x", "3"], r"data set 'digits' has no option 'x'"),
    (["train", "slat-cifar10"], r"cifar10: cifar-10-binary.tar.gz not found in .*; add --data.download true"),
    # Evaluating.
    ([*TRAIN, "--evaluation.attacks", "pgd50"], r"attack 'pgd50' is unknown; did you mean 'pgd-50'"),
    ([*TRAIN, "--evaluation.attacks", "[clean, pdg-5]"], r"attack 'pdg-5' is unknown; did you mean 'pgd'"),
    ([*TRAIN, "--evaluation.attacks", "[]"], r"there is no attack to evaluate under"),
    ([*TRAIN, "--evaluation.attacks", "[fgsm, fgsm]"], r"'fgsm' is given 2 times; give it once"),
    (
        [*TRAIN, "--evaluation.num_examples", "0"],
        r"evaluation: num_examples=0 is too small; type a number of at least 1",
    ),
    ([*TRAIN, "--evaluation.measures", "[rho steps=0]"], r"evaluation.measures: steps=0 is too small"),
    ([*TRAIN, "--evaluation.measures", "landscap"], r"there is no measure 'landscap'; did you mean 'landscape'"),
    ([*TRAIN, "--evaluation.measures", "[corruptions fogg]"], r"corruption 'fogg' is unknown; did you mean 'fog'"),
    # Sites of a network.
    (["sites", "preact_resnt18"], r"there is no network 'preact_resnt18'.* did you mean 'preact_resnet18'"),
    (["sites", "slat-digits"], r"slat-digits is a recipe; type `layerwise train slat-digits --dry-run`"),
    (["sites", "digits_cnn", "--shape", "nonsense"], r"--shape nonsense is no shape; type channels,height,width"),
    (["sites", "digits_cnn", "--shape", "1,0,8"], r"an entry of shape is 0; give a whole number of at least 1"),
    (["sites", "digits_cnn", "--shape", "8"], r"takes images of shape \(channels, height, width\)"),
    (["sites", "digits_cnn", "--options", "5"], r"--options 5 does not fit; type a mapping in quotes"),
    (["sites", "digits_cnn", "--options", "{a: ["], r"--options is not YAML"),
    (["sites", "digits_cnn", "--options", "{width: x}"], r"give a whole number of at least 1"),
    (["sites", "digits_cnn", "--select", "cnv1"], r"no site matches 'cnv1'; did you mean 'conv1'"),
    (["sites", "digits_cnn", "--select", "first(99)"], r"type a number from 1 to \d"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[" ".join(m[0][:1] + m[0][-2:]) for m in MISTAKES])
def test_mistakes_are_told_and_leave_nothing(layerwise: Command, tmp_path: Path, argv: list[str], message: str) -> None:
    told(layerwise(*argv), message)
    # matplotlib keeps the fonts that it has found.
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "matplotlib" not in p.parts] == []
    assert not (tmp_path / "runs" / "slat-digits").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: slat-digits\nmethod: {num_probe: 2}\n",
            r"own.yaml: there is no setting 'method.num_probe'; did you mean",
        ),
        ("extends: slat-digits\nmethods: {num_probes: 2}\n", r"own.yaml: there is no setting 'methods.num_probes'"),
        (
            "extends: slat-digits\ntraining: {epochs: many}\n",
            r"own.yaml: training.epochs=many does not fit; type a whole number",
        ),
        (
            "extends: slat-digits\ntraining: 3\n",
            r"own.yaml: training=3 does not fit; set its parts: epochs, batch_size",
        ),
        ("extends: slat-digts\n", r"there is no recipe 'slat-digts'; did you mean 'slat-digits'"),
        ("extends: own.yaml\n", r"recipe 'own.yaml' extends itself: own.yaml -> own.yaml"),
        ("data: {name: digits}\n", r"own.yaml: method is not set; add it, or type --method NAME"),
        ("method: [SLAT\n", r"own.yaml is not YAML"),
        ("training:\n\tepochs: 3\n", r"own.yaml is not YAML: .* at line 2, column 1; indent by spaces, not by tabs"),
        ("- SLAT\n", r"own.yaml is not a configuration"),
        ("", r"own.yaml is not a configuration"),
        ("method: !!python/object:os.system {}\n", r"own.yaml is not YAML"),
    ],
)
def test_mistakes_of_a_recipe_are_told(layerwise: Command, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    told(layerwise("train", "own.yaml"), message)
    assert [p.name for p in tmp_path.iterdir()] == ["own.yaml"]


def break_config(run: Path) -> None:
    (run / "config.yaml").write_text("method: [")


def lose_method(run: Path) -> None:
    (run / "config.yaml").write_text("data: {name: digits}\n")


def cut_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])


def scramble_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes(b"\0" * 50)


def lose_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()


def cut_record(run: Path) -> None:
    (run / "evaluation.json").write_text((run / "evaluation.json").read_text()[:100])


def other_record(run: Path) -> None:
    (run / "evaluation.json").write_text("{}")


def own_network(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"model:\n(  .*\n)+", "model:\n  own: Net\n", text))
    (run / "evaluation.json").unlink()


def foreign_code(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: digits_cnn", "name: os:system"))


def other_threat(run: Path) -> None:
    other = shutil.copytree(run, run.with_name("other"))
    text = (other / "evaluation.json").read_text()
    (other / "evaluation.json").write_text(text.replace('"eps": 0.2', '"eps": 0.1'))


@pytest.mark.parametrize(
    ("damage", "argv", "message"),
    [
        (break_config, ["evaluate", "runs/done"], r"runs/done/config.yaml is not YAML"),
        (break_config, ["train", "--resume", "runs/done"], r"runs/done/config.yaml is not YAML"),
        (lose_method, ["evaluate", "runs/done"], r"runs/done/config.yaml: method is not set"),
        (cut_weights, ["evaluate", "runs/done"], r"the weights runs/done/model.safetensors cannot be read \("),
        (scramble_weights, ["evaluate", "runs/done"], r"the weights runs/done/model.safetensors cannot be read \("),
        (
            lose_weights,
            ["evaluate", "runs/done"],
            r"runs/done has not finished \(1 of 20 epochs\); go on with: layerwise train --resume runs/done",
        ),
        (cut_record, ["report", "runs/done"], r"runs/done/evaluation.json is not JSON .*; evaluate the run again"),
        (other_record, ["report", "runs/done"], r"runs/done/evaluation.json is not the record of an evaluation"),
        (
            other_threat,
            ["report", "runs/done", "runs/other"],
            r"runs/other was evaluated in linf, eps 0.1 .*evaluate them alike",
        ),
        (foreign_code, ["evaluate", "runs/done"], r"names code of its own, 'os:system', .* add --trust to allow it"),
        (
            foreign_code,
            ["train", "--resume", "runs/done"],
            r"names code of its own, 'os:system', .* add --trust to allow it",
        ),
        (foreign_code, ["train", "--resume", "runs/done", "--dry-run"], r"names code of its own, 'os:system'"),
        (None, ["train", "runs/done"], r"runs/done is a run folder; type `layerwise train --resume runs/done`"),
        (
            None,
            ["train", "--resume", "runs/done", "--seeds", "2"],
            r"goes on with that one run; leave out --seeds and --name",
        ),
        (None, ["train", "--resume", "runs/don", *QUICK], r"runs/don does not exist; did you mean 'done'\?"),
        (None, ["evaluate", "runs/don"], r"runs/don does not exist; did you mean 'done'\?"),
        (None, ["evaluate", "done"], r"done does not exist; type runs/done"),
        (
            lambda run: run.rename(run.with_name("slat")),
            ["train", "--resume", "slat"],
            r"^error: slat is no recipe, but a run has that name; type `layerwise train --resume runs/slat` to go on",
        ),
        (
            own_network,
            ["report", "runs/done"],
            r"done holds no evaluation.json, .* make it there: layerwise.evaluate\(layerwise.load\('runs/done', model=network\)",
        ),
        (None, ["evaluate", "runs/done/model.safetensors"], r"holds no config.yaml; type runs/done"),
        (
            None,
            ["train", "--resume", "runs/done", "--training.epochs", "9"],
            r"\(leave them out, or begin another run\)",
        ),
        (None, ["evaluate", "runs/done", "--attacks", "pgd"], r"no option '--attacks'; type --evaluation.attacks"),
        (None, ["evaluate", "runs/done", "--weights", "bets"], r"there are no weights 'bets'; did you mean 'best'"),
        (None, ["evaluate", "runs/done", "--weights", "ema"], r"ema.safetensors does not exist; runs/done has last"),
        (
            None,
            ["evaluate", "runs/done", "--training.epochs", "3"],
            r"the run is trained already, so --training has no effect",
        ),
        (
            None,
            ["evaluate", "runs/done", "--suite", "autoattack"],
            r"autoattack is an attack; type --suite standard, which contains it, or --evaluation.attacks '\[clean, autoatt",
        ),
        (None, ["evaluate", "runs/done", "--record", "data"], r"a record cannot be called 'data'"),
        (None, ["evaluate", "runs/done", "--evaluation.num_examples", "0"], r"num_examples=0 is too small"),
        (
            None,
            ["evaluate", "runs/done", "--evaluation.attacks", "pdg"],
            r"attack 'pdg' is unknown; did you mean 'pgd'",
        ),
        (None, ["evaluate", "runs/done", "--threat.eps", "8"], r"eps=8 is in units of 0 to 255 pixels"),
        (
            None,
            ["evaluate", "runs/done", "--evaluation.epz", "8"],
            r"there is no setting '--evaluation.epz'; did you mean",
        ),
        (
            None,
            ["evaluate", "runs/done", "--model.options.width", "8"],
            r"model.safetensors belongs to another network: ",
        ),
        (None, ["evaluate", "runs/done", "--data.name", "mnist"], r"mnist: .* not found in"),
        (None, ["report", "runs/done", "runs/don"], r"there is no folder runs/don; did you mean 'runs/done'"),
        (
            None,
            ["report", "runs/done", "--output", "runs/done/config.yaml"],
            r"File exists; a file stands where a folder",
        ),
        (None, ["report", "runs/done", "--record", "best"], r"runs/done holds no best.json; --record takes evaluation"),
    ],
)
def test_damaged_runs_and_wrong_uses_are_told(
    layerwise: Command, done: Path, damage: Callable[[Path], None] | None, argv: list[str], message: str
) -> None:
    if damage is not None:
        damage(done)
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    told(layerwise(*argv), message)
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


def test_weights_for_another_number_of_classes_are_told(layerwise: Command, tmp_path: Path) -> None:
    net = models.build("digits_cnn", num_classes=7, shape=(1, 8, 8), mean=0.5, std=0.5, width=4)
    export(net, tmp_path / "seven.safetensors", example=torch.zeros(2, 1, 8, 8))
    said = layerwise(*TRAIN, "--model.start", "seven.safetensors")
    told(
        said,
        r"seven.safetensors belongs to another network: 'linear.weight' has shape \(7, \d+\), the network's \(10, \d+\)",
    )
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "seven.safetensors").read_bytes()[:-5])
    told(layerwise(*TRAIN, "--model.start", "cut.safetensors"), r"the weights cut.safetensors cannot be read")
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_is_told_and_leaves_nothing(layerwise: Command, tmp_path: Path) -> None:
    said = layerwise(
        *TRAIN, "--training.optimizer.lr", "1e30", "--training.max_steps", "5", "--training.schedule", "Constant"
    )
    told(said, r"the loss is not finite at batch \d of epoch 1: .*; lower the learning rate \(peak 1e\+30\)")
    assert not (tmp_path / "runs" / "slat-digits").exists()


def test_folders_that_cannot_be_written_are_told(layerwise: Command, done: Path, tmp_path: Path) -> None:
    """A file stands where a folder should be, since administrators may write everywhere."""
    (tmp_path / "file").write_text("")
    told(layerwise(*TRAIN, "--runs", "file"), r"cannot make the run folder file/slat-digits: Not a directory")
    told(
        layerwise("report", "runs/done", "--output", "file/there"),
        r"cannot write file/there.*: Not a directory; a file stands where a folder should be: check the path",
    )
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk_is_told(layerwise: Command, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    told(layerwise(*TRAIN), r"cannot write runs/slat-digits/versions.json: No space left on device; free space")
    told(
        layerwise("evaluate", "runs/done", "--quiet"), r"cannot write runs/done/.*: No space left on device; free space"
    )
    told(
        layerwise("report", "runs/done"),
        r"cannot write report/report.json: No space left on device; free space and resume",
    )
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


def test_a_site_that_is_called_twice_is_told(layerwise: Command, tmp_path: Path) -> None:
    (tmp_path / "twice_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.relu = nn.Linear(64, 8), nn.Linear(8, num_classes), nn.ReLU()\n"
        "    def forward(self, x):\n"
        "        return self.relu(self.b(self.relu(self.a(x.flatten(1)))))\n"
    )
    argv = ["train", "slat-digits", "--model.name", "twice_net:Net", "--method.eta", "0.1", "--method.sites"]
    told(layerwise(*argv, "[relu]"), r"relu#1' or '.*relu#0'|relu#0.*relu#1")
    assert not (tmp_path / "runs" / "slat-digits").exists()
    assert layerwise(*argv, "[relu#0]", *QUICK[:2], *QUICK[3:]).code == 0


def test_a_full_accelerator_is_told(layerwise: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(experiment, "fit", full)
    told(layerwise(*TRAIN), r"the accelerator's memory is full; type a smaller --training.batch_size")
    assert not (tmp_path / "runs" / "slat-digits").exists()


def test_a_mistake_of_our_own_is_no_sentence(layerwise: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(experiment, "fit", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        layerwise(*TRAIN)
