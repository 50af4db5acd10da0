"""How a trainable network computes: the same values and gradients, in less time or memory.

`eager` needs nothing; `compiled` rounds activations with compiled kernels and needs a C++ compiler on CPUs; `fused`
computes a quantiser, the ReLU before it and the convolution behind it as one function that keeps codes; `integer`
is `fused` with the forward convolution in int8, on processors that have it, so that training sees the very sums
that deployment computes. Where a quantiser has other readers than one convolution, it stays apart.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.folding import module_of, sole_user
from srquant.quantizers.fused import fused_quantized_conv2d
from srquant.quantizers.layers import QuantConv2d
from srquant.quantizers.network import QuantizedNetwork

TrainingKernel = Literal["eager", "compiled", "fused", "integer"]


def use_kernel(network: QuantizedNetwork, kernel: TrainingKernel) -> None:
    """Let a trainable network whose quantisers are in place compute with `kernel`, from then on.

    Its parameters, its state and what is deployed of it stay the same.
    """
    for quantizer in network.activation_quantizers().values():
        if isinstance(quantizer, BoundsQuantizer):
            quantizer.kernel = "compiled" if kernel == "compiled" else "eager"
    if kernel in ("fused", "integer"):
        for node in list(network.graph.graph.nodes):
            _fuse(network.graph, node, integer=kernel == "integer")
        network.graph.graph.lint()
        network.graph.recompile()


class Fusion:
    """The forward pass of a convolution that rounds its own input.

    Args:
        integer: compute on codes where the machine can.
        relu: rectify the input first.
    """

    def __init__(self, *, integer: bool, relu: bool) -> None:
        self.integer = integer
        self.relu = relu

    def __call__(self, layer: QuantConv2d, values: Tensor) -> Tensor:
        """[N,C,H,W] not yet rounded -> [N,O,H,W]."""
        source = layer.source
        assert isinstance(source, BoundsQuantizer)
        assert layer.weight_quantizer is not None
        with torch.no_grad():
            seen = values.relu() if self.relu and source.looks() else values
        bounds = source.bounds_for(seen)
        weight, step = layer.weight_quantizer(layer.weight)
        bias = layer.snapped_bias(step)
        if bounds is None:
            values = values.relu() if self.relu else values
            return functional.conv2d(values, weight, bias, layer.stride, layer.padding, 1, layer.groups)
        relu = self.relu
        if source.watch is not None:
            values, relu = values.relu() if relu else values, False
            source.watch(source, values, bounds)
        stride, padding = layer.stride, layer.padding
        assert len(stride) == 2
        assert not isinstance(padding, str)
        assert len(padding) == 2
        return fused_quantized_conv2d(
            values,
            *bounds,
            source.bits,
            weight,
            bias,
            stride=stride,
            padding=padding,
            groups=layer.groups,
            gradient=source.gradient,
            weight_step=step,
            integer_forward=self.integer,
            relu=relu,
        )


def _fuse(graph_module: fx.GraphModule, node: fx.Node, *, integer: bool) -> None:
    """Let a convolution read what its quantiser reads, where nobody else reads the quantiser."""
    layer = module_of(graph_module, node)
    if not isinstance(layer, QuantConv2d) or layer.weight_quantizer is None:
        return
    rounded = node.all_input_nodes[0]
    source = module_of(graph_module, rounded)
    if source is not layer.source or sole_user(rounded) is not node or not _can_be_fused(source):
        return
    values = rounded.all_input_nodes[0]
    relu = isinstance(module_of(graph_module, values), nn.ReLU) and sole_user(values) is rounded
    node.args = (values.all_input_nodes[0] if relu else values,)
    graph_module.graph.erase_node(rounded)
    if relu:
        graph_module.graph.erase_node(values)
    layer.fusion = Fusion(integer=integer, relu=relu)


def _can_be_fused(source: nn.Module | None) -> bool:
    return isinstance(source, BoundsQuantizer) and source.grid_kind == "integer"
