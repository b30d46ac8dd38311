"""What the processes of `tests.forks` have imported when they begin."""

import lightning_fabric
import rich.console
import sklearn.datasets
import torch.distributed.fsdp

import layerwise.experiments.experiment
import tests.torture.child

__all__ = ["layerwise", "lightning_fabric", "rich", "sklearn", "tests", "torch"]
