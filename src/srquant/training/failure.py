"""A loss or gradient that is no number: where it began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def explain(objective: nn.Module, parts: Mapping[str, float], forward: Callable[[], object]) -> str:
    """Words on what is not finite: the loss parts, the first module that gave such values, the first gradient.

    Args:
        objective: what is trained.
        parts: the loss parts by name.
        forward: runs the objective once more, as the step did; its buffers may change.
    """
    bad = [f"'{name}' is {value}" for name, value in parts.items() if not _finite(torch.tensor(value))]
    told = [f"loss part {', '.join(bad)}"] if bad else []
    source = _first_module(objective, forward)
    if source:
        told.append(f"the first module whose output is not finite is '{source}'")
    elif not bad:
        named = objective.named_parameters()
        culprit = next((n for n, p in named if p.grad is not None and not _finite(p.grad)), None)
        told.append(f"the loss is finite, the gradient of '{culprit}' is not" if culprit else _largest(objective))
    return "; ".join(told)


def _largest(objective: nn.Module) -> str:
    """Words on gradients that are finite one by one, but whose norm is not."""
    sizes = {name: float(p.grad.abs().max()) for name, p in objective.named_parameters() if p.grad is not None}
    name = max(sizes, key=lambda key: sizes[key], default="")
    return f"the gradient's norm is beyond float32, its largest value is {sizes.get(name, 0.0):.1e} in '{name}'"


def _first_module(objective: nn.Module, forward: Callable[[], object]) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001  # PyTorch's signature
            if not found and not all(map(_finite, _tensors(output))):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in objective.named_modules() if name]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
