"""Measures: the numbers in the papers' columns, each a function of a trained system."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from layerwise.attacks import ThreatModel, parse_attack
from layerwise.attacks.base import Attack, InputAttack
from layerwise.attacks.transfer import Transfer
from layerwise.core.checks import parse_radius
from layerwise.data.batching import batches, num_batches
from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation import eps_ref, evaluate, fgsm_accuracies, rho
from layerwise.evaluation.corruptions import (
    EXTRA,
    EXTRA_SEQUENCES,
    STANDARD,
    STANDARD_SEQUENCES,
    CorruptionErrors,
    FlipProbabilities,
    Percent,
    corruption_errors,
    flip_probabilities,
    flip_rates,
    mce,
)
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures import boundary_distance
from layerwise.experiments import experiment
from layerwise.experiments.bench.stepping import Contestant, stepping
from layerwise.experiments.bench.stepping import training as timing
from layerwise.experiments.bench.timing import interleaved, ratio
from layerwise.experiments.experiment import SCHEMA
from layerwise.methods.sources import with_networks
from layerwise.reading import read_record
from layerwise.reproduce.bench import Bench, Outcome, Subject
from layerwise.reproduce.definitions import Row
from layerwise.reproduce.figures import images_of, looked_at
from layerwise.reproduce.systems import NEEDS

M = TypeVar("M", bound=Measurement)

Options: TypeAlias = Mapping[str, Any]
Measure: TypeAlias = Callable[[Bench, Subject, Options], Outcome]


def find_measure(name: str) -> Measure:
    """The measure of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MEASURES:
        raise ConfigError(f"there is no measure {name!r}; {did_you_mean(name, MEASURES)}")
    return MEASURES[name]


def measured(bench: Bench, row: Row, measure: str, options: Mapping[str, Any]) -> Outcome:
    """A cell, for the bench's seed.

    Raises:
        LayerwiseError: it cannot be measured.
    """
    function = find_measure(measure)
    chosen = {**options, **row.options}
    subject = bench.subject(row.system)

    def make() -> dict[str, Any]:
        started = time.perf_counter()
        found = function(bench, subject, chosen)
        place = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return asdict(replace(found, seconds=time.perf_counter() - started, device=place))

    stored = bench.cached(subject, [measure, chosen, bench.others(chosen)], make)
    outcome: Outcome = read_record(Outcome, stored, source=str(subject.folder))
    return outcome


