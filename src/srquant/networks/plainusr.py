"""PlainUSR: plain convolutions on fewer and fewer channels, with local importance attention (Wang et al., ACCV 2024).

Paper: https://arxiv.org/abs/2409.13435. The re-parameterised form, key names as in https://github.com/icandle/PlainUSR.
The picture travels with the features as three more channels; each block replaces the first channels of all and leaves
the others as they are. Pictures of less than 7 pixels a side are accepted, see `srquant.networks.layers.Grow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import LocalImportance
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

_SLOPE = 0.05


@dataclass(frozen=True, kw_only=True)
class PlainUSRConfig(NetworkConfig):
    """Shape of a PlainUSR; the defaults are B, the base form.

    Attributes:
        scale: 2, 3 or 4.
        width: Features besides the picture's three channels.
        outer: Channels of the outermost blocks.
        inner: Channels of the blocks beside the middle one; not in the ultra form.
        middle: Channels of the middle block.
        squeezed: Channels inside the attention; not in the ultra form.
        convolutions: Of each block, 2, or 3 in L.
        ultra: U and T: three blocks, and only the middle one has an attention, which is not pooled.
    """

    width: int = 64
    outer: int = 64
    inner: int = 48
    middle: int = 32
    squeezed: int = 16
    convolutions: int = 2
    ultra: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("middle", 2, self.middle)
        for name in ("outer", "middle") if self.ultra else ("outer", "inner", "middle"):
            if getattr(self, name) > self.width:
                raise UserError(f"PlainUSRConfig: {name} is {getattr(self, name)}; allowed: at most width {self.width}")

    def channels(self) -> dict[str, int]:
        """The blocks in order and how many of the first channels each of them works on."""
        if self.ultra:
            return {"block1": self.outer, "blockm": self.middle, "block2": self.outer}
        sides = {"block1": self.outer, "block2": self.inner}
        return {**sides, "blockm": self.middle, "block3": self.inner, "block4": self.outer}


class ImportanceAttention(nn.Module):
    """x times its pooled importance times the gate of its first channel; [N, C, H, W] to the same shape.

    The two factors, both in 0..1, are multiplied first: rounded, their product disturbs less than a part of x would.

    Args:
        channels: C, at least 2.
        squeezed: channels of the pooled map; None for one convolution at full resolution instead, as in U and T.
    """

    def __init__(self, channels: int, squeezed: int | None) -> None:
        super().__init__()
        self.pooled = squeezed is not None
        if squeezed is None:
            self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Sigmoid())
        else:
            self.body = LocalImportance(channels, squeezed)
        self.gate = nn.Sigmoid()
        self.parts = [1, channels - 1]

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        gate = self.gate(torch.split(x, self.parts, dim=1)[0])
        importance = self.body(self.body.get_submodule("0")(x)) if self.pooled else self.body(x)
        return x * (importance * gate)


class PlainBlock(nn.Module):
    """Convolutions with LeakyReLU between them, then the attention; [N, channels, H, W] to the same shape."""

    def __init__(self, channels: int, convolutions: int, attention: nn.Module | None) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, channels, 3, padding=1)]
        for _ in range(convolutions - 1):
            layers += [nn.LeakyReLU(_SLOPE), nn.Conv2d(channels, channels, 3, padding=1)]
        self.body = nn.Sequential(*layers, *([] if attention is None else [attention]))

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return self.body(x)


class PlainUSR(SRNetwork[PlainUSRConfig]):
    """PlainUSR of any widths. Unless ultra, the attention looks far over the picture: tiles are never exact."""

    name = "plainusr"
    config_type = PlainUSRConfig

    def __init__(self, config: PlainUSRConfig) -> None:
        super().__init__(config)
        whole = config.width + COLOURS
        self.head = nn.Conv2d(COLOURS, whole, 3, padding=1)
        for name, channels in config.channels().items():
            attention = None
            if not config.ultra or name == "blockm":
                attention = ImportanceAttention(channels, None if config.ultra else config.squeezed)
            self.add_module(name, PlainBlock(channels, config.convolutions, attention))
        self.tail = nn.Sequential(
            nn.Conv2d(whole, COLOURS * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )
        self._pass_picture_on()

    def _pass_picture_on(self) -> None:
        """Start as nearest-neighbour enlargement: the last channels are the picture, the tail repeats it."""
        last = self.tail[0]
        assert isinstance(last, nn.Conv2d)
        times = self.config.scale**2
        with torch.no_grad():
            for colour in range(COLOURS):
                self.head.weight[colour - COLOURS, colour, 1, 1] += 1
                last.weight[colour * times : (colour + 1) * times, colour - COLOURS, 1, 1] += 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..1 to [N, 3, scale*H, scale*W] in 0..1 (not clamped)."""
        parts = [self.head(x)]
        sizes = [self.config.width + COLOURS]
        for name, channels in self.config.channels().items():
            first = _take(parts, sizes, channels)
            parts.insert(0, self.get_submodule(name)(first))
            sizes.insert(0, channels)
        return self.tail(torch.cat(parts, dim=1))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> PlainUSRConfig | None:
        outer, scaled = "block1.body.0.weight", "tail.0.weight"
        if not {"head.weight", outer, "blockm.body.0.weight", scaled} <= state.keys():
            return None
        shape = PlainUSRConfig(
            scale=shuffle_factor(scaled, conv_shape(state, scaled)[0], COLOURS),
            width=conv_shape(state, "head.weight")[0] - COLOURS,
            outer=conv_shape(state, outer)[0],
            middle=conv_shape(state, "blockm.body.0.weight")[0],
            ultra=True,
        )
        if not any(key.startswith("block3.") for key in state):
            return shape
        convolutions = (count(state, "block1.body.#.weight") + 1) // 2
        return replace(
            shape,
            ultra=False,
            inner=conv_shape(state, "block2.body.0.weight")[0],
            squeezed=conv_shape(state, f"block1.body.{2 * convolutions - 1}.body.0.weight")[0],
            convolutions=convolutions,
        )


def _take(parts: list[Tensor], sizes: list[int], channels: int) -> Tensor:
    """Take the first channels away from tensors that stand for one; `sizes` are their channels.

    What a block leaves alone stays a tensor of its own, which is joined again only where it is read.
    """
    taken: list[Tensor] = []
    while channels:
        part, size = parts.pop(0), sizes.pop(0)
        if size > channels:
            part, rest = torch.split(part, [channels, size - channels], dim=1)
            parts.insert(0, rest)
            sizes.insert(0, size - channels)
        taken.append(part)
        channels -= min(size, channels)
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)
