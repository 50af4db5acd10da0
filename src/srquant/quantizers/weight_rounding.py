"""Weights rounded one after another, each making good the errors of those before it, on patches of real pictures.

Rounding every weight to the nearest code ignores that the values a convolution reads are alike: neighbouring pixels
move together, and most of a patch is its mean. The codes chosen here keep `(W - Q) x` small for the patches x that
occur: after one weight is rounded, those not yet rounded (and at last the bias, whose grid is fine) are shifted by
the least squares solution. This is OPTQ/GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323, section 3), with the bias
as one more weight that reads the constant 1, which corrects the mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from srquant.quantizers.grid import bias_codes, largest_weight_code
from srquant.quantizers.layers import LayerCodes, QuantConv2d

_PATCHES = 1000
"""Patches of a crop, drawn at random places."""

_LARGEST_BLOCK = 640
"""Weights of an output channel that are rounded together; more are cut into blocks of whole input channels."""

_DAMPING = 1e-3
"""Share of the mean square that is added to every square, so that rare patches decide nothing."""


class PatchMoments:
    """Second moments of the patches that a convolution reads, with a 1 at the end of each, block by block.

    Args:
        conv: of square kernel, same padding on all sides and stride 1.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.size = conv.kernel_size[0]
        padding = conv.padding[0]
        assert isinstance(padding, int)
        self.padding = padding
        inputs = conv.in_channels // conv.groups
        width = max(1, min(inputs, _LARGEST_BLOCK // self.size**2))
        starts = [(group * inputs, start) for group in range(conv.groups) for start in range(0, inputs, width)]
        self.blocks = [slice(first + start, first + min(start + width, inputs)) for first, start in starts]
        self.squares = [torch.zeros([(b.stop - b.start) * self.size**2 + 1] * 2).double() for b in self.blocks]
        self._random = torch.Generator().manual_seed(0)

    def see(self, values: Tensor) -> None:
        """Take in patches of what the convolution reads, float32 [1,C,H,W]."""
        padded = functional.pad(values[0], [self.padding] * 4)
        windows = padded.unfold(1, self.size, 1).unfold(2, self.size, 1)
        place = torch.randint(windows.shape[1] * windows.shape[2], (_PATCHES,), generator=self._random)
        patches = windows[:, place // windows.shape[2], place % windows.shape[2]]
        for block, squares in zip(self.blocks, self.squares, strict=True):
            rows = functional.pad(patches[block].transpose(0, 1).flatten(1), (0, 1), value=1.0)
            squares += rows.T.double() @ rows.double() / _PATCHES


def round_weights(convolutions: Iterable[QuantConv2d], network: nn.Module, crops: Iterable[Tensor]) -> None:
    """Choose the weight codes and biases of frozen convolutions again; their steps stay.

    Args:
        convolutions: of the network, frozen, their float weights still there.
        network: calibrated.
        crops: yields float32 [1,C,H,W], pixel values 0..255; one at a time in memory.
    """
    seen = {convolution: PatchMoments(convolution) for convolution in convolutions}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, QuantConv2d)
        seen[module].see(inputs[0])

    hooks = [convolution.register_forward_pre_hook(note) for convolution in seen]
    try:
        with torch.inference_mode():
            for crop in crops:
                network(crop)
    finally:
        for hook in hooks:
            hook.remove()
    for convolution, moments in seen.items():
        convolution.frozen = _compensated(convolution, moments)


def _compensated(convolution: QuantConv2d, moments: PatchMoments) -> LayerCodes:
    old = convolution.codes()
    assert convolution.bias is not None
    bias, codes = convolution.bias.detach().double().clone(), old.weight.clone()
    steps, top = old.steps.double() * old.expansion, largest_weight_code(convolution.bits)
    inputs = convolution.in_channels // convolution.groups
    outputs = convolution.out_channels // convolution.groups
    for block, squares in zip(moments.blocks, moments.squares, strict=True):
        group, start = divmod(block.start, inputs)
        rows, columns = slice(group * outputs, (group + 1) * outputs), slice(start, start + block.stop - block.start)
        weight = convolution.weight.detach()[rows, columns]
        found, shift = round_rows(weight.flatten(1).double() / steps[rows, None], squares, top)
        codes[rows, columns] = found.view_as(weight).to(torch.int8)
        bias[rows] += shift * steps[rows]
    return LayerCodes(
        codes, old.zero_points, bias_codes(bias, old.steps, convolution.input_scale), old.steps, old.expansion
    )


def round_rows(weight: Tensor, squares: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Whole numbers that multiply the seen patches to nearly the same results as the weights.

    Args:
        weight: float64 [O, n], in steps.
        squares: second moments of the patches, float64 [n+1, n+1], the constant 1 last.
        top: largest magnitude of a code.

    Returns:
        float64 [O, n], whole numbers within +-top, and what the bias has to make good, [O].
    """
    damped = squares + torch.eye(len(squares)).double() * (_DAMPING * squares.diagonal()[:-1].mean() + 1e-12)
    order = torch.argsort(squares.diagonal()[:-1], descending=True, stable=True)
    order = torch.cat([order, torch.tensor([len(order)])])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    shares = torch.linalg.cholesky(inverse, upper=True)
    left = functional.pad(weight, (0, 1))[:, order]
    codes = torch.zeros_like(left)
    for column in range(weight.shape[1]):
        codes[:, column] = torch.round(left[:, column]).clamp(-top, top)
        error = (left[:, column] - codes[:, column]) / shares[column, column]
        left[:, column + 1 :] -= error[:, None] * shares[column, column + 1 :]
    return codes[:, torch.argsort(order)][:, :-1], left[:, -1]
