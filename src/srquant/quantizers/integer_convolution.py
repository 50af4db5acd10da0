"""A convolution of uint8 codes with int8 weights and a float result, by oneDNN on CPUs.

`torch.ops.onednn.qconv_*` is a private interface, so it is tried once on a small convolution with the largest codes;
where it is missing or wrong, `has_integer_convolution` says no.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]


@cache
def has_integer_convolution() -> bool:
    """Whether this machine and this PyTorch compute `integer_convolution`, and rightly."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return _computes_rightly()


def _computes_rightly() -> bool:
    codes = (255 - torch.arange(2 * 16 * 7 * 7).reshape(2, 16, 7, 7) % 3).to(torch.uint8)
    weight = (127 - torch.arange(8 * 16 * 9).reshape(8, 16, 3, 3) % 5).to(torch.int8)
    steps, bias = torch.linspace(0.5, 2, 8), torch.linspace(-3, 3, 8)
    wanted = functional.conv2d((codes.float() - 3) * 0.25, weight * steps.view(-1, 1, 1, 1), bias, padding=1)
    try:
        found = integer_convolution(codes, 0.25, 3, weight, steps, bias, (1, 1), (1, 1), 1, torch.float32)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return torch.allclose(found, wanted, rtol=1e-5, atol=1e-3 * float(wanted.abs().max()) * 1e-2)


def integer_convolution(
    codes: Tensor,
    scale: float,
    zero_point: int,
    weight: Tensor,
    steps: Tensor,
    bias: Tensor,
    stride: Pair,
    padding: Pair,
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """Convolve `(codes - zero_point) * scale` with `weight * steps`; padding is zero.

    Args:
        codes: uint8 [N,I,H,W].
        scale: of the codes.
        zero_point: of the codes.
        weight: int8 [O,I/groups,kH,kW].
        steps: float32 [1] or [O].
        bias: float32 [O].
        stride: of the convolution.
        padding: of the convolution.
        groups: of the convolution.
        dtype: of the result, float32 or bfloat16.
    """
    onednn: Any = torch.ops.onednn
    steps = steps.expand(len(weight)).contiguous()
    codes = codes.contiguous(memory_format=torch.channels_last)
    geometry = list(stride), list(padding), [1, 1], groups
    packed = onednn.qconv_prepack(weight, steps, scale, zero_point, *geometry, None)
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    result = "none", [], ""
    return onednn.qconv_pointwise(
        codes, scale, zero_point, packed, steps, zeros, bias, *geometry, 1.0, 0, dtype, *result
    )
