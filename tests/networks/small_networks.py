"""Small configs of every network, for tests that only need some network to be quick."""

from __future__ import annotations

import torch
from torch import nn

from srquant.networks import (
    NETWORKS,
    ABPNConfig,
    ECBSRConfig,
    EDSRConfig,
    ESPCNConfig,
    FSRCNNConfig,
    IMDNConfig,
    NetworkConfig,
    PlainUSRConfig,
    QuickSRNetConfig,
    RDNConfig,
    RFDNConfig,
    RLFNConfig,
    SESRConfig,
    SPANConfig,
    SRNetwork,
    SRResNetConfig,
    XLSRConfig,
)

SMALL: list[tuple[str, NetworkConfig]] = [
    ("edsr", EDSRConfig(scale=2, blocks=1, width=4)),
    ("edsr", EDSRConfig(scale=3, blocks=2, width=6)),
    ("edsr", EDSRConfig.official(4, blocks=3, width=4)),
    ("edsr", EDSRConfig(scale=8, blocks=2, width=4)),
    ("srresnet", SRResNetConfig(scale=2, blocks=1, width=4)),
    ("srresnet", SRResNetConfig(scale=4, blocks=2, width=6, shared_slope=True)),
    ("rdn", RDNConfig(scale=2, blocks=2, layers=3, growth=4, width=6)),
    ("rdn", RDNConfig(scale=3, blocks=1, layers=1, growth=4, width=4)),
    ("rdn", RDNConfig(scale=4, blocks=3, layers=2, growth=6, width=4)),
    ("imdn", IMDNConfig(scale=2, blocks=1, width=16, reduction=4)),
    ("imdn", IMDNConfig(scale=4, blocks=3, width=8, reduction=2)),
    ("abpn", ABPNConfig(scale=2, layers=3, width=4)),
    ("abpn", ABPNConfig(scale=3, layers=6, width=8)),
    ("xlsr", XLSRConfig(scale=3, blocks=1, width=8, shallow=4)),
    ("xlsr", XLSRConfig(scale=4, blocks=2, width=12, shallow=6)),
    ("espcn", ESPCNConfig(scale=2, width=6, shrunk=4)),
    ("espcn", ESPCNConfig(scale=3, width=4, shrunk=5)),
    ("fsrcnn", FSRCNNConfig(scale=2, width=8, shrunk=3, layers=1)),
    ("fsrcnn", FSRCNNConfig(scale=4, width=6, shrunk=4, layers=3)),
    ("sesr", SESRConfig(scale=2, blocks=2, width=4, expanded=8)),
    ("sesr", SESRConfig(scale=4, blocks=2, width=6, collapsed=True)),
    ("sesr", SESRConfig(scale=3, blocks=1, width=4, colours=3, prelu=False, expanded=16)),
    ("sesr", SESRConfig(scale=2, blocks=2, width=4, colours=3, prelu=False, collapsed=True)),
    ("quicksrnet", QuickSRNetConfig(scale=2, width=4, layers=1)),
    ("quicksrnet", QuickSRNetConfig(scale=4, width=6, layers=3, anchored=True)),
    ("ecbsr", ECBSRConfig(scale=2, blocks=2, width=4)),
    ("ecbsr", ECBSRConfig(scale=4, blocks=1, width=6, collapsed=True)),
    ("plainusr", PlainUSRConfig(scale=2, width=8, outer=8, middle=4, ultra=True)),
    ("plainusr", PlainUSRConfig(scale=4, width=8, outer=8, inner=5, middle=3, squeezed=2)),
    ("plainusr", PlainUSRConfig(scale=3, width=9, outer=7, inner=7, middle=2, squeezed=1, convolutions=3)),
    ("span", SPANConfig(scale=2, blocks=1, width=6, joined=5)),
    ("span", SPANConfig(scale=4, blocks=3, width=4, joined=4)),
    ("rlfn", RLFNConfig(scale=2, blocks=2, width=6, middle=5, squeezed=4)),
    ("rlfn", RLFNConfig(scale=3, blocks=1, width=8, middle=8, squeezed=3)),
    ("rfdn", RFDNConfig(scale=4, blocks=2, width=7, squeezed=2)),
]

IDS = [f"{name}-x{config.scale}" for name, config in SMALL]


def build(name: str, config: NetworkConfig, seed: int = 0) -> SRNetwork:
    """A network with seeded weights, alive statistics and visible PReLU slopes, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name].from_config(config).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features) * 0.1
                module.running_var = torch.rand(module.num_features) + 0.5
    return network
