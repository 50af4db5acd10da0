"""Experiments: one training from its settings to its result, and a queue of them with their scores."""

from __future__ import annotations

from srquant.experiments.queue import Entry, Outcome, Places, find_entries, run_queue, standing
from srquant.experiments.results import read_results
from srquant.experiments.training import Trained, train

__all__ = ["Entry", "Outcome", "Places", "Trained", "find_entries", "read_results", "run_queue", "standing", "train"]
