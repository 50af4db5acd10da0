"""Affine layers around skips of the picture, clips and functions: folded, the same pixels in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from srquant.errors import UserError
from srquant.networks import (
    NETWORKS,
    ECBSRConfig,
    EDSRConfig,
    ESPCNConfig,
    FSRCNNConfig,
    NetworkConfig,
    QuickSRNetConfig,
    SESRConfig,
    SRNetwork,
)
from srquant.networks.cost import halo
from srquant.networks.layers import Anchor, ChannelAffine
from srquant.quantizers import folding

MOBILE: list[tuple[str, NetworkConfig]] = [
    ("sesr", SESRConfig(scale=2, blocks=2, width=4, expanded=8)),
    ("sesr", SESRConfig(scale=4, blocks=1, width=6, prelu=False, collapsed=True)),
    ("sesr", SESRConfig(scale=3, blocks=2, width=4, colours=3, prelu=False, expanded=8)),
    ("ecbsr", ECBSRConfig(scale=2, blocks=1, width=4)),
    ("quicksrnet", QuickSRNetConfig(scale=2, width=4, layers=2)),
    ("quicksrnet", QuickSRNetConfig(scale=3, width=4, layers=1, anchored=True)),
    ("fsrcnn", FSRCNNConfig(scale=2, width=6, shrunk=3, layers=2)),
    ("espcn", ESPCNConfig(scale=3, width=6, shrunk=4)),
]


def folded64(network: SRNetwork, monkeypatch: pytest.MonkeyPatch) -> fx.GraphModule:
    """What `fold` gives before it rounds the weights to float32."""
    monkeypatch.setattr(fx.GraphModule, "float", lambda self: self)
    return folding.fold(network)


def seeded(network: SRNetwork) -> SRNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network.eval().double()


def in_pixels(network: SRNetwork, picture: Tensor) -> Tensor:
    with torch.no_grad():
        return network(picture / 255 * network.info.peak) * 255 / network.info.peak


@pytest.mark.parametrize(("name", "config"), MOBILE)
def test_mobile_networks_fold_exactly(name: str, config: NetworkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = NETWORKS[name].from_config(config).eval().double()
    for convolution in network.modules():
        if isinstance(convolution, nn.Conv2d) and name == "fsrcnn":
            convolution.weight.data *= 2  # fresh ones give next to nothing
    picture = torch.randint(0, 256, (1, network.info.channels, 40, 36)).double()
    expected = in_pixels(network, picture).clamp(0, 255)
    graph = folded64(network, monkeypatch)
    with torch.no_grad():
        difference = (graph(picture).clamp(0, 255) - expected).abs()
    shifted = name == "sesr" and config.colours == 1  # pyright: ignore[reportAttributeAccessIssue]
    border = (halo(network.collapsed()) or 0) * config.scale if shifted else 0
    inner = slice(border, -border or None)
    assert expected[..., inner, inner].std() > 1
    assert difference[..., inner, inner].max() < 1e-9
    left = [module for module in graph.modules() if isinstance(module, ChannelAffine)]
    assert len(left) == (name == "espcn"), "only the factor of the tanh may stay"


def test_the_skip_of_the_picture_stays_a_skip_of_pixels() -> None:
    """No factor is left in front of the anchor: the picture's own codes are added."""
    graph = folding.fold(NETWORKS["sesr"].from_config(SESRConfig(scale=2, blocks=1, width=4)))
    (picture,) = graph.graph.find_nodes(op="placeholder")
    (anchor,) = (node for node in graph.graph.nodes if isinstance(folding.module_of(graph, node), Anchor))
    assert anchor.args == (picture,)


class Own(SRNetwork):
    """A network of the layers under test, on RGB in 0..1, x2."""

    name = "edsr"
    config_type = EDSRConfig

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__(EDSRConfig(scale=2, blocks=1, width=4))
        for name, module in modules.items():
            self.add_module(name, module)
        self.shuffle = nn.PixelShuffle(2)


class TwoBranches(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.affine(self.shuffle(self.act(self.left(x) + self.right(x))))  # pyright: ignore[reportCallIssue]


class Skipped(Own):
    def forward(self, x: Tensor) -> Tensor:
        y = self.affine(x)  # pyright: ignore[reportCallIssue]
        return self.shuffle(self.left(y) + self.right(self.affine2(y)))  # pyright: ignore[reportCallIssue]


def convolution(inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, 12, 3, padding=1)


@pytest.mark.parametrize(
    "act", [nn.Hardtanh(0.1, 0.25), nn.ReLU(), nn.PReLU(12), nn.LeakyReLU(0.1)], ids=lambda act: type(act).__name__
)
def test_a_factor_goes_through_shuffle_clip_and_sum(act: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    factor = ChannelAffine([2.5] * 3, [0.0] * 3)
    network = seeded(TwoBranches(left=convolution(), right=convolution(), act=act, affine=factor))
    picture = torch.randint(0, 256, (1, 3, 9, 8)).double()
    graph = folded64(network, monkeypatch)
    assert not any(isinstance(module, ChannelAffine) for module in graph.modules())
    with torch.no_grad():
        found, expected = graph(picture).clamp(0, 255), in_pixels(network, picture).clamp(0, 255)
    assert expected.std() > 1
    assert (found - expected).abs().max() < 1e-9


def test_a_shift_behind_a_sum_goes_to_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    affine = ChannelAffine([0.5, 1.5, 2.0], [0.1, -0.2, 0.3])
    network = seeded(TwoBranches(left=Anchor(4), right=convolution(), act=nn.Sequential(), affine=affine))
    picture = torch.randint(0, 256, (1, 3, 9, 8)).double()
    with pytest.raises(UserError, match="cannot be folded"):
        folding.fold(network)  # the picture itself would need three factors
    even = ChannelAffine([1.0] * 3, [0.1, -0.2, 0.3])
    network = seeded(TwoBranches(left=Anchor(4), right=convolution(), act=nn.Sequential(), affine=even))
    graph = folded64(network, monkeypatch)
    with torch.no_grad():
        assert (graph(picture) - in_pixels(network, picture)).abs().max() < 1e-9


def test_an_affine_layer_with_several_readers_is_merged_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ChannelAffine([2.0] * 3, [0.0] * 3), ChannelAffine([0.25, 0.5, 3.0], [0.0] * 3)
    network = seeded(Skipped(left=convolution(), right=convolution(), affine=first, affine2=second))
    picture = torch.randint(0, 256, (1, 3, 9, 8)).double()
    graph = folded64(network, monkeypatch)
    assert not any(isinstance(module, ChannelAffine) for module in graph.modules())
    with torch.no_grad():
        assert (graph(picture) - in_pixels(network, picture)).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("act", "scale", "shift"),
    [(nn.ReLU(), -1.0, 0.0), (nn.ReLU(), 1.0, 0.5), (nn.Hardtanh(0, 1), -1.0, 0.0)],
    ids=["negative", "shifted", "negative clip"],
)
def test_what_would_not_be_exact_is_refused(act: nn.Module, scale: float, shift: float) -> None:
    affine = ChannelAffine([scale] * 3, [shift] * 3)
    network = TwoBranches(left=convolution(), right=convolution(), act=act, affine=affine)
    with pytest.raises(UserError, match=r"the layer '.*' of this network cannot be folded into a convolution"):
        folding.fold(network)
