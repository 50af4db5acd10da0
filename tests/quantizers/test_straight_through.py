from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from srquant.errors import UserError
from srquant.quantizers.grid import fake_quantize, grid_from_range
from srquant.quantizers.straight_through import fake_quantize_between, integer_grid, round_straight_through

BITS = (2, 3, 4, 8)
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
KERNELS = ("eager", pytest.param("compiled", marks=COMPILER))
BOUNDS = ((-1.9, 2.7), (0.0, 2.0), (-2.0, 0.0), (-1.0, 1.1), (0.3, 1.0))
FIXED_SIDES = torch.tensor([1.0, 0.7, 1.3])


def golden(shared, name: str) -> dict[str, dict[str, Tensor]]:
    """The arrays of every case of a file, by prefix."""
    cases: dict[str, dict[str, Tensor]] = {}
    with np.load(shared / "golden" / name) as file:
        prefixes = {key.rsplit("_", 1)[0] for key in file.files if key.endswith("_x")}
        for prefix in prefixes:
            arrays = {key.removeprefix(f"{prefix}_"): file[key] for key in file.files if key.startswith(f"{prefix}_")}
            cases[prefix] = {key: torch.from_numpy(np.array(a)) for key, a in arrays.items() if a.dtype.kind in "fi"}
    return cases


def gradients(function, grad: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    out = function(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def plain(values: Tensor, lower: Tensor, upper: Tensor, bits: int, *, indicator: bool = False) -> Tensor:
    """The integer grid by autograd alone: clip, then straight-through roundings and a straight-through widening."""
    levels = 2**bits - 1
    low = lower + (lower.detach().clamp(max=0) - lower.detach())
    high = upper + (upper.detach().clamp(min=0) - upper.detach())
    clipped = torch.clamp(values, low, high)
    scale, zero_point = (high - low) / levels, round_straight_through(-low * levels / (high - low))
    codes = round_straight_through(clipped / scale) + zero_point
    out = (codes + (codes.detach().clamp(0, levels) - codes.detach()) - zero_point) * scale
    return clipped + (out - clipped).detach() if indicator else out


def drawn(layout: str) -> Tensor:
    values = torch.randn(3, 8, 30, 31, generator=torch.Generator().manual_seed(1))
    if layout == "channels last":
        return values.contiguous(memory_format=torch.channels_last)
    return values[:, ::2, 1:] if layout == "gaps" else values


def close(found: Tensor, wanted: Tensor, relative: float) -> bool:
    return float((found - wanted).abs().max()) <= relative * float(wanted.abs().max())


def test_official_grid_is_the_released_code(shared) -> None:
    cases = golden(shared, "act_static.npz")
    assert len(cases) == 36
    for name, case in cases.items():
        bits, inputs = int(name[1]), (case["x"], case["l"], case["u"])
        found = gradients(
            lambda x, lo, up, b=bits: fake_quantize_between(x, lo, up, b, grid="official"), case["g"], *inputs
        )
        assert len(found[0].unique()) == case["levels"], name
        for part, key in zip(found, ("out", "gx", "gl", "gu"), strict=True):
            wanted = case[key].reshape(part.shape)
            assert torch.allclose(part, wanted, rtol=1e-3 if "equalish" in name else 1e-5, atol=1e-12), (name, key)


def test_official_grid_with_bounds_per_sample_is_the_gated_code(shared) -> None:
    cases = {name: case for name, case in golden(shared, "act_gate.npz").items() if "gated" in name}
    assert len(cases) == 4
    for name, case in cases.items():
        lower, upper = (case[key] * case[f"scale_{key}"].unsqueeze(1) for key in ("l", "u"))
        out = fake_quantize_between(case["x"], lower, upper, int(name[1]), grid="official")
        assert close(out, case["out"], 1e-6), name


def test_official_grid_indicator_leaves_out_the_residual() -> None:
    values, grad = drawn("dense"), torch.randn(3, 8, 30, 31)
    lower, upper = torch.tensor([-1.2]), torch.tensor([0.9])
    options = {"grid": "official", "gradient": "indicator"}
    found = gradients(lambda *a: fake_quantize_between(*a, 4, **options), grad, values, lower, upper)
    assert torch.equal(found[0], fake_quantize_between(values, lower, upper, 4, grid="official"))
    assert close(found[1], grad * ((values > lower) & (values < upper)), 1e-6)
    assert close(found[2], grad[values < lower].sum(), 1e-5)
    assert close(found[3], grad[values > upper].sum(), 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["dense", "channels last", "gaps"])
@pytest.mark.parametrize("bits", BITS)
def test_integer_grid_is_the_deployed_one(bits: int, layout: str, kernel) -> None:
    values = drawn(layout)
    for lower, upper in BOUNDS:
        bounds = torch.tensor([lower]), torch.tensor([upper]).requires_grad_()
        found = fake_quantize_between(values, *bounds, bits, kernel=kernel)
        grid = grid_from_range(bounds[0].item(), bounds[1].item(), bits)
        assert found.requires_grad
        assert torch.equal(found, fake_quantize(values, grid))
        assert len(found.unique()) <= 2**bits
        scale, zero_point = integer_grid(*bounds, bits)
        assert (scale.item(), zero_point.item()) == (grid.scale, grid.zero_point)


def test_symmetric_bounds_do_not_get_one_level_too_many() -> None:
    values, ten = torch.linspace(-11, 11, 4001), torch.tensor([10.0])
    assert len(fake_quantize_between(values, -ten, ten, 2, grid="official").unique()) == 5
    for bits in BITS:
        assert len(fake_quantize_between(values, -ten, ten, bits).unique()) == 2**bits


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["dense", "channels last", "gaps"])
@pytest.mark.parametrize("shape", ["tensor", "sample", "channel"])
@pytest.mark.parametrize("gradient", ["official", "indicator"])
def test_integer_gradients_are_those_of_autograd(gradient, shape: str, layout: str, kernel) -> None:
    values = drawn(layout)
    grad = torch.randn(values.shape, generator=torch.Generator().manual_seed(2)) + 0.5
    for bits in (2, 8):
        for low, high in BOUNDS:
            factors = {"tensor": torch.ones(1), "sample": FIXED_SIDES.view(3, 1, 1, 1)}
            factors["channel"] = torch.linspace(0.8, 1.2, values.shape[1]).view(1, -1, 1, 1)
            inputs = values, low * factors[shape], high * factors[shape]
            found = gradients(
                lambda *a, b=bits: fake_quantize_between(*a, b, gradient=gradient, kernel=kernel), grad, *inputs
            )
            wanted = gradients(lambda *a, b=bits: plain(*a, b, indicator=gradient == "indicator"), grad, *inputs)
            assert close(found[0], wanted[0], 1e-6)
            assert torch.equal(found[1] != 0, wanted[1] != 0)
            assert close(found[1], wanted[1], 1e-6)
            size = wanted[2].abs().max() + wanted[3].abs().max()
            assert float((found[2] - wanted[2]).abs().max() / size) < 3e-3
            assert float((found[3] - wanted[3]).abs().max() / size) < 3e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_bound_that_clips_nothing_gets_no_noise(kernel) -> None:
    values = torch.rand(1000) + 0.5
    grad = torch.randn(1000)
    found = gradients(
        lambda *a: fake_quantize_between(*a, 4, gradient="indicator", kernel=kernel),
        grad,
        values,
        torch.tensor([-0.7]),
        torch.tensor([1.0]),
    )
    assert found[2].item() == 0
    assert found[3].item() == pytest.approx(grad[values > 1].sum().item(), rel=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("lower", "upper"), [(0.0, 0.0), (1.0, 1.0), (-2.0, -2.0), (1.0, -1.0)])
def test_empty_range_gives_no_nan(lower: float, upper: float, kernel) -> None:
    found = gradients(
        lambda *a: fake_quantize_between(*a, 4, kernel=kernel),
        torch.ones(50),
        torch.linspace(-3, 3, 50),
        torch.tensor([lower]),
        torch.tensor([upper]),
    )
    assert all(part.isfinite().all() for part in found)
    assert len(found[0].unique()) <= 16


def test_nan_shows() -> None:
    bound = torch.ones(1)
    assert fake_quantize_between(torch.tensor([0.5, torch.nan]), -bound, bound, 4).isnan().tolist() == [False, True]
    assert fake_quantize_between(torch.zeros(3), -bound, bound * torch.nan, 4).isnan().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_values_are_rounded_in_float32(kernel) -> None:
    values = drawn("channels last").bfloat16().requires_grad_()
    lower, upper = torch.tensor([-1.9], requires_grad=True), torch.tensor([2.7], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = fake_quantize_between(values, lower, upper, 4, kernel=kernel)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, fake_quantize_between(values.float(), lower, upper, 4).bfloat16())
    found.sum().backward()
    assert values.grad is not None
    assert (values.grad.dtype, lower.grad.dtype) == (torch.bfloat16, torch.float32)  # pyright: ignore


def test_fixed_bounds_of_a_parameter() -> None:
    weight = torch.nn.Parameter(torch.tensor([-1.0, -0.5, 0.2, 0.7, 2.0]))
    lower, upper = torch.tensor([-1.0]), torch.tensor([0.7])
    fake_quantize_between(weight, lower, upper, 4, gradient="indicator").sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 1, 1, 1, 0]


