"""Offsets of few bits: the levels of factors, their gradients, and what files hold."""

from __future__ import annotations

import json
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_offsets import Offset, offset_network
from small_quantized import noise, tensor
from small_trained import trained_network

from srquant.errors import UserError
from srquant.evaluation.levels import check_levels
from srquant.quantizers import QuantizedNetwork, load_artefact, save_artefact
from srquant.quantizers.artefact import METADATA_KEY
from srquant.quantizers.deployment import deploy
from srquant.quantizers.grid import Grid
from srquant.quantizers.offset_codes import factor_levels, packed_offsets, round_factors, unpacked_offsets
from srquant.quantizers.offsets import ChannelQuantizer, channel_quantizer, maker, window_starts
from srquant.quantizers.structure import Structure

BITS = range(2, 9)
LOG2 = float(np.log(2))


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_powers_of_two_rounded_once(bits: int) -> None:
    found = factor_levels(bits)
    assert found.dtype == np.float32
    with localcontext() as context:
        context.prec = 40
        for code, level in zip(range(-(2 ** (bits - 1)), 2 ** (bits - 1)), found, strict=True):
            exact = Decimal(2) ** (Decimal(4 * code) / Decimal(2**bits))
            gap = Decimal(float(np.spacing(level))) / 2
            # Not even near a tie, so that every machine's power of two rounds to this number.
            assert abs(exact - Decimal(float(level))) < gap * (1 - Decimal(10) ** -5)


def test_levels_of_four_bits_are_quarter_octaves() -> None:
    found = factor_levels(4)
    assert len(found) == 16
    assert (found[0], found[8], found[4], found[12]) == (0.25, 1, 0.5, 2)
    assert found[-1] == pytest.approx(2**1.75)
    assert np.diff(np.log2(found)) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_factors_are_rounded_to_the_nearest_level_in_octaves(bits: int) -> None:
    levels = torch.from_numpy(factor_levels(bits))
    logarithms = torch.linspace(-4, 4, 1001)
    nearest = (logarithms.unsqueeze(1) - levels.log()).abs().argmin(1)
    assert len(nearest.unique()) == 2**bits
    assert torch.equal(round_factors(logarithms, levels), levels[nearest])
    assert torch.equal(round_factors(levels.log(), levels), levels)


def test_the_gradient_is_that_of_the_exponential_at_the_level() -> None:
    levels = torch.from_numpy(factor_levels(4))
    logarithms = torch.tensor([-1.3, -0.05, 0.0, 0.1, 0.7, 1.2]).requires_grad_()
    factors = round_factors(logarithms, levels)
    weight = torch.tensor([1.0, -2, 3, -4, 5, -6])
    (found,) = torch.autograd.grad((factors * weight).sum(), logarithms)
    torch.testing.assert_close(found, weight * factors.detach())


def test_a_factor_beyond_its_end_is_only_let_back() -> None:
    levels = torch.from_numpy(factor_levels(4))
    lowest, highest, beyond = float(levels[0].log()), float(levels[-1].log()), 1.1 * LOG2 / 4
    logarithms = torch.tensor([lowest - beyond, highest + beyond, lowest - 0.1, highest + 0.1, 0.0]).requires_grad_()
    for sign in (1.0, -1.0):
        factors = round_factors(logarithms, levels)
        assert factors[[0, 2]].tolist() == [levels[0]] * 2
        assert factors[[1, 3]].tolist() == [levels[-1]] * 2
        (found,) = torch.autograd.grad((factors * sign).sum(), logarithms)
        held = torch.tensor([sign > 0, sign < 0, False, False, False])  # a step goes against the gradient
        torch.testing.assert_close(found, (sign * factors.detach()).masked_fill(held, 0))


def test_training_reaches_a_level_and_stays_within_the_ends() -> None:
    levels = torch.from_numpy(factor_levels(3))
    logarithms = torch.zeros(3).requires_grad_()
    optimizer = torch.optim.SGD([logarithms], lr=0.01)
    target = torch.tensor([2.0, 1e-3, 1e3])
    for _ in range(600):
        optimizer.zero_grad()
        (round_factors(logarithms, levels).log() - target.log()).square().sum().backward()
        optimizer.step()
    assert round_factors(logarithms, levels).tolist() == [2.0, levels[0], levels[-1]]
    step = LOG2 * 4 / 8
    assert bool((logarithms > levels[0].log() - 2 * step).all())
    assert bool((logarithms < levels[-1].log() + 2 * step).all())


