"""Run a script on two checkouts, each in a process of its own, and compare what it wrote.

The script calls `run_both`: for each checkout it is started again with that checkout's `src` first
on the path and one thread. There `side()` says which one it is, and what it gives to `write` comes
back.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

SIDE, RESULT = "LAYERWISE_SIDE", "LAYERWISE_RESULT"
SIDES = ("before", "after")


def side() -> str | None:
    """`"before"` or `"after"` in a process that `run` started, None in the one that compares."""
    return os.environ.get(SIDE)


def write(found: Mapping[str, Any]) -> None:
    """Hand over what this side found."""
    Path(os.environ[RESULT]).write_text(json.dumps(found), encoding="utf-8")


def use(checkout: Path) -> dict[str, str]:
    """The environment in which Python finds the package of a checkout, and one thread."""
    source = checkout.resolve() / "src"
    if not (source / "layerwise").is_dir():
        raise SystemExit(f"{checkout} holds no src/layerwise; give the folder of a checkout")
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {
        **os.environ,
        **threads,
        "PYTHONPATH": str(source),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
    }


def run(script: str, checkout: Path, which: str, arguments: Sequence[str]) -> Any:
    """What one side finds."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "found.json")
        environment = {**use(checkout), SIDE: which, RESULT: str(result)}
        command = [sys.executable, str(Path(script).resolve()), *arguments]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, cwd=folder, check=False)
        if done.returncode or not result.exists():
            raise SystemExit(f"{which} ({checkout}) failed with code {done.returncode}")
        print(f"{which}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        return json.loads(result.read_text(encoding="utf-8"))


def run_both(
    script: str,
    checkouts: Sequence[Path],
    arguments: Sequence[str],
    *,
    keep: Path | None,
    jobs: int,
) -> list[Any]:
    """What each side finds.

    Args:
        script: the file of the caller.
        checkouts: before and after.
        arguments: what the script is started with again; they may hold no path of a checkout.
        keep: folder of what was found by the same script on the same sources; None runs both.
        jobs: sides that run at a time.
    """

    def found(which: str, checkout: Path) -> Any:
        kept = keep and keep / f"{_key(script, checkout, which, arguments)}.json"
        if kept and kept.exists():
            print(f"{which}: as found before, {kept}", file=sys.stderr)
            return json.loads(kept.read_text(encoding="utf-8"))
        record = run(script, checkout, which, arguments)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(record), encoding="utf-8")
        return record

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(found, SIDES, checkouts))


def _key(script: str, checkout: Path, which: str, arguments: Sequence[str]) -> str:
    """All that a record depends on: scripts, sources, what was asked, versions, processor."""
    digest = hashlib.sha256(repr([which, *arguments, sys.version, metadata.version("torch")]).encode())
    names = ["both", "method_table", *(["renamed"] if which == "after" else [])]
    scripts = [Path(script), *(Path(script).with_name(f"{name}.py") for name in names)]
    for path in (*scripts, *sorted((checkout / "src" / "layerwise").rglob("*.py"))):
        digest.update(path.name.encode() + path.read_bytes())
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line]
    digest.update("".join(flags[:1]).encode())
    return f"{which}-{digest.hexdigest()[:16]}"


def check_package() -> None:
    """Stop if the package is another than the checkout's."""
    import layerwise

    found, expected = Path(layerwise.__file__), Path(os.environ["PYTHONPATH"])
    if not found.is_relative_to(expected):
        raise SystemExit(f"layerwise comes from {found}, expected from {expected}")


def compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[str]]:
    """{what: how it differs}; what failed on both sides proves nothing, so it differs too."""
    found = {}
    for what in {**before, **after}:
        sides = {"before": before.get(what), "after": after.get(what)}
        failed = [
            f"{name}: {side['error']} ({side['at']})"
            for name, side in sides.items()
            if isinstance(side, dict) and "error" in side
        ]
        found[what] = failed or differences(sides["before"], sides["after"])
    return found


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Every place in two records, as deep as they go, where they are not equal; NaN equals NaN."""
    if isinstance(before, dict) and isinstance(after, dict):
        missing = [f"{where}{key}: only before" for key in before if key not in after]
        new = [f"{where}{key}: only after" for key in after if key not in before]
        common = [key for key in before if key in after]
        inner = [d for key in common for d in differences(before[key], after[key], f"{where}{key}.")]
        return [*missing, *new, *inner]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, f"{where}{n}.")]
    same = type(before) is type(after) and repr(before) == repr(after)
    return [] if same else [f"{where.rstrip('.')}: {before!r} became {after!r}"]
