"""Do our attacks agree with independent implementations, and at what speed?

    python benchmarks/agreement.py runs/pgd-mnist --eps 0.3 --num-examples 200

judges the network of a finished run on the first test images with our attacks and with foolbox's, torchattacks' and pyautoattack's at
equal settings, prints a table, and writes `benchmarks/results/agreement-NAME.json` with the machine, the versions and the timings.
torchattacks is left out where it cannot be imported: its own installation wants torchvision, which it does not use, so put it anywhere
with `pip install --no-deps --target FOLDER torchattacks` and type `--peers FOLDER`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.attacks import MIFGSM, AutoAttack, DeepFoolAttack, FGSMAttack, InputAttack, PGDAttack, ThreatModel
from layerwise.attacks.base import is_correct
from layerwise.attacks.external import package
from layerwise.core.checks import parse_radius
from layerwise.core.deepfool import deepfool
from layerwise.core.random import Stream
from layerwise.evaluation.conditions import Batches
from layerwise.experiments import experiment

RESULTS = Path(__file__).parent / "results"
SEED = 0
Make = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """A network, images that everybody attacks, and the settings that everybody uses."""

    network: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel
    steps: int

    @property
    def alpha(self) -> float:
        """Step size of PGD."""
        return self.threat.eps / 4

    def ours(self, attack: InputAttack) -> Tensor:
        """The images of one of our attacks."""
        return attack(self.network, self.x, self.y, self.threat, generator=Stream(SEED, total=len(self.x)))

    def foolbox(self, attack: Any) -> Tensor:
        """The images of one of foolbox's attacks."""
        foolbox = package("foolbox")
        model = foolbox.PyTorchModel(self.network, bounds=(0, 1), device=self.x.device)
        found: Tensor = attack(model, self.x, foolbox.Misclassification(self.y), epsilons=self.threat.eps)[1]
        return found

    def right(self, x: Tensor) -> Tensor:
        """Which images are right."""
        with torch.no_grad():
            return is_correct(self.network(x), self.y)

    def first(self, count: int) -> Problem:
        """The same for the first images only."""
        return Problem(self.network, self.x[:count], self.y[:count], self.threat, self.steps)


def same_settings(problem: Problem, torchattacks: Any) -> dict[str, dict[str, Make]]:
    """{attack: {implementation: its images}}, all from the same start and to the last iterate."""
    p, eps, alpha, steps = problem, problem.threat.eps, problem.alpha, problem.steps
    linf = p.threat.norm == "linf"
    name = "Linf" if linf else "L2"
    boxes = package("foolbox").attacks
    fixed = {"steps": steps, "random_start": False}
    found: dict[str, dict[str, Make]] = {
        "fgsm": {
            "layerwise": lambda: p.ours(FGSMAttack()),
            "foolbox": lambda: p.foolbox(getattr(boxes, f"{name}FastGradientAttack")()),
        },
        f"pgd-{steps}": {
            "layerwise": lambda: p.ours(PGDAttack(steps, alpha=alpha, random_start=False, stop_when_fooled=False)),
            "foolbox": lambda: p.foolbox(
                getattr(boxes, f"{name}ProjectedGradientDescentAttack")(abs_stepsize=alpha, **fixed)
            ),
        },
        f"mi-fgsm-{steps}": {
            "layerwise": lambda: p.ours(MIFGSM(steps, stop_when_fooled=False)),
            # It takes the sign of the gradient before it adds the momentum, which is not the paper's rule.
            "foolbox (signs)": lambda: p.foolbox(
                getattr(boxes, f"{name}MomentumIterativeFastGradientMethod")(abs_stepsize=eps / steps, **fixed)
            ),
        },
    }
    if torchattacks is not None and linf:
        made = {
            "fgsm": torchattacks.FGSM(p.network, eps=eps),
            f"pgd-{steps}": torchattacks.PGD(p.network, eps=eps, alpha=alpha, **fixed),
            f"mi-fgsm-{steps}": torchattacks.MIFGSM(p.network, eps=eps, alpha=eps / steps, steps=steps),
        }
        for key, attack in made.items():
            found[key]["torchattacks"] = partial(attack, p.x, p.y)
    return found


def agreement(problem: Problem, torchattacks: Any) -> list[dict[str, Any]]:
    """Accuracy under each implementation, and how far its images are from ours."""
    rows = []
    for attack, implementations in same_settings(problem, torchattacks).items():
        ours = implementations["layerwise"]()
        for name, make in implementations.items():
            found = make().detach()
            distance = (found - ours).abs().flatten(1).amax(1)
            rows.append(
                {
                    "attack": attack,
                    "implementation": name,
                    "accuracy": share(problem.right(found)),
                    "images as ours": share(distance < 1e-5),
                }
            )
    return rows


