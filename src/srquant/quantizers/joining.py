"""A sum in front of the last convolution, left to that convolution: one rounding less where rounding hurts most.

`conv(a + b)` equals `conv'([a, b])`, the weights repeated. The sum of two feature maps, rounded to 8 bits right in
front of the upsampler, is the noisiest tensor of networks such as IMDN (measured); joined, it is never rounded.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from srquant.quantizers.folding import module_of, sole_user

_LARGEST_COST = 0.08
"""Share of all weights that the wider convolution may add."""


def join_last_sum(graph_module: fx.GraphModule) -> bool:
    """Rewrite a folded network, in place, where it has such a sum and the wider convolution costs little.

    Returns:
        Whether it did.
    """
    shuffles = [n for n in graph_module.graph.nodes if isinstance(module_of(graph_module, n), nn.PixelShuffle)]
    if len(shuffles) != 1:
        return False
    node = shuffles[0].all_input_nodes[0]
    conv, total = module_of(graph_module, node), node.all_input_nodes[0] if node.all_input_nodes else node
    is_sum = total.target is operator.add and len(total.all_input_nodes) == 2 and sole_user(total) is node
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or not is_sum or sole_user(node) is not shuffles[0]:
        return False
    every = sum(m.weight.numel() for m in graph_module.modules() if isinstance(m, nn.Conv2d))
    if conv.weight.numel() > _LARGEST_COST * every:
        return False
    with graph_module.graph.inserting_before(node):
        joined = graph_module.graph.call_function(torch.cat, (list(total.all_input_nodes),), {"dim": 1})
    node.replace_input_with(total, joined)
    graph_module.graph.erase_node(total)
    conv.in_channels *= 2
    conv.weight = nn.Parameter(torch.cat([conv.weight.detach()] * 2, dim=1))
    graph_module.recompile()
    return True
