"""Channel equalisation: the same float network, with channels of like range in every tensor.

One grid serves all channels of a tensor, so a channel of small range wastes most of it. Convolutions, ReLU, PReLU,
additions and moves of channels are all positively homogeneous: dividing a channel by a factor where it is made and
multiplying the weights that read it by the same factor changes nothing in float. Channels that are added to one
another share a factor, so a whole residual stream is scaled together. The idea is cross-layer equalisation (Nagel et
al., ICCV 2019, arXiv 1906.04721, section 4.1), carried through residual networks and driven by measured activation
ranges instead of weight ranges.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, fx, nn

from srquant.networks.layers import Anchor
from srquant.quantizers.folding import module_of

_LARGEST_FACTOR = 4.0
"""A channel is scaled up by no more: one that is rarely active may be far larger on another picture."""


def equalize(graph_module: fx.GraphModule, crops: Iterable[Tensor]) -> None:
    """Rescale the channels of a folded network in place; one whose gradients overflow is left as it is.

    Args:
        graph_module: from `fold`, before quantisers are inserted.
        crops: yields float32 [1, C, H, W], pixel values 0..255.
    """
    groups = _ChannelGroups(graph_module)
    ranges, importance = _measure(graph_module, crops)
    if not all(map(math.isfinite, importance.values())):
        return
    factors = groups.factors(ranges, importance)
    for node, module in groups.convolutions():
        made = factors[groups.channels[node]]
        read = factors[groups.channels[node.all_input_nodes[0]]]
        with torch.no_grad():
            module.weight.mul_(_columns(read, module)).div_(made.view(-1, 1, 1, 1))
            if module.bias is not None:
                module.bias.div_(made)


def _columns(read: Tensor, conv: nn.Conv2d) -> Tensor:
    """The factors of the channels that each output reads, [O, I/groups, 1, 1]."""
    per_group = read.view(conv.groups, -1)
    return per_group.repeat_interleave(conv.out_channels // conv.groups, dim=0)[..., None, None]


class _ChannelGroups:
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
                self.join(self.channels[node.args[0]], torch.zeros(1, dtype=torch.long))
            else:
                self.channels[node] = self.visit(node)
        self.channels = {node: self.roots(groups) for node, groups in self.channels.items()}

    def visit(self, node: fx.Node) -> Tensor:
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
                self.join(column, blocks[:, 0])
            return blocks[:, 0]
        if node.target is operator.add:
            self.join(read[0], read[1])
            return read[0]
        if node.target is torch.cat:
            return torch.cat(read)
        if node.target is torch.split:
            return read[0]
        if node.target is operator.getitem:
            return read[0].split(cast("list[int]", node.all_input_nodes[0].args[1]))[cast("int", node.args[1])]
        return self.keep(read)

    def keep(self, read: list[Tensor]) -> Tensor:
        """Anything else (the picture, attention and its product): neither its inputs nor its output are scaled."""
        for groups in read:
            self.join(groups, torch.zeros(1, dtype=torch.long))
        return torch.zeros(max(map(len, read), default=1), dtype=torch.long)

    def join(self, left: Tensor, right: Tensor) -> None:
        for a, b in zip(*(t.tolist() for t in torch.broadcast_tensors(left, right)), strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self.parents[high] = low

    def root(self, group: int) -> int:
        while self.parents[group] != group:
            group = self.parents[group]
        return group

    def roots(self, groups: Tensor) -> Tensor:
        return torch.tensor([self.root(group) for group in groups.tolist()])

    def convolutions(self) -> list[tuple[fx.Node, nn.Conv2d]]:
        """The convolutions of the graph with their nodes."""
        nodes = [(node, module_of(self.graph_module, node)) for node in self.channels]
        return [(node, module) for node, module in nodes if isinstance(module, nn.Conv2d)]

    def factors(self, ranges: dict[fx.Node, Tensor], importance: dict[fx.Node, float]) -> Tensor:
        """One factor per group: the weighted mean, over its tensors, of the channel's range relative to the tensor's.

        The mean is geometric, because factors multiply; a tensor counts as much as its rounding disturbs the output.
        """
        total, weight = torch.zeros(len(self.parents)), torch.zeros(len(self.parents))
        for node, span in ranges.items():
            relative = (span / span.max().clamp(min=1e-12)).clamp(min=1 / _LARGEST_FACTOR)
            groups = self.channels[node].expand(len(span))
            total.index_add_(0, groups, importance[node] * relative.log())
            weight.index_add_(0, groups, torch.full((len(groups),), importance[node]))
        factors = torch.exp(total / weight.clamp(min=1e-30))
        factors[0] = 1.0
        return factors


def _measure(
    graph_module: fx.GraphModule, crops: Iterable[Tensor]
) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, float]]:
    """Of every tensor: the largest magnitude of each channel, [C], and how much its rounding disturbs the output.

    The disturbance is the squared range times the squared gradient of a random projection of the output, summed over
    the tensor: what rounding to equal steps adds to the output's squared error, up to one common factor.
    """
    ranges: dict[fx.Node, Tensor] = {}
    gradients: dict[fx.Node, float] = {}
    random = torch.Generator().manual_seed(0)

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor) and (n.op == "call_module" or n.target is operator.add):
                span = result.detach().abs().amax((0, 2, 3))
                ranges[n] = torch.maximum(ranges[n], span) if n in ranges else span
                if result.requires_grad:
                    result.register_hook(lambda gradient: note(n, gradient))
            return result

    def note(node: fx.Node, gradient: Tensor) -> None:
        gradients[node] = gradients.get(node, 0.0) + float(gradient.double().square().sum())

    with torch.enable_grad():
        for crop in crops:
            output = Watcher(graph_module).run(crop.clone())
            (output * torch.randn(output.shape, generator=random)).sum().backward()
    graph_module.zero_grad(set_to_none=True)
    return ranges, {node: gradients.get(node, 0.0) * float(span.max()) ** 2 for node, span in ranges.items()}
