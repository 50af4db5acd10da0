"""A network rewritten without its affine layers, in pixel units: 0..255 in, 0..255 out.

Batch normalisation, mean shifts, output normalisation, residual scaling and the factor between a network's value
range and 0..255 are all `y = a*x + b` per channel. Each is carried through the graph into a neighbouring
convolution: backwards through moves, clips, rectifiers and both sides of additions; in front of the picture, factors
to and from the network's range cancel. A clip at the output is dropped where it is the range of a picture: the 8-bit
output saturates there.

One rewrite is not exact. A shift in front of a zero-padded convolution makes the padding one colour, the mean;
folded, all channels are padded with one grey level, so the outermost pixels see a padding a few levels off.
"""

from __future__ import annotations

import copy
import operator

import torch
from torch import Tensor, fx, nn

from srquant.errors import UserError
from srquant.networks.info import SRNetwork
from srquant.networks.tracing import trace
from srquant.quantizers.affine import RULES, affine_layer, affine_nodes, factor, insert, is_tabulated, module_of
from srquant.quantizers.clipping import name_clips, settle_output_clip

PICTURE_PEAK = 255.0


def in_pixel_units(network: SRNetwork) -> fx.GraphModule:
    """The traced network as it is, but for its value range: float32 [N,C,H,W] in 0..255 -> around 0..255."""
    graph_module = trace(copy.deepcopy(network).eval().collapsed())
    _to_pixel_units(graph_module, network.info.peak)
    graph_module.recompile()
    return graph_module.float()


def fold(network: SRNetwork, *, keep_batch_norm: bool = False, keep_clip: bool = False) -> fx.GraphModule:
    """The traced network without affine layers: float32 [N,C,H,W] in 0..255 -> [N,C,s*H,s*W] around 0..255.

    A network in training form is collapsed first.

    Args:
        network: not changed.
        keep_batch_norm: leave batch normalisation as it is, for training.
        keep_clip: keep a clip at the output; see `srquant.quantizers.clipping`.

    Raises:
        UserError: an affine layer has no convolution next to it that could take it. One factor and shift for all
            channels behind a function that becomes a table of codes stay, as part of that table.
    """
    graph_module = trace(copy.deepcopy(network).eval().double().collapsed())
    _to_pixel_units(graph_module, network.info.peak)
    _name_affine_layers(graph_module, keep_batch_norm=keep_batch_norm)
    name_clips(graph_module)
    while any(rule(graph_module, node) for node in affine_nodes(graph_module) for rule in RULES):
        graph_module.recompile()
    settle_output_clip(graph_module, keep=keep_clip)
    for node in affine_nodes(graph_module):
        if is_tabulated(graph_module, node):
            continue
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
    insert(graph_module, picture, "to_network_range", factor(peak / PICTURE_PEAK))
    insert(graph_module, output.args[0], "to_pixel_range", factor(PICTURE_PEAK / peak))


def _name_affine_layers(graph_module: fx.GraphModule, *, keep_batch_norm: bool) -> None:
    """Turn batch normalisation and multiplication by a number into ChannelAffine."""
    for node in list(graph_module.graph.nodes):
        module = module_of(graph_module, node)
        if isinstance(module, nn.BatchNorm2d):
            if not keep_batch_norm:
                graph_module.set_submodule(str(node.target), affine_layer(*batch_norm_affine(module)))
        elif node.op == "call_function" and node.target is operator.mul:
            numbers = [arg for arg in node.args if isinstance(arg, int | float)]
            tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
            if numbers:
                new = insert(graph_module, tensors[0], f"{node.name}_scale", factor(float(numbers[0])), node)
                node.replace_all_uses_with(new)
                graph_module.graph.erase_node(node)
