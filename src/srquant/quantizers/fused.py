"""Quantiser and convolution as one autograd function that keeps codes, not values.

Apart, a quantiser and a convolution keep the rounded values (four bytes per element) and the quantiser's marks (one).
Together they keep the code and the mark, in one byte or in two; the backward makes the values anew for the weight
gradient. A ReLU before the quantiser can be folded in, so that its result is not kept either. On CPUs with an integer
convolution the forward can run on the codes themselves: training then sees the sums that deployment computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from srquant.quantizers import kernels
from srquant.quantizers.integer_convolution import Pair, has_integer_convolution, integer_convolution
from srquant.quantizers.kernels import Form, Ranges
from srquant.quantizers.straight_through import Gradient


def fused_quantized_conv2d(
    values: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: int,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
    gradient: Gradient = "official",
    weight_codes: Tensor | None = None,
    weight_step: Tensor | None = None,
    integer_forward: bool = False,
    relu: bool = False,
    bytes_kept: Literal[1, 2] = 1,
) -> Tensor:
    """`conv2d(fake_quantize_between(values, lower, upper, bits), weight, bias)` on the `integer` grid.

    Differentiable in values, bounds, weight and bias. The quantiser computes in float32, under autocast too; the
    convolution follows autocast.

    Args:
        values: float32 or bfloat16 [N,I,H,W].
        lower: float32, as `fake_quantize_between` takes it.
        upper: like `lower`.
        bits: 2 to 8.
        weight: float32 [O,I/groups,kH,kW], already rounded.
        bias: float32 [O].
        stride: of the convolution.
        padding: of the convolution, with zeros.
        groups: of the convolution.
        gradient: of the bounds, see `srquant.quantizers.straight_through`.
        weight_codes: int8, the whole multiples of `weight_step` that the weight consists of; taken from the weight if
            not given.
        weight_step: float32 [1] or [O]; with it the weight is kept as codes. `integer_forward` needs it.
        integer_forward: compute the forward convolution on codes, where the machine can and bounds are per tensor.
        relu: rectify the values first.
        bytes_kept: per element. One byte has room for code and mark up to 4 bits (6 without the residual) and then
            counts the residual in steps of 1/60, 1/28 and 1/12 at 2, 3 and 4 bits: the bounds' gradients get a
            noise of a few percent of the residual's part. Two bytes count it in steps of 1/252.
    """
    if lower.shape != upper.shape:
        lower, upper = torch.broadcast_tensors(lower, upper)
    if weight_codes is None and weight_step is not None:
        weight_codes = torch.div(weight.detach(), weight_step.view(-1, 1, 1, 1)).round_().to(torch.int8)
    residual = gradient == "official" and (lower.requires_grad or upper.requires_grad)
    setting = _Setting(
        ranges=kernels.integer_ranges(values, lower, upper, bits),
        form=Form(bits, residual, bits <= (4 if residual else 6) and bytes_kept == 1, relu),
        geometry=(stride, padding, groups),
        weight_codes=weight_codes,
        weight_step=weight_step,
        integer=integer_forward and weight_step is not None and _on_integers(values, lower),
    )
    return _QuantizedConvolution.apply(values, lower, upper, weight, bias, setting)


def _on_integers(values: Tensor, lower: Tensor) -> bool:
    return values.device.type == "cpu" and lower.numel() == 1 and has_integer_convolution()


@dataclass(frozen=True, eq=False)
class _Setting:
    ranges: Ranges
    form: Form
    geometry: tuple[Pair, Pair, int]
    weight_codes: Tensor | None
    weight_step: Tensor | None
    integer: bool

    def kept_weight(self, weight: Tensor) -> tuple[Tensor, ...]:
        if self.weight_codes is None or self.weight_step is None:
            return (weight,)
        return self.weight_codes, self.weight_step

    def weight(self, kept: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        if len(kept) == 1:
            return kept[0].to(dtype)
        return (kept[0] * kept[1].view(-1, 1, 1, 1)).to(dtype)


class _QuantizedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor, setting: _Setting
    ) -> Tensor:
        ranges, form = setting.ranges, setting.form
        real = kernels.dense(values.float())
        codes = torch.empty_like(real, dtype=torch.uint8 if setting.integer or not form.packed else None)
        kept = kernels.encoded(real, ranges, form, codes)
        del real
        ctx.setting, ctx.dtype, ctx.kept = setting, values.dtype, len(kept)
        ctx.bounds = lower.requires_grad or upper.requires_grad
        ctx.save_for_backward(*kept, *setting.kept_weight(weight))
        stride, padding, groups = setting.geometry
        if not setting.integer:
            rounded = kernels.on_grid_(codes.float(), ranges)
            return functional.conv2d(rounded, weight, bias, stride, padding, 1, groups)
        assert setting.weight_codes is not None
        assert setting.weight_step is not None
        (part,) = ranges.parts
        assert isinstance(part.scale, float)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return integer_convolution(
            codes,
            part.scale,
            int(part.zero_point),
            setting.weight_codes,
            setting.weight_step,
            bias,
            *setting.geometry,
            dtype,
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        setting: _Setting = ctx.setting
        (grad,) = grads
        kept, kept_weight = ctx.saved_tensors[: ctx.kept], ctx.saved_tensors[ctx.kept :]
        weight = setting.weight(kept_weight, grad.dtype)
        marks, codes = kernels.unpacked(kept[0], setting.form) if len(kept) == 1 else (kept[0], kept[1].float())
        stride, padding, groups = setting.geometry
        wanted = [any(ctx.needs_input_grad[:3]), *ctx.needs_input_grad[3:5]]
        grad_values, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            kernels.on_grid_(codes, setting.ranges).to(grad.dtype),
            weight,
            [len(weight)],
            stride,
            padding,
            (1, 1),
            False,
            (0, 0),
            groups,
            wanted,
        )
        del codes
        lower = upper = None
        if wanted[0]:
            grad_values, lower, upper = kernels.gradients(
                grad_values.float(),
                marks,
                setting.ranges,
                bounds=ctx.bounds,
                residual=setting.form.residual,
                rectified=setting.form.rectified,
                amplitude=setting.form.amplitude,
            )
            grad_values = grad_values.to(ctx.dtype)
        widened = (None if part is None else part.float() for part in (grad_weight, grad_bias))
        return grad_values, lower, upper, *widened, None
