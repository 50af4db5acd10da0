"""A quantised network becomes an integer graph: one operation per quantised layer."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch
from torch import fx, nn

from srquant.integer import graph as ops
from srquant.integer.graph import IntegerGraph, Operation, Tensor
from srquant.networks.layers import Anchor, ContrastAttention
from srquant.quantizers.artefact import header
from srquant.quantizers.folding import module_of
from srquant.quantizers.gating import GatedQuantizer
from srquant.quantizers.grid import IMAGE_GRID, Grid
from srquant.quantizers.layers import ActivationQuantizer, InputShift, QuantConv2d
from srquant.quantizers.network import QuantizedNetwork


def lower(network: QuantizedNetwork) -> IntegerGraph:
    """The integer graph of a calibrated network.

    A float node and the quantiser behind it become one operation. A node that only moves codes becomes one by
    itself, or none (the shift of the input is a zero point).
    """
    return _Lowering(network).run()


class _Lowering:
    def __init__(self, network: QuantizedNetwork) -> None:
        self.network = network
        self.graph_module = network.graph
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[Operation] = []
        self.value: dict[fx.Node, str] = {}
        """The tensor that a node's output is held in; float nodes before their quantiser have none."""

    def run(self) -> IntegerGraph:
        for node in self.graph_module.graph.nodes:
            self.visit(node)
        (output,) = self.graph_module.graph.find_nodes(op="output")
        return IntegerGraph(
            info=self.network.info,
            halo=self.network.halo,
            input=next(iter(self.tensors)),
            output=self.read(output.args[0]),
            tensors=self.tensors,
            operations=tuple(self.operations),
            provenance=header(self.network),
        )

    def visit(self, node: fx.Node) -> None:
        module = module_of(self.graph_module, node)
        if isinstance(module, ActivationQuantizer):
            self.round(node, module)
        elif isinstance(module, InputShift):
            tensor = self.tensors[self.read(node.args[0])]
            grid = replace(tensor.grid, zero_point=tensor.grid.zero_point + module.code)
            self.tensors[tensor.name] = replace(tensor, grid=grid)
            self.value[node] = tensor.name
        elif isinstance(module, nn.PixelShuffle):
            self.pixel_shuffle(node, module.upscale_factor)
        elif isinstance(module, Anchor):
            source = self.tensors[self.read(node.args[0])]
            tensor = replace(source, name=node.name, channels=source.channels * module.times)
            self.emit(node, tensor, ops.RepeatChannels(node.name, source.name, module.times))
        elif node.target is torch.cat:
            self.concatenate(node)
        elif node.target is operator.getitem:
            self.slice(node)

    def read(self, node: object) -> str:
        assert isinstance(node, fx.Node)
        return self.value[node]

    def emit(self, node: fx.Node, tensor: Tensor, operation: Operation) -> None:
        self.tensors[tensor.name] = tensor
        self.operations.append(operation)
        self.value[node] = tensor.name

    def round(self, node: fx.Node, quantizer: ActivationQuantizer) -> None:
        """The node before a quantiser, together with it."""
        grid = quantizer.deployed_grid()
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.op == "placeholder":
            self.tensors[node.name] = Tensor(node.name, self.network.info.channels, 1, grid)
            self.value[node] = node.name
        elif isinstance(quantizer, GatedQuantizer):
            self.gate(node, source, quantizer)
        elif source in self.value:
            self.requantize(node, source, grid)
        else:
            self.compute(node, source, grid)

    def gate(self, node: fx.Node, source: fx.Node, quantizer: GatedQuantizer) -> None:
        self.make_real(source)
        tensor = self.tensors[self.read(source)]
        grid = Grid(quantizer.deployed_grid().scale, ops.GATED_ZERO, 255)
        gated = replace(tensor, name=node.name, grid=grid, kind="gated")
        self.emit(node, gated, ops.GatedRound(node.name, tensor.name, quantizer.picture_grid))

    def make_real(self, node: fx.Node) -> None:
        """Compute a node that has no grid of its own as real values."""
        if node not in self.value:
            self.compute(node, node, IMAGE_GRID, kind="real")

    def requantize(self, node: fx.Node, source: fx.Node, grid: Grid) -> None:
        tensor = self.tensors[self.value[source]]
        if tensor.grid == grid and tensor.kind == "codes":
            self.value[node] = tensor.name
            return
        new = replace(tensor, name=node.name, grid=grid, kind="codes")
        self.emit(node, new, ops.Requantize(node.name, tensor.name))

    def compute(self, node: fx.Node, source: fx.Node, grid: Grid, kind: Literal["codes", "real"] = "codes") -> None:
        module = module_of(self.graph_module, source)
        relu = isinstance(module, nn.ReLU)
        if relu:
            source = source.all_input_nodes[0]
            module = module_of(self.graph_module, source)
        inputs = [self.tensors[self.read(arg)] for arg in source.all_input_nodes]
        name, first = node.name, inputs[0]
        tensor = replace(first, name=name, grid=grid, kind=kind)
        if isinstance(module, QuantConv2d):
            operation = _convolution(name, first.name, module, relu=relu)
            tensor = replace(tensor, channels=module.out_channels)
        elif isinstance(module, nn.PReLU):
            operation = ops.LeakyRelu(name, first.name, module.weight.detach().float().numpy())
        elif isinstance(module, nn.LeakyReLU):
            operation = ops.LeakyRelu(name, first.name, np.array([module.negative_slope], np.float32))
        elif isinstance(module, ContrastAttention):
            operation = _attention(name, first.name, module)
        elif source.target is operator.add:
            operation = ops.Add(name, first.name, self.read(source.args[1]))
        else:
            assert source.target is operator.mul, source
            left, right = (self.read(arg) for arg in source.args)
            operation = ops.Multiply(name, left, right)
        self.emit(node, tensor, operation)

    def pixel_shuffle(self, node: fx.Node, factor: int) -> None:
        source = self.tensors[self.read(node.args[0])]
        tensor = Tensor(node.name, source.channels // factor**2, source.resolution * factor, source.grid)
        self.emit(node, tensor, ops.PixelShuffle(node.name, source.name, factor))

    def concatenate(self, node: fx.Node) -> None:
        gated = isinstance(module_of(self.graph_module, next(iter(node.users))), GatedQuantizer)
        if gated:
            for part in node.all_input_nodes:
                self.make_real(part)
        parts = [self.tensors[self.read(part)] for part in node.all_input_nodes]
        tensor = replace(parts[0], name=node.name, channels=sum(part.channels for part in parts))
        tensor = replace(tensor, kind="real") if gated else tensor
        self.emit(node, tensor, ops.Concatenate(node.name, tuple(part.name for part in parts)))

    def slice(self, node: fx.Node) -> None:
        split, index = node.args
        assert isinstance(split, fx.Node)
        source = self.tensors[self.read(split.args[0])]
        ends = np.cumsum(np.array([0, *cast("list[int]", split.args[1])]))
        start, stop = (int(ends[cast("int", index) + i]) for i in (0, 1))
        tensor = replace(source, name=node.name, channels=stop - start)
        self.emit(node, tensor, ops.SliceChannels(node.name, source.name, start, stop))


def _convolution(output: str, source: str, module: QuantConv2d, *, relu: bool) -> ops.Convolution:
    codes = module.codes()
    padding = module.padding[0]
    assert isinstance(padding, int)
    return ops.Convolution(
        output,
        source,
        weight=codes.weight.numpy() * np.int8(codes.expansion),
        bias=codes.bias.numpy(),
        weight_scale=codes.steps.numpy(),
        padding=padding,
        groups=module.groups,
        relu=relu,
    )


def _attention(output: str, source: str, module: ContrastAttention) -> ops.ContrastAttention:
    squeeze, _, excite, _ = module.conv_du
    assert isinstance(squeeze, nn.Conv2d)
    assert isinstance(excite, nn.Conv2d)

    def array(values: torch.Tensor | None) -> np.ndarray:
        assert values is not None
        return values.detach().float().flatten(1).numpy() if values.dim() == 4 else values.detach().float().numpy()

    return ops.ContrastAttention(
        output, source, array(squeeze.weight), array(squeeze.bias), array(excite.weight), array(excite.bias)
    )
