"""The folder of a run, and the comparison of configurations that a resumed run needs.

runs/NAME/
    config.yaml           what was asked for, resolved     versions.json   packages, device
    metrics.jsonl         see layerwise.training.metrics   checkpoints/    see layerwise.training.checkpoint
    model.safetensors     the last weights                 best.safetensors   those with the best robust validation accuracy
    ema.safetensors, best-ema.safetensors: the same of the moving average, if there is one
    .lock                 while a process trains there     see layerwise.files
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.core.arguments import Named
from layerwise.core.registry import known_as
from layerwise.core.shards import divided
from layerwise.core.sites import unwrap
from layerwise.errors import CheckpointError, ConfigError, did_you_mean
from layerwise.files import held, refuse_link
from layerwise.models.weights import is_coded, pack_tensors, unpack_tensors
from layerwise.training.checkpoint import clear, replace_file
from layerwise.training.checkpoint import found as checkpoints_in
from layerwise.trees import dump_yaml, parse_yaml

CONFIG, VERSIONS, METRICS, CHECKPOINTS = "config.yaml", "versions.json", "metrics.jsonl", "checkpoints"

Weights: TypeAlias = Literal["last", "best", "ema", "best-ema"]
"""Which weights of a run."""

WEIGHTS: dict[str, str] = {
    "last": "model.safetensors",
    "best": "best.safetensors",
    "ema": "ema.safetensors",
    "best-ema": "best-ema.safetensors",
}

_FREE = "accelerator devices num_nodes strategy num_workers log_every tensorboard checkpoint_every keep"
FREE = (*(f"training.{name}" for name in _FREE.split()), "data.download", "evaluation")
"""Settings that do not change the result (beyond the order of sums) and may differ when a run is resumed; what `fit` was called for in
Python has no evaluation, and may get one."""

ADDED = {"batch_norm": "per-rank", "augment.name": "Augment"}
"""Training settings that older runs, or runs begun in Python, have not written down, and what they had."""

PACKAGES = ("layerwise", "torch", "numpy", "lightning-fabric", "safetensors", "pydantic", "scikit-learn")


@final
class Run:
    """The folder of one run; only rank 0 writes there.

    Args:
        path: of the folder.
        writes: whether this process is rank 0.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._lock = ExitStack()

    def begin(self, config: Mapping[str, Any], *, resume: bool = False, device: torch.device | None = None) -> None:
        """`open`, with other processes kept out until `release`, and without what a killed one left half-written.

        Raises:
            CheckpointError: another process trains here, or as `open`.
            ConfigError: as `open`.
        """
        self._make()
        self._lock.enter_context(held(self.path))
        for name in (CONFIG, VERSIONS, *WEIGHTS.values()):
            for leftover in self.path.glob(f".{name}.*.part"):
                leftover.unlink(missing_ok=True)
        refuse_link(self.checkpoints)
        clear(self.checkpoints)
        self.open(config, resume=resume, device=device)

    def release(self) -> None:
        """Let others in."""
        self._lock.close()

    def open(self, config: Mapping[str, Any], *, resume: bool = False, device: torch.device | None = None) -> None:
        """Begin the run, or go on with it.

        Args:
            config: what the run is asked to do; see `plain`.
            resume: go on with the run that is there, or begin it if there is none.
            device: where it trains.

        Raises:
            CheckpointError: the folder is taken and `resume` is not asked for, or cannot be written.
            ConfigError: the run there was asked to do something else; the differences are named.
        """
        known = (self.path / CONFIG).is_file()
        if known and not resume:
            raise CheckpointError(
                f"{self.path} already holds a run; type --resume {self.path} to go on with it, or choose another name"
            )
        if known:
            check_config(self.config(), plain(config), where=self.path)
        else:
            self._begin(plain(config), device)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the run folder {self.path}: {error.strerror or error}") from error

    def _begin(self, config: Any, device: torch.device | None) -> None:
        text = dump_yaml(config)
        parse_yaml(text, "the configuration")  # what could not be read back could not be resumed
        self._make()
        replace_file(self.path / VERSIONS, json.dumps(versions(device), indent=1).encode())
        # Last: a folder without it is not a run yet.
        replace_file(self.path / CONFIG, text.encode())

    def config(self) -> dict[str, Any]:
        """What the run was asked to do.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return read_config(self.path)

    @property
    def metrics(self) -> Path:
        """Where the metrics are."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINTS

    def save_weights(self, which: str, weights: Mapping[str, Tensor]) -> None:
        """Store weights under a name of `WEIGHTS`."""
        if self.writes:
            replace_file(self.path / WEIGHTS[which], pack_tensors(weights))


@contextmanager
def nothing_half_made(folder: Path | None) -> Iterator[None]:
    """Remove a new run folder if the run fails before its first checkpoint: there is nothing in it to go on with."""
    new = folder is not None and _is_new(folder)
    try:
        yield
    except BaseException:
        if folder is not None and new and not checkpoints_in(folder / CHECKPOINTS):
            # Not the folder of another process that began its run there meanwhile.
            with suppress(CheckpointError), held(folder):
                shutil.rmtree(folder, ignore_errors=True)
        raise


