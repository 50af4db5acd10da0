"""Channels with windows and factors: how they are rounded, and how they are deployed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_offsets import offset_network
from small_quantized import noise, tensor
from small_trained import trained_network
from torch import nn

from srquant.errors import UserError
from srquant.evaluation.levels import check_levels, level_counts
from srquant.quantizers import QuantizedNetwork, load_artefact, save_artefact
from srquant.quantizers.artefact import METADATA_KEY
from srquant.quantizers.deployment import _codes, deploy
from srquant.quantizers.grid import Grid
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.offsets import (
    ChannelQuantizer,
    can_scale,
    can_shift,
    channel_quantizer,
    maker,
    round_to_windows,
    window_starts,
)
from srquant.quantizers.straight_through import (
    Gradient,
    fake_quantize_between,
    integer_grid,
    pass_gradient,
    round_straight_through,
)
from srquant.quantizers.structure import Structure
from srquant.quantizers.weights import AsymmetricWeights

LOWER, UPPER = torch.tensor([-0.9]), torch.tensor([2.1])


def values(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(seed)) * 2


def gradients(rounded: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.randn(rounded.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((rounded * weight).sum(), leaves))


@pytest.mark.parametrize("gradient", ["official", "indicator"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("ends", [(-0.9, 2.1), (0.0, 1.5), (0.4, 1.7), (-2.0, -0.1)])
def test_without_a_shift_it_is_the_quantiser_of_bounds(ends: tuple[float, float], bits: int, gradient: Gradient):
    made = []
    for shifted in (False, True):
        x = values().requires_grad_()
        lower, upper = (torch.tensor([end]).requires_grad_() for end in ends)
        if shifted:
            out = round_to_windows(x, lower, upper, torch.zeros(5), bits, gradient=gradient)
        else:
            out = fake_quantize_between(x, lower, upper, bits, gradient=gradient)
        made.append([out.detach(), *gradients(out, [x, lower, upper])])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=3e-3, atol=3e-3)  # that residual is kept in a byte
    assert torch.equal(made[0][0], made[1][0])


@pytest.mark.parametrize("bits", [2, 4])
def test_a_shift_moves_the_window_by_whole_steps(bits: int):
    x, shift = values(), torch.tensor([0.0, 0.4, -0.7, 3.0, -5.1])
    scale, zero_point = integer_grid(LOWER, UPPER, bits)
    steps = torch.tensor([0.0, 0, 1, -3, 5])
    moved = (steps * scale).view(1, -1, 1, 1)
    expected = fake_quantize_between(x - moved, LOWER, UPPER, bits) + moved
    torch.testing.assert_close(round_to_windows(x, LOWER, UPPER, shift, bits), expected)
    assert torch.equal(window_starts(shift, LOWER, UPPER, bits, None), steps - zero_point)


@pytest.mark.parametrize("gradient", ["official", "indicator"])
def test_gradients_behind_a_shift_are_those_of_the_moved_window(gradient: Gradient):
    """Against autograd, with straight-through rounding of codes and shift."""
    bits, levels, made = 3, 7, []
    for closed in (True, False):
        x, shift = values().requires_grad_(), torch.tensor([0.0, 0.4, -0.7, 3.3, -4.2]).requires_grad_()
        lower, upper = LOWER.clone().requires_grad_(), UPPER.clone().requires_grad_()
        if closed:
            out = round_to_windows(x, lower, upper, shift, bits, gradient=gradient)
        else:
            scale = (upper - lower) / levels
            steps = round_straight_through(-shift).view(1, -1, 1, 1)
            clipped = torch.maximum(torch.minimum(x, upper + steps * scale), lower + steps * scale)
            out = round_straight_through(clipped / scale) * scale
            if gradient == "indicator":
                out = pass_gradient(clipped, out.detach())
            assert (clipped != x).float().mean() > 0.1
        made.append([out.detach(), *gradients(out, [x, lower, upper, shift])])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_shift_beyond_its_steps_is_only_let_back():
    shift = torch.tensor([-40.0, 40.0, 0.1, -40.0, 40.0]).requires_grad_()
    for sign in (1.0, -1.0):
        x = values().abs() * torch.tensor([1.0, 1, 1, -1, -1]).view(1, -1, 1, 1)
        out = round_to_windows(x * 100, LOWER, UPPER, shift, 2, offset_bits=3)
        (found,) = torch.autograd.grad((out * sign).sum(), shift)
        free = torch.full((5,), -sign * 84) * integer_grid(LOWER, UPPER, 2)[0]
        held = (shift < -1) & (free > 0) | (shift > 1) & (free < 0)
        torch.testing.assert_close(found, free.masked_fill(held, 0))
        assert held.sum() == 2


def test_shifts_are_free_of_the_range_of_values():
    """They count in steps: the same move the windows of small values and of 256 times as large ones."""
    made = []
    for factor in (1.0, 256.0):
        x, shift = values() * factor, torch.tensor([0.0, 0.4, -0.7, 3.3, -4.2]).requires_grad_()
        out = round_to_windows(x, LOWER * factor, UPPER * factor, shift, 3)
        made.append((out.detach() / factor, gradients(out, [shift])[0] / factor))
    assert torch.equal(made[0][0], made[1][0])
    torch.testing.assert_close(made[0][1], made[1][1])


@given(
    bits=st.integers(2, 7),
    lower=st.floats(-5, 5),
    width=st.floats(1e-3, 9),
    shift=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4),
    offset_bits=st.sampled_from([None, 2, 4, 8]),
)
def test_every_window_fits_the_carrier_and_is_what_was_trained(
    bits: int, lower: float, width: float, shift: list[float], offset_bits: int | None
):
    ends, moves = (torch.tensor([lower]), torch.tensor([lower + width])), torch.tensor(shift)
    lowest = window_starts(moves, *ends, bits, offset_bits)
    made = channel_quantizer(*ends, bits, lowest, None, offset_bits).eval()
    x = torch.linspace(-20, 20, 41).view(1, 1, 41, 1).expand(-1, len(shift), -1, -1)
    wanted = round_to_windows(x, *ends, moves, bits, offset_bits=offset_bits)
    torch.testing.assert_close(made(x), wanted)
    grid = made.deployed_grid()
    assert 0 <= grid.zero_point <= grid.maximum_code <= 255
    if isinstance(made, ChannelQuantizer):
        assert made.limits()[1].max() <= 255
    assert all(len(channel.unique()) <= 2**bits for channel in made(x).unbind(1))


def test_the_carrier_starts_as_low_as_it_can():
    starts = window_starts(torch.tensor([0.0, -1.0]), torch.tensor([0.0]), torch.tensor([3.0]), 2, None)
    made = channel_quantizer(torch.tensor([0.0]), torch.tensor([3.0]), 2, starts, None)
    assert isinstance(made, ChannelQuantizer)
    assert made.deployed_grid() == Grid(1.0, 0, 255)
    assert made.lowest is not None
    assert made.lowest.tolist() == [0, 1]
    plain = channel_quantizer(torch.tensor([0.0]), torch.tensor([3.0]), 2, torch.zeros(2), None)
    assert type(plain) is ActivationQuantizer
    assert plain.deployed_grid() == Grid(1.0, 0, 3)


def enlarge(network: QuantizedNetwork) -> np.ndarray:
    with torch.inference_mode():
        return network(tensor(noise(14, 16, seed=5))).round().numpy()


CASES = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("shifts", "scales"), CASES, ids=["shift", "scale", "both"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("key", ["edsr_x2", "edsr_official_x3", "abpn_x3", "xlsr_x3", "span_x2"])
def test_offsets_are_deployed_as_they_were_trained(
    key: str, bits: int, shifts: bool, scales: bool, tmp_path: Path
) -> None:
    trained = offset_network(key, bits, shifts=shifts, scales=scales)
    wanted, plain = enlarge(trained), enlarge(deploy(trained_network(key, bits)))
    assert wanted.std() > 5
    assert np.abs(wanted - plain).mean() > 0.1, "the offsets have to matter"
    deployed = deploy(trained)
    difference = np.abs(enlarge(deployed) - wanted)
    assert difference.max() <= 1
    path = tmp_path / "offsets.safetensors"
    save_artefact(deployed, path)
    loaded = load_artefact(path)
    assert np.array_equal(enlarge(loaded), enlarge(deployed))
    assert loaded.offsets() == deployed.offsets()
    check_levels(loaded)
    if shifts:
        counts = level_counts(loaded)
        assert max(counts[name] for name in loaded.offsets()) > 2 ** (bits - 1)


def test_borders_are_zero_whatever_the_offsets_are() -> None:
    """Pictures smaller than the kernel are mostly border, whose padding is the true zero."""
    trained = offset_network("edsr_x2", 4)
    deployed = deploy(trained)
    for size in ((1, 1), (1, 4), (2, 2)):
        picture = tensor(noise(*size, seed=7))
        with torch.inference_mode():
            assert (deployed(picture) - trained(picture)).abs().max() <= 1


def test_scales_leave_nothing_but_codes_where_a_convolution_makes_the_tensor() -> None:
    trained = offset_network("edsr_x2", 2, shifts=False)
    deployed = deploy(trained)
    kinds = {name: type(q) for name, q in deployed.activation_quantizers().items()}
    structure = Structure(trained.graph)
    scaled = {name for name in kinds if trained.activation_quantizers()[name].channel_factors() is not None}
    made = {name for name in scaled if maker(structure, name) is not None}
    assert made
    assert scaled - made
    assert set(deployed.offsets()) == scaled - made
    assert all(kinds[name] is ActivationQuantizer for name in made)


def test_what_can_have_offsets() -> None:
    rdn, edsr = trained_network("rdn_x2"), trained_network("edsr_x2")
    structure = Structure(edsr.graph)
    low = [name for name, q in edsr.activation_quantizers().items() if q.low_bit]
    assert all(can_shift(structure, name) for name in low)
    assert [name for name in low if not can_scale(structure, name)] == ["add_1"]  # an addition makes it
    assert maker(structure, "body_0_body_1") == "body.0.body.0"
    assert maker(structure, "head_0_2bit") is None
    full = trained_network("edsr_x2", placement="full")
    structure = Structure(full.graph)
    assert not can_shift(structure, "head_0")  # added, too
    assert not can_shift(structure, "tail_0_0")  # shuffled
    structure = Structure(rdn.graph)
    concatenated = [n.args[0].name for n in rdn.graph.graph.nodes if str(n.target).startswith("quantizers.cat")]
    assert concatenated
    assert not any(can_shift(structure, name) for name in concatenated)


@pytest.mark.parametrize("groups", [1, 2])
def test_factors_of_a_made_tensor_go_behind_normalisation(groups: int) -> None:
    torch.manual_seed(0)
    source = ActivationQuantizer(4, Grid(0.1, 3, 15))
    layer = QuantConv2d(nn.Conv2d(4, 6, 3, padding=1, groups=groups), 3, source)
    layer.weight_quantizer = AsymmetricWeights(3)
    norm, factors = nn.BatchNorm2d(6).eval(), torch.rand(6) + 0.3
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.3, -1.2, 0.8]))
        norm.bias.uniform_(-1, 1)
    norm.running_mean, norm.running_var = torch.rand(6), torch.rand(6) + 0.5
    x = source(torch.randn(1, 4, 6, 6))
    with torch.no_grad():
        wanted = norm(layer(x)) * factors.view(1, -1, 1, 1)
        codes = _codes(layer, norm, factors, 0.1)
        found = nn.functional.conv2d(x, codes.real_weight(), codes.real_bias(0.1), padding=1, groups=groups)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_readers_undo_the_factors(groups: int) -> None:
    class Scaled(ActivationQuantizer):
        def channel_factors(self) -> torch.Tensor:
            return torch.tensor([0.5, 1.0, 2.0, 4.0])

    torch.manual_seed(0)
    layer = QuantConv2d(nn.Conv2d(4, 8, 3, padding=1, groups=groups), 7, Scaled(4, Grid(0.1, 3, 15)))
    layer.weight_quantizer = AsymmetricWeights(7)
    factors = torch.tensor([0.5, 1.0, 2.0, 4.0]).view(1, -1, 1, 1)
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        divided = layer.divided_weight()
        plain = nn.functional.conv2d(x, layer.weight, padding=1, groups=groups)
        torch.testing.assert_close(nn.functional.conv2d(x * factors, divided, padding=1, groups=groups), plain)
        rounded = layer.weight_quantizer(divided)[0]
        wanted = nn.functional.conv2d(x * factors, rounded, padding=1, groups=groups)
        found = layer(x) - layer.snapped_bias(layer.weight_quantizer(divided)[1]).view(1, -1, 1, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_impossible_offsets_are_refused() -> None:
    carrier = Grid(0.5, 3, 255)
    with pytest.raises(UserError, match="windows of 4 bit reach beyond the code 255"):
        ChannelQuantizer(4, carrier, np.array([0, 241], np.uint8), None)
    for factor in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(UserError, match="not all finite and above 0"):
            ChannelQuantizer(4, carrier, None, np.array([1, factor], np.float32))


def test_damaged_offsets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "offsets.safetensors"
    deployed = deploy(offset_network("edsr_x2", 2))
    save_artefact(deployed, path)
    name = next(n for n in deployed.offsets() if n.endswith("_2bit"))
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert METADATA_KEY in metadata
    monkeypatch.setattr("srquant.quantizers.artefact._digest", lambda _: "")
    changes = {
        f"{name}.lowest": [tensors[f"{name}.lowest"][1:], tensors[f"{name}.lowest"].float()],
        f"{name}.factors": [-tensors[f"{name}.factors"], tensors[f"{name}.factors"].double()],
        f"{name}.maximum_code": [torch.tensor(3, dtype=torch.int32)],
    }
    for key, broken in changes.items():
        for part in broken:
            metadata = {METADATA_KEY: _told(metadata)}
            safetensors.torch.save_file({**tensors, key: part.contiguous()}, path, metadata)
            with pytest.raises(UserError, match=r"offsets|factors|windows|grid"):
                load_artefact(path)


def _told(metadata: dict[str, str]) -> str:
    """The header with the digest that the test's stand-in gives."""
    return json.dumps({**json.loads(metadata[METADATA_KEY]), "sha256": ""})


def test_storage_counts_windows_and_factors() -> None:
    deployed = deploy(offset_network("edsr_x2", 2))
    without = deploy(trained_network("edsr_x2", 2))
    channels = 8
    quantizers = deployed.activation_quantizers()
    scaled = sum(getattr(quantizers[name], "factors", None) is not None for name in deployed.offsets())
    assert deployed.storage_bytes() - without.storage_bytes() == channels * (len(deployed.offsets()) + 4 * scaled)
