"""What a network costs in bit operations and bytes, and how many levels its low-bit tensors take.

BitOPs: every multiply-accumulate counts the bits of its weight times the bits of its activation, as
BOPs(layer) = MACs(layer) * b_w * b_a of van Baalen et al., "Bayesian Bits", NeurIPS 2020
(https://arxiv.org/abs/2005.07093, appendix on bit operations) has it; papers on super-resolution count alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from srquant.evaluation.levels import level_counts, noise_picture
from srquant.networks import NETWORKS
from srquant.networks.cost import convolution_macs, parameters
from srquant.networks.info import SRNetwork
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.gating import GatedQuantizer

FLOAT_BITS = 32
_FLOAT_BYTES = 4
_OUTPUT = 720, 1280
_ALIKE = 1e-4
"""Share of a channel's range: values of neighbouring levels of 8 bits are forty times as far apart."""


def output_size(scale: int) -> tuple[int, int]:
    """Height and width of the enlarged picture that costs are told for: 720x1280, or the next multiple of the scale."""
    return math.ceil(_OUTPUT[0] / scale) * scale, math.ceil(_OUTPUT[1] / scale) * scale


def bit_operations(model: SRNetwork | QuantizedNetwork, height: int, width: int) -> int:
    """BitOPs of all convolutions for one picture.

    A convolution with float weights counts 32 bits for them, one that reads a float tensor 32 bits for that. A tensor
    with shifted channels counts the bits of their windows, though convolutions read it as 8-bit codes. Gates, which
    multiply a few hundred numbers of pooled features, are not counted, nor are limits per channel.

    Args:
        model: float, deployed, or a quantised network that can only be simulated.
        height: of the picture, in low-resolution pixels.
        width: of the same.
    """
    network, rounded = model, {}
    if isinstance(model, QuantizedNetwork):
        kind = NETWORKS[model.info.name]
        network, rounded = kind.from_config(kind.config_type.from_dict(model.network_config)), model.convolutions()
    assert isinstance(network, SRNetwork)
    network, total = network.collapsed(), 0
    for name, macs in convolution_macs(network, height, width, model.info.channels).items():
        layer = rounded.get(name)
        if layer is None:
            total += macs * FLOAT_BITS**2
            continue
        before = network.get_submodule(name).get_parameter("weight")
        widened = layer.weight.numel() // before.numel()  # 2 where a sum was left to the convolution
        total += macs * widened * layer.bits * (FLOAT_BITS if layer.source is None else layer.source.bits)
    return total


def storage_bytes(model: SRNetwork | QuantizedNetwork) -> int:
    """Bytes of the weights: float32, or packed, with biases, steps and what gates and offsets need.

    Of a network that can only be simulated, what its activation quantisers hold is left out.
    """
    if isinstance(model, SRNetwork):
        return _FLOAT_BYTES * parameters(model.collapsed())
    held = sum(t.numel() for name, t in model.float_parameters().items() if name.startswith("quantizers."))
    gates = [q.picture_grid.gate for q in model.activation_quantizers().values() if isinstance(q, GatedQuantizer)]
    numbers = sum(part.size for gate in gates for part in (gate.first, gate.scale, gate.shift, gate.second))
    return model.storage_bytes() + _FLOAT_BYTES * (numbers - held)


def largest_levels(model: QuantizedNetwork) -> tuple[int, int]:
    """The most levels that low-bit weights (of one output channel) and low-bit activations take on a noise picture.

    Of a deployed network the codes of whole tensors are counted, but those of the richest channel where channels have
    offsets (`QuantizedNetwork.offsets`): their windows lie apart, so that the whole tensor takes more. One that can
    only be simulated may have a grid for every channel and picture: there it is the values of the richest channel.
    """
    how = model.quantization
    layers = {name: layer for name, layer in model.convolutions().items() if layer.bits == how.weight_bits}
    tensors = {name: q for name, q in model.activation_quantizers().items() if q.bits == how.activation_bits}
    if all(layer.frozen is not None for layer in model.convolutions().values()):
        counts = level_counts(model)
        return max(counts[f"{name}.weight"] for name in layers), max(counts[name] for name in tensors)
    weights: list[int] = []
    for layer in layers.values():
        assert layer.weight_quantizer is not None
        weights.append(_most_levels(layer.weight_quantizer(layer.weight)[0]))
    activations: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        activations.append(_most_levels(output[0]))

    hooks = [tensor.register_forward_hook(note) for tensor in tensors.values()]
    try:
        with torch.inference_mode():
            model.eval()(noise_picture(model.info.channels))
    finally:
        for hook in hooks:
            hook.remove()
    return max(weights), max(activations)


def _most_levels(values: Tensor) -> int:
    """Different values in the richest channel of [C,...]; what the rounding of float32 sets apart is one value."""
    ordered = values.detach().flatten(1).sort().values
    span = ordered[:, -1:] - ordered[:, :1]
    return 1 + int((ordered.diff() > _ALIKE * span).sum(1).max())
