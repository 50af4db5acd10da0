"""The rules that carry affine layers, `y = a*x + b` per channel, through a traced network into its convolutions.

Each rule looks at one affine layer of a graph module in float64 and rewrites what is around it, or returns False. All
are exact but one; see `srquant.quantizers.folding`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from srquant.networks.layers import Anchor, CentredSigmoid, ChannelAffine
from srquant.quantizers.layers import InputShift

_TABLES = (nn.Tanh, nn.Sigmoid, nn.SiLU, CentredSigmoid)
_ROUNDING = 1e-12
"""How far from 1 the product of a factor and its inverse may be."""


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None where it calls a function."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def affine_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Every call of a ChannelAffine, in the order of execution."""
    return [node for node in graph_module.graph.nodes if isinstance(module_of(graph_module, node), ChannelAffine)]


def _drop_identity(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(x) -> x, where it changes nothing."""
    _, affine = _source(graph_module, node)
    if bool(affine.shift.any()) or bool(((affine.scale - 1).abs() > _ROUNDING).any()):
        return False
    _remove(graph_module, node)
    return True


def _merge_affine(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(affine(x)) -> affine(x); the inner one stays for its other readers."""
    source, affine = _source(graph_module, node)
    first = module_of(graph_module, source)
    if not isinstance(first, ChannelAffine):
        return False
    merged = affine_layer(first.scale * affine.scale, first.shift * affine.scale + affine.shift)
    graph_module.set_submodule(str(node.target), merged)
    node.args = (source.args[0],)
    if not source.users:
        graph_module.graph.erase_node(source)
    return True


def _into_previous_convolution(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(conv(x)) -> conv'(x); exact."""
    source, affine = _source(graph_module, node)
    conv = module_of(graph_module, source)
    if not isinstance(conv, nn.Conv2d) or len(source.users) > 1 or len(affine.scale) not in (1, conv.out_channels):
        return False
    bias = torch.zeros(conv.out_channels).double() if conv.bias is None else conv.bias.detach()
    weight = conv.weight.detach() * affine.scale.view(-1, 1, 1, 1)
    _set_weights(conv, weight, bias * affine.scale + affine.shift)
    _remove(graph_module, node)
    return True


def _before_pixel_shuffle(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(shuffle(x)) -> shuffle(affine'(x)); exact."""
    source, affine = _source(graph_module, node)
    shuffle = module_of(graph_module, source)
    if not isinstance(shuffle, nn.PixelShuffle) or len(source.users) > 1:
        return False
    times = shuffle.upscale_factor**2
    moved = affine_layer(_repeat(affine.scale, times), _repeat(affine.shift, times))
    return _swap(graph_module, node, source, moved)


def _before_anchor(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(anchor(x)) -> anchor(affine'(x)); exact where all copies of a channel get the same."""
    source, affine = _source(graph_module, node)
    anchor = module_of(graph_module, source)
    if not isinstance(anchor, Anchor) or len(source.users) > 1:
        return False
    scale, shift = (values if len(values) == 1 else values[:: anchor.times] for values in (affine.scale, affine.shift))
    even = torch.equal(_repeat(scale, anchor.times), affine.scale)
    if not even or not torch.equal(_repeat(shift, anchor.times), affine.shift):
        return False
    return _swap(graph_module, node, source, affine_layer(scale, shift))


def _before_rectifier(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """scale(rectifier(x)) -> rectifier(scale(x)); exact for positive factors."""
    source, affine = _source(graph_module, node)
    rectifier = isinstance(module_of(graph_module, source), nn.ReLU | nn.LeakyReLU | nn.PReLU)
    positive = bool((affine.scale > 0).all()) and not bool(affine.shift.any())
    if not rectifier or len(source.users) > 1 or not positive:
        return False
    return _swap(graph_module, node, source, affine)


def _into_addition(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(x + y) -> affine(x) + scale(y); exact. The shift goes where a convolution can take it."""
    source, affine = _source(graph_module, node)
    parts = [part for part in source.args if isinstance(part, fx.Node)]
    if source.target is not operator.add or len(parts) < 2 or len(source.users) > 1:
        return False
    shifted = next((i for i, part in enumerate(parts) if isinstance(module_of(graph_module, part), nn.Conv2d)), 0)
    moved = []
    for i, part in enumerate(parts):
        name = f"{node.name}_{i}"
        graph_module.add_submodule(name, affine_layer(affine.scale, affine.shift * (i == shifted)))
        with graph_module.graph.inserting_before(source):
            moved.append(graph_module.graph.call_module(name, (part,)))
    source.args = tuple(moved)
    _remove(graph_module, node)
    return True


def _before_clip(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(clip(x)) -> clip'(affine(x)); exact for one positive scale and one shift."""
    source, affine = _source(graph_module, node)
    clip = module_of(graph_module, source)
    scale, shift = float(affine.scale[0]), float(affine.shift[0])
    if not isinstance(clip, nn.Hardtanh) or len(source.users) > 1 or not _is_uniform(affine) or scale <= 0:
        return False
    lower, upper = (end * scale + shift for end in (clip.min_val, clip.max_val))
    graph_module.set_submodule(str(source.target), nn.Hardtanh(lower, upper))
    return _swap(graph_module, node, source, affine)


def _into_next_convolutions(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """conv(affine(picture)) -> conv'(picture - code); the padding becomes one grey level."""
    source, affine = _source(graph_module, node)
    convs = [module_of(graph_module, user) for user in node.users]
    if source.op != "placeholder" or not all(isinstance(conv, nn.Conv2d) for conv in convs):
        return False
    colour = -affine.shift / affine.scale  # the picture value that the network sees as zero
    code = 2 * round(min(max(float(colour.mean()), 0.0), 254.0) / 2) if bool(affine.shift.any()) else 0
    residue = affine.scale * code + affine.shift
    for conv in convs:
        assert isinstance(conv, nn.Conv2d)
        if len(residue) not in (1, conv.in_channels) or conv.groups != 1:
            return False
    for conv in convs:
        assert isinstance(conv, nn.Conv2d)
        weight, bias = conv.weight.detach(), conv.bias
        constant = (weight * residue.view(1, -1, 1, 1)).sum((1, 2, 3))
        bias = constant if bias is None else bias.detach() + constant
        _set_weights(conv, weight * affine.scale.view(1, -1, 1, 1), bias)
    if code:
        graph_module.set_submodule(str(node.target), InputShift(code))
    else:
        _remove(graph_module, node)
    return True


def is_tabulated(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the affine layer can be part of the table of codes that the function before it becomes."""
    source, affine = _source(graph_module, node)
    return isinstance(module_of(graph_module, source), _TABLES) and _is_uniform(affine)


def _is_uniform(affine: ChannelAffine) -> bool:
    """Whether all channels get the same."""
    return bool((affine.scale == affine.scale[0]).all() and (affine.shift == affine.shift[0]).all())


def affine_layer(scale: Tensor, shift: Tensor) -> ChannelAffine:
    """The affine layer of these scales and shifts, [C] or [1] each."""
    affine = ChannelAffine([1.0], [0.0])
    affine.scale, affine.shift = scale.double(), shift.double()
    return affine


def factor(scale: float) -> ChannelAffine:
    """The affine layer that multiplies by a number."""
    return affine_layer(torch.tensor([scale], dtype=torch.float64), torch.zeros(1))


def _source(graph_module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ChannelAffine]:
    source, affine = node.args[0], module_of(graph_module, node)
    assert isinstance(source, fx.Node)
    assert isinstance(affine, ChannelAffine)
    return source, affine


def insert(
    graph_module: fx.GraphModule, source: object, name: str, module: nn.Module, after: fx.Node | None = None
) -> fx.Node:
    """Put a module behind `source`, for all its users (or, given `after`, for none yet)."""
    assert isinstance(source, fx.Node)
    graph_module.add_submodule(name, module)
    with graph_module.graph.inserting_after(after or source):
        node = graph_module.graph.call_module(name, (source,))
    if after is None:
        source.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    return node


def _remove(graph_module: fx.GraphModule, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    graph_module.graph.erase_node(node)


def _swap(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node, moved: ChannelAffine) -> bool:
    """Let the affine node come before `source`, which it came after."""
    before = source.args[0]
    node.replace_all_uses_with(source)
    node.args = (before,)
    source.args = (node,)
    source.prepend(node)
    graph_module.set_submodule(str(node.target), moved)
    return True


def _repeat(values: Tensor, times: int) -> Tensor:
    return values if len(values) == 1 else values.repeat_interleave(times)


def _set_weights(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight = nn.Parameter(weight)
    conv.bias = nn.Parameter(bias)


_Rule = Callable[[fx.GraphModule, fx.Node], bool]
RULES: tuple[_Rule, ...] = (
    _drop_identity,
    _merge_affine,
    _into_previous_convolution,
    _before_pixel_shuffle,
    _before_anchor,
    _before_clip,
    _before_rectifier,
    _into_addition,
    _into_next_convolutions,
)
"""Tried one after the other until none applies."""
