"""The clip at a network's output: found by tracing, and dropped where saturating codes do the same.

Mobile networks end in a clip to the range of a picture, as a clamp, a ReLU6, a ReLU and a minimum, in front of the
pixel shuffle or behind it. On integers the 8-bit output saturates at 0 and 255 by itself, so the clip costs a pass
over the enlarged picture and changes no pixel (`clip_changes_nothing` checks it at every step of the output grid).
A narrower clip changes pixels and stays, as a `KeptClip`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn

from srquant.errors import UserError
from srquant.networks.layers import Anchor
from srquant.quantizers.grid import IMAGE_GRID, Grid, fake_quantize
from srquant.quantizers.layers import ActivationQuantizer, KeptClip

Bounds = tuple[float, float]

_MOVES = (nn.PixelShuffle, Anchor)


def clip_changes_nothing(lowest: float, highest: float, grid: Grid = IMAGE_GRID) -> bool:
    """Whether a clip to lowest..highest before rounding to `grid` gives the codes that rounding alone gives.

    Both are functions of one float32 number that never fall. They are equal everywhere if they are equal on both
    sides of every step of either one: that is what is looked at, together with the far ends. The sums of a
    convolution are turned into float32 numbers before they are rounded, so this holds for every accumulator too.
    """
    steps = (np.arange(grid.maximum_code) + 0.5 - grid.zero_point) * grid.scale
    ends = [end for end in (lowest, highest) if math.isfinite(end)]
    at = np.array([*steps, *ends, grid.lower, grid.upper], np.float32)
    below, above = (np.nextafter(at, np.float32(way)) for way in (-np.inf, np.inf))
    far = np.array([-3e38, 3e38], np.float32)
    values = torch.from_numpy(np.concatenate([below, at, above, far]))
    return torch.equal(fake_quantize(values.clamp(lowest, highest), grid), fake_quantize(values, grid))


def name_clips(graph_module: fx.GraphModule) -> None:
    """Turn every clip, whatever it is written as, into an nn.Hardtanh (nn.ReLU for 0..inf), in place.

    Known are nn.Hardtanh and nn.ReLU6, and the functions and methods clamp, clip, clamp_min, clamp_max, hardtanh,
    relu, relu6, minimum and maximum, with numbers or constant tensors of one value. Clips one behind the other
    become one.

    Raises:
        UserError: clips that leave no more than one value.
    """
    for node in list(graph_module.graph.nodes):
        bounds = clip_bounds(graph_module, node)
        if bounds is None:
            continue
        source = _clipped(node)
        before = clip_bounds(graph_module, source)
        if before is not None and len(source.users) == 1:
            lowest, highest = (min(max(end, before[0]), before[1]) for end in bounds)
            if lowest >= highest:
                first = source.name.removeprefix("clips_")
                raise UserError(f"the clips '{first}' and '{node.name}' leave one value of all: {lowest:g}")
            _replace(graph_module, node, _clipped(source), (lowest, highest))
            graph_module.graph.erase_node(source)
        elif type(_module(graph_module, node)) not in (nn.ReLU, nn.Hardtanh):
            _replace(graph_module, node, source, bounds)
    graph_module.recompile()


def settle_output_clip(graph_module: fx.GraphModule, *, keep: bool) -> None:
    """Drop the clip at the output of a network in pixel units, or make it a `KeptClip`, in place.

    Args:
        graph_module: clips named, affine layers folded.
        keep: keep a clip that the picture grid makes superfluous, too.
    """
    node = output_clip(graph_module)
    if node is None:
        return
    bounds = clip_bounds(graph_module, node)
    assert bounds is not None
    if keep or not clip_changes_nothing(*bounds):
        _replace(graph_module, node, _clipped(node), bounds, KeptClip)
    else:
        node.replace_all_uses_with(_clipped(node))
        graph_module.graph.erase_node(node)


def output_clip(graph_module: fx.GraphModule) -> fx.Node | None:
    """The clip behind which only moves of codes lie, or None.

    A ReLU right behind a convolution is none: it costs nothing and belongs to the convolution.
    """
    (output,) = graph_module.graph.find_nodes(op="output")
    node = output.args[0]
    while isinstance(node, fx.Node) and len(node.users) == 1:
        module = _module(graph_module, node)
        if isinstance(module, nn.ReLU):
            behind = _module(graph_module, node.all_input_nodes[0])
            return None if isinstance(behind, nn.Conv2d) else node
        if isinstance(module, nn.Hardtanh):
            return node
        if not isinstance(module, _MOVES):
            return None
        node = node.args[0]
    return None


def calibrate_output(graph_module: fx.GraphModule) -> str:
    """Let the output have a grid of its own, brought to that of pictures by one more step; returns that step's name.

    This is what converters do that cannot be told the range of the output.

    Args:
        graph_module: with quantisers, changed in place.
    """
    (output,) = graph_module.graph.find_nodes(op="output")
    last = output.args[0]
    node = last
    while not isinstance(_module(graph_module, node), ActivationQuantizer):
        node = node.args[0]
    graph_module.set_submodule(str(node.target), ActivationQuantizer(8))
    name = "output_pixels"
    graph_module.add_submodule(f"quantizers.{name}", ActivationQuantizer(8, IMAGE_GRID))
    with graph_module.graph.inserting_after(last):
        pixels = graph_module.graph.call_module(f"quantizers.{name}", (last,))
    output.args = (pixels,)
    graph_module.graph.lint()
    graph_module.recompile()
    return name


def clip_bounds(graph_module: fx.GraphModule, node: fx.Node) -> Bounds | None:
    """Lowest and highest value that a clip lets pass; None for anything else."""
    module = _module(graph_module, node)
    if isinstance(module, nn.ReLU):
        return 0.0, math.inf
    if isinstance(module, nn.Hardtanh):
        return module.min_val, module.max_val
    word = node.target if node.op == "call_method" else getattr(node.target, "__name__", None)
    read = _CLIPS.get(str(word).removesuffix("_")) if node.op in ("call_function", "call_method") else None
    if read is None or len(_variable(node)) != 1:
        return None
    (source,) = _variable(node)
    places = [_number(graph_module, arg) for arg in node.args if arg is not source]
    words = {_WORDS[k]: _number(graph_module, arg) for k, arg in node.kwargs.items() if k in _WORDS}
    lowest, highest = read(*places, **words)
    return None if math.isnan(lowest) or math.isnan(highest) else (lowest, highest)


def _module(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _between(lowest: float | None = None, highest: float | None = None) -> Bounds:
    return -math.inf if lowest is None else lowest, math.inf if highest is None else highest


_CLIPS: dict[str, Callable[..., Bounds]] = {
    "clamp": _between,
    "clip": _between,
    "clamp_min": lambda lowest: (lowest, math.inf),
    "clamp_max": lambda highest: (-math.inf, highest),
    "hardtanh": lambda lowest=-1.0, highest=1.0, inplace=None: (lowest, highest),  # noqa: ARG005
    "relu": lambda inplace=None: (0.0, math.inf),  # noqa: ARG005
    "relu6": lambda inplace=None: (0.0, 6.0),  # noqa: ARG005
    "maximum": lambda lowest: (lowest, math.inf),
    "minimum": lambda highest: (-math.inf, highest),
}
"""The bounds that a call of each name asks for, from what it is given besides the tensor."""

_WORDS = {"min": "lowest", "max": "highest", "min_val": "lowest", "max_val": "highest"}


def _variable(node: fx.Node) -> list[fx.Node]:
    """What a node reads that is not constant."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def _clipped(node: fx.Node) -> fx.Node:
    """What a clip reads."""
    return _variable(node)[0]


