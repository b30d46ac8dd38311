"""Integrations give the weights that the plain loop gives: three batches, methods of one step and of several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerwise as lw
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.methods import Method

METHODS: dict[str, Callable[[], Method]] = {
    "Standard": lambda: lw.Standard(),
    "SLAT": lambda: lw.SLAT(sites=["first"], eta=0.1),
    "LAT": lambda: lw.LAT(sites=["first", "second"]),
    "ANP": lambda: lw.ANP(k=3, layers=2),
    "AWP": lambda: lw.AWP(base=lw.FGSM(eps=0.1)),
    "Free": lambda: lw.FreeAT(m=2, eps=0.1),
    "Parseval": lambda: lw.Parseval(base=lw.FGSM(eps=0.1)),
}


LIGHTNING = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
"""Lightning asks torch in a way that torch is about to give up."""

WORKERS = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.second(torch.relu(self.first(pixel_values)))}


def data() -> list[tuple[Tensor, Tensor]]:
    stream = torch.Generator().manual_seed(1)
    return [(torch.rand(4, 6, generator=stream), torch.randint(3, (4,), generator=stream)) for _ in range(3)]


def seeded() -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, each with the same random numbers in every loop."""
    for index, pair in enumerate(data()):
        torch.manual_seed(index)
        yield pair


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def by_hand(method: Method, *, clip: float | None = None, model: nn.Module | None = None) -> dict[str, Tensor]:
    """The plain loop, written out with nothing of ours but the method."""
    model = (model or Net()).train()
    optimizer = optimizer_of(model)
    for x, y in seeded():
        for loss in method.losses(model, {"pixel_values": x}, y):
            if isinstance(loss, lw.Partial):
                loss.loss.backward()  # type: ignore[no-untyped-call]
                continue
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest) -> Callable[[], Method]:
    return METHODS[request.param]


def test_methods_differ() -> None:
    found = [by_hand(make()) for make in METHODS.values()]
    assert not any(same(a, b) for i, a in enumerate(found) for b in found[:i])


