"""What a training method is, and the two abstract kinds: those that perturb the input and those that perturb layers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields, replace
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from layerwise.core.arguments import Named
from layerwise.core.calling import Inputs, examples, logits, rows
from layerwise.core.checks import check_fields, of_kind
from layerwise.core.contract import Demands, Seen, check_batch, prepared_inputs, prepared_labels
from layerwise.core.cost import AGAIN, Passes
from layerwise.core.criteria import Criterion, as_criterion
from layerwise.core.driving import AUTOGRAD, Backward, Pace, Partial, Step
from layerwise.core.driving import Losses as Losses
from layerwise.core.passes import Gradients, Noise
from layerwise.core.random import Source
from layerwise.core.shards import cut_by_fsdp
from layerwise.core.sites import Sites, unwrap
from layerwise.core.threat import THREAT, ThreatModel
from layerwise.errors import ConfigError, SiteError

logger = logging.getLogger("layerwise")

Perturbed: TypeAlias = tuple[Any, Gradients]
"""The batch with an adversarial input, detached (a tensor where the network takes one), and {site: gradient} of the probe that found it."""


class Method(Named, ABC):
    """A training method: hyper-parameters, and a generator of losses.

    A subclass is a `@dataclass(kw_only=True)` that implements `batch_losses`. `layerwise.step` trains on a batch with it.

    The first batch is checked, once for each network: see `layerwise.core.contract`. `method.check_inputs = False` leaves that out.
    """

    check_inputs: bool = True
    _seen: Seen | None = None
    _pace: Pace | None = None
    _abandoned: bool = False
    _told: bool = False

    def __post_init__(self) -> None:
        """Check what the fields' types say; a method that has more to check calls this first."""
        check_fields(self)

    def __setattr__(self, name: str, value: object) -> None:
        """Any loss is taken for a criterion, see `layerwise.core.criteria.as_criterion`."""
        if name == "base" and isinstance(value, str | type):
            of_kind("base", value, Method, example="layerwise.PGD()")
        super().__setattr__(name, as_criterion(value) if name == "criterion" else value)

    def losses(
        self, model: nn.Module, x: Inputs, y: Any, *, backward: Backward = AUTOGRAD, generator: Source = None
    ) -> Losses:
        """Yield what has to be descended for one mini-batch.

        Args:
            model: the network in training mode, wrapped or not.
            x: images (B, C, H, W) in [0, 1], or what else the network takes.
            y: labels (B,), or what else the criterion takes.
            backward: the engine, see `layerwise.core.driving.Backward`.
            generator: source of random numbers.

        Yields:
            A mean loss to back-propagate, clip and step on, or a `Partial` to back-propagate only.
            Code after a yield runs after the step. Gradients that are there already stay, so that a caller may add up several batches'
            before a step; a method that counts on a step after each loss (ANP, FreeAT, Parseval) notices and says that there is none.
        """
        if self._seen is None and self.check_inputs and self.needs_steps:
            self._pace = Pace(unwrap(model))
        inputs, labels = self._begun(model, x, y)
        source = self.batch_losses(model, inputs, labels, Step(backward, generator))
        try:
            yield from source if self._pace is None else self._paced(source)
        except GeneratorExit:
            self._abandoned = self._goes_on
            raise

    def _paced(self, source: Losses) -> Losses:
        """The same losses, with a look at the weights after each until it is known whether they move there."""
        with closing(source):
            for loss in source:
                pace = self._pace
                if pace is not None:
                    pace.begin()
                yield loss
                if pace is None or isinstance(loss, Partial):
                    continue
                still = pace.stands_still()
                if still is not None:
                    self._pace = None
                if still:
                    logger.warning(
                        f"{type(self).__name__} counts on a step of the optimiser after each of its losses, and finds no weight moved and "
                        "the gradients still there. Step after each loss; to accumulate, give the whole batch to layerwise.step(method, "
                        "model, x, y, optimizer, parts=...), outside of another library's accumulation: its parts step together"
                    )

    @property
    def needs_steps(self) -> bool:
        """Whether it counts on the optimiser's step after each of its losses; else gradients may add up over batches."""
        base = getattr(self, "base", None)
        return self.passes.steps > 1 or (isinstance(base, Method) and base.needs_steps)

    @property
    def _goes_on(self) -> bool:
        """Whether something comes after the first loss: others, or what has to be done after the step. Else a class says False."""
        return True

    def _begun(self, model: nn.Module, x: Inputs, y: Any) -> tuple[Any, Any]:
        """A batch on its way into the method: checked if it is the network's first, in types that losses take."""
        if self._abandoned and not self._told:
            self._told = True
            logger.warning(
                f"the losses of {type(self).__name__} were left before their end: what it does after its first loss is missing, "
                "so that it may train as if it were off. Train with layerwise.step(method, model, x, y, optimizer), or go through "
                "all that losses gives"
            )
        if cut_by_fsdp(unwrap(model)) and self.second_order:
            raise ConfigError(
                f"{type(self).__name__} differentiates gradients, which FSDP2 cannot; take DistributedDataParallel, or another method"
            )
        x, y = prepared_inputs(x), prepared_labels(y)
        if self.check_inputs:
            for sentence in self.check(model, x, y):
                logger.warning(sentence)
        return x, y

    def check(self, model: nn.Module, x: Inputs, y: Any, *, moves_inputs: bool = False) -> list[str]:
        """Check the first batch of a network; nothing if there was one before.

        Args:
            model: the network in training mode, wrapped or not.
            x: inputs.
            y: labels.
            moves_inputs: whether inputs will be moved in any case, by an attack that looks on.

        Returns:
            Sentences about what is probably not meant.

        Raises:
            ConfigError: what cannot be meant.
        """
        raw = unwrap(model)
        if self._seen is None:
            self._seen = Seen()
        if self._seen.knows(raw):
            return []
        demands = Demands(
            method=type(self).__name__ if self.perturbs_input or not moves_inputs else "the validation's attack",
            criterion=self._criterion(),
            moves_inputs=moves_inputs or self.perturbs_input,
            needs_classes=self.needs_classes,
        )
        said = check_batch(model, x, y, demands)
        self._seen.remember(raw)
        return said

    def _criterion(self) -> Criterion | None:
        """What gives the loss: that of the innermost base."""
        base = getattr(self, "base", None)
        return base._criterion() if isinstance(base, Method) else getattr(self, "criterion", None)

    @abstractmethod
    def batch_losses(self, model: nn.Module, x: Any, y: Tensor, step: Step) -> Losses:
        """What `losses` yields; this is what a method implements, and what methods around it call."""

    @property
    @abstractmethod
    def passes(self) -> Passes:
        """Cost of one mini-batch."""

    @property
    def losses_alone(self) -> Passes:
        """Those of `passes` that the losses themselves need: what a second run on the same batch costs when no probe is made twice."""
        again = self.passes.weights
        return Passes(again, again, again, 0)

    @property
    def perturbs_input(self) -> bool:
        """Whether inputs are moved within [0, 1], which only images take."""
        base = getattr(self, "base", None)
        return base.perturbs_input if isinstance(base, Method) else False

    @property
    def needs_classes(self) -> bool:
        """Whether it takes the network's outputs for logits of classes, whatever the criterion is; by itself or in a part of it."""
        parts = (getattr(self, name, None) for name in ("base", "attack"))
        return any(part.needs_classes for part in parts if isinstance(part, Method))

    @property
    def second_order(self) -> bool:
        """Whether it differentiates gradients, by itself or in its base; such a step is not captured."""
        base = getattr(self, "base", None)
        return base.second_order if isinstance(base, Method) else False

    def under(self, threat: ThreatModel) -> Self:
        """This method against a threat model, whose radius stands wherever one is None, in bases and attacks too.

        Args:
            threat: norm and radius.

        Returns:
            A copy without sites and state, or this very method where nothing was None.

        Raises:
            ConfigError: a radius is None, and what it bounds is measured in another norm.
        """
        owner: Any = self
        values = {f.name: getattr(self, f.name) for f in fields(owner)}
        part = {f.metadata[THREAT]: f.name for f in fields(owner) if THREAT in f.metadata}
        changes: dict[str, Any] = {k: v.under(threat) for k, v in values.items() if isinstance(v, Method)}
        if "eps" in part and values[part["eps"]] is None:
            norm = "linf"
            if "norm" in part:  # a norm goes with its radius
                norm = changes[part["norm"]] = values[part["norm"]] or threat.norm
            changes[part["eps"]] = threat.eps_in(norm, of=type(self).__name__)
        moved = any(v is not values[k] for k, v in changes.items())
        return replace(owner, **changes) if moved else self

    def among(self, classes: int) -> Self:
        """This method where so many classes are told apart: a `num_classes` of None, which is all, is that number, in bases too.

        Args:
            classes: of the data.

        Returns:
            A copy without sites and state, whose `passes` count them, or this very method where nothing was None.
        """
        owner: Any = self
        values = {f.name: getattr(self, f.name) for f in fields(owner)}
        changes: dict[str, Any] = {k: v.among(classes) for k, v in values.items() if isinstance(v, Method)}
        if values.get("num_classes", classes) is None:
            changes["num_classes"] = classes
        moved = any(v is not values[k] for k, v in changes.items())
        return replace(owner, **changes) if moved else self

    def threats(self) -> dict[str, ThreatModel]:
        """What it is trained against where it says so itself, {dotted field: threat model}; all else is left to `under`."""
        found: dict[str, ThreatModel] = {}
        owner: Any = self
        part = {f.metadata[THREAT]: f.name for f in fields(owner) if THREAT in f.metadata}
        norm: Any = (getattr(self, part["norm"]) if "norm" in part else None) or "linf"
        for name in (f.name for f in fields(owner)):
            value = getattr(self, name)
            if isinstance(value, Method):
                found |= {f"{name}.{key}": threat for key, threat in value.threats().items()}
            elif name == part.get("eps") and isinstance(value, int | float):
                found[name] = ThreatModel(norm, value)
        return found

    def attach(self, model: nn.Module, example: Inputs) -> None:
        """Make the sites on `model` (unwrapped, before compile); `example` is a batch of at least one image."""
        del model, example

    def detach(self) -> None:
        """Remove the sites; the model is then bit-identical to one that never had any."""

    def attached_sites(self) -> list[Sites]:
        """Every set of sites that this method holds on the network."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What lasts across batches beside the network."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        if state:
            raise ConfigError(f"{type(self).__name__} keeps no state, found {', '.join(sorted(state))}")

    def diagnose(self, model: nn.Module, x: Inputs, y: Tensor) -> dict[str, float]:
        """Numbers worth tracing over training, computed now and then; {name: value}."""
        del model, x, y
        return {}

    def warnings(self) -> list[str]:
        """Sentences about what went wrong since the last call."""
        return []


class InputMethod(Method):
    """A method that perturbs the input: layer-wise methods build on its two parts, `perturb` and `loss`."""

    criterion: Criterion

    @property
    def perturbs_input(self) -> bool:
        return True

    def perturb(
        self,
        model: nn.Module,
        x: Inputs,
        y: Any,
        *,
        record: Sites | None = None,
        backward: Backward = AUTOGRAD,
        generator: Source = None,
    ) -> Perturbed:
        """Find the adversarial input.

        Args:
            model: the network.
            x: images (B, C, H, W) in [0, 1], or what else the network takes.
            y: labels (B,), or what else the criterion takes.
            record: sites whose gradients the last probe records as well.
            backward: the engine.
            generator: source of random numbers.

        Returns:
            x_adv of the shape of x, detached, and {site: gradient} of the last probe.
        """
        inputs, labels = self._begun(model, x, y)
        return self.batch_perturb(model, inputs, labels, Step(backward, generator), record)

    @property
    def _goes_on(self) -> bool:
        """Not if there is the one loss of `batch_losses` below."""
        return type(self).batch_losses is not InputMethod.batch_losses

    @abstractmethod
    def batch_perturb(self, model: nn.Module, x: Any, y: Tensor, step: Step, record: Sites | None = None) -> Perturbed:
        """What `perturb` gives; this is what a method implements, and what methods around it call."""

    def loss(self, model: nn.Module, x: Any, x_adv: Any, y: Tensor) -> Tensor:
        """The mean loss that is descended."""
        del x
        return self.criterion.mean(logits(model, x_adv), y)

    def batch_losses(self, model: nn.Module, x: Any, y: Tensor, step: Step) -> Losses:
        """One descent at the perturbed input."""
        x_adv, _ = self.batch_perturb(model, x, y, step)
        yield self.loss(model, x, x_adv, y)


class AttackedMethod(InputMethod):
    """A method whose `attack` finds the adversarial input, and which descends on clean inputs too."""

    attack: InputMethod

    def batch_perturb(self, model: nn.Module, x: Any, y: Tensor, step: Step, record: Sites | None = None) -> Perturbed:
        """As the attack does, on this method's loss; what the attack's probe names stands above both."""
        owner: Any = self.attack
        attack = self.attack if owner.criterion == self.criterion else replace(owner, criterion=self.criterion)
        perturbed: Perturbed = attack.batch_perturb(model, x, y, step, record)
        return perturbed

    @property
    def passes(self) -> Passes:
        """Those of the attack and the clean inputs' own."""
        return self.attack.passes + AGAIN


