"""A quantised network becomes an integer graph: one operation per quantised layer."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch
from torch import fx, nn

from srquant.errors import UserError
from srquant.integer import graph as ops
from srquant.integer.channels import Limits, rectified, scaling
from srquant.integer.functions import table_of
from srquant.integer.graph import IntegerGraph, Operation, Tensor
from srquant.integer.program_lowering import program_of
from srquant.networks.layers import Anchor, ChannelAffine, FloatLayer
from srquant.quantizers.artefact import header
from srquant.quantizers.folding import module_of
from srquant.quantizers.gating import GatedQuantizer
from srquant.quantizers.grid import IMAGE_GRID, Grid
from srquant.quantizers.layers import ActivationQuantizer, InputShift, KeptClip, QuantConv2d
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.offsets import ChannelQuantizer
from srquant.quantizers.structure import LOOKUPS, saturates


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
            self.shift(node, module.code)
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

    def shift(self, node: fx.Node, code: int) -> None:
        """Another zero point: the picture's own, or that of a copy where something reads the picture as it is."""
        (source,) = node.all_input_nodes
        tensor = self.tensors[self.read(source)]
        grid = replace(tensor.grid, zero_point=tensor.grid.zero_point + code)
        if len(source.users) > 1:
            same = np.arange(256, dtype=np.uint8)
            copy = replace(tensor, name=node.name, grid=grid)
            self.emit(node, copy, ops.Lookup(node.name, tensor.name, same, "shift"))
        else:
            self.tensors[tensor.name] = replace(tensor, grid=grid)
            self.value[node] = tensor.name

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
        elif isinstance(quantizer, ChannelQuantizer):
            self.round_channels(node, source, quantizer)
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

    def round_channels(self, node: fx.Node, source: fx.Node, quantizer: ChannelQuantizer) -> None:
        """An operation whose output channels have factors, windows or both."""
        grid = quantizer.deployed_grid()
        factors, limits = quantizer.factors, None if quantizer.lowest is None else quantizer.limits()
        if source in self.value:
            tensor = self.tensors[self.value[source]]
            again = ops.Requantize(node.name, tensor.name)
            if factors is not None:
                again = scaling(node.name, tensor.name, factors)
            self.finish(node, replace(tensor, name=node.name, grid=grid), again, limits)
        else:
            assert factors is None, node
            self.compute(node, source, grid, limits=limits)

    def finish(self, node: fx.Node, tensor: Tensor, operation: Operation, limits: Limits | None) -> None:
        """Emit an operation, and the limits of its output's channels behind it."""
        if limits is not None:
            unclipped = replace(tensor, name=f"{tensor.name}_unclipped")
            self.emit(node, unclipped, replace(operation, output=unclipped.name))
            operation = ops.ChannelClip(tensor.name, unclipped.name, *limits)
        self.emit(node, tensor, operation)

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

    def compute(
        self,
        node: fx.Node,
        source: fx.Node,
        grid: Grid,
        kind: Literal["codes", "real"] = "codes",
        limits: Limits | None = None,
    ) -> None:
        module = module_of(self.graph_module, source)
        clip = module if saturates(module) else None
        if clip is not None:
            source = source.all_input_nodes[0]
        name = node.name
        lowest, highest = (0, grid.maximum_code) if clip is None else _ends(clip, grid)
        is_relu = clip is not None and (kind == "real" or lowest == grid.zero_point)
        if limits is not None:
            assert clip is None or is_relu, clip
            limits, grid = rectified(limits, grid) if is_relu else (limits, grid)
            lowest = 0
        inputs = [self.tensors[self.read(arg)] for arg in self.inputs(source)]
        tensor, operation = self.operation(name, source, inputs, grid)
        tensor = replace(tensor, name=name, grid=grid, kind=kind)
        if isinstance(operation, ops.Convolution) and is_relu:
            operation, lowest = replace(operation, relu=True), 0
        if (lowest, highest) != (0, grid.maximum_code):
            unclipped = replace(tensor, name=f"{name}_unclipped")
            self.emit(node, unclipped, replace(operation, output=unclipped.name))
            operation = ops.Clip(name, unclipped.name, lowest, highest)
        self.finish(node, tensor, operation, limits)

    def inputs(self, source: fx.Node) -> list[fx.Node]:
        """What an operation reads: the tensor itself where it already has a grid."""
        if source in self.value:
            return [source]
        function = self.function(source)
        return (function or source).all_input_nodes

    def function(self, source: fx.Node) -> fx.Node | None:
        """The function of a single number that `source` is, or is the affine layer of."""
        while isinstance(module_of(self.graph_module, source), ChannelAffine):
            source = source.all_input_nodes[0]
        return source if type(module_of(self.graph_module, source)) in LOOKUPS else None

    def operation(self, name: str, source: fx.Node, inputs: list[Tensor], grid: Grid) -> tuple[Tensor, Operation]:
        """The operation that a node becomes, and its tensor but for name, grid and kind."""
        module, first = module_of(self.graph_module, source), inputs[0]
        if source in self.value:
            return first, ops.Requantize(name, first.name)
        function = self.function(source)
        if function is not None:
            return first, self.lookup(name, source, function, first, grid)
        if isinstance(module, QuantConv2d):
            return replace(first, channels=module.out_channels), _convolution(name, first.name, module)
        if isinstance(module, nn.PReLU):
            return first, ops.LeakyRelu(name, first.name, module.weight.detach().float().numpy())
        if isinstance(module, nn.LeakyReLU):
            return first, ops.LeakyRelu(name, first.name, np.array([module.negative_slope], np.float32))
        if isinstance(module, KeptClip):
            return first, ops.Clip(name, first.name, *_ends(module, first.grid))
        if isinstance(module, FloatLayer):
            steps = program_of(str(source.target), module)
            return replace(first, channels=module.channels), ops.FloatProgram(name, first.name, steps)
        left, right = (self.tensors[self.read(arg)] for arg in source.args)
        if source.target is operator.add:
            return first, ops.Add(name, left.name, right.name)
        assert source.target is operator.mul, source
        return left, ops.Multiply(name, left.name, right.name)

    def lookup(self, name: str, source: fx.Node, function: fx.Node, tensor: Tensor, grid: Grid) -> ops.Lookup:
        """The table of a function, and of the affine layers behind it that are the same for all channels."""
        word = LOOKUPS[type(module_of(self.graph_module, function))]  # pyright: ignore[reportArgumentType]
        factor, shift = 1.0, 0.0
        for affine in self.affine_layers(source, function):
            scales, shifts = affine.scale.unique().tolist(), affine.shift.unique().tolist()
            if len(scales) > 1 or len(shifts) > 1:
                raise UserError(f"the factors behind '{function.name}' ({word}) differ from channel to channel")
            factor, shift = factor * scales[0], shift * scales[0] + shifts[0]
        table = table_of(word, tensor.grid, grid, factor, shift)
        return ops.Lookup(name, tensor.name, table, word if (factor, shift) == (1.0, 0.0) else f"scaled {word}")

    def affine_layers(self, source: fx.Node, function: fx.Node) -> list[ChannelAffine]:
        """From the function on."""
        found: list[ChannelAffine] = []
        while source is not function:
            module = module_of(self.graph_module, source)
            assert isinstance(module, ChannelAffine)
            found.insert(0, module)
            source = source.all_input_nodes[0]
        return found

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


def _ends(clip: nn.Module, grid: Grid) -> tuple[int, int]:
    """The codes nearest to the ends of a clip."""
    ends = (clip.min_val, clip.max_val) if isinstance(clip, nn.Hardtanh) else (0.0, math.inf)
    codes = (np.rint(np.float32(end) / np.float32(grid.scale)) + grid.zero_point for end in ends)
    lowest, highest = (int(min(max(code, 0), grid.maximum_code)) for code in codes)
    return lowest, highest


def _convolution(output: str, source: str, module: QuantConv2d) -> ops.Convolution:
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
        relu=False,
    )