def _is_new(folder: Path) -> bool:
    try:
        return not folder.exists() or not any(folder.iterdir())
    except OSError as error:  # a file, a name that is too long
        raise CheckpointError(f"cannot make the run folder {folder}: {error.strerror or error}") from error


def to_go_on(folder: Path | None) -> str:
    """What to type after a run was cut off.

    >>> to_go_on(None)
    'nothing is saved, since the run has no folder'
    """
    if folder is None:
        return "nothing is saved, since the run has no folder"
    if not checkpoints_in(folder / CHECKPOINTS):
        return "nothing is saved yet: type the same again"
    return f"go on with: layerwise train --resume {shlex.quote(str(folder))}"


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the run in a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = Path(path).expanduser() / CONFIG
    try:
        config = parse_yaml(file.read_text(encoding="utf-8"), "it")
    except FileNotFoundError:
        raise CheckpointError(f"{path} holds no run: {CONFIG} is missing; give the folder that training made") from None
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is damaged: it holds a {type(config).__name__}, not settings")
    return config


def load_weights(model: nn.Module, path: str | os.PathLike[str], which: Weights = "last") -> None:
    """Put the weights of a run, or of a safetensors file, into a network.

    Args:
        model: the network, wrapped or not.
        path: a run's folder, or a file.
        which: of the run; a file has only one.

    Raises:
        CheckpointError: there are no such weights, they are damaged, or they belong to another network.
    """
    if which not in WEIGHTS:
        raise CheckpointError(f"there are no weights {which!r}; {did_you_mean(which, WEIGHTS)}")
    path = Path(path).expanduser()
    file = path / WEIGHTS[which] if path.is_dir() else path
    if not file.is_file():
        there = [name for name, found in WEIGHTS.items() if (path / found).is_file()]
        raise CheckpointError(f"{file} does not exist; {path} has {', '.join(there) or 'no weights yet'}")
    put_weights(model, unpack_tensors(file), where=file)


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: object) -> None:
    """`load_state_dict` that says in one sentence why the weights do not fit.

    Raises:
        CheckpointError: they do not.
    """
    raw = unwrap(model)
    own = raw.state_dict()
    problems = [f"it lacks '{k}'" for k in own if k not in weights]
    problems += [f"it has '{k}', which the network lacks" for k in weights if k not in own]
    problems += [
        f"'{k}' has shape {tuple(weights[k].shape)}, the network's {tuple(v.shape)}"
        for k, v in own.items()
        if k in weights and weights[k].shape != v.shape
    ]
    problems += [
        f"'{k}' holds {weights[k].dtype} numbers, as a quantised network has, the network's are {v.dtype}"
        for k, v in own.items()
        if k in weights and is_coded(weights[k], v)
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"{where} belongs to another network: {problems[0]}{more}")
    raw.load_state_dict({name: divided(value, own[name]) for name, value in weights.items()})


def plain(value: Any) -> Any:
    """The value as plain data: numbers, strings, None, lists and string-keyed dicts.

    >>> from layerwise.methods import FGSM
    >>> plain({"method": FGSM(eps=0.5), "sizes": (1, 2)})["sizes"]
    [1, 2]
    """
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
        # Settings without a base class are those of a fixed class, which recipes do not name.
        return named if {*type(value).__bases__} <= {object, Named} else {"name": known_as(type(value)), **named}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Iterable) and not isinstance(value, Tensor):
        return [plain(v) for v in value]
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def difference(old: Any, new: Any, *, at: str = "") -> list[str]:
    """What differs between two configurations, one text a setting.

    >>> difference({"a": {"eta": 0.03, "k": 1}}, {"a": {"eta": 0.05, "k": 1}, "b": 2})
    ['a.eta: 0.03 before, 0.05 now', 'b: absent before, 2 now']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        absent = _Absent()
        parts = [difference(old.get(k, absent), new.get(k, absent), at=f"{at}.{k}" if at else str(k)) for k in keys]
        return [line for part in parts for line in part]
    return [] if old == new else [f"{at}: {old} before, {new} now"]


@final
class _Absent:
    def __str__(self) -> str:
        return "absent"


def check_config(old: Any, new: Any, *, where: object, free: Sequence[str] = FREE) -> None:
    """Refuse to resume what would become another run.

    Args:
        old: the stored configuration.
        new: the one asked for.
        where: the run, for the message.
        free: patterns of settings that may differ.

    Raises:
        ConfigError: with the differences.
    """
    # An empty list is a setting that is newer than the run, and asks for nothing.
    silent = (": absent before, [] now", *(f"training.{k}: absent before, {v} now" for k, v in ADDED.items()))
    lines = [line for line in difference(old, new) if not line.endswith(silent)]
    lines = [line for line in lines if not any(fnmatch(line.split(":")[0], f) for f in free)]
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise ConfigError(
            f"{where} was trained with other settings, so it cannot be resumed with these (leave them out, "
            f"or begin another run): {'; '.join(lines[:5])}{more}"
        )


def versions(device: torch.device | None = None) -> dict[str, Any]:
    """What a bug report and a run folder need: packages, Python, platform, processor, threads, devices."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    cuda = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": names,
        "device": str(device) if device is not None else "cuda" if cuda else "cpu",
    }
