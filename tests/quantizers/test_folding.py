from __future__ import annotations

import pytest
import torch
from small_quantized import CONFIGS, build, float_network, noise, tensor
from torch import nn

from srquant.errors import UserError
from srquant.networks import EDSRConfig, SRNetwork
from srquant.networks.cost import halo
from srquant.networks.layers import ChannelAffine
from srquant.quantizers.folding import fold

SHIFTED = ("edsr_x2", "edsr_official_x3", "edsr_x4", "span_x2")
"""EDSR takes a mean colour off; folded, its padding is one grey level."""


def in_pixels(network: SRNetwork, picture: torch.Tensor) -> torch.Tensor:
    """What the float network gives, in pixel units."""
    with torch.no_grad():
        return network(picture / 255 * network.info.peak) * 255 / network.info.peak


@pytest.mark.parametrize("key", CONFIGS)
def test_the_folded_network_gives_the_pixels_of_the_network(key: str) -> None:
    network = float_network(key)
    picture = tensor(noise(40, 36, seed=3))
    expected = in_pixels(network, picture).clamp(0, 255)
    with torch.no_grad():
        found = fold(network)(picture).clamp(0, 255)  # an output clip is left to the 8-bit output
    assert expected.std() > 5, "the test needs a network that does something"
    difference = (found - expected).abs()
    border = 0
    if key in SHIFTED:
        radius = halo(network)
        assert radius is not None
        border = radius * network.info.scale
        assert 2 * border < difference.shape[-1] - 8
    inner = slice(border, -border or None)
    assert difference[..., inner, inner].max() < 1e-3
    # a border pixel sees one grey level instead of the mean colour: a few levels, not garbage
    assert difference.mean() < 3


@pytest.mark.parametrize("key", CONFIGS)
def test_no_affine_layer_is_left_and_the_network_is_untouched(key: str) -> None:
    network = build(CONFIGS[key], key.split("_")[0])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold(network)
    kinds = {type(module) for module in folded.modules()}
    assert not kinds & {ChannelAffine, nn.BatchNorm2d, nn.Hardtanh}
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.dtype == torch.float32 for p in folded.parameters())


def test_a_grey_mean_folds_exactly_up_to_the_border() -> None:
    config = EDSRConfig(scale=2, blocks=1, width=4, mean=(128 / 255,) * 3)
    network = build(config, "edsr")
    picture = tensor(noise(9, 7))
    with torch.no_grad():
        assert (fold(network)(picture) - in_pixels(network, picture)).abs().max() < 1e-3


class Small(SRNetwork):
    """A network of two convolutions and a layer in between, for layers that no known family has."""

    name = "edsr"
    config_type = EDSRConfig

    def __init__(self, middle: nn.Module) -> None:
        super().__init__(EDSRConfig(scale=2, blocks=1, width=4))
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = middle
        self.last = nn.Conv2d(8, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.last(self.middle(self.first(x))))


def test_an_affine_layer_without_a_convolution_is_named() -> None:
    network = Small(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)))
    network.get_submodule("middle.1").register_buffer("running_mean", torch.rand(8))
    with pytest.raises(UserError, match=r"'middle_1' .* cannot be folded") as error:
        fold(network)
    assert "\n" not in str(error.value)
