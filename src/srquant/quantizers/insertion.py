"""From a folded network to one with quantisers: where each tensor is rounded, by the placement's rule.

A tensor is rounded once, where it is made: behind a convolution (and the ReLU that follows it), an activation,
an addition, a multiplication or a concatenation. Pixel shuffles, slices and repetitions only move codes. All
parts of a concatenation share its grid; a part that is also used elsewhere is rounded again on its way in.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from srquant.errors import UserError
from srquant.networks.layers import Anchor, ContrastAttention
from srquant.quantizers.folding import module_of, sole_user
from srquant.quantizers.grid import IMAGE_GRID, Grid
from srquant.quantizers.layers import ActivationQuantizer, InputShift, QuantConv2d
from srquant.quantizers.placement import Placement, PlacementReport, Stage

ATTENTION_GRID = Grid(scale=1 / 256, zero_point=0, maximum_code=255)
"""Sigmoid outputs: 0..255/256 in powers of two."""

_IN_FLOAT = (nn.PReLU, nn.LeakyReLU, ContrastAttention)
"""Layers whose arithmetic between two grids is float32: the placement says so."""

_MOVES = (nn.PixelShuffle, Anchor, InputShift)


def insert_quantizers(
    graph_module: fx.GraphModule, placement: Placement, weight_bits: int, activation_bits: int
) -> PlacementReport:
    """Add an ActivationQuantizer behind every tensor and make every convolution a QuantConv2d, in place.

    Raises:
        UserError: a layer has no integer form and no placement entry; its name and type are told.
    """
    inserter = _Inserter(graph_module, placement, weight_bits, activation_bits)
    report = inserter.run()
    graph_module.graph.lint()
    graph_module.recompile()
    return report


def is_move(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node only moves codes: its output lies on the grid of its input."""
    if node.op == "call_function":
        return node.target in (operator.getitem, torch.split)
    return isinstance(module_of(graph_module, node), _MOVES)