def strength_and_speed(problem: Problem, torchattacks: Any, repeats: int) -> list[dict[str, Any]]:
    """PGD with a random start at equal steps: accuracy, and the median of interleaved timings."""
    p, alpha, steps = problem, problem.alpha, problem.steps
    linf = p.threat.norm == "linf"
    theirs = getattr(package("foolbox").attacks, f"{'Linf' if linf else 'L2'}ProjectedGradientDescentAttack")
    makers: dict[str, Make] = {
        "layerwise": lambda: p.ours(PGDAttack(steps, alpha=alpha)),
        "layerwise, last iterate": lambda: p.ours(PGDAttack(steps, alpha=alpha, stop_when_fooled=False)),
        "foolbox": lambda: p.foolbox(theirs(steps=steps, abs_stepsize=alpha)),
    }
    if torchattacks is not None:
        cls = torchattacks.PGD if linf else torchattacks.PGDL2
        makers["torchattacks"] = lambda: cls(p.network, eps=p.threat.eps, alpha=alpha, steps=steps)(p.x, p.y)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    right: dict[str, Tensor] = {}
    for turn in range(repeats + 1):
        for name, make in makers.items():
            torch.manual_seed(SEED)
            started = clock()
            found = make().detach()
            if turn:  # the first is a warm-up
                seconds[name].append(clock() - started)
            right[name] = p.right(found)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "attack": f"pgd-{steps}, random start",
            "implementation": name,
            "accuracy": share(right[name]),
            "seconds": median[name],
            "seconds / ours": median[name] / median["layerwise"],
        }
        for name in makers
    ]


def deepfool_norms(problem: Problem) -> list[dict[str, Any]]:
    """The mean l2 norm of DeepFool's step, over the images that everybody fools."""
    p, steps = problem, 50
    with torch.no_grad():
        prediction = p.network(p.x).argmax(1)
    foolbox = package("foolbox")

    def theirs(bounds: tuple[float, float]) -> Tensor:
        model = foolbox.PyTorchModel(p.network, bounds=bounds, device=p.x.device)
        attack = foolbox.attacks.L2DeepFoolAttack(steps=steps, candidates=10, overshoot=0.02)
        found: Tensor = attack(model, p.x, foolbox.Misclassification(prediction), epsilons=None)[0]
        return found

    ours = deepfool(p.network, p.x, num_steps=steps, num_classes=10, overshoot=0.02).perturbation.detach()
    # The paper's algorithm, and ours, clips nothing; foolbox clips to the bounds at every step.
    moved = {"layerwise": p.x + ours, "foolbox": theirs((-99, 99)), "foolbox, clipped": theirs((0, 1))}
    with torch.no_grad():
        fooled = torch.stack([p.network(x).argmax(1) != prediction for x in moved.values()]).all(dim=0)
    means = {name: float((x - p.x).flatten(1).norm(dim=1)[fooled].mean()) for name, x in moved.items()}
    return [
        {
            "attack": f"deepfool-{steps}",
            "implementation": name,
            "mean l2 norm": mean,
            "norm / ours": mean / means["layerwise"],
            "images": int(fooled.sum()),
        }
        for name, mean in means.items()
    ]


def autoattack(problem: Problem) -> list[dict[str, Any]]:
    """Our members and order against the package called directly, and against an ensemble that holds neither."""
    p, attack = problem, AutoAttack()
    norm = {"linf": "Linf", "l2": "L2"}[p.threat.norm]
    order = package("pyautoattack").AutoAttack(
        p.network, norm=norm, eps=p.threat.eps, seed=SEED, device=p.x.device, version="standard"
    )
    order.fab.targeted = True
    members = dict(zip(order.attacks_to_run, (order.apgd, order.apgd_targeted, order.fab, order.square), strict=True))
    rows = []
    for member in attack.members:
        members[member.name].seed = SEED
        ours, theirs = p.ours(member), members[member.name].perturb(p.x.clone(), p.y)
        rows += pair(p, member.name, ours, theirs)
    ours, (theirs, _) = p.ours(attack), order.run_standard_evaluation(p.x, p.y, batch_size=len(p.x))
    rows += pair(p, "autoattack", ours, theirs)
    rows.append({"attack": "autoattack", "implementation": "ensemble without it", "accuracy": share(ensemble(p))})
    return rows


