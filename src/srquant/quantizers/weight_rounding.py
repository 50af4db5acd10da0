"""Weights rounded one after another, each making good the errors of those before it, on patches of real pictures.

Rounding every weight to the nearest code ignores that the values a convolution reads are alike: neighbouring pixels
move together, and most of a patch is its mean. The codes chosen here keep `W y - Q x` small for the patches x that
occur, y being what the float network has in their place:

- First the weights are fitted to what the convolution reads, `V = W E[y x'] E[x x']^-1`, which makes good a part of
  the errors of the layers before. This is the asymmetric calibration of GPTAQ (Li et al., ICML 2025, arXiv
  2504.02692), solved by least squares for all weights at once.
- Then they are rounded: after one weight is, those not yet rounded (and at last the bias, whose grid is fine) are
  shifted by the least squares solution. This is OPTQ/GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323, section 3),
  with the bias as one more weight that reads the constant 1, which corrects the mean.

Convolutions are rounded in the order of execution, so each sees the rounding of all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from srquant.quantizers.folding import module_of
from srquant.quantizers.grid import bias_codes, largest_weight_code
from srquant.quantizers.layers import LayerCodes, QuantConv2d
from srquant.quantizers.stepwise import StepwiseRun

_PATCHES = 1000
"""Patches of a crop, drawn at random places."""

_LARGEST_BLOCK = 640
"""Weights of an output channel that are rounded together; more are cut into blocks of whole input channels."""

_DAMPING = 1e-3
"""Share of the mean square that is added to every square, so that rare patches decide nothing."""

_RIDGE = 1e-4
"""The same where weights are fitted."""

_SMALLEST = 1e-12


@dataclass(frozen=True)
class Sample:
    """A picture that weights are rounded on.

    Attributes:
        picture: float32 [1, C, H, W], pixel values 0..255.
        share: how much it counts.
        margin: share of its sides, on each end, that is not looked at.
    """

    picture: Tensor
    share: float
    margin: float = 0.0


def cut_off(length: int, margin: float) -> int:
    """How much of each end of a side of a feature map a margin takes away; something is always left."""
    return min(round(margin * length), (length - 1) // 2)


class PatchMoments:
    """Second moments of the patches that a convolution reads, with a 1 at the end of each, block by block.

    Args:
        conv: of square kernel, same padding on all sides and stride 1.

    Attributes:
        blocks: the input channels of each block.
        squares: E[x x'], float64 [n+1, n+1] of each.
        errors: E[(y - x) x'], y being the patches of the float network.
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
        self.errors = [torch.zeros_like(squares) for squares in self.squares]
        self._random = torch.Generator().manual_seed(0)

    def see(self, values: Tensor, wanted: Tensor, share: float = 1.0, margin: float = 0.0) -> None:
        """Take in patches.

        Args:
            values: what the convolution reads, float32 [1,C,H,W].
            wanted: what it reads in the float network.
            share: how much the picture counts.
            margin: share of the sides, on each end, that is left out.
        """
        read, meant = self._windows(values), self._windows(wanted)
        top, left = (cut_off(length, margin) for length in read.shape[1:3])
        height, width = read.shape[1] - 2 * top, read.shape[2] - 2 * left
        place = torch.arange(height * width)
        if len(place) > _PATCHES:
            place = torch.randint(len(place), (_PATCHES,), generator=self._random)
        down, right = top + place // width, left + place % width
        for block, squares, errors in zip(self.blocks, self.squares, self.errors, strict=True):
            seen, aim = (self._rows(windows[block, down, right]) for windows in (read, meant))
            squares += seen.T @ seen * (share / len(place))
            errors += (aim - seen).T @ seen * (share / len(place))

    def _windows(self, values: Tensor) -> Tensor:
        """All patches, [C,H,W,size,size]."""
        return functional.pad(values[0], [self.padding] * 4).unfold(1, self.size, 1).unfold(2, self.size, 1)

    @staticmethod
    def _rows(patches: Tensor) -> Tensor:
        """Patches [C,N,size,size] as float64 [N,n+1]."""
        return functional.pad(patches.transpose(0, 1).flatten(1), (0, 1), value=1.0).double()


def round_weights(graph_module: fx.GraphModule, samples: Sequence[Sample], advance: Callable[[], None]) -> None:
    """Choose the weight codes and biases of a calibrated network's convolutions again; their steps stay.

    Args:
        graph_module: with quantisers that have their grids and frozen convolutions, their float weights still there.
        samples: what to look at; a few of the features of all of them are in memory at a time.
        advance: called after each convolution.
    """
    runs = [[StepwiseRun(graph_module, s.picture, rounded=rounded) for rounded in (True, False)] for s in samples]
    left = {module for module in graph_module.modules() if isinstance(module, QuantConv2d)}
    with torch.inference_mode():
        for node in graph_module.graph.nodes:
            convolution = module_of(graph_module, node)
            if isinstance(convolution, QuantConv2d) and convolution in left:
                left.remove(convolution)
                moments, source = PatchMoments(convolution), node.all_input_nodes[0]
                for sample, (rounded, plain) in zip(samples, runs, strict=True):
                    moments.see(rounded.env[source], plain.env[source], sample.share, sample.margin)
                convolution.frozen = _compensated(convolution, moments)
                advance()
                if not left:
                    return
            for both in runs:
                for run in both:
                    run.step(node)


def _compensated(convolution: QuantConv2d, moments: PatchMoments) -> LayerCodes:
    old = convolution.codes()
    assert convolution.bias is not None
    bias, codes = convolution.bias.detach().double().clone(), old.weight.clone()
    steps, top = old.steps.double() * old.expansion, largest_weight_code(convolution.bits)
    inputs = convolution.in_channels // convolution.groups
    outputs = convolution.out_channels // convolution.groups
    for block, squares, errors in zip(moments.blocks, moments.squares, moments.errors, strict=True):
        group, start = divmod(block.start, inputs)
        rows, columns = slice(group * outputs, (group + 1) * outputs), slice(start, start + block.stop - block.start)
        weight = convolution.weight.detach()[rows, columns]
        fitted, moved = fit_rows(weight.flatten(1).double() / steps[rows, None], squares, errors)
        found, shift = round_rows(fitted, squares, top)
        codes[rows, columns] = found.view_as(weight).to(torch.int8)
        bias[rows] += (moved + shift) * steps[rows]
    return replace(old, weight=codes, bias=bias_codes(bias, old.steps, convolution.input_scale))


def fit_rows(weight: Tensor, squares: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that make of what is read what the given ones make of what is meant, by regularised least squares.

    Args:
        weight: float64 [O, n].
        squares: second moments of what is read, float64 [n+1, n+1], the constant 1 last.
        errors: E[(meant - read) read'], float64 [n+1, n+1].

    Returns:
        float64 [O, n], and what the bias has to be moved by, [O].
    """
    wide = functional.pad(weight, (0, 1))
    fitted = wide + torch.linalg.solve(_damped(squares, _RIDGE), (wide @ errors).T).T
    return fitted[:, :-1], fitted[:, -1]


def _damped(squares: Tensor, share: float) -> Tensor:
    """Second moments with a share of their mean square added to every square but that of the constant 1."""
    added = torch.full((len(squares),), _SMALLEST, dtype=torch.float64)
    added[:-1] += share * squares.diagonal()[:-1].mean()
    return squares + torch.diag(added)


def round_rows(weight: Tensor, squares: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Whole numbers that multiply the seen patches to nearly the same results as the weights.

    Args:
        weight: float64 [O, n], in steps.
        squares: second moments of the patches, float64 [n+1, n+1], the constant 1 last.
        top: largest magnitude of a code.

    Returns:
        float64 [O, n], whole numbers within +-top, and what the bias has to make good, [O].
    """
    damped = _damped(squares, _DAMPING)
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
