"""What a network costs: how far it looks, how many parameters it has, how often it multiplies."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from srquant.networks.layers import Anchor, CentredSigmoid, ChannelAffine, FloatLayer
from srquant.networks.tracing import trace

_POINTWISE = (
    nn.BatchNorm2d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.SiLU,
    nn.Identity,
    CentredSigmoid,
    ChannelAffine,
    Anchor,
)
_CLIPS = {"clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu", "relu6", "minimum", "maximum"}
"""Functions and methods that a clip may be written as."""
_JOINING = (operator.add, operator.mul, operator.getitem, torch.cat, torch.split)


@dataclass(frozen=True)
class _Reach:
    """How far one value looks, in LR pixels, and how many of its pixels make one LR pixel (per side)."""

    radius: Fraction = Fraction(0)
    resolution: int = 1


def halo(network: nn.Module) -> int | None:
    """The receptive-field radius in LR pixels: a tile with this margin gives exactly the whole picture.

    A convolution adds dilation * (k - 1) / 2 pixels of its own resolution, a shuffle raises the resolution,
    joined paths count with the longest; the exact sum is rounded up. EDSR-baseline x4 has 36.

    Returns:
        The radius, or None when a layer looks at pooled features (`FloatLayer`).

    Raises:
        TypeError: the traced graph holds an operation whose reach is not known here.
    """
    graph = trace(network)
    modules = dict(graph.named_modules())
    reaches: dict[fx.Node, _Reach] = {}
    for node in graph.graph.nodes:
        inputs = [reaches[source] for source in node.all_input_nodes if source.op != "get_attr"]
        if node.op == "placeholder":
            reaches[node] = _Reach()
        elif node.op == "call_module":
            module = modules[str(node.target)]
            if isinstance(module, FloatLayer):
                return None
            reaches[node] = _after(module, inputs[0])
        elif node.op == "output" or _joins(node):
            reaches[node] = _joined(inputs)
        elif node.op != "get_attr":
            raise TypeError(f"halo does not know the operation {node.op} {node.target}")
    return math.ceil(max(reach.radius for reach in reaches.values()))


def _joins(node: fx.Node) -> bool:
    """Whether a function or a method takes its pixels from the same place of everything it reads."""
    word = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return (node.op == "call_function" and node.target in _JOINING) or str(word).rstrip("_") in _CLIPS


def parameters(network: nn.Module) -> int:
    """How many trainable numbers the network has."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def macs(network: nn.Module, height: int, width: int, channels: int = 3) -> int:
    """Multiply-accumulates of all convolutions for one picture of height x width LR pixels.

    Counted by `torch.utils.flop_counter` (floating-point operations / 2) on the meta device: no memory is
    used, whatever the size. Biases, activations, sums and products are not counted.
    """
    with FlopCounterMode(display=False) as counter:
        _run_without_memory(network, height, width, channels)
    return counter.get_total_flops() // 2


def convolution_macs(network: nn.Module, height: int, width: int, channels: int = 3) -> dict[str, int]:
    """The multiply-accumulates of `macs`, convolution by convolution, by name.

    Each output value of a convolution takes as many of them as one filter has weights.
    """
    counts: dict[str, int] = {}
    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}

    def note(module: nn.Module, _inputs: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counts[names[module]] = counts.get(names[module], 0) + output.numel() * module.weight[0].numel()

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        _run_without_memory(network, height, width, channels)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _run_without_memory(network: nn.Module, height: int, width: int, channels: int) -> None:
    """One forward pass on the meta device, which knows shapes alone."""
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    weights: dict[str, Tensor] = {name: tensor.to("meta") for name, tensor in tensors}
    image = torch.empty(1, channels, height, width, device="meta", dtype=_dtype(network))
    with torch.no_grad():
        functional_call(network, weights, (image,))


def _after(module: nn.Module, reach: _Reach) -> _Reach:
    """The reach behind one layer."""
    if isinstance(module, _POINTWISE):
        return reach
    if isinstance(module, nn.PixelShuffle):
        return _Reach(reach.radius, reach.resolution * module.upscale_factor)
    if isinstance(module, nn.Conv2d) and set(module.stride) == {1}:
        sides = zip(module.dilation, module.kernel_size, strict=True)
        pixels = max(Fraction(dilation * (size - 1), 2) for dilation, size in sides)
        return _Reach(reach.radius + pixels / reach.resolution, reach.resolution)
    raise TypeError(f"halo does not know the layer {module}")


def _joined(inputs: list[_Reach]) -> _Reach:
    """The reach of a value that depends on several others of one resolution."""
    if len({reach.resolution for reach in inputs}) != 1:
        raise TypeError("halo does not know how to join values of different resolutions")
    return max(inputs, key=lambda reach: reach.radius)


def _dtype(network: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)