class _Inserter:
    def __init__(
        self, graph_module: fx.GraphModule, placement: Placement, weight_bits: int, activation_bits: int
    ) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.placement = placement
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.weights: dict[str, int] = {}
        self.activations: dict[str, int] = {}
        self.in_float: dict[str, str] = {}

    def run(self) -> PlacementReport:
        convs = [node for node in self.graph.nodes if isinstance(self.module(node), nn.Conv2d)]
        stages: dict[fx.Node, Stage] = {node: self.stage(node) for node in convs}
        made = [node for node in self.graph.nodes if self.is_made(node)]
        (output,) = self.graph.find_nodes(op="output")
        picture = self.origin(output.args[0])
        for node in made:
            self.round_at(node, stages, is_picture=node is picture)
        for node in reversed(self.graph.find_nodes(op="call_function", target=torch.cat)):
            self.share_grid(node)
        for node in convs:
            self.round_convolution(node, stages[node])
        return PlacementReport(self.placement.name, self.weights, self.activations, self.in_float)

    def module(self, node: fx.Node) -> nn.Module | None:
        return module_of(self.graph_module, node)

    def origin(self, node: object) -> fx.Node:
        """The node that made the tensor which `node` hands on by moves alone."""
        assert isinstance(node, fx.Node)
        while is_move(self.graph_module, node):
            node = node.args[0]
            assert isinstance(node, fx.Node)
        return node

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Every node that reads this tensor, looking through moves."""
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if is_move(self.graph_module, user) else [user]
        return found

    def is_made(self, node: fx.Node) -> bool:
        """Whether a new tensor is made here that needs a grid of its own."""
        if node.op in ("output", "get_attr") or is_move(self.graph_module, node):
            return False
        if node.op == "placeholder":
            return True
        if node.op == "call_function" and node.target in (operator.add, operator.mul, torch.cat):
            return True
        module = self.module(node)
        if isinstance(module, nn.Conv2d):
            reader = sole_user(node)
            return not (reader and isinstance(self.module(reader), nn.ReLU))
        if isinstance(module, nn.ReLU):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if isinstance(self.module(source), nn.Conv2d) and len(source.users) == 1:
                return True
            raise UserError(f"the ReLU '{node.name}' does not follow a convolution, which has no integer form yet")
        if isinstance(module, nn.PReLU | nn.LeakyReLU | ContrastAttention):
            return True
        kind = type(module).__name__ if module else f"operation {getattr(node.target, '__name__', node.target)}"
        raise UserError(f"the layer '{node.name}' ({kind}) has no integer form and no placement entry")

    def stage(self, conv: fx.Node) -> Stage:
        if self.origin(conv.args[0]).op == "placeholder":
            return "head"
        return "tail" if self.meets_shuffle(conv) or self.after_shuffle(conv) else "body"

    def meets_shuffle(self, node: fx.Node) -> bool:
        """Whether a pixel shuffle is reached without passing another convolution."""
        for user in node.users:
            module = self.module(user)
            if isinstance(module, nn.PixelShuffle):
                return True
            if not isinstance(module, nn.Conv2d | ContrastAttention) and self.meets_shuffle(user):
                return True
        return False

    def after_shuffle(self, node: fx.Node) -> bool:
        return isinstance(self.module(node), nn.PixelShuffle) or any(map(self.after_shuffle, node.all_input_nodes))

    def round_at(self, node: fx.Node, stages: dict[fx.Node, Stage], *, is_picture: bool) -> None:
        if node.op == "placeholder" or is_picture:
            quantizer = ActivationQuantizer(8, IMAGE_GRID)
        elif isinstance(self.module(node), ContrastAttention):
            quantizer = ActivationQuantizer(8, ATTENTION_GRID)
        else:
            quantizer = ActivationQuantizer(self.tensor_bits(node, stages))
        module = self.module(node)
        if isinstance(module, _IN_FLOAT):
            self.in_float[node.name] = type(module).__name__
        self.add_quantizer(node, node.name, quantizer)

    def tensor_bits(self, node: fx.Node, stages: dict[fx.Node, Stage]) -> int:
        """Low bits when the placement says so for every tensor, or when only low-bit convolutions read it."""
        if self.placement.low_bit_stream:
            return self.activation_bits
        readers = self.readers(node)
        needs = [self.placement.bits(stages[r], self.activation_bits) if r in stages else 8 for r in readers]
        return max(needs)

    def add_quantizer(self, node: fx.Node, name: str, quantizer: ActivationQuantizer) -> fx.Node:
        target = f"quantizers.{name}"
        self.graph_module.add_submodule(target, quantizer)
        self.activations[name] = quantizer.bits
        with self.graph.inserting_after(node):
            rounded = self.graph.call_module(target, (node,))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
        return rounded

    def share_grid(self, concatenation: fx.Node) -> None:
        """Put every part of a concatenation on the grid of the whole, which then is a mere copy."""
        (rounded,) = concatenation.users
        parts = concatenation.args[0]
        assert isinstance(parts, list | tuple)
        new_parts = []
        for part in parts:
            source = self.origin(part)
            if self.may_share(source):
                self.drop(source)
                source.target = rounded.target
                new_parts.append(part)
            else:
                with self.graph.inserting_before(concatenation):
                    new_parts.append(self.graph.call_module(str(rounded.target), (part,)))
        concatenation.args = (new_parts, *concatenation.args[1:])
        rounded.replace_all_uses_with(concatenation)
        self.graph.erase_node(rounded)

    def may_share(self, source: fx.Node) -> bool:
        """Whether a part's own grid may be that of the whole: nothing else reads it, or it is a whole itself."""
        quantizer = self.module(source)
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.fixed:
            return False
        return len(self.readers(source)) == 1 or source.all_input_nodes[0].target is torch.cat

    def drop(self, rounded: fx.Node) -> None:
        name = str(rounded.target)
        if sum(node.target == name for node in self.graph.nodes) == 1:
            self.graph_module.delete_submodule(name)
            self.activations.pop(name.removeprefix("quantizers."))

    def round_convolution(self, node: fx.Node, stage: Stage) -> None:
        bits = self.placement.bits(stage, self.weight_bits)
        source_node = self.quantizer_node(node.args[0])
        quantizer = self.module(source_node)
        assert isinstance(quantizer, ActivationQuantizer)
        wanted = self.placement.bits(stage, self.activation_bits)
        if wanted < quantizer.bits and not quantizer.fixed:
            quantizer = self.round_input(node, source_node, wanted)
        conv = self.module(node)
        assert isinstance(conv, nn.Conv2d)
        self.graph_module.set_submodule(str(node.target), QuantConv2d(conv, bits, quantizer))
        self.weights[str(node.target)] = bits

    def quantizer_node(self, node: object) -> fx.Node:
        """The quantiser that a tensor comes from, looking through moves and concatenations."""
        source = self.origin(node)
        while source.target is torch.cat:
            parts = source.args[0]
            assert isinstance(parts, list | tuple)
            source = self.origin(parts[0])
        return source

    def round_input(self, conv: fx.Node, source: fx.Node, bits: int) -> ActivationQuantizer:
        """Round the input of a low-bit convolution that reads a tensor of more bits; shared by its readers."""
        tensor = conv.args[0]
        assert isinstance(tensor, fx.Node)
        name = f"{str(source.target).removeprefix('quantizers.')}_{bits}bit"
        target = f"quantizers.{name}"
        for user in tensor.users:
            if user.target == target:
                conv.args = (user,)
                quantizer = self.module(user)
                assert isinstance(quantizer, ActivationQuantizer)
                return quantizer
        quantizer = ActivationQuantizer(bits)
        self.graph_module.add_submodule(target, quantizer)
        self.activations[name] = bits
        with self.graph.inserting_after(tensor):
            conv.args = (self.graph.call_module(target, (tensor,)),)
        return quantizer
