"""A network rewritten without its affine layers, in pixel units: 0..255 in, 0..255 out.

Batch normalisation, mean shifts, output normalisation, residual scaling and the factor between a network's value
range and 0..255 are all `y = a*x + b` per channel. Each is carried through the graph into a neighbouring
convolution. A clip at the output is dropped where it is the range of a picture: the 8-bit output saturates there.

One rewrite is not exact. A shift in front of a zero-padded convolution makes the padding one colour, the mean;
folded, all channels are padded with one grey level, so the outermost pixels see a padding a few levels off.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from srquant.errors import UserError
from srquant.networks.info import SRNetwork
from srquant.networks.layers import ChannelAffine
from srquant.networks.tracing import trace
from srquant.quantizers.layers import InputShift

PICTURE_PEAK = 255.0


def in_pixel_units(network: SRNetwork) -> fx.GraphModule:
    """The traced network as it is, but for its value range: float32 [N,C,H,W] in 0..255 -> around 0..255."""
    graph_module = trace(copy.deepcopy(network).eval())
    _to_pixel_units(graph_module, network.info.peak)
    graph_module.recompile()
    return graph_module.float()


def fold(network: SRNetwork, *, keep_batch_norm: bool = False) -> fx.GraphModule:
    """The traced network without affine layers: float32 [N,C,H,W] in 0..255 -> [N,C,s*H,s*W] around 0..255.

    Args:
        network: not changed.
        keep_batch_norm: leave batch normalisation as it is, for training.

    Raises:
        UserError: an affine layer has no convolution next to it that could take it.
    """
    graph_module = trace(copy.deepcopy(network).eval().double())
    _to_pixel_units(graph_module, network.info.peak)
    _name_affine_layers(graph_module, keep_batch_norm=keep_batch_norm)
    while any(rule(graph_module, node) for node in _affine_nodes(graph_module) for rule in _RULES):
        graph_module.recompile()
    _drop_output_clip(graph_module)
    for node in _affine_nodes(graph_module):
        raise UserError(f"the layer '{node.name}' of this network cannot be folded into a convolution")
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module.float()


def batch_norm_affine(module: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a batch normalisation by its running statistics."""
    assert module.running_mean is not None
    assert module.running_var is not None
    scale = module.weight.detach() / torch.sqrt(module.running_var + module.eps)
    return scale, module.bias.detach() - module.running_mean * scale


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None where it calls a function."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def sole_user(node: fx.Node) -> fx.Node | None:
    """The only node that reads this one, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _to_pixel_units(graph_module: fx.GraphModule, peak: float) -> None:
    """Multiply around the network so that it takes and gives 0..255."""
    if peak == PICTURE_PEAK:
        return
    graph = graph_module.graph
    (picture,) = graph.find_nodes(op="placeholder")
    (output,) = graph.find_nodes(op="output")
    _insert(graph_module, picture, "to_network_range", _factor(peak / PICTURE_PEAK))
    _insert(graph_module, output.args[0], "to_pixel_range", _factor(PICTURE_PEAK / peak))


def _name_affine_layers(graph_module: fx.GraphModule, *, keep_batch_norm: bool) -> None:
    """Turn batch normalisation and multiplication by a number into ChannelAffine."""
    for node in list(graph_module.graph.nodes):
        module = module_of(graph_module, node)
        if isinstance(module, nn.BatchNorm2d):
            if not keep_batch_norm:
                graph_module.set_submodule(str(node.target), _affine(*batch_norm_affine(module)))
        elif node.op == "call_function" and node.target is operator.mul:
            numbers = [arg for arg in node.args if isinstance(arg, int | float)]
            tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
            if numbers:
                new = _insert(graph_module, tensors[0], f"{node.name}_scale", _factor(float(numbers[0])), node)
                node.replace_all_uses_with(new)
                graph_module.graph.erase_node(node)


def _affine_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if isinstance(module_of(graph_module, node), ChannelAffine)]


def _merge_affine(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(affine(x)) -> affine(x)."""
    source, affine = _source(graph_module, node)
    first = module_of(graph_module, source)
    if not isinstance(first, ChannelAffine) or len(source.users) > 1:
        return False
    merged = _affine(first.scale * affine.scale, first.shift * affine.scale + affine.shift)
    graph_module.set_submodule(str(node.target), merged)
    _remove(graph_module, source)
    return True


def _into_previous_convolution(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(conv(x)) -> conv'(x); exact."""
    source, affine = _source(graph_module, node)
    conv = module_of(graph_module, source)
    if not isinstance(conv, nn.Conv2d) or len(source.users) > 1:
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
    moved = _affine(_repeat(affine.scale, times), _repeat(affine.shift, times))
    return _swap(graph_module, node, source, moved)


def _before_clip(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """affine(clip(x)) -> clip'(affine(x)); exact for one positive scale and one shift."""
    source, affine = _source(graph_module, node)
    clip = module_of(graph_module, source)
    scale, shift = affine.scale.flatten(), affine.shift.flatten()
    uniform = bool((scale == scale[0]).all() and (shift == shift[0]).all() and scale[0] > 0)
    if not isinstance(clip, nn.Hardtanh) or len(source.users) > 1 or not uniform:
        return False
    lower, upper = (float(end * scale[0] + shift[0]) for end in (clip.min_val, clip.max_val))
    graph_module.set_submodule(str(source.target), nn.Hardtanh(lower, upper))
    return _swap(graph_module, node, source, affine)


def _into_next_convolutions(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """conv(affine(picture)) -> conv'(picture - code); see the module's note on the padding."""
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


_Rule = Callable[[fx.GraphModule, fx.Node], bool]
_RULES: tuple[_Rule, ...] = (
    _merge_affine,
    _into_previous_convolution,
    _before_pixel_shuffle,
    _before_clip,
    _into_next_convolutions,
)


def _drop_output_clip(graph_module: fx.GraphModule) -> None:
    """Remove clip(0, 255) where only pixel shuffles lie between it and the output."""
    (output,) = graph_module.graph.find_nodes(op="output")
    node = output.args[0]
    while isinstance(node, fx.Node):
        module = module_of(graph_module, node)
        if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, PICTURE_PEAK):
            _remove(graph_module, node)
            return
        if not isinstance(module, nn.PixelShuffle) or len(node.users) > 1:
            return
        node = node.args[0]


def _affine(scale: Tensor, shift: Tensor) -> ChannelAffine:
    affine = ChannelAffine([1.0], [0.0])
    affine.scale, affine.shift = scale.double(), shift.double()
    return affine


def _factor(scale: float) -> ChannelAffine:
    return _affine(torch.tensor([scale], dtype=torch.float64), torch.zeros(1))


def _source(graph_module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ChannelAffine]:
    source, affine = node.args[0], module_of(graph_module, node)
    assert isinstance(source, fx.Node)
    assert isinstance(affine, ChannelAffine)
    return source, affine


def _insert(
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