def test_more_elements_than_a_piece() -> None:
    values = torch.randn(2, 700_001, generator=torch.Generator().manual_seed(3))
    lower, upper = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[1.1], [2.3]])
    wanted = gradients(lambda *a: plain(*a, 4), torch.ones_like(values), values, lower, upper)
    found = gradients(lambda *a: fake_quantize_between(*a, 4), torch.ones_like(values), values, lower, upper)
    assert all(close(f, w, 1e-4) for f, w in zip(found, wanted, strict=True))


@COMPILER
def test_new_sizes_and_bits_do_not_compile_again() -> None:
    bound = torch.tensor([1.0], requires_grad=True)
    for side in (8, 9):
        fake_quantize_between(torch.randn(2, 3, side, side), -bound, bound, 4, kernel="compiled").sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for bits, side in ((2, 11), (8, 30)):
            out = fake_quantize_between(torch.randn(5, 3, side, side + 1), -bound, bound, bits, kernel="compiled")
            out.sum().backward()


_WITHOUT_COMPILER = """
import torch
from srquant.quantizers.straight_through import fake_quantize_between
bound = torch.ones(1, requires_grad=True)
try:
    fake_quantize_between(torch.zeros(4, 4), -bound, bound, 4, kernel="compiled")
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_compiled_without_a_compiler_says_so(tmp_path) -> None:
    environment = {"PATH": str(tmp_path), "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _WITHOUT_COMPILER]
    told = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    assert told.strip() == "UserError kernel 'compiled' needs a C++ compiler that works here; use kernel 'eager'"


def test_unknown_names_are_told() -> None:
    bound = torch.ones(1)
    with pytest.raises(UserError, match=r"unknown gradient 'offical'.*did you mean 'official'"):
        fake_quantize_between(bound, -bound, bound, 4, gradient="offical")  # pyright: ignore[reportArgumentType]
