"""Questions about a traced network: what makes a tensor, who reads it, which stage a convolution belongs to."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from srquant.networks.layers import Anchor, CentredSigmoid, ChannelAffine, FloatLayer
from srquant.quantizers.folding import module_of, sole_user
from srquant.quantizers.layers import InputShift, KeptClip
from srquant.quantizers.placement import Stage

LOOKUPS: dict[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid",
    CentredSigmoid: "centred sigmoid",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
}
"""Functions of a single number, computed by a table of all codes, and their names."""

_MOVES = (nn.PixelShuffle, Anchor, InputShift)


def saturates(module: nn.Module | None) -> bool:
    """Whether a layer is a clip that the codes of the tensor before it may take over: a ReLU or an nn.Hardtanh."""
    return isinstance(module, nn.ReLU | nn.Hardtanh) and not isinstance(module, KeptClip)


class Structure:
    """A graph module and the questions asked about it."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self._before, self._after = self._around_shuffles()

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module a node calls, or None."""
        return module_of(self.graph_module, node)

    def convolutions(self) -> list[fx.Node]:
        """Every convolution, in the order of execution."""
        return [node for node in self.graph.nodes if isinstance(self.module(node), nn.Conv2d)]

    def is_move(self, node: fx.Node) -> bool:
        """Whether the node only moves codes: its output lies on the grid of its input."""
        if node.op == "call_function":
            return node.target in (operator.getitem, torch.split)
        return isinstance(self.module(node), _MOVES)

    def origin(self, node: object) -> fx.Node:
        """The node that made the tensor which `node` hands on by moves alone."""
        assert isinstance(node, fx.Node)
        while self.is_move(node):
            node = node.args[0]
            assert isinstance(node, fx.Node)
        return node

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Every node that reads this tensor, looking through moves."""
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if self.is_move(user) else [user]
        return found

    def is_scaling(self, node: fx.Node) -> bool:
        """Whether the node is an affine layer: batch normalisation, mean shift, multiplication by a number."""
        if isinstance(self.module(node), nn.BatchNorm2d | ChannelAffine):
            return True
        return node.target is operator.mul and len(node.all_input_nodes) == 1

    def is_lookup(self, node: fx.Node) -> bool:
        """Whether the node is a function of a single number; see `LOOKUPS`."""
        return type(self.module(node)) in LOOKUPS

    def convolution_of(self, node: fx.Node) -> fx.Node | None:
        """The convolution whose result `node` is, looking back through affine layers and a clip; else None."""
        while self.is_scaling(node) or saturates(self.module(node)):
            node = node.all_input_nodes[0]
        return node if isinstance(self.module(node), nn.Conv2d) else None

    def goes_on(self, node: fx.Node) -> bool:
        """Whether the only reader finishes this tensor: an affine layer, or a clip behind anything but a function."""
        reader = sole_user(node)
        if reader is None:
            return False
        sums = node.op == "call_function" and not self.is_scaling(node)
        return (self.is_scaling(reader) and not sums) or (saturates(self.module(reader)) and not self.is_lookup(node))

    def stage(self, conv: fx.Node) -> Stage:
        """Head, body or tail; see `srquant.quantizers.placement`."""
        source = self.origin(conv.args[0])
        while self.is_scaling(source):
            source = self.origin(source.args[0])
        if source.op == "placeholder":
            return "head"
        return "tail" if conv in self._before or conv in self._after else "body"

    def first_tail_convolution(self) -> str:
        """Name of the convolution that reads the feature map before the upsampler; empty where there is none."""
        return next((str(node.target) for node in self.convolutions() if self.stage(node) == "tail"), "")

    def _around_shuffles(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """The nodes from which a pixel shuffle is reached without passing a convolution, and those behind one."""
        before: set[fx.Node] = set()
        after: set[fx.Node] = set()
        for node in self.graph.nodes:
            is_shuffle = isinstance(self.module(node), nn.PixelShuffle)
            if is_shuffle or any(source in after for source in node.all_input_nodes):
                after.add(node)
        for node in reversed(self.graph.nodes):
            module = self.module(node)
            stops = isinstance(module, nn.Conv2d | FloatLayer)
            if isinstance(module, nn.PixelShuffle) or (node in before and not stops):
                before.update(node.all_input_nodes)
        return before, after