def _attack(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Accuracy under `attack` at `eps` (`norm`, by default linf), in percent; with `error` what is wrong instead."""
    text = bench.scale.attack(options["attack"])
    return _evaluated(bench, subject, text, options, bench.scale.images_under(text))


def _transfer(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """The lowest of the accuracies under `attack` on each of the `sources`, systems that the target was not trained with."""
    text = bench.scale.attack(options["attack"])
    sources = {name: bench.system(name).network for name in options["sources"]}
    images = _fewer(bench)  # every source is attacked
    found = [
        _evaluated(bench, subject, _transferred(text, network, name), options, images)
        for name, network in sources.items()
    ]
    return replace(min(found, key=lambda outcome: outcome.value), what=f"{text} on {', '.join(sources)}, the worst")


def _evaluated_by(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Accuracy of the row `base` on the images that `attack` makes of this row's network: its degree of adversarialness."""
    text = bench.scale.attack(options["attack"])
    attack = _transferred(text, subject.network, subject.folder.name)
    found = _evaluated(bench, bench.row(options["base"]), attack, options, bench.scale.images)
    return replace(found, what=found.what.replace(str(attack), f"{text} on the row's network"))


def _transferred(text: str, network: nn.Module, name: str) -> Transfer:
    attack = parse_attack(text)
    if not isinstance(attack, InputAttack):
        raise ConfigError(f"attack {text!r} makes no images that could be transferred")
    return Transfer(attack, (network,), names=(name,))


def _fewer(bench: Bench) -> int | None:
    """How many images what costs more is evaluated on where not all are evaluated anyway."""
    return bench.scale.images and bench.scale.few


def _evaluated(bench: Bench, subject: Subject, attack: Attack | str, options: Options, images: int | None) -> Outcome:
    threat = ThreatModel(options.get("norm", "linf"), parse_radius(options["eps"]))
    record = evaluate(
        subject.network,
        subject.data,
        threat=threat,
        attacks=[attack],
        num_examples=images,
        progress=False,
        journal=subject.store,
    )
    (result,) = record.results
    what = str(attack) + ("" if str(attack) == "clean" else f", {threat}")
    found = _share(result.count, what, error=bool(options.get("error")))
    kept = result.kept if bench.item.options.get("controls") else ""  # a record of large tables stays small
    return replace(found, findings=tuple(str(finding) for finding in record.findings), kept=kept)


def _share(count: Count, what: str, *, error: bool = False) -> Outcome:
    low, high = count.interval
    value = 100 * count.accuracy
    if error:
        return Outcome(value=100 - value, low=100 - 100 * high, high=100 - 100 * low, images=count.total, what=what)
    return Outcome(value=value, low=100 * low, high=100 * high, images=count.total, what=what)


def _average(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """LAD's Avg: the mean of the columns `of`."""
    columns = {column.name: column for column in bench.item.columns}
    row = next(row for row in bench.item.rows if bench.resolve(row.system).name == subject.system.name)
    found = [measured(bench, row, columns[name].measure, columns[name].options) for name in options["of"]]
    value, low, high = (sum(getattr(o, key) for o in found) / len(found) for key in ("value", "low", "high"))
    return Outcome(value=value, low=low, high=high, images=found[0].images, what="mean of " + ", ".join(options["of"]))


def _rho(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Deep Defense's rho_2, with `steps` of DeepFool; `centered` takes the norm of x minus the mean training image."""
    steps, center = options.get("steps", 5), None
    if options.get("centered"):
        train = subject.data.train
        sums = [x.double().sum(0) for x, _ in batches(train, 1000, device=experiment.best_device())]
        center = torch.stack(sums).sum(0) / len(train)
    # Every step costs a pass a class.
    found = rho(subject.network, subject.data, num_steps=steps, num_examples=_fewer(bench), center=center)
    what = f"rho_2, {steps} DeepFool steps, {100 * found.unfooled:.2f} % not fooled"
    what += "" if center is None else ", over the norm of x minus the mean image"
    return Outcome(value=found.value, low=found.value, high=found.value, images=found.images, what=what)


def _fgs_at_eps_ref(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Accuracy under FGS at `fraction` of the reference radius of the row `base`."""
    base = bench.row(options["base"])

    def reference() -> float:
        return eps_ref(base.network, base.data, num_examples=bench.scale.images).eps

    eps = options["fraction"] * float(bench.cached(base, "eps_ref", reference))
    found = fgsm_accuracies(subject.network, subject.data, [eps], num_examples=bench.scale.images)[eps]
    return _share(found, f"fgsm, linf, eps {eps:.4g} = {options['fraction']} eps_ref")


def _corruption(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """CE of `name`, or mCE without a name, against the row `base`; `relative` ones likewise."""
    scores = mce(_errors(bench, subject), _errors(bench, bench.row(options["base"])))
    relative, name = options.get("relative", False), options.get("name")
    mean, each = (scores.relative_mce, scores.relative_ce) if relative else (scores.mce, scores.ce)
    found = mean if name is None else each[name]
    kind = "relative CE" if relative else "CE"
    return _percent(found, bench, f"{name} {kind}" if name else f"{kind}, mean of the fifteen")


def _errors(bench: Bench, subject: Subject) -> CorruptionErrors:
    def make() -> dict[str, Any]:
        names = (*STANDARD, *EXTRA)
        return corruption_errors(subject.network, subject.data, names=names, num_examples=bench.scale.few).to_dict()

    return _read(CorruptionErrors, bench.cached(subject, "corruption errors", make))


def _corrupted(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Mean accuracy under the fifteen standard corruptions and their severities, in percent."""
    del options
    errors = _errors(bench, subject)
    found = 100 * (1 - sum(map(errors.error, STANDARD)) / len(STANDARD))
    return Outcome(
        value=found, low=found, high=found, images=errors.images, what="mean accuracy of fifteen corruptions"
    )


def _flips(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """FR of `name`, or mFR without a name, against the row `base`."""
    rates = flip_rates(_sequences(bench, subject), _sequences(bench, bench.row(options["base"])))
    name = options.get("name")
    found = rates.mfr if name is None else rates.fr[name]
    return _percent(found, bench, f"{name} FR" if name else "FR, mean of the ten")


def _sequences(bench: Bench, subject: Subject) -> FlipProbabilities:
    def make() -> dict[str, Any]:
        names = (*STANDARD_SEQUENCES, *EXTRA_SEQUENCES)
        return flip_probabilities(subject.network, subject.data, names=names, num_examples=bench.scale.few).to_dict()

    return _read(FlipProbabilities, bench.cached(subject, "flip probabilities", make))


def _read(kind: type[M], stored: Any) -> M:
    found = Measurement.from_dict(stored)
    assert isinstance(found, kind)
    return found


def _percent(found: Percent | None, bench: Bench, what: str) -> Outcome:
    if found is None:
        raise ConfigError(f"{what}: the base model is no worse than on clean images, so there is no such figure")
    half = found.half_width or 0.0
    low, high = found.value - half, found.value + half
    images = bench.scale.few or 10_000
    return Outcome(value=found.value, low=low, high=high, images=images, what=f"{what}, generated corruptions")


def _boundary(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """ANP's W_f, over 1,000 directions and 100 images; root mean square over pixels in [0, 255], the likeliest reading of its unit."""
    del options
    few = bench.scale.few or 1000
    x, y = subject.images(min(100, few))
    found = boundary_distance(subject.network, x, y, directions=min(1000, few, x[0].numel()))
    value = 255 * found.rms
    what = f"{len(found.per_direction)} directions, both signs, RMS of pixels in [0, 255]"
    return Outcome(value=value, low=value, high=value, images=len(x), what=what)


def _minutes(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Time of training in minutes, or in `unit: seconds`, without evaluation."""
    del bench
    value = subject.seconds() / (1 if options.get("in") == "seconds" else 60)
    return Outcome(value=value, low=value, high=value, images=0, what="training time")


def _pace(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Training steps timed in turn with those of the row `base`, so that the machine's load does not matter.

    Their time over that of the base's or, `in: seconds`, of all of a run's steps. With one thread it is the processor's time.
    """
    base = bench.row(options["base"])

    def make() -> dict[str, float]:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        with ExitStack() as stack:
            runs = {
                name: stack.enter_context(_steps(bench, one)).run for name, one in (("own", subject), ("base", base))
            }
            times = interleaved(runs, experiment.best_device(), rounds=7, seconds=0.3, clock=clock)
        return {"step": statistics.median(times["own"]), "ratio": ratio(times["own"], times["base"])}

    found = bench.cached(subject, ["pace", base.system.name], make)
    training = subject.system.tree["training"]
    steps = training["epochs"] * num_batches(subject.data.train, training["batch_size"], training["drop_last"])
    value = found["step"] * steps if options.get("in") == "seconds" else found["ratio"]
    return Outcome(
        value=value, low=value, high=value, images=0, what=f"training steps, timed in turn with {options['base']}"
    )


@contextmanager
def _steps(bench: Bench, subject: Subject) -> Iterator[Contestant]:
    """The steps of a run's method, on its own trained network and a batch of its data."""
    chosen = SCHEMA.read(subject.system.tree)[0]
    method = with_networks(
        chosen.method.under(chosen.threat), lambda name: experiment.load(bench.place / name.removeprefix(NEEDS))
    )
    x, y = subject.images(chosen.training.batch_size)
    network = copy.deepcopy(subject.network)
    with stepping(network, method, x.cpu(), y.cpu(), timing(precision=chosen.training.precision)) as contestant:
        yield contestant


def _passes(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """What the method costs: passes a batch, of which standard training takes three."""
    del bench, options
    method = SCHEMA.read(subject.system.tree)[0].method
    value = float(method.among(subject.data.num_classes).passes.total)
    return Outcome(value=value, low=value, high=value, images=0, what="passes a batch")


def _times(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """Time of training divided by that of the row `base`."""
    value = subject.seconds() / bench.row(options["base"]).seconds()
    return Outcome(value=value, low=value, high=value, images=0, what=f"training time over that of {options['base']}")


def _looked(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """A number of the diagnostic `look`: its `field`, of `panel` where it has several, `at` a place, or the mean of a `part` or all."""
    settings = options.get("options", {})
    row = next(row for row in bench.item.rows if bench.resolve(row.system).name == subject.system.name)
    found = looked_at(options["look"], settings, bench, row.system)[options.get("panel", "")]
    value = getattr(found, options["field"])
    if isinstance(value, tuple):
        first, end = options.get("part", (0, len(value)))
        value = value[options["at"]] if "at" in options else sum(value[first:end]) / len(value[first:end])
    what = f"{options['look']}, {options['field']}"
    return Outcome(value=value, low=value, high=value, images=images_of(options["look"], bench), what=what)


def _logged(bench: Bench, subject: Subject, options: Options) -> Outcome:
    """What training logged under `key`, times `scale`: `of` its first, last, least or most, of an epoch (-3: before the last two).

    `fall` is the epoch that follows the largest loss within one epoch.
    """
    del bench
    key, of = options["key"], options["of"]
    found = subject.logged(key)
    values = [value for _, value in found]
    if isinstance(of, int) and not 1 <= abs(of) <= len(values):
        raise ConfigError(f"training logged {key} in {len(values)} epochs at this scale, which leaves out {of}")
    falls = [(before - after, epoch) for before, (epoch, after) in zip(values, found[1:], strict=False)]
    numbers = {"first": values[0], "last": values[-1], "least": min(values), "most": max(values)}
    numbers["fall"] = max(falls, default=(0.0, 0.0))[1]
    value = options.get("scale", 1) * (values[of - (of > 0)] if isinstance(of, int) else numbers[of])
    what = f"{key}, {f'epoch {of}' if isinstance(of, int) else f'{of} over the epochs'}"
    return Outcome(value=value, low=value, high=value, images=0, what=what)


MEASURES: dict[str, Measure] = {
    "look": _looked,
    "logged": _logged,
    "attack": _attack,
    "transfer": _transfer,
    "evaluated-by": _evaluated_by,
    "average": _average,
    "rho": _rho,
    "fgs-at-eps-ref": _fgs_at_eps_ref,
    "corruption": _corruption,
    "corrupted": _corrupted,
    "flips": _flips,
    "boundary": _boundary,
    "minutes": _minutes,
    "pace": _pace,
    "passes": _passes,
    "times": _times,
}
"""The measures by name."""
