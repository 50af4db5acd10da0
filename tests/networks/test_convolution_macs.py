from __future__ import annotations

import pytest
from small_networks import IDS, SMALL, build
from torch import nn

from srquant.networks import NetworkConfig
from srquant.networks.cost import convolution_macs, macs


@pytest.mark.parametrize(("name", "config"), SMALL, ids=IDS)
def test_the_convolutions_of_a_network_make_up_its_macs(name: str, config: NetworkConfig) -> None:
    network = build(name, config).collapsed()
    channels = network.info.channels
    counts = convolution_macs(network, 24, 20, channels)
    assert sum(counts.values()) == macs(network, 24, 20, channels)
    assert set(counts) == {key for key, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}


def test_macs_of_a_convolution_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, groups=2))
    assert convolution_macs(network, 5, 7) == {"0": 5 * 7 * 8 * 27, "1": 5 * 7 * 4 * 4}
    assert not network[0]._forward_hooks
