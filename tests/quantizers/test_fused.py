from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from srquant.quantizers.fused import fused_quantized_conv2d
from srquant.quantizers.integer_convolution import has_integer_convolution
from srquant.quantizers.straight_through import fake_quantize_between

INTEGER = pytest.param(True, marks=pytest.mark.skipif(not has_integer_convolution(), reason="no int8 convolution"))
CASES = ({"groups": 1, "stride": (1, 1)}, {"groups": 2, "stride": (2, 2)})


def layer(groups: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, weight, bias and the weight's step."""
    source = torch.Generator().manual_seed(1)
    values = torch.randn(4, 16, 24, 24, generator=source).contiguous(memory_format=torch.channels_last)
    step = torch.rand(32, generator=source) * 0.01 + 0.01
    codes = torch.randint(-7, 8, (32, 16 // groups, 3, 3), generator=source)
    return values.to(dtype), codes * step.view(-1, 1, 1, 1), torch.randn(32, generator=source), step


def run(function, *inputs: Tensor) -> list[Tensor]:
    """Output and gradients of all inputs."""
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)) + 0.1
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def apart(bits: int, relu: bool, gradient, stride, groups: int):
    def function(values: Tensor, lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rounded = fake_quantize_between(values.relu() if relu else values, lower, upper, bits, gradient=gradient)
        return functional.conv2d(rounded, weight, bias, stride, (1, 1), 1, groups)

    return function


def together(bits: int, **options):
    def function(values: Tensor, lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_quantized_conv2d(values, lower, upper, bits, weight, bias, padding=(1, 1), **options)

    return function


def near(found: Tensor, wanted: Tensor, relative: float) -> bool:
    return float((found - wanted).abs().max()) <= relative * float(wanted.abs().max())


@pytest.mark.parametrize("integer", [False, INTEGER])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("gradient", ["official", "indicator"])
@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_fused_is_quantiser_then_convolution(bits: int, kept: int, gradient, relu: bool, integer: bool) -> None:
    for case in CASES:
        for shape in ((1,), (4, 1, 1, 1)):
            values, weight, bias, step = layer(case["groups"])
            inputs = values, torch.full(shape, -0.3), torch.full(shape, 1.7), weight, bias
            wanted = run(apart(bits, relu, gradient, **case), *inputs)
            options = {"gradient": gradient, "weight_step": step, "integer_forward": integer, "bytes_kept": kept}
            found = run(together(bits, relu=relu, **options, **case), *inputs)
            assert near(found[0], wanted[0], 1e-6)
            for i in (1, 4, 5):
                assert near(found[i], wanted[i], 1e-6), i
            packed_residual = gradient == "official" and kept == 1 and bits <= 4
            size = wanted[2].abs().max() + wanted[3].abs().max()
            for i in (2, 3):
                assert float((found[i] - wanted[i]).abs().max() / size) < (3e-2 if packed_residual else 1e-5)


def test_packed_residual_gives_bounds_without_bias() -> None:
    """One byte makes the bounds' gradients noisy, not wrong: the mean error over many gradients is near zero."""
    values, weight, bias, _ = layer(1)
    inputs = values, torch.tensor([-1.3]), torch.tensor([1.7]), weight, bias
    errors = []
    for kept in (1, 2):
        leaves = [part.detach().clone().requires_grad_() for part in inputs]
        out = together(4, bytes_kept=kept)(*leaves)
        source = torch.Generator().manual_seed(5)
        grads = [
            torch.autograd.grad(out, leaves[2], torch.randn(out.shape, generator=source), retain_graph=True)[0]
            for _ in range(60)
        ]
        errors.append(torch.cat(grads))
    difference = errors[0] - errors[1]
    assert 0 < difference.std() < 0.05 * errors[1].std()
    assert difference.mean().abs() < 4 * difference.std() / 60**0.5


def test_kept_memory_is_a_byte_per_element_and_per_weight() -> None:
    values, weight, bias, step = layer(1)
    sizes: list[int] = []
    lower, upper = torch.tensor([-1.3], requires_grad=True), torch.tensor([1.7], requires_grad=True)

    def note(part: Tensor) -> Tensor:
        sizes.append(part.numel() * part.element_size())
        return part

    for kept, bytes_per_element in ((1, 1), (2, 2)):
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda part: part):
            fused_quantized_conv2d(values, lower, upper, 4, weight, bias, weight_step=step, bytes_kept=kept, relu=True)
        assert sum(sizes) == bytes_per_element * values.numel() + weight.numel() + 4 * len(step)


@pytest.mark.skipif(not has_integer_convolution(), reason="no int8 convolution")
def test_integer_forward_computes_whole_sums() -> None:
    """With steps that are powers of two every sum is exact, so the result is the deployed accumulator's."""
    codes = torch.randint(0, 16, (2, 16, 9, 9)).float()
    weight = torch.randint(-7, 8, (8, 16, 3, 3)).float()
    lower, upper = torch.tensor([-3 * 0.25]), torch.tensor([12 * 0.25], requires_grad=True)
    found = fused_quantized_conv2d(
        (codes - 3) * 0.25,
        lower,
        upper,
        4,
        weight * 0.5,
        torch.zeros(8),
        weight_step=torch.tensor([0.5]),
        weight_codes=weight.to(torch.int8),
        integer_forward=True,
    )
    assert torch.equal(found, functional.conv2d(codes.double() - 3, weight.double()).float() / 8)


@pytest.mark.parametrize("integer", [False, INTEGER])
def test_under_autocast(integer: bool) -> None:
    values, weight, bias, step = layer(1, torch.bfloat16)
    inputs = values, torch.tensor([-1.3]), torch.tensor([1.7]), weight, bias
    with torch.autocast("cpu", torch.bfloat16):
        wanted = run(apart(4, False, "official", (1, 1), 1), *inputs)
        found = run(together(4, weight_step=step, integer_forward=integer, bytes_kept=2), *inputs)
    assert [part.dtype for part in found] == [part.dtype for part in wanted]
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, wanted, strict=True):
        assert near(one.float(), other.float(), 2e-2)


def test_without_gradient_of_the_bounds() -> None:
    values, weight, bias, _ = layer(1)
    leaf = values.clone().requires_grad_()
    out = fused_quantized_conv2d(leaf, torch.tensor([-1.3]), torch.tensor([1.7]), 4, weight, bias)
    out.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad == 0, (values < -1.3) | (values > 1.7))
    with torch.no_grad():
        assert torch.equal(
            out, fused_quantized_conv2d(values, torch.tensor([-1.3]), torch.tensor([1.7]), 4, weight, bias)
        )


def test_the_probe_of_the_machine_does_not_see_autocast() -> None:
    has_integer_convolution.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = has_integer_convolution()
    has_integer_convolution.cache_clear()
    assert under_autocast == has_integer_convolution()
