"""The gradients of one batch, as an objective wants them combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from srquant.training.objective import Combining, Objective

Backward = Callable[[Sequence[Tensor], bool], None]


def take_gradients(
    objective: Objective, parameters: Sequence[nn.Parameter], parts: Mapping[str, Tensor], backward: Backward
) -> list[Tensor]:
    """The gradients of all loss parts, left in the parameters too; those that stand apart as `Combining` says.

    Args:
        objective: gave the parts.
        parameters: all that are trained, without gradients yet.
        parts: the loss, part by part.
        backward: adds the gradients of the sum of some parts to the parameters; told whether the graph stays.
    """
    names = objective.apart & parts.keys() if isinstance(objective, Combining) else frozenset[str]()
    backward([part for name, part in parts.items() if name not in names], bool(names))
    if isinstance(objective, Combining) and names:
        first = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        backward([parts[name] for name in names], False)
        combined = objective.combine(parameters, first, [parameter.grad for parameter in parameters])
        for parameter, gradient in zip(parameters, combined, strict=True):
            parameter.grad = gradient
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
