"""The factor on all learning rates: a pure function of the step."""

from __future__ import annotations

import math

from srquant.config import TrainingConfig


def epoch_of(step: int, config: TrainingConfig) -> int:
    """The epoch, from 1, of a step, from 1."""
    return (step - 1) // config.steps_per_epoch + 1


def total_steps(config: TrainingConfig) -> int:
    """Steps of the whole run."""
    return config.epochs * config.steps_per_epoch


def rate_factor(step: int, config: TrainingConfig) -> float:
    """What every group's learning rate is multiplied by at a step, from 1."""
    factor = 1.0
    if config.schedule == "step":
        factor = config.gamma ** ((epoch_of(step, config) - 1) // config.decay_epochs)
    elif config.schedule == "cosine":
        factor = (1 + math.cos(math.pi * (step - 1) / total_steps(config))) / 2
    return factor * min(1.0, step / config.warm_up_steps) if config.warm_up_steps else factor
