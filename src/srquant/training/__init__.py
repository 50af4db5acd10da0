"""Training: a visible loop that goes on exactly where it was stopped."""

from srquant.training.checkpoint import Checkpoint, load_checkpoint
from srquant.training.data import TrainingData
from srquant.training.loop import Result, fit
from srquant.training.objective import Objective, Reconstruction
from srquant.training.validation import Validation

__all__ = [
    "Checkpoint",
    "Objective",
    "Reconstruction",
    "Result",
    "TrainingData",
    "Validation",
    "fit",
    "load_checkpoint",
]
