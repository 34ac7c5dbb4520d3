"""Parameter groups and learning-rate schedules by step. Knows nothing of any method."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass
class Schedule:
    """Learning rate over optimiser steps, as a share of the optimiser's own.

    Args:
        shape: linear or cosine decay, or constant.
        warmup: steps of linear warm-up; below 1 a share of all steps.
        floor: where the decay ends.
    """

    shape: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup >= 0:
            raise ValueError(f"schedule.warmup is {self.warmup}: wanted steps, or below 1 a share of all steps")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"schedule.floor is {self.floor}: wanted a share of the learning rate, from 0 to 1")

    def factor(self, step: int, total: int) -> float:
        """The factor at `step` (from 0) of `total` steps."""
        warmup = self.warmup * total if self.warmup < 1 else self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1.0, total - warmup))
        if self.shape == "constant":
            return 1.0
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * left


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices with weight decay; biases, norms and other vectors without. One where the other is empty."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # DeepSpeed leaves out an empty one, the schedule does not
