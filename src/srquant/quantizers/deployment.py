"""From a trained network to the deployed one: the same codes, batch normalisation folded into their steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from srquant.errors import UserError
from srquant.networks import NETWORKS
from srquant.quantizers import grid as grids
from srquant.quantizers.agreement import settle
from srquant.quantizers.folding import batch_norm_affine, module_of, sole_user
from srquant.quantizers.gating import GatedQuantizer
from srquant.quantizers.layers import ActivationQuantizer, LayerCodes, QuantConv2d
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.offsets import ChannelQuantizer, maker
from srquant.quantizers.structure import Structure
from srquant.quantizers.weights import WeightCodes

_SMALLEST_FACTOR = 1e-8
"""A channel that batch normalisation multiplies by less than this is deployed as zero."""


def deploy(trained: QuantizedNetwork) -> QuantizedNetwork:
    """The deployed network of a trained one: it computes the same values, up to the rounding of float32.

    Raises:
        UserError: the rest of the network is in float, or a quantiser has no fixed integer grid.
    """
    if trained.quantization.rest == "float":
        raise UserError(
            "this network was trained with quantization.rest = 'float' and cannot be deployed; train it with 'int8'"
        )
    kind = NETWORKS[trained.info.name]
    skeleton = kind.from_config(kind.config_type.from_dict(trained.network_config))
    quantizers = {name: quantizer.deployed() for name, quantizer in trained.activation_quantizers().items()}
    made_with = _take_factors(trained.graph, quantizers)
    gated = frozenset(name for name, quantizer in quantizers.items() if isinstance(quantizer, GatedQuantizer))
    deployed = QuantizedNetwork(skeleton, trained.quantization, gated=gated)
    deployed.method, deployed.training_facts = trained.method, trained.training_facts
    for name, quantizer in quantizers.items():
        deployed.put_quantizer(name, quantizer.carrier() if isinstance(quantizer, ChannelQuantizer) else quantizer)
    if not trained.quantization.exact:
        settle(deployed.graph)
    settled = deployed.activation_quantizers()
    for name, quantizer in quantizers.items():
        if isinstance(quantizer, ChannelQuantizer):
            quantizer.grid = settled[name].deployed_grid()
            deployed.put_quantizer(name, quantizer)
    layers, norms = trained.convolutions(), _batch_norms(trained.graph)
    for name, layer in deployed.convolutions().items():
        layer.restore(_codes(layers[name], norms.get(name), made_with.get(name), layer.input_scale))
    there = trained.graph.state_dict()
    deployed.load_float_parameters({name: there[name].detach().cpu() for name in deployed.float_parameters()})
    return deployed.eval()


def _batch_norms(graph_module: fx.GraphModule) -> dict[str, nn.BatchNorm2d]:
    """The batch normalisation behind each convolution that has one, by the convolution's name."""
    found: dict[str, nn.BatchNorm2d] = {}
    for node in graph_module.graph.nodes:
        reader = sole_user(node)
        norm = module_of(graph_module, reader) if reader else None
        if isinstance(module_of(graph_module, node), QuantConv2d) and isinstance(norm, nn.BatchNorm2d):
            found[str(node.target)] = norm
    return found


def _take_factors(graph_module: fx.GraphModule, quantizers: dict[str, ActivationQuantizer]) -> dict[str, Tensor]:
    """Take channel factors from the quantisers of tensors that a convolution makes; by its name, float32 [O]."""
    structure, found = Structure(graph_module), dict[str, Tensor]()
    for name, quantizer in quantizers.items():
        if isinstance(quantizer, ChannelQuantizer) and quantizer.factors is not None:
            made_by = maker(structure, name)
            if made_by is not None:
                found[made_by] = torch.from_numpy(quantizer.factors)
                quantizers[name] = quantizer.without_factors()
    return found


def _codes(layer: QuantConv2d, norm: nn.BatchNorm2d | None, factors: Tensor | None, input_scale: float) -> LayerCodes:
    """Weight codes of a trained layer, and its bias on the accumulator's grid.

    Args:
        layer: as it was trained.
        norm: batch normalisation behind it.
        factors: of the channels that it makes, float32 [O].
        input_scale: of the tensor that it reads.
    """
    assert layer.weight_quantizer is not None
    assert layer.bias is not None
    codes, bias = layer.weight_quantizer.codes(layer.divided_weight()), layer.bias.detach()
    if norm is not None:
        scale, shift = batch_norm_affine(norm)
        bias = bias * scale + shift
        codes = codes.scaled(torch.where(scale.abs() < _SMALLEST_FACTOR, _SMALLEST_FACTOR, scale))
    codes, bias = _on_cpu(codes), bias.cpu()
    if factors is not None:
        codes, bias = codes.scaled(factors), bias * factors
    return _layer_codes(codes, bias, input_scale)


def _on_cpu(codes: WeightCodes) -> WeightCodes:
    parts = {name: getattr(codes, name).cpu() for name in ("multiples", "zero_points", "steps")}
    return replace(codes, **parts)


def _layer_codes(codes: WeightCodes, bias: Tensor, input_scale: float) -> LayerCodes:
    """Expanded steps and the bias on the grid they make.

    A channel whose weights are so small that its bias would need a code beyond int32 gets a coarser step. Where that is
    more than twice as coarse, odd multiples give way to whole ones, since the weights have to become zero in the end.
    """
    fine = codes.steps.double() / codes.expansion
    steps = torch.maximum(fine, bias.double().abs() / (grids.LARGEST_BIAS_CODE * input_scale)).float()
    shares = (fine / steps.double()).clamp(max=1)
    keeps = (shares >= 0.5) | (codes.spacing == 1)
    spacings = torch.where(keeps, codes.spacing, 1).int()
    zero_points = torch.where(keeps, codes.zero_points, 0).int()
    share, spread, centre = (part.double().view(-1, 1, 1, 1) for part in (shares, spacings, zero_points))
    weight = torch.round((codes.multiples.double() * share - centre) / spread) * spread + centre
    bias_codes = grids.bias_codes(bias, steps, input_scale)
    return LayerCodes(weight.to(torch.int8), zero_points, bias_codes, steps, codes.expansion, spacings)
