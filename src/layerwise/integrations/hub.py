"""Networks in a folder that others can load, with a model card that says how robust they are; and such folders on a hub.

from layerwise.integrations import hub

hub.save_pretrained(model, "out", evaluation=record)
hub.push_to_hub("out", "me/robust-resnet18")
model = hub.from_pretrained("me/robust-resnet18")
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from layerwise import __version__
from layerwise.core.sites import has_sites, unwrap
from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation.conditions import digest
from layerwise.evaluation.losses import LossEvaluation
from layerwise.evaluation.record import Evaluation
from layerwise.files import write_text
from layerwise.integrations.card import card
from layerwise.integrations.optional import library
from layerwise.models.export import export
from layerwise.models.registry import Built, build, built
from layerwise.models.weights import load_weights
from layerwise.reading import read_record

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT, VERSION = "layerwise-network", 1


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    evaluation: Evaluation | LossEvaluation | str | Path | None = None,
    name: str | None = None,
    about: str = "",
) -> Path:
    """Write weights (safetensors), config.json, and a model card with the evaluation's verdict.

    A network that has a `save_pretrained` of its own (transformers, PEFT) writes weights and configuration itself, and gets the card.

    Args:
        model: the network, wrapped or not.
        folder: is made if it is not there.
        evaluation: the record of these weights, or the folder of a run that holds it; without one the card says that there is none.
        name: what the card calls it; by default the folder's name.
        about: more for the card, in markdown: what it was trained on, and for what.

    Returns:
        The folder.

    Raises:
        ConfigError: sites still attached, or the record is of other weights.
        CheckpointError: the run holds no record.
    """
    bare, target = unwrap(model), Path(folder).expanduser()
    if has_sites(bare):
        raise ConfigError("sites are still attached to the network; call detach() of the method first")
    record = Evaluation.read(Path(evaluation)) if isinstance(evaluation, str | Path) else evaluation
    if record and record.model.fingerprint != digest(chain.from_iterable(bare.state_dict().items())):
        raise ConfigError(
            f"the evaluation is of other weights ({record.model.name}, digest {record.model.fingerprint}); evaluate this network"
        )
    how = built(bare)
    target.mkdir(parents=True, exist_ok=True)
    own: Any = getattr(bare, "save_pretrained", None)
    if callable(own):
        own(target)
    else:
        config = {"format": FORMAT, "version": VERSION, "layerwise": __version__, "network": how and asdict(how)}
        try:
            write_text(target / CONFIG, json.dumps(config, indent=2) + "\n")
        except TypeError as error:
            raise ConfigError(
                f"an option of the network cannot be written down ({error}); give it as plain values"
            ) from None
        export(bare, target / WEIGHTS, example=())
    size = sum(p.numel() for p in bare.parameters())
    text = card(name or target.resolve().name, bare, size=size, how=how, record=record, about=about)
    write_text(target / CARD, text)
    return target


def from_pretrained(
    source: str | Path, *, model: nn.Module | None = None, revision: str | None = None, trust: bool = False
) -> nn.Module:
    """The network of such a folder, in evaluation mode.

    Args:
        source: the folder, or `owner/name` on the hub (needs `pip install huggingface_hub`).
        model: a network of your own that the weights go into; None makes the one that config.json names.
        revision: branch, tag or commit on the hub.
        trust: allow config.json to name code outside layerwise, timm and torchvision included.

    Raises:
        CheckpointError: nothing there, or weights that do not fit.
        ConfigError: the network has no name of ours and none is given, or its name is not trusted.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _downloaded(str(source), revision)
    network = model if model is not None else _made(folder, trust=trust)
    return load_weights(network, folder / WEIGHTS).eval()


def push_to_hub(
    folder: str | Path, name: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Put such a folder on the hub, making the repository if there is none.

    Args:
        folder: what `save_pretrained` wrote.
        name: `owner/name`.
        private: of a repository that is made.
        revision: the branch; None is main.
        token: of the hub; None takes the one of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: no such folder, or the hub refuses.
        ConfigError: huggingface_hub is not installed.
    """
    files = Path(folder).expanduser()
    if not (files / CONFIG).is_file():
        raise CheckpointError(f"{files} holds no {CONFIG}; write it with save_pretrained(model, {str(files)!r})")
    hub = library("huggingface_hub")
    try:
        api = hub.HfApi(token=token)
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=files, revision=revision).commit_url)
    except Exception as error:  # its own errors, those of its client, of the network
        raise CheckpointError(f"{name} cannot be written on the hub ({_reason(error)})") from error


def _downloaded(name: str, revision: str | None) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"there is no folder {name}; give one that save_pretrained wrote, or owner/name on the hub"
        )
    hub = library("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except Exception as error:  # as above
        raise CheckpointError(f"there is no folder {name}, and the hub gives none ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _made(folder: Path, *, trust: bool) -> nn.Module:
    """The network that config.json names, with new weights."""
    file = folder / CONFIG
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); write it with save_pretrained") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(
            f"{file} is another library's; load it there (transformers.AutoModel, peft), or give model=, which the weights go into"
        )
    if found.get("version") != VERSION:
        raise CheckpointError(f"{file} has version {found.get('version')!r}, this layerwise reads {VERSION}")
    if found.get("network") is None:
        raise ConfigError(f"{file} does not say how the network is made; give model=, which the weights go into")
    how: Built = read_record(Built, found["network"], source=str(file))
    mean, std = how.statistics or (None, None)
    fixed: dict[str, Any] = {"num_classes": how.num_classes, "shape": how.shape, "mean": mean, "std": std}
    if odd := sorted({*fixed, "name", "trust"} & set(how.options)):
        raise CheckpointError(f"{file} is corrupt: {odd[0]} is no option of a network")
    return build(how.name, trust=trust, **fixed, **how.options)
