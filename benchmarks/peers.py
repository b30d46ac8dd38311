"""The same training step with other libraries, each as its documentation has it used; what is not installed is left out.

    python -m benchmarks.peers --methods PGD:steps=7 --output benchmarks/results/peers-lenet-cpu.json

Contestants take turns in one run, so that what the machine does beside hits all of them; options are those of `layerwise bench step`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from benchmarks.command import timed
from torch import Tensor, nn

from layerwise.core.threat import radius
from layerwise.experiments.bench.plain import Step
from layerwise.experiments.bench.stepping import Setup, by_hand, somewhere
from layerwise.experiments.bench.steps import Record, Say, described
from layerwise.experiments.bench.timing import Clock, Run, interleaved, machine, ratio

METHODS = ("PGD", "PGD:steps=7", "FGSMRS", "TRADES")
LIBRARIES = ("torchattacks", "ART", "MAIR")

Optimizer: TypeAlias = torch.optim.Optimizer
Peer: TypeAlias = Callable[[nn.Module, Optimizer, Any], Step]
"""Makes a step from the network, its optimiser and our method, whose radius and steps are taken."""


def sizes(method: Any) -> tuple[float, float, int]:
    """Radius, step and number of steps of a method's attack."""
    attack = getattr(method, "attack", method)
    eps = radius(attack.eps)
    return eps, attack.step * eps, getattr(attack, "steps", 1)


