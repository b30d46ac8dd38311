"""What to try next: Optuna's tree of Parzen estimators, told what has been tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layerwise.errors import ConfigError
from layerwise.experiments.ranges import Choice, Range

DRAWS = 1000
"""After so many draws that were all tried before, one is tried again: chance finds even the last of a hundred settings sooner."""


def optuna() -> Any:
    """The package, imported only where a search needs it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna as package
    except ImportError:
        raise ConfigError("the search needs the package optuna; type pip install 'layerwise[tune]'") from None
    return package


def propose(
    ranges: Mapping[str, Range],
    told: Sequence[tuple[Mapping[str, Any], float]],
    *,
    running: Sequence[Mapping[str, Any]] = (),
    seed: int,
    random: int,
) -> dict[str, Any]:
    """The settings to try next: a function of its arguments alone, so that a search that is resumed goes on as if it had not stopped.

    Args:
        ranges: {dotted setting: range}.
        told: settings that were tried and their scores, more is better, in the order in which they were proposed.
        running: settings that are being tried; while scores do not count yet, the proposal is as if they had been.
        seed: of the search.
        random: so many are drawn at random before the scores count.

    Reference: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; Akiba et al. 2019, "Optuna".
    """
    package, talk = optuna(), optuna().logging
    distributions = {key: distribution(package, each) for key, each in ranges.items()}
    # A stream for each trial: what the earlier ones drew is then no state that a resumed search lacks.
    sampler = package.samplers.TPESampler(
        seed=(seed * 100_003 + len(told) + len(running)) % 2**32, n_startup_trials=random
    )
    level = talk.get_verbosity()
    talk.set_verbosity(talk.WARNING)
    try:
        study = package.create_study(direction="maximize", sampler=sampler)
        for settings, score in told:
            params = {key: index(each, settings[key]) for key, each in ranges.items()}
            study.add_trial(package.trial.create_trial(params=params, distributions=distributions, value=score))
        for settings in running:
            params = {key: index(each, settings[key]) for key, each in ranges.items()}
            state = package.trial.TrialState.RUNNING
            study.add_trial(package.trial.create_trial(params=params, distributions=distributions, state=state))
        # Optuna draws lists anew each time, and would train the best value of a short one again and again.
        for _ in range(DRAWS):
            drawn = study.ask(distributions).params
            found = {key: value(each, drawn[key]) for key, each in ranges.items()}
            if not any(found == settings for settings in (*running, *(settings for settings, _ in told))):
                break
    finally:
        talk.set_verbosity(level)
    return found


def distribution(package: Any, each: Range) -> Any:
    """What Optuna calls a range."""
    if isinstance(each, Choice):
        return package.distributions.CategoricalDistribution(range(len(each.values)))
    if each.whole:
        return package.distributions.IntDistribution(int(each.low), int(each.high), log=each.log)
    return package.distributions.FloatDistribution(each.low, each.high, log=each.log)


def index(each: Range, value: Any) -> Any:
    """What Optuna calls a value: of a list its place, since Optuna takes no mappings."""
    return each.values.index(value) if isinstance(each, Choice) else value


def exact(each: Range, known: Any) -> Any:
    """The value that Optuna knows as `known`."""
    return each.values[known] if isinstance(each, Choice) else known


def value(each: Range, drawn: Any) -> Any:
    """The value of a setting; numbers in four digits, as people would type them."""
    if isinstance(each, Choice) or each.whole:
        return exact(each, drawn)
    return min(max(float(f"{drawn:.4g}"), each.low), each.high)