def pair(p: Problem, attack: str, ours: Tensor, theirs: Tensor) -> list[dict[str, Any]]:
    """Two rows: ours and the package's."""
    same = share((ours == theirs).flatten(1).all(dim=1))
    return [
        {"attack": attack, "implementation": "layerwise", "accuracy": share(p.right(ours)), "images as ours": 1.0},
        {
            "attack": attack,
            "implementation": "pyautoattack",
            "accuracy": share(p.right(theirs)),
            "images as ours": same,
        },
    ]


def ensemble(problem: Problem) -> Tensor:
    """Which images resist our attacks and foolbox's, each run on those that resisted so far; AutoAttack's members are not among them."""
    p, boxes = problem, package("foolbox").attacks
    name = "Linf" if p.threat.norm == "linf" else "L2"
    theirs = [
        getattr(boxes, f"{name}ProjectedGradientDescentAttack")(steps=100, rel_stepsize=0.05),
        getattr(boxes, f"{name}DeepFoolAttack")(),
        getattr(boxes, f"{'LInf' if name == 'Linf' else 'L2'}FMNAttack")(steps=200),
    ]
    ours = [PGDAttack(50, 5), PGDAttack(50, 2, alpha=p.threat.eps / 20), MIFGSM(50), DeepFoolAttack()]
    rows = p.right(p.x).nonzero().flatten()
    for attack in [*ours, *theirs]:
        left = Problem(p.network, p.x[rows], p.y[rows], p.threat, p.steps)
        found = left.ours(attack) if isinstance(attack, InputAttack) else left.foolbox(attack)
        p.threat.check(left.x, found, attack=str(attack))
        rows = rows[left.right(found)]
    right = torch.zeros(len(p.x), dtype=torch.bool)
    right[rows] = True
    return right


def clock() -> float:
    """Seconds: the process's own on a CPU, which others may share, and the wall's on a GPU."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def share(mask: Tensor) -> float:
    """The share of a mask that is true."""
    return float(mask.double().mean())


def machine() -> dict[str, Any]:
    """What computes."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions(torchattacks: Any) -> dict[str, str]:
    """What was compared."""
    found = {name: metadata.version(name) for name in ("layerwise", "torch", "foolbox", "pyautoattack")}
    if torchattacks is not None:
        found["torchattacks"] = torchattacks.__version__
    return {"python": platform.python_version(), **found}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{row[k]:.4f}" if isinstance(row.get(k), float) else str(row.get(k, "")) for k in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *cells]) for i in range(len(keys))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) for line in [keys, *cells])


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--data", help="root of the data (default: the run's)")
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--eps", type=parse_radius, help="radius (default: the run's)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num-examples", type=int, default=500)
    parser.add_argument("--autoattack-examples", type=int, default=100, help="0 leaves AutoAttack out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="folder that holds torchattacks")
    parser.add_argument("--name", help="of the result (default: the run's)")
    args = parser.parse_args()
    if args.peers:
        sys.path.append(args.peers)
    torchattacks = importlib.import_module("torchattacks") if importlib.util.find_spec("torchattacks") else None
    overrides = [f"--data.root={args.data}"] if args.data else []
    settings, network, data = experiment.open_run(args.run, overrides)
    threat = ThreatModel(args.norm, settings.threat.eps if args.eps is None else args.eps)
    device = next(network.parameters()).device
    x, y = Batches(data.test, args.num_examples, SEED, device).example(args.num_examples)
    network.eval().requires_grad_(False)  # so that the timings compare attacks, not who spends time on the weights
    problem = Problem(network, x, y, threat, args.steps)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "agreement": lambda: agreement(problem, torchattacks),
        "strength and speed": lambda: strength_and_speed(problem, torchattacks, args.repeats),
        "deepfool": lambda: deepfool_norms(problem),
        "autoattack": lambda: autoattack(problem.first(args.autoattack_examples)),
    }
    if not args.autoattack_examples:
        del parts["autoattack"]
    record = {
        "run": args.run.name,
        "model": settings.model.name,
        "data": data.name,
        "threat": str(threat),
        "images": args.num_examples,
        "images under autoattack": args.autoattack_examples,
        "clean accuracy": share(problem.right(x)),
        "repeats": args.repeats,
        "machine": machine(),
        "versions": versions(torchattacks),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"agreement-{args.name or args.run.name}-{args.norm}.json"
    print(f"{args.run.name}: {threat}, clean {record['clean accuracy']:.4f}; written to {path.name}\n", flush=True)
    for name, compare in parts.items():
        record[name] = compare()
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(table(record[name]), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