def descend(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    """The descent at images that an attack has given."""
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def torchattacks_step(name: str) -> Peer:
    """An attack of torchattacks, which is called for every batch, and a descent."""

    def make(model: nn.Module, optimizer: Optimizer, method: Any) -> Step:
        attacks = import_module("torchattacks")
        eps, alpha, steps = sizes(method)
        radii = {"eps": eps, "alpha": alpha} | ({} if name == "FFGSM" else {"steps": steps})
        attack = getattr(attacks, name)(model, **radii)
        # As in training: otherwise every attack switches the network to evaluation mode and back.
        attack.set_model_training_mode(model_training=True, batchnorm_training=True, dropout_training=True)
        trades = name == "TPGD"

        def step(x: Tensor, y: Tensor) -> None:
            x_adv = attack(x, y)
            if not trades:
                descend(model, optimizer, x_adv, y)
                return
            model.train()
            optimizer.zero_grad()
            logits = model(x)
            kl = F.kl_div(F.log_softmax(model(x_adv), dim=1), logits.softmax(dim=1), reduction="batchmean")
            (F.cross_entropy(logits, y) + method.beta * kl).backward()
            optimizer.step()

        return step

    return make


def art_step(model: nn.Module, optimizer: Optimizer, method: Any) -> Step:
    """ART's attack and its classifier's `fit` for each batch, as in its trainers; its arrays are NumPy's, whose copies are part of it."""
    evasion = import_module("art.attacks.evasion")
    estimators = import_module("art.estimators.classification")
    classifier: Any = None

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal classifier
        if classifier is None:
            classifier = estimators.PyTorchClassifier(
                model=model,
                loss=nn.CrossEntropyLoss(),
                optimizer=optimizer,
                input_shape=tuple(x.shape[1:]),
                nb_classes=int(y.max()) + 1,
                clip_values=(0.0, 1.0),
                device_type="gpu" if x.is_cuda else "cpu",
            )
        eps, alpha, steps = sizes(method)
        options = {"eps": eps, "num_random_init": 1, "verbose": False, "batch_size": len(x)}
        options |= {"eps_step": alpha, "max_iter": steps}
        attack = evasion.ProjectedGradientDescent(classifier, **options)
        images, labels = x.cpu().numpy(), y.cpu().numpy()
        x_adv = attack.generate(images, y=labels)
        classifier.fit(x_adv, labels, batch_size=len(x), nb_epochs=1)

    return step


def mair_step(name: str) -> Peer:
    """MAIR's trainer, one batch at a time."""

    def make(model: nn.Module, optimizer: Optimizer, method: Any) -> Step:
        mair = import_module("mair")
        defenses = import_module("mair.defenses")
        classes = int(list(model.parameters())[-1].shape[0])
        network = mair.RobModel(model, n_classes=classes)
        options = dict(zip(("eps", "alpha", "steps"), sizes(method), strict=True))
        if name == "TRADES":
            options["beta"] = method.beta
        trainer = getattr(defenses, name)(network, **options)
        trainer.optimizer = optimizer

        def step(x: Tensor, y: Tensor) -> None:
            network.train()
            trainer._init_dicts_record_save()
            trainer._update_weight((x, y))

        return step

    return make


PEERS: dict[str, dict[str, Peer]] = {
    "PGD": {"torchattacks": torchattacks_step("PGD"), "ART": art_step, "MAIR": mair_step("AT")},
    "FGSMRS": {"torchattacks": torchattacks_step("FFGSM"), "ART": art_step},
    "TRADES": {"torchattacks": torchattacks_step("TPGD"), "MAIR": mair_step("TRADES")},
}
"""{our method: {library: the same step}}; what a library does not have is not listed."""


def check_installed(library: str) -> str | None:
    """Why a library cannot be used here, if it cannot."""
    try:
        import_module(library.lower())
    except Exception as error:  # whatever another library does at its import
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    return None


def bench_peers(
    setup: Setup, methods: Sequence[str], *, rounds: int, seconds: float, say: Say, clock: Clock = time.perf_counter
) -> Record:
    """Time the same steps of other libraries, and of plain code, against ours; arguments as those of `bench_steps`."""
    missing = {name: why for name in LIBRARIES if (why := check_installed(name)) is not None}
    for name, why in missing.items():
        say(f"{name} is left out: it is not installed, or does not work here ({why})")
    rows = []
    for text in methods:
        name = text.partition(":")[0]
        with somewhere(text, setup) as contestant:
            runs: dict[str, Run] = {"layerwise": contestant.run}
            if (plain := by_hand(contestant, text, setup)) is not None:
                runs["by hand"] = plain
            place = contestant.loop.session.place
            x, y = (v.to(place.device) for v in setup.data())
            for library, make in PEERS.get(name, {}).items():
                if library in missing:
                    continue
                net = setup.network().to(place.device).train()
                # Plain SGD, without our tensor rate: ART reads the rate as a number.
                optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4)
                step = make(net, optimizer, contestant.method)
                try:
                    step(x, y)
                except Exception as error:  # whatever another library does
                    say(f"{library} does not do {text} here ({type(error).__name__}: {error})")
                    continue
                runs[library] = partial(step, x, y)
            times = interleaved(runs, place.device, rounds=rounds, seconds=seconds, clock=clock)
        for library, own in times.items():
            to_ours = ratio(own, times["layerwise"])
            rows.append(
                {"method": text, "library": library, "milliseconds": 1e3 * statistics.median(own), "to_ours": to_ours}
            )
    return {
        "kind": "peers",
        "machine": {**machine(place.device), "peers": versions(missing)},
        "settings": described(setup, rounds, seconds, clock),
        "missing": missing,
        "rows": rows,
    }


def versions(missing: Mapping[str, str]) -> dict[str, str]:
    """Those of the libraries that are there."""
    present = [name for name in LIBRARIES if name not in missing]
    return {name: str(getattr(import_module(name.lower()), "__version__", "unknown")) for name in present}


def peers_table(record: Record) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows as people read them."""
    body: list[tuple[str, ...]] = [
        (row["method"], row["library"], f"{row['milliseconds']:.2f}", f"{row['to_ours']:.2f}") for row in record["rows"]
    ]
    return ("method", "library", "ms", "times ours"), body


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the record."""
    return timed("peers", __doc__, bench_peers, peers_table, METHODS, argv)


if __name__ == "__main__":
    sys.exit(main())