def _number(graph_module: fx.GraphModule, arg: object) -> float | None:
    """A number, also out of a constant tensor of one value; None as it is; NaN for anything else."""
    if arg is None or isinstance(arg, int | float):
        return None if arg is None else float(arg)
    if isinstance(arg, fx.Node) and arg.op == "get_attr":
        constant = operator.attrgetter(str(arg.target))(graph_module)
        if isinstance(constant, Tensor) and constant.numel() == 1:
            return float(constant)
    return math.nan


def _replace(
    graph_module: fx.GraphModule,
    node: fx.Node,
    source: fx.Node,
    bounds: Bounds,
    kind: Callable[[float, float], nn.Module] = nn.Hardtanh,
) -> None:
    """Let a clip of a kind stand in the place of `node`, reading `source`; constants nobody reads go."""
    relu = kind is nn.Hardtanh and bounds == (0.0, math.inf)
    graph_module.add_submodule(f"clips.{node.name}", nn.ReLU() if relu else kind(*bounds))
    with graph_module.graph.inserting_after(node):
        new = graph_module.graph.call_module(f"clips.{node.name}", (source,))
    constants = [other for other in node.all_input_nodes if other.op == "get_attr"]
    node.replace_all_uses_with(new)
    graph_module.graph.erase_node(node)
    for constant in constants:
        if not constant.users:
            graph_module.graph.erase_node(constant)
