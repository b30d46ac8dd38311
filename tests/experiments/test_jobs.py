"""Jobs: several commands at once, one of them killed, stopped together, and what they leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.cli.arguments import without
from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation import Evaluation
from layerwise.evaluation.store import Store
from layerwise.experiments import jobs
from layerwise.experiments.jobs import Crew, Job
from layerwise.experiments.ranges import Choice, Interval, Range
from layerwise.experiments.tune.search import propose
from layerwise.experiments.tune.trials import TRIALS, Trial, read_trials
from layerwise.experiments.tune.workers import JOURNAL, Shared
from layerwise.reproduce import definitions, scales
from layerwise.reproduce.record import Record
from layerwise.training.session import Session
from tests import forks
from tests.command import Command, Said, done, finished, layerwise, told
from tests.reproduce.cases import TINY, item

__all__ = ["done", "finished", "layerwise"]

LONGER = [
    "--training.max_steps=40",
    "--training.eval_every=0",
    "--model.options.width=4",
    "--evaluation.attacks=[clean,pgd-2]",
    "--evaluation.num_examples=20",
]
TABLE = item(rows={"standard": "standard-digits", "SLAT": "slat-digits", "again": "slat-digits", "none": "no-recipe"})
SEEDS = ["train", "slat-digits", "--seeds", "2", *LONGER]


def say(argv: tuple[str, ...], folder: Path, said: tuple[Path, Path], killed: bool) -> None:
    """The command, in a process that ends at its thirtieth batch where it is to be killed."""
    if killed:
        end_batch = Session.end_batch

        def end(self: Any, *arguments: Any) -> None:
            end_batch(self, *arguments)
            if self.step == min(30, self.total_steps):
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(Session, "end_batch", end)  # noqa: B010
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definitions, "items", lambda: {"slat/table-x": TABLE})
        patch.setattr(scales, "scales", lambda: {"tiny": TINY})
        forks.command(0, folder, said, argv)


class Forked:
    """A process a job, forked; `killed` names the jobs that do not live long."""

    killed: tuple[str, ...] = ()

    def __init__(self, threads: int) -> None:
        assert threads == 1

    def start(self, job: Job, slot: int) -> Any:
        process = forks.started(say, job.command, Path.cwd(), (job.out, job.log), job.name in self.killed)

        class Process:
            def code(self) -> int | None:
                return process.exitcode

            def stop(self, *, now: bool) -> None:
                process.kill() if now else process.terminate()

        return Process()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> type[Forked]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(jobs, "_Machine", Forked)
    monkeypatch.setattr(Forked, "killed", ())
    return Forked


def record(folder: str) -> Any:
    """What a run's record says, times and its name aside."""
    found = json.loads(Path(folder, "evaluation.json").read_text())

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items() if key not in ("seconds", "name")}
        return [*map(plain, value)] if isinstance(value, list) else value

    return plain(found)


