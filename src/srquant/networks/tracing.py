"""The graph of a network: torch.fx with every layer kept whole and under its own name."""

from __future__ import annotations

from torch import fx, nn

from srquant.networks.layers import Anchor, CentredSigmoid, ChannelAffine, FloatLayer, Grow, ResizeLike

_LEAVES = (Anchor, CentredSigmoid, ChannelAffine, FloatLayer, Grow, ResizeLike)


class LayerTracer(fx.Tracer):
    """A tracer that enters the networks' blocks, but neither torch.nn layers nor those of `layers.py`."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` becomes one `call_module` node."""
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.GraphModule:
    """The network as a graph module that shares its parameters and buffers.

    `call_module` nodes keep the module-qualified names of the network (`body.0.body.2`); all other nodes are
    additions, products, `torch.cat` and `torch.split`.
    """
    graph = LayerTracer().trace(network)
    return fx.GraphModule(network, graph, type(network).__name__)


def trace_inside(layer: FloatLayer) -> fx.GraphModule:
    """The steps of one float layer, which `trace` keeps whole."""
    return fx.GraphModule(layer, LayerTracer().trace(layer), type(layer).__name__)
