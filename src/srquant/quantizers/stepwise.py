"""A quantised network run node by node, as it rounds and, beside that, as the float network it came from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import Target

from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d


class StepwiseRun(fx.Interpreter):
    """One picture on its way through a network; `step` has to be called for every node in order.

    Args:
        graph_module: with quantisers.
        picture: float32 [N,C,H,W], pixel values 0..255.
        rounded: compute what the network computes; else leave out every rounding, of weights and biases too. Their
            float values still have to be there, as they are until an artefact is read.
    """

    def __init__(self, graph_module: fx.GraphModule, picture: Tensor, *, rounded: bool) -> None:
        super().__init__(graph_module)
        self.rounded = rounded
        self.env: dict[fx.Node, Any] = {}
        self.args_iter = iter([picture])

    def step(self, node: fx.Node) -> None:
        """Compute one node's value and let go of those that nothing reads any more."""
        self.env[node] = self.run_node(node)
        for read in self.user_to_last_uses.get(node, []):
            del self.env[read]

    def call_module(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module gives, or what it would give if it rounded nothing."""
        module = self.fetch_attr(str(target))
        if not self.rounded:
            if isinstance(module, ActivationQuantizer):
                return args[0]
            if isinstance(module, QuantConv2d):
                return nn.Conv2d.forward(module, args[0])
        return module(*args, **kwargs)
