"""Networks in folders with a model card, and on a hub: a small one that stands here and speaks its protocol."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import layerwise as lw
from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation import Evaluation
from layerwise.integrations import hub
from layerwise.models.registry import BUILT

X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return lw.build_model("digits_cnn", num_classes=3, shape=(1, 8, 8), mean=0.3, std=0.4, width=4).eval()


def record(model: nn.Module) -> Evaluation:
    threat = lw.ThreatModel(eps=0.1)
    return lw.evaluate(model, (X, Y), threat=threat, attacks=["clean", "pgd-5"], progress=False)


def test_a_folder_gives_the_network_back(tmp_path: Path) -> None:
    model = network()
    folder = hub.save_pretrained(model, tmp_path / "net")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = hub.from_pretrained(folder)
    assert not again.training
    assert torch.equal(again(X), model(X))
    assert "**Not evaluated**" in (folder / "README.md").read_text()


def test_the_card_says_the_verdict_and_what_speaks_against_it(tmp_path: Path) -> None:
    model = network()
    found = record(model)
    folder = hub.save_pretrained(model, tmp_path / "a_net", evaluation=found, about="Made up.")
    front, _, body = (folder / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    results = yaml.safe_load(front)["model-index"][0]["results"]
    values = [metric["value"] for metric in results[0]["metrics"]]
    assert values == [*found.accuracies.values(), found.worst.accuracy]
    assert f"{100 * found.worst.accuracy:.1f} %" in body
    assert "not to be believed" in body if found.findings else "An upper bound" in body
    for part in ("# a\\_net\n", "## About\n\nMade up.", found.to_markdown()):
        assert part in body


def test_the_card_of_a_network_with_another_loss(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    found = lw.evaluate(model, (X, (X[:, 0] > 0.5).long()), criterion=nn.CrossEntropyLoss(), attacks=["clean", "pgd-2"])
    text = (hub.save_pretrained(model, tmp_path / "net", evaluation=found) / "README.md").read_text()
    assert f"**Loss {found.worst.loss.value:.4g}, " in text
    assert "% of positions correct in the worst case of clean, pgd-2 (linf, eps 8/255; 12 examples)" in text
    assert "model-index" not in text
    assert found.to_markdown() in text


def test_a_record_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = network()
    found = record(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(ConfigError, match=r"the evaluation is of other weights .* evaluate this network"):
        hub.save_pretrained(model, tmp_path / "net", evaluation=found)
    assert not (tmp_path / "net").exists()


def test_a_record_is_read_from_a_run(tmp_path: Path) -> None:
    model = network()
    record(model).write(tmp_path)
    card = hub.save_pretrained(model, tmp_path / "net", evaluation=tmp_path) / "README.md"
    assert "pgd-5" in card.read_text()


def test_networks_of_ones_own_go_into_ones_own(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    folder = hub.save_pretrained(model, tmp_path / "net")
    with pytest.raises(ConfigError, match="does not say how the network is made; give model="):
        hub.from_pretrained(folder)
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert torch.equal(hub.from_pretrained(folder, model=fresh)(X), model(X))
    assert "a Sequential of your own" in (folder / "README.md").read_text()


def test_networks_of_transformers_write_themselves_and_get_the_card(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(**small, vocab_size=11))
    folder = hub.save_pretrained(model, tmp_path / "bert")
    assert "as a `BertForSequenceClassification`" in (folder / "README.md").read_text()
    again = BertForSequenceClassification.from_pretrained(folder)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    with pytest.raises(ConfigError, match=r"another library's; load it there \(transformers.AutoModel"):
        hub.from_pretrained(folder)


def test_code_that_a_folder_names_is_not_run(tmp_path: Path) -> None:
    folder = hub.save_pretrained(network(), tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    for change in ({"name": "os:getcwd"}, {"name": "timm:resnet10t"}, {"options": {"trust": True}}):
        changed = {**config, "network": {**config["network"], **change}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(lw.LayerwiseError):
            hub.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": "layerwise-network", "version": 9}', "has version 9, this layerwise reads 1"),
        ('{"format": "layerwise-network", "version": 1, "network": {"name": 3}}', "is corrupt"),
    ],
)
def test_a_damaged_folder_is_told(text: str, message: str, tmp_path: Path) -> None:
    folder = hub.save_pretrained(network(), tmp_path / "net")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        hub.from_pretrained(folder)


def test_options_that_are_no_plain_values_are_told(tmp_path: Path) -> None:
    model = network()
    model.__dict__[BUILT] = replace(model.__dict__[BUILT], options={"act": nn.ReLU})
    with pytest.raises(ConfigError, match="an option of the network cannot be written down"):
        hub.save_pretrained(model, tmp_path / "net")


def test_sites_that_are_attached_are_told(tmp_path: Path) -> None:
    model = network()
    sites = lw.Sites(model, ["conv1"], example=X)
    with pytest.raises(ConfigError, match="sites are still attached"):
        hub.save_pretrained(model, tmp_path / "net")
    sites.remove()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as writing and reading one repository takes."""

    files: dict[str, bytes]
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, value: Any = None, *, data: bytes = b"", status: int = 200, **headers: str) -> None:
        body = data if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        where = f"http://{self.headers['Host']}/me/net"
        if self.path.endswith("/validate-yaml"):
            front = json.loads(body)["content"].split("---\n")[1]
            right = yaml.safe_load(front)["library_name"] == "layerwise"
            self._answer({"errors": [] if right else [{"message": "no library"}], "warnings": []})
        elif self.path.endswith("/repos/create"):
            self._answer({"url": where, "name": "me/net", "id": "me/net"})
        elif "/preupload/" in self.path:
            wanted, how = json.loads(body)["files"], {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": file["path"], **how} for file in wanted]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"success": True, "commitUrl": f"{where}/commit/{self.commit}", "commitOid": self.commit})
        else:
            self._answer({}, status=404)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path and name in self.files:
            data = self.files[name]
            self._answer(data=data, ETag=f'"{len(data)}-{name}"', X_Repo_Commit=self.commit)
        elif self.path.startswith("/api/models/me/net") and self.files:
            named = [{"rfilename": file} for file in self.files]
            tree = [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in self.files.items()]
            self._answer(tree if "/tree/" in self.path else {"id": "me/net", "sha": self.commit, "siblings": named})
        else:
            self._answer({"error": "Repository not found"}, status=404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    import huggingface_hub
    from huggingface_hub import constants

    handler = type("Handler", (Hub,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{served.server_address[1]}"
        api = huggingface_hub.HfApi(endpoint=address)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: api)
        inside: Any = huggingface_hub.snapshot_download
        cache = {"endpoint": address, "cache_dir": tmp_path / "cache"}
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: inside(*a, **o, **cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        try:
            yield handler.files  # type: ignore[attr-defined]
        finally:
            served.shutdown()
            thread.join()


def test_to_the_hub_and_back(server: dict[str, bytes], tmp_path: Path) -> None:
    model = network()
    folder = hub.save_pretrained(model, tmp_path / "net")
    address = hub.push_to_hub(folder, "me/net", token="hf_none")
    assert address.endswith(f"/me/net/commit/{Hub.commit}")
    assert server == {file.name: file.read_bytes() for file in folder.iterdir()}
    again = hub.from_pretrained("me/net")
    assert torch.equal(again(X), model(X))


def test_a_hub_without_the_network_is_told(server: dict[str, bytes]) -> None:
    assert not server
    with pytest.raises(CheckpointError, match="there is no folder me/other, and the hub gives none"):
        hub.from_pretrained("me/other")


@pytest.mark.parametrize("name", ["nowhere", "./me/net", "a/b/c"])
def test_what_is_no_name_on_the_hub_is_not_asked_for(name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        hub.from_pretrained(name)


def test_what_is_no_saved_network_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config.json; write it with save_pretrained\(model"):
        hub.push_to_hub(tmp_path, "me/net")


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder = hub.save_pretrained(network(), tmp_path / "net")
    for act in (lambda: hub.push_to_hub(folder, "me/net"), lambda: hub.from_pretrained("me/net")):
        with pytest.raises(ConfigError, match="needs huggingface_hub; type pip install huggingface_hub"):
            act()


def test_a_shared_tensor_is_written_twice_and_read_back(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x))
            return y

    model, x = Tied(), torch.rand(2, 4)
    again = hub.from_pretrained(hub.save_pretrained(model, tmp_path / "tied"), model=Tied())
    assert torch.equal(again(x), model(x))
