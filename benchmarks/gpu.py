"""What a GPU has to show, in order of worth; each result is on the disk as soon as it is known.

    benchmarks/gpu.sh --limit 570 --output gpu.json
    benchmarks/gpu.sh --rehearse                    # at a tiny size, on any machine

A part begins if what it is expected to take is left, and is stopped before the limit. The output holds, by part, its seconds, its exit
code, and the record that it has written or the end of what it has said. The same command goes on with what the output lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

from layerwise.cli.console import complain, say
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.files import write_text

GRACE = 5.0
"""Seconds between asking a part to stop and the limit: what it writes then, and the output."""

ROOT = Path(__file__).parents[1]


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """A command.

    Args:
        name: of its result.
        command: what follows `python -m`; `{runs}` is the folder of run folders.
        seconds: that it is expected to take, a little more rather than less.
        record: the JSON file that it writes, likewise; None is the end of what it says.
        needs: a folder without which it has nothing to do.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    record: str | None = None
    needs: str | None = None


FAST = ("--training.precision=bf16-mixed", "--training.channels_last=true", "--training.capture=auto")
NETWORKS = {
    "prn18": "preact_resnet18 --shape 3,32,32",
    "wrn28": "wide_resnet --options {depth:\\ 28,\\ width:\\ 10} --shape 3,32,32",
}
STEPS = {
    "eager": ("--capture=false", 1.0),
    "captured": ("--capture=auto", 1.3),
    "compiled": ("--capture=auto --compile", 5.0),
}
METHODS = {
    "slat": ("slat-cifar10", "", 90),
    "fgsm-rs": ("fgsm-rs-cifar10", "", 90),
    "n-fgsm": ("n-fgsm-cifar10", "", 90),
    "lad-natural": ("standard-cifar10", "--method=LAD --method.eta=50", 110),
    "anp": ("standard-cifar10", "--method=ANP --method.eta=0.3 --method.eps=0.3 --method.k=3", 130),
}
"""30 epochs of a PreAct ResNet-18 in the loop of `slat-cifar10`: (recipe, settings, expected seconds with PGD-50 on 10,000 images)."""


def parts() -> Iterator[Part]:
    """In order of worth: that captured steps are right, what they gain, the headline, then methods, each trained and attacked."""
    yield Part(name="tests", command=_words("pytest -q -p no:cacheprovider tests/test_gpu.py"), seconds=90)
    yield from (_steps("prn18", kind, 15) for kind in ("eager", "captured"))
    yield Part(
        name="robust-45",
        command=(
            *_words("benchmarks.robust --training.compile=false --runs {runs} --output {runs}/robust.json"),
            *FAST,
        ),
        seconds=110,
        record="{runs}/robust.json",
    )
    yield _trained("slat")
    yield _attacked("slat")
    yield from (_steps("wrn28", kind, 20) for kind in ("eager", "captured"))
    for name in ("fgsm-rs", "n-fgsm", "lad-natural", "anp"):
        yield _trained(name)
        yield _attacked(name)
    yield _steps("prn18", "compiled", 15)
    yield _steps("wrn28", "compiled", 20)


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def _steps(network: str, kind: str, seconds: float) -> Part:
    """The steps of three methods on a network."""
    options, times = STEPS[kind]
    record = f"{{runs}}/steps-{network}-{kind}.json"
    fixed = "--precision bf16-mixed --channels-last true --methods SLAT PGD:steps=10 --rounds 5 --seconds 0.4"
    typed = ("--network", *_words(NETWORKS[network]), *_words(f"{options} {fixed} --output {record}"))
    return Part(
        name=f"steps-{network}-{kind}",
        command=(
            "layerwise",
            "bench",
            "step",
            *(word.replace("{depth: 28, width: 10}", "{{depth: 28, width: 10}}") for word in typed),
        ),
        seconds=seconds * times,
        record=record,
    )


def _trained(name: str) -> Part:
    """A method, trained and evaluated by PGD-50 on all test images."""
    recipe, settings, seconds = METHODS[name]
    own = (*_words(f"{settings} --evaluation.batch_size=1000"), "--evaluation.attacks=[clean, pgd-50]", *FAST)
    typed = _words(f"layerwise train {recipe} --name {name} --runs {{runs}} --resume")
    return Part(name=name, command=(*typed, *own), seconds=seconds, record=f"{{runs}}/{name}/evaluation.json")


def _attacked(name: str) -> Part:
    """The same by AutoAttack on 1,000 of them."""
    typed = (
        f"layerwise evaluate {{runs}}/{name} --num-examples 1000 --record autoattack --evaluation.attacks=[autoattack]"
    )
    return Part(
        name=f"{name}-autoattack",
        command=_words(f"{typed} --evaluation.batch_size=500"),
        seconds=80,
        record=f"{{runs}}/{name}/autoattack.json",
        needs=f"{{runs}}/{name}/model.safetensors",
    )


