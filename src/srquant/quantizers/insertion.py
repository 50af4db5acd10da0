"""From a traced network to one with quantisers: where each tensor is rounded, by the placement's rule.

A tensor is rounded once, where it is made: behind a convolution or an addition (with the batch normalisation and the
clip that follow it), an activation, a multiplication or a concatenation. Pixel shuffles, slices and repetitions only
move codes. A clip that is to stay is rounded to the grid of the tensor before it, and then to its own.

Deployed, all parts of a concatenation share its grid; a part that is also used elsewhere is rounded again on its
way in. In training one quantiser stands behind the concatenation instead, which computes the same values and sees
the whole tensor.
"""

from __future__ import annotations

import operator
from dataclasses import replace

import torch
from torch import fx, nn

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.networks.layers import CentredSigmoid, FloatLayer
from srquant.quantizers.grid import IMAGE_GRID, Grid
from srquant.quantizers.layers import ActivationQuantizer, KeptClip, QuantConv2d
from srquant.quantizers.placement import PlacementReport, get_placement, matches
from srquant.quantizers.structure import LOOKUPS, Structure, saturates

ATTENTION_GRID = Grid(scale=1 / 256, zero_point=0, maximum_code=255)
"""Sigmoid outputs: 0..255/256 in powers of two."""

CENTRED_GRID = replace(ATTENTION_GRID, zero_point=128)
"""Sigmoid outputs less 1/2: the same codes."""

_REST_BITS = 8
_IN_FLOAT = (nn.PReLU, nn.LeakyReLU, FloatLayer)
"""Layers whose arithmetic between two grids is float32: the placement says so."""
_KNOWN = (nn.Conv2d, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.PixelShuffle)


def insert_quantizers(
    graph_module: fx.GraphModule,
    network: str,
    quantization: QuantizationConfig,
    *,
    trainable: bool = False,
    gated: frozenset[str] = frozenset(),
) -> PlacementReport:
    """Add an ActivationQuantizer behind every tensor and make every convolution a QuantConv2d, in place.

    With `quantization.rest` "float", only what has the requested bits gets them.

    Args:
        graph_module: folded; with rest "float" as traced.
        network: name of the network's family.
        quantization: placement and bits.
        trainable: leave concatenations whole.
        gated: names of tensors whose grid a gate chooses; concatenations among them stay whole too.

    Raises:
        UserError: a layer has no integer form and no placement entry; its name and type are told.
    """
    report = _Inserter(graph_module, network, quantization, trainable=trainable, gated=gated).run()
    graph_module.graph.lint()
    graph_module.recompile()
    return report