class LayerMethod(Method):
    """A method that perturbs layers; it serves one network, whose sites it makes at the first batch or in `attach`."""

    _attached: Sites | None = None

    @property
    def perturbs_input(self) -> bool:
        """Whether the base does, or the network's input is among the sites: noise there is kept within [0, 1]."""
        chosen = getattr(self, "sites", None)
        named = chosen == "input" if isinstance(chosen, str | None) else "input" in chosen
        return named or super().perturbs_input

    @abstractmethod
    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        """Attach this method's sites."""

    def attach(self, model: nn.Module, example: Inputs) -> None:
        raw = unwrap(model)
        if self._attached is not None and self._attached.model is not raw:
            raise SiteError(
                f"this {type(self).__name__} is attached to another network; one method instance serves one network: "
                "make a second one, or call detach() first"
            )
        if self._attached is None:
            self._attached = self.make_sites(raw, example)

    def detach(self) -> None:
        if self._attached is not None:
            self._attached.remove()
        self._attached = None

    def attached_sites(self) -> list[Sites]:
        return [] if self._attached is None else [self._attached]

    def sites_on(self, model: nn.Module, x: Inputs) -> Sites:
        """The sites on this network, clean of what an abandoned generator left."""
        self.attach(model, x)
        assert self._attached is not None
        self._attached.leave()
        self._attached.attach(x)
        return self._attached