def test_a_factor_that_is_no_number_stays_so() -> None:
    levels = torch.from_numpy(factor_levels(4))
    found = round_factors(torch.tensor([np.nan, np.inf, -np.inf, 0]), levels)
    assert found[0].isnan()
    assert found[1:].tolist() == [levels[-1], levels[0], 1]


@given(
    bits=st.integers(2, 7),
    lower=st.floats(-5, 5),
    width=st.floats(1e-3, 9),
    shift=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9),
    offset_bits=st.integers(2, 8),
    data=st.data(),
)
def test_offset_bits_hold_whatever_was_trained(
    bits: int, lower: float, width: float, shift: list[float], offset_bits: int, data: st.DataObject
) -> None:
    """At the carrier's ends, too: the constructor would refuse what the bits do not hold."""
    ends = torch.tensor([lower]), torch.tensor([lower + width])
    lowest = window_starts(torch.tensor(shift), *ends, bits, offset_bits)
    codes = st.lists(st.integers(0, 2**offset_bits - 1), min_size=len(shift), max_size=len(shift))
    factors = torch.from_numpy(factor_levels(offset_bits)[data.draw(codes)])
    made = channel_quantizer(*ends, bits, lowest, factors, offset_bits)
    assert isinstance(made, ChannelQuantizer)
    parts = made.stored()
    starts, again, told = unpacked_offsets(parts, len(shift))
    assert told == offset_bits
    assert again is not None
    assert np.array_equal(again, factors.numpy())
    packed = -(-len(shift) * offset_bits // 8)
    if made.lowest is None:
        assert starts is None
        assert made.stored_bytes() == 1 + packed
    else:
        assert np.array_equal(starts, made.lowest)
        assert made.stored_bytes() == 2 + 2 * packed


def test_both_ends_of_eight_bits_are_held() -> None:
    shift = torch.tensor([1e4, -1e4, 0.0])
    for bits in range(2, 8):
        for ends in ((-5.0, 0.1), (-1.0, 1.0), (0.0, 3.0)):
            bounds = [torch.tensor([end]) for end in ends]
            made = channel_quantizer(*bounds, bits, window_starts(shift, *bounds, bits, 8), None, 8)
            assert isinstance(made, ChannelQuantizer)
            assert made.lowest is not None
            assert made.lowest[:2].tolist() == [0, 256 - 2**bits]
            assert np.array_equal(unpacked_offsets(made.stored(), 3)[0], made.lowest)


def test_offsets_without_bits_are_held_as_they_are() -> None:
    lowest, factors = np.array([0, 3, 9], np.uint8), np.array([0.3, 1, 7], np.float32)
    parts = packed_offsets(lowest, factors, None)
    assert parts == {"lowest": lowest, "factors": factors}
    assert unpacked_offsets(parts, 3) == (lowest, factors, None)
    assert unpacked_offsets({"factors": factors}, 3) == (None, factors, None)


def test_what_the_bits_do_not_hold_is_refused() -> None:
    carrier, told = Grid(0.5, 3, 255), "offsets of 4 bit do not hold the windows and factors"
    ChannelQuantizer(2, carrier, np.array([7, 22], np.uint8), factor_levels(4)[:2], 4)
    with pytest.raises(UserError, match=told):
        ChannelQuantizer(2, carrier, np.array([7, 23], np.uint8), None, 4)
    with pytest.raises(UserError, match=told):
        ChannelQuantizer(2, carrier, None, np.array([1, 1.1], np.float32), 4)


def enlarge(network: QuantizedNetwork) -> np.ndarray:
    with torch.inference_mode():
        return network(tensor(noise(14, 16, seed=5))).numpy()


@pytest.mark.parametrize("offset_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("key", ["edsr_x2", "xlsr_x3"])
def test_few_bits_are_deployed_as_they_were_trained(key: str, bits: int, offset_bits: int, tmp_path: Path) -> None:
    trained = offset_network(key, bits, offset_bits=offset_bits)
    deployed, structure = deploy(trained), Structure(trained.graph)
    wanted = enlarge(trained)
    assert wanted.std() > 5
    assert np.abs(enlarge(deployed) - wanted).mean() < 0.1
    scales = {name: quantizer.channel_factors() for name, quantizer in trained.activation_quantizers().items()}
    kept = {name: factors for name, factors in scales.items() if factors is not None and not maker(structure, name)}
    assert bool(kept) == (key == "edsr_x2")  # convolutions make the others
    for name, quantizer in deployed.activation_quantizers().items():
        found = quantizer.factors if isinstance(quantizer, ChannelQuantizer) else None
        assert np.array_equal(found, kept[name].detach().numpy()) if name in kept else found is None
    path = tmp_path / "offsets.safetensors"
    save_artefact(deployed, path)
    loaded = load_artefact(path)
    assert np.array_equal(enlarge(loaded), enlarge(deployed))
    for name in deployed.offsets():
        one, two = deployed.activation_quantizers()[name], loaded.activation_quantizers()[name]
        assert isinstance(one, ChannelQuantizer)
        assert isinstance(two, ChannelQuantizer)
        assert one.stored().keys() == two.stored().keys()
        assert all(np.array_equal(two.stored()[part], values) for part, values in one.stored().items())
        assert one.limits()[0].tolist() == two.limits()[0].tolist()
    save_artefact(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    check_levels(loaded)


def test_files_hold_no_more_than_is_counted(tmp_path: Path) -> None:
    few, wide = (deploy(offset_network("edsr_x2", 2, offset_bits=bits)) for bits in (4, None))
    without = deploy(trained_network("edsr_x2", 2))
    path = tmp_path / "offsets.safetensors"
    taken = []
    for network in (few, wide):
        save_artefact(network, path)
        tensors = safetensors.torch.load_file(path)
        parts = ("lowest", "factors", "offset_bits", "first", "windows", "octaves")
        own = [t for name, t in tensors.items() if name.rpartition(".")[2] in parts]
        taken.append(sum(t.numel() * t.element_size() for t in own))
        assert network.storage_bytes() - without.storage_bytes() == taken[-1]
    channels = 8
    scaled = sum(getattr(few.activation_quantizers()[name], "factors", None) is not None for name in few.offsets())
    assert scaled
    assert taken[0] == len(few.offsets()) * (channels // 2 + 2) + scaled * channels // 2
    assert taken[0] < taken[1]


def test_damaged_packed_offsets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "offsets.safetensors"
    deployed = deploy(offset_network("edsr_x2", 2, offset_bits=4))
    save_artefact(deployed, path)
    name = next(n for n in deployed.offsets() if n.endswith("_2bit"))
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()[METADATA_KEY])
    monkeypatch.setattr("srquant.quantizers.artefact._digest", lambda _: "")
    metadata = {METADATA_KEY: json.dumps({**told, "sha256": ""})}
    windows, small = tensors[f"{name}.windows"], torch.tensor(1, dtype=torch.uint8)
    made = deployed.activation_quantizers()[name]
    assert isinstance(made, ChannelQuantizer)
    assert made.lowest is not None
    spread = int(np.ptp(made.lowest))
    assert spread > 0
    changes: list[tuple[str, torch.Tensor | None, str]] = [
        ("offset_bits", small, "of 1 bit, not 2 to 8"),
        ("offset_bits", small * 9, "of 9 bit, not 2 to 8"),
        ("offset_bits", small * 5, "bytes do not hold 8 codes of 5 bits"),
        ("offset_bits", small.int() * 4, "of another type or shape"),
        ("offset_bits", small.view(1) * 4, "of another type or shape"),
        ("offset_bits", None, "their bits are missing"),
        ("first", None, "do not go together"),
        ("first", small * 255, "a window starts at the code"),
        ("first", small * (255 - spread), "windows of 2 bit reach beyond the code 255"),
        ("windows", None, "the grid of .* is impossible"),
        ("windows", windows[1:], "3 bytes do not hold 8 codes of 4 bits"),
        ("windows", windows.view(torch.int8), "of another type or shape"),
        ("windows", windows.view(2, 2), "of another type or shape"),
        ("octaves", tensors[f"{name}.octaves"].repeat(2), "8 bytes do not hold 8 codes of 4 bits"),
        ("lowest", torch.zeros(8, dtype=torch.uint8), "do not go together"),
        ("maximum_code", torch.tensor(3, dtype=torch.int32), "windows of 2 bit reach beyond the code 3|grid"),
    ]
    for part, broken, message in changes:
        changed = {key: values for key, values in tensors.items() if key != f"{name}.{part}"}
        if broken is not None:
            changed[f"{name}.{part}"] = broken.contiguous()
        safetensors.torch.save_file(changed, path, metadata)
        with pytest.raises(UserError, match=message) as error:
            load_artefact(path)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="offset_bits do not go together"):
        unpacked_offsets({"offset_bits": np.array(4, np.uint8)}, 8)


def test_levels_are_no_part_of_the_state() -> None:
    """A run goes on from a checkpoint that was written without them."""
    quantizers = offset_network("edsr_x2", 2, offset_bits=4).activation_quantizers().values()
    quantizer = next(q for q in quantizers if isinstance(q, Offset))
    assert quantizer.factor_levels is not None
    assert "factor_levels" not in quantizer.state_dict()
