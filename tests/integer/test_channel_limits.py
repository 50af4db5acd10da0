"""Limits per channel: by hand, in front of a shuffle, and behind a ReLU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_graphs import convolution, graph
from small_offsets import Offset, offset_network
from small_quantized import noise, tensor

from srquant.engines import open_engine
from srquant.evaluation.description import describe_model
from srquant.integer import graph as ops
from srquant.integer import lower, reference
from srquant.integer.graph import IntegerGraph, Tensor
from srquant.integer.litert_rewrites import prepare
from srquant.integer.rewrites import optimize
from srquant.quantizers import QuantizedNetwork, save_artefact
from srquant.quantizers.deployment import deploy
from srquant.quantizers.grid import IMAGE_GRID, Grid
from srquant.quantizers.offsets import ChannelQuantizer


def test_codes_are_raised_and_then_lowered() -> None:
    op = ops.ChannelClip("y", "x", np.array([0, 4, 9], np.uint8), np.array([3, 7, 6], np.uint8))
    made = graph([op], [Tensor("y", 3, 1, IMAGE_GRID)])
    row = np.array([0, 3, 5, 8, 255], np.uint8)
    found = reference.run(made, row.reshape(1, 5, 1).repeat(3, axis=2))
    assert found[0].T.tolist() == [[0, 3, 3, 3, 3], [4, 4, 5, 7, 7], [6, 6, 6, 6, 6]]
    assert made.channel_limits() == {"y": 2}
    unlimited = replace(op, lowest=np.zeros(3, np.uint8))
    assert replace(made, operations=(unlimited,)).channel_limits() == {"y": 1}


@pytest.mark.parametrize("rewrite", [prepare, optimize])
def test_limits_move_with_their_channels(rewrite: Callable[[IntegerGraph], IntegerGraph]) -> None:
    grid = Grid(2.0**-4, 60, 255)
    lowest = np.arange(0, 120, 10, dtype=np.uint8)
    made = graph(
        [
            convolution("h", "x", 3, 12, scale=2.0**-12),
            ops.ChannelClip("c", "h", lowest, lowest + np.uint8(15)),
            ops.PixelShuffle("y", "c", 2),
        ],
        [Tensor("h", 12, 1, grid), Tensor("c", 12, 1, grid), Tensor("y", 3, 2, grid)],
        scale=2,
    )
    rewritten: IntegerGraph = rewrite(made)
    picture = noise(7, 5)
    assert np.array_equal(reference.run(rewritten, picture), reference.run(made, picture))
    if rewrite is prepare:
        shuffle = rewritten.operations[-1]
        assert isinstance(shuffle, ops.PixelShuffle)
        assert shuffle.blocks_first
        assert len(rewritten.operations) == 3


def rectified(shift: float) -> QuantizedNetwork:
    """EDSR whose rectified tensors have windows of 4 bit, one of whose channels is moved by a shift; trained form."""
    trained = offset_network("edsr_x2", 4, scales=False)
    for name, quantizer in trained.activation_quantizers().items():
        if isinstance(quantizer, Offset) and name.endswith("body_1"):
            with torch.no_grad():
                quantizer.shift_steps.uniform_(-0.2, 0.1).div_(quantizer.step())
                quantizer.shift_steps[0] = shift / quantizer.step()
    return trained


@pytest.mark.parametrize("shift", [0.0, 0.1, 50.0], ids=["at zero", "around zero", "below zero"])
def test_windows_behind_a_relu(shift: float) -> None:
    """Codes below zero are left out, unless a window ends there, which makes a constant channel of it."""
    trained = rectified(shift)
    deployed = deploy(trained)
    made = lower(deployed)
    clips = [o for o in made.operations if isinstance(o, ops.ChannelClip) and o.output.endswith("body_1")]
    assert clips
    for clip in clips:
        convolved, zero = made.producer(clip.input), made.tensors[clip.output].grid.zero_point
        assert isinstance(convolved, ops.Convolution)
        assert convolved.relu
        assert (zero == 0) == (shift < 50)
    picture = noise(9, 8, seed=4)
    with torch.inference_mode():
        wanted = trained(tensor(picture))[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    assert np.abs(reference.run(made, picture) - wanted).max() <= 1
    assert np.array_equal(open_engine(deployed, "onnxruntime").run(picture), reference.run(made, picture))


@pytest.mark.parametrize(("offset_bits", "held"), [(None, ("8 bit", "float32")), (4, ("4 bit", "4 bit"))])
def test_info_tells_what_remains(offset_bits: int | None, held: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "offsets.safetensors"
    for shifts in (True, False):
        deployed = deploy(offset_network("edsr_x2", 2, shifts=shifts, offset_bits=offset_bits))
        save_artefact(deployed, path)
        told, limits = dict(describe_model(deployed, path)), lower(deployed).channel_limits()
        assert bool(limits) == shifts
        tensors = [q for q in deployed.activation_quantizers().values() if isinstance(q, ChannelQuantizer)]
        shifted, scaled = (sum(getattr(q, part) is not None for q in tensors) for part in ("lowest", "factors"))
        parts = [f"{shifted} tensors with levels per channel ({held[0]})"] * bool(shifted)
        parts += [f"{scaled} tensor{'s' * (scaled > 1)} with a factor per channel ({held[1]})"] * bool(scaled)
        assert told["offsets"] == f"{', '.join(parts)}; {sum(limits.values())} limits per channel remain"
        assert bool(shifted) == shifts
        assert scaled
        listed = dict(part.split(" ") for part in told["limits"].split(", ")) if shifts else {}
        assert {f"quantizers_{name}": count for name, count in listed.items()} == {
            n: f"({c})" for n, c in limits.items()
        }
        assert set(listed) <= set(deployed.offsets())