def test_two_jobs_one_killed_and_resumed_give_the_records_of_one_after_the_other(
    layerwise: Command, forked: type[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert layerwise(*SEEDS, "--name", "alone").code == 0
    monkeypatch.setattr(forked, "killed", ("two-seed1",))
    said = layerwise(*SEEDS, "--name", "two", "--jobs", "2")
    assert said.code == 2
    assert "two-seed0: ended after" in said.err
    again = "layerwise train slat-digits --seeds 2 .* --name two --jobs 2 --resume"
    assert re.search(
        rf"error: two-seed1 was killed \(SIGKILL\); its log is runs/jobs/two-seed1.log; .*{again}", said.err
    )
    assert Path("runs/two-seed0/evaluation.json").is_file()
    assert Path("runs/two-seed1/checkpoints").is_dir()
    monkeypatch.setattr(forked, "killed", ())
    resumed = layerwise(*SEEDS, "--name", "two", "--jobs", "2", "--resume")
    assert resumed.code == 0, resumed.err
    assert "two-seed0: started" not in resumed.err
    assert "over 2 seeds, mean ± standard deviation: clean " in resumed.out
    for seed in (0, 1):
        same = [Path(f"runs/{name}-seed{seed}/model.safetensors").read_bytes() for name in ("alone", "two")]
        assert same[0] == same[1]
        assert record(f"runs/alone-seed{seed}") == record(f"runs/two-seed{seed}")


def test_several_runs_are_evaluated_at_once_the_others_baseline_first(
    layerwise: Command, done: Path, forked: type[Forked]
) -> None:
    for name in ("a", "b"):
        shutil.copytree("runs/done", f"runs/{name}")
    quick = ["--evaluation.attacks=clean", "--evaluation.num_examples=10", "--record", "r"]
    measured = ["--evaluation.measures=[corruptions]", "--evaluation.baseline=runs/done"]
    said = layerwise("evaluate", "runs/a", "runs/b", "runs/done", "--jobs=2", *quick, *measured)
    assert said.code == 0, said.err
    assert sorted(re.findall(r"record: runs/(\w+)/r.json", said.out)) == ["a", "b", "done"]
    began = re.findall(r"(\w+): started", said.err)
    assert (began[0], sorted(began)) == ("done", ["a", "b", "done"])
    assert all("mCE" in json.dumps(json.loads(Path(f"runs/{name}/r.json").read_text())) for name in ("a", "b"))


def test_one_evaluation_that_fails_is_named_and_the_others_go_on(
    layerwise: Command, done: Path, forked: type[Forked]
) -> None:
    for name in ("a", "b"):
        shutil.copytree("runs/done", f"runs/{name}")
    Path("runs/a/model.safetensors").write_bytes(b"cut")
    said = layerwise("evaluate", "runs/a", "runs/b", "runs/done", "--jobs=2", "--evaluation.attacks=clean")
    assert said.code == 2
    assert re.search(r"error: a ended with code 2: .*model.safetensors.*\(see runs/jobs/a.log\)", said.err)
    assert said.err.rstrip().endswith("layerwise evaluate runs/a --jobs=2 --evaluation.attacks=clean")
    assert all(Path(f"runs/{name}/evaluation-custom.json").is_file() for name in ("b", "done"))


def test_reproduce_trains_and_measures_each_system_in_a_job(
    layerwise: Command, forked: type[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "items", lambda: {"slat/table-x": TABLE})
    monkeypatch.setattr(scales, "scales", lambda: {"tiny": TINY})
    typed = ["reproduce", "slat/table-x", "--scale", "tiny", "--data.root", "data"]
    assert layerwise(*typed, "--runs", "alone", "--output", "one").code == 0
    two = [*typed, "--runs", "side", "--output", "two", "--jobs", "2"]
    slat = next(path.name for path in Path("alone/reproduce/tiny").glob("slat-digits-*"))
    monkeypatch.setattr(forked, "killed", (slat,))
    said = layerwise(*two)
    assert said.code == 2
    assert re.search(
        rf"error: {slat} was killed .*layerwise reproduce slat/table-x --scale tiny .* --jobs 2$", said.err.strip()
    )
    assert not Path("two/tiny/slat/table-x.json").exists()
    monkeypatch.setattr(forked, "killed", ())
    resumed = layerwise(*two)
    assert resumed.code == 0, resumed.err
    assert len(re.findall(": started", resumed.err)) == 2  # a system that two rows have is one job

    def cells(folder: str) -> Any:
        found = Record.from_json(Path(folder, "tiny/slat/table-x.json").read_text(), source=folder)
        told = [
            (row.name, row.runs, name, replace(o, seconds=0))
            for row in found.rows
            for name, c in row.cells.items()
            for o in c.ours
        ]
        return told, [c.failures for row in found.rows for c in row.cells.values()], found.hardware, found.complete

    assert cells("two") == cells("one")
    told(layerwise(*typed, "--only", "slat-digits"), f"no row is of 'slat-digits'; did you mean '{slat}'")


def test_a_search_with_workers_is_the_search_without_also_after_a_kill(
    layerwise: Command, forked: type[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [
        "--training.max_steps=6",
        "--training.eval_every=0",
        "--training.eval_steps=1",
        "--training.eval_examples=20",
    ]
    search = ["tune", "slat-digits", "--range", "method.eta=0.01:1.0:log", "--trials", "3", "--budget", "3", *quick]
    search += ["--model.options.width=4", "--objective", "clean"]
    assert layerwise(*search, "--name", "alone").code == 0
    two = [*search, "--name", "two", "--jobs", "2"]
    monkeypatch.setattr(forked, "killed", ("trial-001-rung-0",))
    said = layerwise(*two)
    assert said.code == 2
    assert re.search(
        "error: trial-001-rung-0 was killed .*layerwise tune slat-digits .* --jobs 2 --resume$", said.err.strip()
    )
    monkeypatch.setattr(forked, "killed", ())
    resumed = layerwise(*two, "--resume")
    assert resumed.code == 0, resumed.err
    started = re.findall("(trial-.*): started", resumed.err)
    assert started[0] == "trial-001-rung-0"
    assert len(started) == 2

    def trials(name: str) -> list[Trial]:
        found = read_trials(Store(Path("runs/tune", name, TRIALS)))
        return sorted((replace(t, seconds=0.0) for t in found), key=lambda t: (t.rung, t.trial))

    assert len(trials("alone")) == 4
    assert trials("two") == trials("alone")
    for run in (t.run for t in trials("two")):
        same = [Path("runs/tune", name, run, "model.safetensors").read_bytes() for name in ("alone", "two")]
        assert same[0] == same[1]
    told(layerwise(*search, "--name", "two", "--only", "9.0"), "has no trial 9 at rung 0: 3 trials, 2 rungs")
    told(layerwise(*search, "--name", "two", "--only", "x"), "--only x is no trial and rung; .* --only 3.0")
    told(layerwise(*search, "--name", "none", "--only", "0.0"), "holds no search; leave out --only")


def test_a_search_goes_on_with_and_without_workers(tmp_path: Path) -> None:
    ranges: dict[str, Range] = {"method.eta": Interval(0.01, 1.0, log=True), "method": Choice(({"name": "SLAT"}, None))}
    settings: list[dict[str, Any]] = [
        {"method.eta": 8 / 255, "method": None},
        {"method.eta": 0.5, "method": {"name": "SLAT"}},
    ]
    for each in settings:
        Shared(tmp_path, ranges).add(each)
    Shared(tmp_path, ranges).tell(1, "trial-001-rung-0", 0.5, {"trial": 1})
    assert Shared(tmp_path, ranges).settings() == settings
    assert Shared(tmp_path, ranges).told() == {"trial-001-rung-0": {"trial": 1}}
    other: dict[str, Range] = {"training.batch_size": Choice((1, 2))}
    with pytest.raises(CheckpointError, match="trial 0 is not of this search"):
        Shared(tmp_path, other).settings()
    (tmp_path / JOURNAL).write_text("{ not JSON\n\n")
    with pytest.raises(CheckpointError, match=r"optuna.log is damaged .*; remove it"):
        Shared(tmp_path, ranges)
    (tmp_path / JOURNAL).unlink()
    (tmp_path / JOURNAL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link"):
        Shared(tmp_path, ranges)


def test_while_scores_do_not_count_a_proposal_does_not_ask_which_have_ended() -> None:
    ranges: dict[str, Range] = {"method.eta": Interval(0.01, 1.0, log=True)}
    tried = [{"method.eta": 0.1}, {"method.eta": 0.2}]
    one_by_one = propose(ranges, [(each, 0.3) for each in tried], seed=3, random=4)
    assert propose(ranges, [(tried[1], 0.9)], running=tried[:1], seed=3, random=4) == one_by_one
    assert propose(ranges, [], running=[*tried, one_by_one], seed=3, random=4) != one_by_one


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a job be a line of Python, since starting layerwise takes seconds."""
    start = subprocess.Popen

    def python(typed: list[str], **options: Any) -> Any:
        assert typed[:3] == [sys.executable, "-m", "layerwise"]
        return start([sys.executable, "-c", *typed[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", python)


def test_a_process_a_job_with_its_share_of_threads_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    shows = "import os; print(*(os.environ[k] for k in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')))"
    three = [Job(name=name, command=(shows,), runs=tmp_path) for name in "abc"]
    crew, well = Crew(at_once=3), list[str]()
    lost = crew.run(three, total=3, again=lambda: "x", ended=lambda job: well.append(job.out.read_text()))
    assert lost == {}
    assert sorted(well) == [f"{crew.threads} 4\n", f"{crew.threads} 4\n", f"{crew.threads} 7\n"]


def test_what_a_job_has_said_last_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)
    says = "import sys; sys.stderr.write('one\\nerror: no such thing\\n'); sys.exit(2)"
    lost = Crew(at_once=2).run([Job(name="a", command=(says,), runs=tmp_path)], total=1, again=lambda: "x")
    assert lost == {"a": f"a ended with code 2: no such thing (see {tmp_path}/jobs/a.log)"}


def test_ctrl_c_stops_all_and_says_what_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)
    notes = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("noted"), sys.exit(0)))
print("ready", flush=True)
time.sleep(600)
"""
    two = [Job(name=name, command=(notes,), runs=tmp_path) for name in "ab"]

    class Ready(jobs._Lines):  # type: ignore[misc]
        def update(self) -> None:
            if all(job.out.is_file() and "ready" in job.out.read_text() for job in two):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(jobs, "_Lines", Ready)
    with pytest.raises(KeyboardInterrupt, match="what is done is kept; go on with: layerwise this"):
        Crew(at_once=2).run(two, total=2, again=lambda: "layerwise this")
    assert [job.out.read_text() for job in two] == ["ready\nnoted\n"] * 2


def test_jobs_are_asked_for_when_a_slot_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)
    ended: list[str] = []
    asked: list[tuple[str, int]] = []

    def ask() -> Any:
        for name in "abc":
            asked.append((name, len(ended)))
            yield Job(name=name, command=("pass",), runs=tmp_path)

    Crew().run(ask(), total=3, again=lambda: "x", ended=lambda job: ended.append(job.name))
    assert asked == [("a", 0), ("b", 1), ("c", 2)]


def test_jobs_run_by_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    two = [Job(name=name, command=argv, runs=tmp_path) for name, argv in (("a", ("--version",)), ("b", ("nonsense",)))]
    well: list[str] = []
    crew = Crew(at_once=2, cluster="local", options={"timeout_min": 5})
    lost = crew.run(two, total=2, again=lambda: "x", ended=lambda job: well.append(job.out.read_text()))
    assert well[0].startswith("layerwise ")
    assert re.match(r"b ended with code 2: there is no command 'nonsense'", lost["b"])


def test_what_a_crew_cannot_be(layerwise: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told(layerwise("train", "slat-digits", "--jobs", "2"), "one run is one job; .* --seeds 3 --jobs 3")
    told(layerwise(*SEEDS, "--jobs", "0"), "jobs=0 is too small")
    told(layerwise(*SEEDS, "--cluster-options", "{a: 1}"), "type --cluster slurm too")
    told(layerwise(*SEEDS, "--cluster", "local", "--cluster-options", "3"), "--cluster-options 3 does not fit")
    told(layerwise(*SEEDS, "--cluster", "nowhere"), "--cluster nowhere: .*nowhere")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'layerwise\[cluster\]'"):
        Crew(cluster="slurm").launcher(tmp_path)


def test_a_job_leaves_out_what_its_parent_was_asked() -> None:
    typed = ["train", "a", "--jobs", "2", "--seeds=3", "--resume", "--quiet", "--training.seed", "7"]
    assert without(typed, "--jobs=", "--seeds=", "--resume", "--training.seed=") == ["train", "a", "--quiet"]


def test_the_summary_of_seeds(layerwise: Command, forked: type[Forked]) -> None:
    said: Said = layerwise(*SEEDS, "--name", "s")
    shares = [100 * Evaluation.read(Path(f"runs/s-seed{seed}"), "evaluation")["clean"].accuracy for seed in (0, 1)]
    mean, spread = sum(shares) / 2, abs(shares[0] - shares[1]) / 2**0.5
    assert f"over 2 seeds, mean ± standard deviation: clean {mean:.1f} ± {spread:.1f}, pgd-2 " in said.out
    assert "layerwise report runs/s-seed0 runs/s-seed1" in said.out