TINY = {
    "cifar10": "digits",
    "--network": "lenet",
    "--shape": "1,28,28",
    "--options": "{}",
    "--rounds": "1",
    "--seconds": "0",
}
"""What a rehearsal types in place of a part's own words, and after its options."""
TINY_RUN = _words(
    "--model.name=preact_resnet20 '--model.options={{width: 4}}' --training.max_steps=4 --training.epochs=1 --training.eval_every=0 "
    "--evaluation.num_examples=16 --training.channels_last=false --training.precision=32-true --data.validation=0.1"
)


def rehearsal(of: Part) -> Part:
    """A part at a tiny size: the same commands on the embedded digits."""
    typed = list(of.command)
    if typed[0] == "pytest":
        typed += ["--collect-only"]
    for at, word in enumerate(typed[:-1]):
        if word in TINY:
            typed[at + 1] = TINY[word].replace("{}", "{{}}")
    typed = [word.replace("-cifar10", "-digits").replace("pgd-50", "pgd-2") for word in typed if word != "--compile"]
    if "train" in typed:
        typed += TINY_RUN
    if typed[0] == "benchmarks.robust":
        typed += ["--recipe=n-fgsm-digits", "--goal=0.9", "--attack=pgd-2", *TINY_RUN]
    if "evaluate" in typed:
        typed = ["--evaluation.attacks=[pgd-2]" if "autoattack]" in word else word for word in typed]
        typed[typed.index("1000")] = "16"
    return Part(name=of.name, command=tuple(typed), seconds=0.0, record=of.record, needs=of.needs)


class Left(Protocol):
    """What is left."""

    @property
    def left(self) -> float:
        """Seconds until a part has to be stopped."""


@final
class Budget:
    """The seconds that are left of a limit.

    Args:
        limit: in all.
    """

    def __init__(self, limit: float) -> None:
        self.end = time.monotonic() + limit

    @property
    def left(self) -> float:
        """Until a part has to be stopped."""
        return self.end - GRACE - time.monotonic()


def go_through(todo: Sequence[Part], budget: Left, *, output: Path, runs: Path) -> dict[str, Any]:
    """Run the parts that the output lacks, and write it after each.

    Raises:
        ConfigError: the output is no record of this command.
    """
    record = _read(output)
    for part in todo:
        if record["parts"].get(part.name, {}).get("code") == 0:
            continue
        record["parts"][part.name] = found = _run(part, budget, runs)
        write_text(output, json.dumps(record, indent=1) + "\n")
        told = found.get("left_out") or f"{found['seconds']:.1f} s, code {found['code']}"
        say(f"{part.name}: {told} ({max(0.0, budget.left):.0f} s left)")
    return record


def _read(output: Path) -> dict[str, Any]:
    if not output.exists():
        return {"kind": "gpu", "machine": _machine(), "parts": {}}
    try:
        record: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        if record["kind"] == "gpu" and isinstance(record["parts"], dict):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{output} is no record of benchmarks/gpu.sh; choose another --output")


def _machine() -> dict[str, Any]:
    from layerwise.experiments import experiment
    from layerwise.experiments.bench.timing import machine

    return machine(experiment.best_device())


def _run(part: Part, budget: Left, runs: Path) -> dict[str, Any]:
    """What came of a part."""
    if part.needs and not Path(part.needs.format(runs=runs)).exists():
        return {"left_out": f"{part.needs.format(runs=runs)} is not there"}
    if (left := budget.left) < max(part.seconds, 1.0):
        return {"left_out": f"needs about {part.seconds:.0f} s, {max(0.0, left):.0f} s are left"}
    typed = [word.format(runs=runs) for word in part.command]
    log = runs / "logs" / f"{part.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *typed], cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
        code = _awaited(process, budget)
    found = {"seconds": time.monotonic() - began, "code": code, "command": shlex.join(typed)}
    file = None if part.record is None else Path(part.record.format(runs=runs))
    if code == 0 and file is not None:
        return {**found, "record": json.loads(file.read_text(encoding="utf-8"))}
    return {**found, "said": log.read_text(encoding="utf-8", errors="replace")[-4000:]}


def _awaited(process: subprocess.Popen[bytes], budget: Left) -> int:
    """The exit code; whatever still runs when the time is over is asked to stop, and then ended with all that it has started."""
    try:
        return process.wait(max(0.1, budget.left))
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        return process.wait(GRACE / 2)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--limit", type=float, default=570.0, help="seconds in all (default: 570)")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the results (default: gpu.json)")
    parser.add_argument(
        "--runs", type=Path, default=Path("build/gpu"), help="run folders and logs (default: build/gpu)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes: does every part run?")
    arguments = parser.parse_args(argv)
    budget = Budget(arguments.limit)
    todo = [part for part in parts() if not arguments.only or part.name in arguments.only]
    todo = [rehearsal(part) for part in todo] if arguments.rehearse else todo
    try:
        found = go_through(todo, budget, output=arguments.output.resolve(), runs=arguments.runs.resolve())
    except LayerwiseError as error:
        complain(str(error))
        return 2
    failed = [name for name, each in found["parts"].items() if each.get("code", 0)]
    say(f"results: {arguments.output}" + (f"; failed or stopped: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
