"""Reading sizes off a state dict: the few questions that every `_read_config` asks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from srquant.errors import UserError

COLOURS = 3
"""Channels of a network that takes and gives RGB."""

LUMA = 1
"""Channels of a network that takes and gives luma; see `srquant.networks.info.NetworkInfo`."""


def conv_shape(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    """Outputs and inputs per group of the convolution weight `key`, shape [outputs, inputs, kh, kw].

    Raises:
        UserError: the key is missing, its tensor is not four-dimensional, or a dimension is 0.
    """
    if key not in state:
        raise UserError(f"the key '{key}' is missing")
    shape = list(state[key].shape)
    if len(shape) != 4 or 0 in shape:
        raise UserError(f"'{key}' has shape {shape}, expected a convolution [outputs, inputs, kh, kw]")
    return shape[0], shape[1]


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that stands for `#` in a key of the form `pattern`; 0 for none.

    A gap in the numbering therefore shows up later as a missing key, by its name.
    """
    form = re.compile(re.escape(pattern).replace(r"\#", r"(\d{1,3})"), re.ASCII)
    return max((int(match[1]) + 1 for match in map(form.fullmatch, state) if match), default=0)


def shuffle_factor(key: str, outputs: int, inputs: int) -> int:
    """The r of a `PixelShuffle(r)` that turns `outputs` channels into `inputs`.

    Raises:
        UserError: `outputs` is no square multiple of `inputs`.
    """
    factor = math.isqrt(outputs // inputs)
    if not 2 <= factor <= 8 or factor * factor * inputs != outputs:
        raise UserError(f"'{key}' has {outputs} outputs, expected {inputs} times 4, 9, 16 or 64")
    return factor