class _Inserter(Structure):
    def __init__(
        self,
        graph_module: fx.GraphModule,
        network: str,
        quantization: QuantizationConfig,
        *,
        trainable: bool,
        gated: frozenset[str],
    ) -> None:
        super().__init__(graph_module)
        self.placement = get_placement(quantization.placement)
        self.layout = self.placement.layout(network)
        self.weight_bits = quantization.weight_bits
        self.activation_bits = quantization.activation_bits
        self.rest = quantization.rest
        self.trainable = trainable
        self.gated = gated
        self.low: set[fx.Node] = set()
        self.raw: set[fx.Node] = set()
        self.weights: dict[str, int] = {}
        self.activations: dict[str, int] = {}
        self.in_float: dict[str, str] = {}

    def run(self) -> PlacementReport:
        convs = self.convolutions()
        self.low = {conv for conv in convs if self.is_low(conv)}
        if self.layout:
            self.raw = {conv for conv in convs if matches(str(conv.target), self.layout.raw_inputs)}
        made = [node for node in self.graph.nodes if self.is_made(node)]
        (output,) = self.graph.find_nodes(op="output")
        picture = self.origin(output.args[0])
        for node in made:
            self.round_at(node, is_picture=node is picture)
        for node in made:
            if isinstance(self.module(node), KeptClip):
                self.round_again(node)
        for conv in convs:
            if self.layout and matches(str(conv.target), self.layout.block_inputs):
                self.round_block_input(conv)
        for node in reversed(self.graph.find_nodes(op="call_function", target=torch.cat)):
            self.share_grid(node)
        for conv in convs:
            self.round_convolution(conv)
        return PlacementReport(
            self.placement.name, self.weights, self.activations, self.in_float, rest_in_float=self.rest == "float"
        )

    def is_low(self, conv: fx.Node) -> bool:
        if self.layout:
            return matches(str(conv.target), self.layout.low_bit)
        return self.stage(conv) in self.placement.low_bit_stages

    def is_made(self, node: fx.Node) -> bool:
        """Whether a new tensor is made here that may need a grid of its own."""
        if node.op in ("output", "get_attr") or self.is_move(node):
            return False
        if node.op == "placeholder" or node.target is torch.cat:
            return True
        module = self.module(node)
        computed = isinstance(module, nn.Conv2d) or node.target in (operator.add, operator.mul) or self.is_scaling(node)
        if computed or self.is_lookup(node):
            return not self.goes_on(node)
        if isinstance(module, (*_IN_FLOAT, KeptClip)) or saturates(module) or self.rest == "float":
            return True
        kind = type(module).__name__ if module else f"operation {getattr(node.target, '__name__', node.target)}"
        known = ", ".join(sorted(kind.__name__ for kind in (*_KNOWN, *LOOKUPS)))
        raise UserError(
            f"the layer '{node.name}' ({kind}) has no integer form; write the network with additions, products, "
            f"torch.cat, torch.split and {known}"
        )

    def round_at(self, node: fx.Node, *, is_picture: bool) -> None:
        low = self.is_low_tensor(node)
        if self.rest == "float" and (is_picture or node.op == "placeholder" or not low):
            return
        if node.op == "placeholder" or is_picture:
            quantizer = ActivationQuantizer(8, IMAGE_GRID)
        else:
            quantizer = self.quantizer_behind(node, low=low)
        module = self.module(node)
        if isinstance(module, _IN_FLOAT):
            self.in_float[node.name] = type(module).__name__
        self.add_quantizer(node, self.label(node), quantizer)

    def quantizer_behind(self, node: fx.Node, *, low: bool) -> ActivationQuantizer:
        """Attentions have a fixed grid; anything else gets one later, of the requested bits or 8."""
        if isinstance(self.module(node), CentredSigmoid):
            return ActivationQuantizer(8, CENTRED_GRID)
        if self.is_attention(node):
            return ActivationQuantizer(8, ATTENTION_GRID)
        return ActivationQuantizer(self.activation_bits if low else _REST_BITS, low_bit=low)

    def is_attention(self, node: fx.Node) -> bool:
        """Whether the tensor made here is weights in 0..1 or -1/2..1/2, which are never low-bit."""
        module = self.module(node)
        return isinstance(module, nn.Sigmoid | CentredSigmoid) or (isinstance(module, FloatLayer) and module.attention)

    def label(self, node: fx.Node) -> str:
        """A tensor's name: a convolution's own, whatever affine layers stand behind it."""
        source = node
        while self.is_scaling(source):
            source = source.all_input_nodes[0]
        return source.name

    def is_low_tensor(self, node: fx.Node) -> bool:
        """By the placement's word for every tensor, or the layout's, or because low-bit convolutions alone read it."""
        if self.is_attention(node):
            return False
        if self.placement.low_bit_stream:
            return True
        reading = [reader in self.low and reader not in self.raw for reader in self.readers(node)]
        if self.layout:
            source = self.convolution_of(node)
            if source is not None and matches(str(source.target), self.layout.outputs):
                return True
            if node.target is torch.cat and any(reading):
                return True
        return all(reading)

    def add_quantizer(self, node: fx.Node, name: str, quantizer: ActivationQuantizer) -> fx.Node:
        rounded = self.call_quantizer(node, name, quantizer)
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
        return rounded

    def call_quantizer(self, node: fx.Node, name: str, quantizer: ActivationQuantizer) -> fx.Node:
        target = f"quantizers.{name}"
        self.graph_module.add_submodule(target, quantizer)
        self.activations[name] = quantizer.bits
        with self.graph.inserting_after(node):
            return self.graph.call_module(target, (node,))

    def round_again(self, clip: fx.Node) -> None:
        """Put the result of a kept clip on the grid of what it clips; what is behind rounds it to its own."""
        before = self.origin(clip.args[0])
        if not isinstance(self.module(before), ActivationQuantizer):
            return
        with self.graph.inserting_after(clip):
            rounded = self.graph.call_module(str(before.target), (clip,))
        clip.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)

    def round_block_input(self, conv: fx.Node) -> None:
        """Let a whole block, its first addition included, read its input rounded to the requested bits."""
        tensor = conv.args[0]
        assert isinstance(tensor, fx.Node)
        quantizer = self.module(tensor)
        if isinstance(quantizer, ActivationQuantizer) and quantizer.bits <= self.activation_bits:
            return
        users = [node for node in self.graph.nodes if node in tensor.users]
        rounded = self.round_input(tensor)
        for user in users:
            if user not in self.raw:
                user.replace_input_with(tensor, rounded)
            if user.target is operator.add:
                return

    def share_grid(self, concatenation: fx.Node) -> None:
        """Put every part of a concatenation on the grid of the whole, which then is a mere copy."""
        rounded = next(iter(concatenation.users))
        if not isinstance(self.module(rounded), ActivationQuantizer):
            return
        stays_whole = self.trainable or str(rounded.target).removeprefix("quantizers.") in self.gated
        parts = concatenation.args[0]
        assert isinstance(parts, list | tuple)
        new_parts = []
        for part in parts:
            source = self.origin(part)
            if not self.may_share(source):
                new_parts.append(part if stays_whole else self.call_again(rounded, part, concatenation))
            elif stays_whole and not self.is_whole(source):
                self.drop(source)
                source.replace_all_uses_with(source.all_input_nodes[0])
                new_parts.append(part if source is not part else source.all_input_nodes[0])
                self.graph.erase_node(source)
            else:
                self.drop(source)
                source.target = rounded.target
                new_parts.append(part)
        concatenation.args = (new_parts, *concatenation.args[1:])
        if not stays_whole:
            rounded.replace_all_uses_with(concatenation)
            self.graph.erase_node(rounded)

    def call_again(self, rounded: fx.Node, part: object, before: fx.Node) -> fx.Node:
        assert isinstance(part, fx.Node)
        with self.graph.inserting_before(before):
            return self.graph.call_module(str(rounded.target), (part,))

    def may_share(self, source: fx.Node) -> bool:
        """Whether a part's own grid may be that of the whole: nothing else reads it, or it is a whole itself."""
        quantizer = self.module(source)
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.fixed:
            return False
        return len(self.readers(source)) == 1 or (self.layout is None and self.is_whole(source))

    def is_whole(self, rounded: fx.Node) -> bool:
        """Whether this quantiser stands behind a concatenation."""
        return rounded.all_input_nodes[0].target is torch.cat

    def drop(self, rounded: fx.Node) -> None:
        name = str(rounded.target)
        if sum(node.target == name for node in self.graph.nodes) == 1:
            self.graph_module.delete_submodule(name)
            self.activations.pop(name.removeprefix("quantizers."))

    def round_convolution(self, node: fx.Node) -> None:
        low = node in self.low
        if not low and self.rest == "float":
            return
        bits = self.weight_bits if low else _REST_BITS
        source = self.quantizer_node(node.args[0])
        quantizer = self.module(source)
        if low and node not in self.raw and source.op != "placeholder" and self.is_finer(quantizer):
            tensor = node.args[0]
            assert isinstance(tensor, fx.Node)
            rounded = self.round_input(tensor)
            node.args = (rounded,)
            quantizer = self.module(rounded)
        conv = self.module(node)
        assert isinstance(conv, nn.Conv2d)
        source_quantizer = quantizer if isinstance(quantizer, ActivationQuantizer) else None
        quantized = QuantConv2d(conv, bits, source_quantizer, low_bit=low)
        self.graph_module.set_submodule(str(node.target), quantized)
        self.weights[str(node.target)] = bits

    def is_finer(self, module: nn.Module | None) -> bool:
        """Whether a tensor carries more than the requested bits (and is not the picture)."""
        if not isinstance(module, ActivationQuantizer):
            return True
        return module.bits > self.activation_bits and not module.fixed

    def quantizer_node(self, node: object) -> fx.Node:
        """The quantiser that a tensor comes from, looking through moves and concatenations."""
        source = self.origin(node)
        while source.target is torch.cat:
            parts = source.args[0]
            assert isinstance(parts, list | tuple)
            source = self.origin(parts[0])
        return source

    def round_input(self, tensor: fx.Node) -> fx.Node:
        """The tensor rounded to the requested bits, for low-bit convolutions; shared by its readers."""
        made = self.quantizer_node(tensor)
        quantized = isinstance(self.module(made), ActivationQuantizer)
        origin = str(made.target).removeprefix("quantizers.") if quantized else made.name
        name = f"{origin}_{self.activation_bits}bit"
        for user in tensor.users:
            if user.target == f"quantizers.{name}":
                return user
        return self.call_quantizer(tensor, name, ActivationQuantizer(self.activation_bits, low_bit=True))