class Pictures(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The same examples as rows of a dataset of Hugging Face."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = data()[index // 4]
        return {"pixel_values": x[index % 4], "labels": y[index % 4]}


def hugging_face(folder: Path, method: Method, model: nn.Module | None = None, **options: Any) -> Any:
    from transformers import TrainingArguments

    from layerwise.integrations.transformers import LayerwiseTrainer

    model = model or Net()
    arguments = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
    }
    own = {k: options.pop(k) for k in ("parts",) if k in options}
    args = TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{**arguments, **options},
    )

    class InOrder(LayerwiseTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(range(12))

        def training_step(self, *arguments: Any, **more: Any) -> Tensor:
            torch.manual_seed(self.state.global_step)
            return super().training_step(*arguments, **more)

    optimizers = (optimizer_of(model), None)
    return InOrder(model, args, train_dataset=Pictures(), optimizers=optimizers, method=method, **own)


def test_the_trainer_of_transformers(make: Callable[[], Method], tmp_path: Path) -> None:
    trainer = hugging_face(tmp_path, make())
    trainer.train()
    assert same(trainer.model.state_dict(), by_hand(make()))


def test_a_trainer_of_transformers_that_is_resumed_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    whole = hugging_face(tmp_path, METHODS["LAT"](), **saving)
    whole.train()
    again = hugging_face(tmp_path, METHODS["LAT"](), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.method.state_dict()
    assert same(again.model.state_dict(), whole.model.state_dict())
    assert same(again.model.state_dict(), by_hand(METHODS["LAT"]()))


def test_the_trainer_clips(tmp_path: Path) -> None:
    trainer = hugging_face(tmp_path, lw.ANP(k=2, layers=2), max_grad_norm=0.05)
    trainer.train()
    expected = by_hand(lw.ANP(k=2, layers=2), clip=0.05)
    assert same(trainer.model.state_dict(), expected)
    assert not same(expected, by_hand(lw.ANP(k=2, layers=2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient_accumulation_steps": 2},
            "multiply per_device_train_batch_size with 2, and give the trainer parts=2",
        ),
    ],
)
def test_the_trainer_says_what_to_do_instead(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        hugging_face(tmp_path, lw.Standard(), **options)


def lightning_module(method: Method) -> Any:
    import lightning

    from layerwise.integrations.lightning import LayerwiseModule

    class Module(LayerwiseModule, lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.method = Net(), method

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            torch.manual_seed(batch_idx)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.network)

    return Module()


def fit(module: Any, folder: Path, **options: Any) -> None:
    import lightning

    xs, ys = (torch.cat(parts) for parts in zip(*data(), strict=True))
    loader = DataLoader(TensorDataset(xs, ys), batch_size=4)
    shown = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, **{**shown, **options})
    trainer.fit(module, loader)
    trainer.save_checkpoint(folder / "last.ckpt")


@LIGHTNING
@WORKERS
def test_lightning(make: Callable[[], Method], tmp_path: Path) -> None:
    module = lightning_module(make())
    fit(module, tmp_path)
    assert same(module.network.state_dict(), by_hand(make()))


@LIGHTNING
@WORKERS
def test_the_state_of_a_method_is_in_the_checkpoint_of_lightning(tmp_path: Path) -> None:
    module = lightning_module(METHODS["LAT"]())
    fit(module, tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    other = lightning_module(METHODS["LAT"]())
    other.on_load_checkpoint(checkpoint)
    state = module.method.state_dict()
    assert state
    assert same(other.method.state_dict(), state)


def test_a_loop_of_accelerate(make: Callable[[], Method]) -> None:
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), Net()
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    method = make()
    for x, y in seeded():
        lw.step(method, model.train(), x, y, optimizer, backward=accelerator.backward)
    assert same(accelerator.unwrap_model(model).state_dict(), by_hand(make()))


def test_steps_that_accelerate_puts_off_are_noticed(
    make: Callable[[], Method], caplog: pytest.LogCaptureFixture
) -> None:
    """Under `accumulate` the optimiser's step does nothing in the first batches, whoever asks for it."""
    from accelerate import Accelerator

    for by_hand in (True, False):
        accelerator, model = Accelerator(cpu=True, gradient_accumulation_steps=3), Net()
        model, optimizer = accelerator.prepare(model, optimizer_of(model))
        method = make()
        caplog.clear()
        for x, y in seeded():
            with accelerator.accumulate(model):
                if not by_hand:
                    lw.step(method, model.train(), x, y, optimizer, backward=accelerator.backward)
                    continue
                for loss in method.losses(model.train(), x, y, backward=accelerator.backward):
                    accelerator.backward(loss.loss if isinstance(loss, lw.Partial) else loss)
                    if not isinstance(loss, lw.Partial):
                        optimizer.step()
                        optimizer.zero_grad()
        assert any("counts on a step of the optimiser" in r.message for r in caplog.records) == method.needs_steps
        assert method.needs_steps == isinstance(method, lw.ANP | lw.FreeAT | lw.Parseval)


def test_a_scaler_changes_nothing_where_no_gradient_overflows(make: Callable[[], Method]) -> None:
    model, method = Net(), make()
    optimizer, scaler = optimizer_of(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    for x, y in seeded():
        lw.step(method, model.train(), x, y, optimizer, scaler=scaler)
    assert same(model.state_dict(), by_hand(make()))


def adapted() -> nn.Module:
    import peft

    torch.manual_seed(5)
    found: nn.Module = peft.get_peft_model(
        Net(), peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["second"])
    )
    return found


@pytest.mark.parametrize(
    "make", [*METHODS.values(), lambda: lw.LatentPGD(sites=["first"], eps=0.1, steps=2)], ids=[*METHODS, "LatentPGD"]
)
def test_adapters_of_peft_train_and_what_they_adapt_stays(make: Callable[[], Method]) -> None:
    model, method = adapted(), make()
    before, optimizer = copy.deepcopy(model.state_dict()), optimizer_of(model)

    def train() -> None:
        for x, y in seeded():
            lw.step(method, model.train(), {"pixel_values": x}, y, optimizer)

    if isinstance(method, lw.AWP | lw.Parseval):
        with pytest.raises(ConfigError, match=r"adds an adapter's product to its own.*merge the adapter first"):
            train()
        return
    train()
    after = model.state_dict()
    assert same(after, by_hand(make(), model=adapted()))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("lora_B" in name for name in moved)
    assert not any("base_layer" in name or "original_module" in name for name in moved)


@pytest.mark.parametrize("attached", [False, True])
def test_a_compiled_network(attached: bool, make: Callable[[], Method]) -> None:
    torch.compiler.reset()
    raw, method = Net(), make()
    if attached:
        method.attach(raw, data()[0][0])
    model: Any = torch.compile(raw, backend="eager")
    optimizer = optimizer_of(raw)
    for x, y in seeded():
        lw.step(method, model.train(), x, y, optimizer)
    assert same(raw.state_dict(), by_hand(make()))


def test_a_network_that_was_compiled_before_the_sites_is_told() -> None:
    torch.compiler.reset()
    raw = Net()
    model: Any = torch.compile(raw.train(), backend="eager")
    x, y = data()[0]
    model(x)["logits"].sum().backward()
    with pytest.raises(LayerwiseError, match="the model was compiled before the sites were attached"):
        lw.step(METHODS["SLAT"](), model, x, y, optimizer_of(raw))


def test_a_missing_library_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from layerwise.integrations import transformers

    monkeypatch.setitem(sys.modules, "transformers", None)
    transformers.__dict__.pop("LayerwiseTrainer", None)
    with pytest.raises(ConfigError, match="this integration needs transformers; type pip install transformers"):
        transformers.LayerwiseTrainer  # noqa: B018
