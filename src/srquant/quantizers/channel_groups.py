"""Which channels of a folded network have to be scaled by one common factor, and the scaling of them."""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import Tensor, fx, nn

from srquant.networks.layers import Anchor, FloatLayer
from srquant.quantizers.folding import module_of


class ChannelGroups:
    """Which channels of which tensors must share one factor.

    Attributes:
        channels: for each node the group number of each of its channels; group 0 is not to be scaled.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.graph_module = graph_module
        self.parents = [0]
        self.channels: dict[fx.Node, Tensor] = {}
        for node in graph_module.graph.nodes:
            if node.op == "output":
                self._join(self.channels[node.args[0]], torch.zeros(1, dtype=torch.long))
            else:
                self.channels[node] = self._visit(node)
        self.channels = {node: self._roots(groups) for node, groups in self.channels.items()}

    def _visit(self, node: fx.Node) -> Tensor:
        module = module_of(self.graph_module, node)
        read = [self.channels[source] for source in node.all_input_nodes]
        if isinstance(module, nn.Conv2d):
            first = len(self.parents)
            self.parents += range(first, first + module.out_channels)
            return torch.arange(first, first + module.out_channels)
        if isinstance(module, nn.ReLU | nn.PReLU | nn.LeakyReLU):
            return read[0]
        if isinstance(module, Anchor):
            return read[0] if len(read[0]) == 1 else read[0].repeat_interleave(module.times)
        if isinstance(module, nn.PixelShuffle):
            blocks = read[0].view(-1, module.upscale_factor**2)
            for column in blocks.unbind(1):
                self._join(column, blocks[:, 0])
            return blocks[:, 0]
        if isinstance(module, FloatLayer):
            return (read[0] if module.reader else self._keep(read)).new_zeros(module.channels)
        if node.target is operator.add:
            self._join(read[0], read[1])
            return read[0]
        if node.target is operator.mul and len(read) == 2 and len(read[0]) >= len(read[1]):
            self._keep(read[1:])
            return read[0]
        if node.target is torch.cat:
            return torch.cat(read)
        if node.target is torch.split:
            return read[0]
        if node.target is operator.getitem:
            return read[0].split(cast("list[int]", node.all_input_nodes[0].args[1]))[cast("int", node.args[1])]
        return self._keep(read)

    def _keep(self, read: list[Tensor]) -> Tensor:
        """Anything else (the picture, functions, attention): neither its inputs nor its output are scaled."""
        for groups in read:
            self._join(groups, torch.zeros(1, dtype=torch.long))
        return torch.zeros(max(map(len, read), default=1), dtype=torch.long)

    def _join(self, left: Tensor, right: Tensor) -> None:
        for a, b in zip(*(t.tolist() for t in torch.broadcast_tensors(left, right)), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self.parents[high] = low

    def _root(self, group: int) -> int:
        while self.parents[group] != group:
            group = self.parents[group]
        return group

    def _roots(self, groups: Tensor) -> Tensor:
        return torch.tensor([self._root(group) for group in groups.tolist()])

    def convolutions(self) -> dict[str, fx.Node]:
        """The convolutions of the graph by name."""
        return {str(n.target): n for n in self.channels if isinstance(module_of(self.graph_module, n), nn.Conv2d)}

    @torch.no_grad()
    def divide(self, factors: Tensor) -> None:
        """Divide every channel by its group's factor where it is made, and undo it where it is read, in place.

        Args:
            factors: float32 [groups], all above 0, that of group 0 is 1.
        """
        for node in self.channels:
            module = module_of(self.graph_module, node)
            if isinstance(module, nn.Conv2d):
                _multiply_columns(module, factors[self.channels[node.all_input_nodes[0]]])
                made = factors[self.channels[node]]
                module.weight.div_(made.view(-1, 1, 1, 1))
                if module.bias is not None:
                    module.bias.div_(made)
            elif isinstance(module, FloatLayer) and module.reader:
                reader = module.get_submodule(module.reader)
                assert isinstance(reader, nn.Conv2d)
                _multiply_columns(reader, factors[self.channels[node.all_input_nodes[0]]])


def columns(read: Tensor, conv: nn.Conv2d) -> Tensor:
    """Of values per input channel, [I] or [1], the one that each weight of a convolution reads: [O, I/groups]."""
    per_group = read.expand(conv.in_channels).reshape(conv.groups, -1)
    return per_group.repeat_interleave(conv.out_channels // conv.groups, dim=0)


def _multiply_columns(conv: nn.Conv2d, factors: Tensor) -> None:
    conv.weight.mul_(columns(factors, conv)[..., None, None])
