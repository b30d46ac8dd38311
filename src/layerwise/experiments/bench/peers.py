"""The same training step with other libraries, each as its documentation has it used; what is not installed is left out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.experiments.bench.plain import Step

Optimizer: TypeAlias = torch.optim.Optimizer
Peer: TypeAlias = Callable[[nn.Module, Optimizer, Any], Step]
"""Makes a step from the network, its optimiser and our method, whose radius and steps are taken."""


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
        radii = {"eps": method.eps}
        if name == "FFGSM":
            radii["alpha"] = method.step * method.eps
        else:
            radii |= {"alpha": method.alpha, "steps": method.steps}
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


def art_step(name: str) -> Peer:
    """ART's attack and its classifier's `fit` for each batch, as in its trainers; its arrays are NumPy's, whose copies are part of it."""

    def make(model: nn.Module, optimizer: Optimizer, method: Any) -> Step:
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
            options = {"eps": method.eps, "num_random_init": 1, "verbose": False, "batch_size": len(x)}
            if name == "PGD":
                options |= {"eps_step": method.alpha, "max_iter": method.steps}
            else:
                options |= {"eps_step": method.step * method.eps, "max_iter": 1}
            attack = evasion.ProjectedGradientDescent(classifier, **options)
            images, labels = x.cpu().numpy(), y.cpu().numpy()
            x_adv = attack.generate(images, y=labels)
            classifier.fit(x_adv, labels, batch_size=len(x), nb_epochs=1)

        return step

    return make


def mair_step(name: str) -> Peer:
    """MAIR's trainer, one batch at a time."""

    def make(model: nn.Module, optimizer: Optimizer, method: Any) -> Step:
        mair = import_module("mair")
        defenses = import_module("mair.defenses")
        classes = int(list(model.parameters())[-1].shape[0])
        network = mair.RobModel(model, n_classes=classes)
        options = {"eps": method.eps, "alpha": method.alpha, "steps": method.steps}
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
    "PGD": {"torchattacks": torchattacks_step("PGD"), "ART": art_step("PGD"), "MAIR": mair_step("AT")},
    "FGSMRS": {"torchattacks": torchattacks_step("FFGSM"), "ART": art_step("FGSMRS")},
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