def refuse_others(name: str, values: object, sites: Sites, example: Inputs) -> None:
    """Complain about a setting `{site: number}` with a number for what is none of a method's sites, where it would do nothing.

    Raises:
        SiteError: the network has no such site.
        ConfigError: it is none of the chosen ones.
    """
    own = ["input", *map(str, sites)]
    for other in sorted(set(values) - set(own)) if isinstance(values, Mapping) else ():
        Sites(sites.model, [other], example=example).remove()
        raise ConfigError(
            f"{name}.{other} has no effect: the method's sites are {', '.join(own)}; add {other!r} to its sites, or give "
            f"{name} as one number for all of them"
        )


def zeros_at(sites: Sites, x: Inputs) -> Noise:
    """No noise at every site, in the shapes that inputs of the shape of x give there."""
    sites.resolve(x)
    given = examples(x)
    dtype = given.dtype if given.is_floating_point() else torch.get_default_dtype()
    return {site: given.new_zeros(rows(x), *sites.shape(site), dtype=dtype) for site in sites}


def in_pixel_range(noise: Noise, x: Inputs) -> Noise:
    """The same noise, cut at the network's input so that x + r stays in [0, 1]."""
    given = examples(x)
    return {site: (given + r).clamp(0, 1) - given if site.is_input else r for site, r in noise.items()}
