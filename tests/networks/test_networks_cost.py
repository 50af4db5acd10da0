from __future__ import annotations

import operator

import pytest
import torch
from small_networks import IDS, SMALL, build
from torch import nn

from srquant.networks import (
    ABPNConfig,
    ECBSRConfig,
    EDSRConfig,
    NetworkConfig,
    PlainUSRConfig,
    RDNConfig,
    SESRConfig,
    SPANConfig,
    SRNetwork,
    XLSRConfig,
)
from srquant.networks.cost import halo, macs, parameters
from srquant.networks.layers import Anchor, CentredSigmoid, ChannelAffine, FloatLayer
from srquant.networks.tracing import trace

LAYERS = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.SiLU,
    nn.PixelShuffle,
    nn.Hardtanh,
    Anchor,
    CentredSigmoid,
    ChannelAffine,
    FloatLayer,
)
FUNCTIONS = {operator.add, operator.mul, operator.getitem, torch.cat, torch.split}


@pytest.mark.parametrize(("name", "config"), SMALL, ids=IDS)
def test_traced_graphs_hold_only_the_agreed_operations_once_each(name: str, config: NetworkConfig) -> None:
    network = build(name, config).collapsed()
    graph = trace(network)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert len(targets) == len(set(targets))
    assert all(isinstance(network.get_submodule(target), LAYERS) for target in targets)
    for node in graph.graph.nodes:
        assert node.op in {"placeholder", "call_module", "call_function", "output"}
        assert node.op != "call_function" or node.target in FUNCTIONS
    x = torch.rand(1, network.info.channels, 6, 5) * network.info.peak
    assert graph(x).equal(network(x))
    shared = dict(graph.named_parameters())
    assert all(shared[key] is parameter for key, parameter in network.named_parameters())


def reach(network: SRNetwork) -> int:
    """How far one LR pixel's worth of output really looks, by its gradient (exact zeros outside)."""
    side = 2 * (halo(network) or 0) + 7
    middle, scale = side // 2, network.info.scale
    channels = network.info.channels
    x = (torch.rand(1, channels, side, side, dtype=torch.float64) * network.info.peak).requires_grad_()
    block = slice(middle * scale, (middle + 1) * scale)
    network(x)[..., block, block].sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().sum((0, 1)).nonzero()
    return int((touched - middle).abs().max())


TILED = [(name, pair) for name, pair in zip(IDS, SMALL, strict=True) if halo(build(*pair).collapsed()) is not None]


@pytest.mark.parametrize(("name", "config"), [pair for _, pair in TILED], ids=[name for name, _ in TILED])
def test_halo_is_the_true_reach(name: str, config: NetworkConfig) -> None:
    network = build(name, config, seed=3).collapsed().double()
    for module in network.modules():
        if isinstance(module, nn.Hardtanh):
            module.min_val, module.max_val = -1e9, 1e9
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert reach(network) == halo(network)


def test_halo_of_known_networks() -> None:
    assert halo(build("edsr", EDSRConfig(scale=4))) == 36
    assert halo(build("abpn", ABPNConfig(scale=3))) == 7
    assert halo(build("xlsr", XLSRConfig(scale=3))) == 5
    assert halo(build("plainusr", PlainUSRConfig(scale=4, ultra=True))) == 9
    assert halo(build("span", SPANConfig(scale=4))) == 21
    far = {name for name, config in SMALL if halo(build(name, config).collapsed()) is None}
    assert far == {"imdn", "plainusr", "rlfn", "rfdn"}


def test_halo_counts_dilation_and_the_longer_side() -> None:
    assert halo(nn.Sequential(nn.Conv2d(3, 3, (3, 5), dilation=(3, 1)), nn.ReLU())) == 3
    assert halo(nn.Sequential(nn.Conv2d(3, 3, (1, 9)))) == 4


class Clipped(nn.Module):
    """A clip written as functions and a method, behind a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.register_buffer("white", torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.relu(self.shuffle(self.conv(x))), self.white).clamp(0, 1)


def test_halo_sees_through_clips_however_they_are_written() -> None:
    assert halo(Clipped()) == 1


def test_halo_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="MaxPool2d"):
        halo(nn.Sequential(nn.MaxPool2d(2)))
    with pytest.raises(TypeError, match="stride"):
        halo(nn.Sequential(nn.Conv2d(3, 3, 3, stride=2)))


def test_parameters_and_macs_of_known_networks() -> None:
    baseline = build("edsr", EDSRConfig.official(4))
    assert parameters(baseline) == 1_517_571
    assert macs(baseline, 180, 320) == 114_230_476_800
    assert parameters(build("abpn", ABPNConfig(scale=3))) == 42_539
    assert parameters(build("xlsr", XLSRConfig(scale=3))) == 21_947
    m5 = build("sesr", SESRConfig(scale=2)).collapsed()
    assert macs(m5, 180, 320, m5.info.channels) == 180 * 320 * (16 * 25 + 5 * 16 * 16 * 9 + 16 * 4 * 25)
    m4c16 = build("ecbsr", ECBSRConfig(scale=2)).collapsed()
    assert macs(m4c16, 180, 320, m4c16.info.channels) == 180 * 320 * 9 * (16 + 4 * 16 * 16 + 16 * 4)
    with torch.device("meta"):
        rdn = build("rdn", RDNConfig(scale=4))
    assert parameters(rdn) == 22_271_107
    assert round(macs(rdn, 180, 320) / 1e9, 1) == 1309.2


def test_macs_leave_the_network_and_the_memory_alone() -> None:
    network = build("abpn", ABPNConfig(scale=2, width=4, layers=3))
    assert macs(network, 100_000, 100_000) == 100_000**2 * 9 * (3 * 4 + 4 * 12 + 12 * 12)
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
