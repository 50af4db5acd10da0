"""EDSR: enhanced deep residual networks (Lim et al., CVPR workshops 2017).

Paper: https://arxiv.org/abs/1707.02921. Key names as in https://github.com/sanghyun-son/EDSR-PyTorch.
Residual blocks without batch normalisation, one long skip, sub-pixel tail. "Baseline": 16 blocks, width 64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import ChannelAffine
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of the DIV2K training set, in 0..1."""

_MEAN_KEYS = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")


@dataclass(frozen=True, kw_only=True)
class EDSRConfig(NetworkConfig):
    """Shape and normalisation of an EDSR: y = net(gain * (x - mean)) / gain + mean.

    Attributes:
        scale: 2, 3, 4 or 8; 3 is one shuffle, the others are shuffles by 2.
        blocks: Residual blocks.
        width: Features.
        res_scale: Factor on every residual; 0.1 in the official large model (32 blocks, width 256).
        peak: The value of white, 1.0 or 255.0.
        mean: Mean colour, in 0..peak.
        gain: 1 in the official code (0..255), 2 in krasserm's Keras port (0..1).
    """

    scales = (2, 3, 4, 8)

    blocks: int = 16
    width: int = 64
    res_scale: float = 1.0
    peak: float = 1.0
    mean: tuple[float, float, float] = DIV2K_MEAN
    gain: float = 2.0

    @classmethod
    def official(cls, scale: int, blocks: int = 16, width: int = 64, res_scale: float = 1.0) -> EDSRConfig:
        """The normalisation of the official code: 0..255, only the mean colour is taken off."""
        red, green, blue = (255 * part for part in DIV2K_MEAN)
        return cls(
            scale=scale,
            blocks=blocks,
            width=width,
            res_scale=res_scale,
            peak=255.0,
            mean=(red, green, blue),
            gain=1.0,
        )


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, plus the input; [N, width, H, W] to the same shape."""

    def __init__(self, width: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv3(width, width), nn.ReLU(), _conv3(width, width))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; a res_scale of 1 leaves no multiplication in the graph."""
        residual = self.body(x)
        if self.res_scale != 1.0:
            residual = residual * self.res_scale
        return residual + x


class EDSR(SRNetwork[EDSRConfig]):
    """EDSR of any depth, width and scale.

    Checkpoints: official files carry `sub_mean` and `add_mean` (0..255); their bias gives the mean, and their
    weight has to be the identity. Files without them get the normalisation of edsr8_x2 (0..1, gain 2). The
    state dict does not tell `res_scale`: a width of 256 or more is read as the official large model (0.1),
    anything narrower as 1.
    """

    name = "edsr"
    config_type = EDSRConfig

    def __init__(self, config: EDSRConfig) -> None:
        super().__init__(config, peak=config.peak)
        width, gain = config.width, config.gain
        self.sub_mean = ChannelAffine([gain] * COLOURS, [-gain * part for part in config.mean])
        self.head = nn.Sequential(_conv3(COLOURS, width))
        blocks = [ResidualBlock(width, config.res_scale) for _ in range(config.blocks)]
        self.body = nn.Sequential(*blocks, _conv3(width, width))
        self.tail = nn.Sequential(_upsampler(config.scale, width), _conv3(width, COLOURS))
        self.add_mean = ChannelAffine([1 / gain] * COLOURS, config.mean)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..peak to [N, 3, scale*H, scale*W] in 0..peak (not clamped)."""
        features = self.head(self.sub_mean(x))
        features = self.body(features) + features
        return self.add_mean(self.tail(features))

    @classmethod
    def entries(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All but the mean shifts of official files: those are constants of the config."""
        return {key: tensor for key, tensor in state.items() if key not in _MEAN_KEYS}

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> EDSRConfig | None:
        if not {"head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"} <= state.keys():
            return None
        width, _ = conv_shape(state, "head.0.weight")
        key = "tail.0.0.weight"
        factor = shuffle_factor(key, *conv_shape(state, key))
        shuffles = (count(state, "tail.0.#.weight") + 1) // 2
        mean = _stored_mean(state)
        return EDSRConfig(
            scale=factor**shuffles,
            blocks=count(state, "body.#.body.0.weight"),
            width=width,
            res_scale=0.1 if width >= 256 else 1.0,
            peak=1.0 if mean is None or 0 < max(mean) <= 1 else 255.0,
            mean=DIV2K_MEAN if mean is None else mean,
            gain=2.0 if mean is None else 1.0,
        )


def _upsampler(scale: int, width: int) -> nn.Sequential:
    """Sub-pixel enlargement, [N, width, H, W] to [N, width, scale*H, scale*W]: convolutions 0, 2, 4."""
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    stages: list[nn.Module] = []
    for factor in factors:
        stages += [_conv3(width, width * factor**2), nn.PixelShuffle(factor)]
    return nn.Sequential(*stages)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _stored_mean(state: Mapping[str, Tensor]) -> tuple[float, float, float] | None:
    """The mean colour of official files (their bias, 0..255), or None where there is none."""
    present = [key for key in _MEAN_KEYS if key in state]
    if not present:
        return None
    if len(present) < len(_MEAN_KEYS):
        absent = next(key for key in _MEAN_KEYS if key not in state)
        raise UserError(f"'{present[0]}' is there, but '{absent}' is missing")
    for key in _MEAN_KEYS[::2]:
        _require_identity(key, state[key])
    for key in _MEAN_KEYS[1::2]:
        if list(state[key].shape) != [COLOURS]:
            raise UserError(f"'{key}' has shape {list(state[key].shape)}, expected [{COLOURS}]")
    red, green, blue = _values(state["add_mean.bias"])
    if _values(state["sub_mean.bias"]) != [-red, -green, -blue]:
        raise UserError("'sub_mean.bias' is not the negative of 'add_mean.bias'")
    return red, green, blue


def _require_identity(key: str, weight: Tensor) -> None:
    """Refuse a mean shift that also mixes or scales colours (a standard deviation other than 1)."""
    shape = list(weight.shape)
    if shape != [COLOURS, COLOURS, 1, 1]:
        raise UserError(f"'{key}' has shape {shape}, expected [{COLOURS}, {COLOURS}, 1, 1]")
    if not torch.equal(weight.detach().float().flatten(1), torch.eye(COLOURS)):
        raise UserError(f"'{key}' is not the identity (only a standard deviation of 1 is known)")


def _values(tensor: Tensor) -> Sequence[float]:
    return tensor.detach().double().tolist()
