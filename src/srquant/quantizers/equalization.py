"""Channel equalisation: the same float network, its channels scaled so that rounding disturbs the output least.

One grid serves all channels of a tensor, so a channel of small range wastes most of it. Convolutions, ReLU, PReLU,
additions, products with an attention and moves of channels are all positively homogeneous: dividing a channel by a
factor where it is made and multiplying the weights that read it by the same factor changes nothing in float. Channels
that are added to one another share a factor, so a whole residual stream is scaled together.

The idea is cross-layer equalisation (Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.1). There, factors make the
weight ranges of two neighbouring layers equal; here they minimise the noise of all rounding, measured on pictures and
weighed by how it reaches the output; see `srquant.quantizers.rounding_noise`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from srquant.errors import UserError, unknown
from srquant.quantizers.channel_groups import ChannelGroups, columns
from srquant.quantizers.folding import module_of, sole_user
from srquant.quantizers.rounding_noise import RoundedTensor, RoundedWeights, measure, quietest_factors

ChannelFactors = Mapping[str, tuple[float, ...]]
"""Of each convolution, what its output channels are divided by: one number per channel."""

_LARGEST_FACTOR = 16.0
"""A channel is scaled by no more: one that is rarely active may be far larger on another picture."""

_LARGEST_GIVEN = 1e6
"""No factor that is read from a file is larger, none smaller than its inverse."""


def equalizing_factors(graph_module: fx.GraphModule, crops: Iterable[Tensor]) -> ChannelFactors:
    """The factors that make the noise of rounding smallest; all 1 where gradients overflow.

    Args:
        graph_module: from `fold`, before quantisers are inserted.
        crops: yields [1, C, H, W], pixel values 0..255 of any type.
    """
    groups = ChannelGroups(graph_module)
    statistics = measure(graph_module, crops)
    terms: list[RoundedTensor | RoundedWeights] = []
    for node, found in statistics.items():
        module = module_of(graph_module, node)
        if not _is_absorbed(graph_module, node):
            terms.append(RoundedTensor(groups.channels[node].expand(len(found.upper)), found))
        source = node.all_input_nodes[0]
        if isinstance(module, nn.Conv2d) and source in statistics:
            weight = module.weight.detach().abs()
            inputs, energy = (columns(v, module) for v in (groups.channels[source], statistics[source].energy))
            taps = weight[0, 0].numel()
            terms.append(RoundedWeights(weight.amax((2, 3)), taps, inputs, energy, found.gradient))
    pinned = torch.zeros(len(groups.parents), dtype=torch.bool)
    pinned[0] = True
    factors = quietest_factors(terms, len(pinned), pinned, _LARGEST_FACTOR)
    return {name: tuple(factors[groups.channels[node]].tolist()) for name, node in groups.convolutions().items()}


def rescale(graph_module: fx.GraphModule, factors: ChannelFactors) -> None:
    """Divide the channels of a folded network by factors, in place; without any it stays as it is.

    Raises:
        UserError: a convolution is unknown or missing, or its factors are not what the network can be scaled by.
    """
    if not factors:
        return
    groups = ChannelGroups(graph_module)
    convolutions = groups.convolutions()
    for name in factors:
        if name not in convolutions:
            raise unknown("convolution", name, convolutions)
    by_group = torch.ones(len(groups.parents))
    for name, node in convolutions.items():
        given, count = torch.tensor(factors.get(name, ())), len(groups.channels[node])
        if len(given) != count:
            raise UserError(f"'{name}' has {len(given)} channel factors, not {count}")
        if not bool(((given >= 1 / _LARGEST_GIVEN) & (given <= _LARGEST_GIVEN)).all()):
            raise UserError(f"a channel factor of '{name}' is not within {1 / _LARGEST_GIVEN:g}..{_LARGEST_GIVEN:g}")
        by_group[groups.channels[node]] = given
    for name, node in convolutions.items():
        if not torch.equal(by_group[groups.channels[node]], torch.tensor(factors[name])) or by_group[0] != 1:
            raise UserError(f"the channel factors of '{name}' differ from those of channels that it is added to")
    groups.divide(by_group)


def _is_absorbed(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the tensor is not rounded itself, because a rectifier or a clip behind it is, or it is merely moved."""
    reader = sole_user(node)
    rectified = reader is not None and isinstance(module_of(graph_module, reader), nn.ReLU | nn.Hardtanh)
    return rectified or isinstance(module_of(graph_module, node), nn.PixelShuffle)
