"""Small networks of every family, alive enough to fill their grids, and their quantised forms."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from srquant.config import QuantizationConfig
from srquant.networks import (
    NETWORKS,
    ABPNConfig,
    EDSRConfig,
    IMDNConfig,
    NetworkConfig,
    PlainUSRConfig,
    RDNConfig,
    RLFNConfig,
    SPANConfig,
    SRNetwork,
    SRResNetConfig,
    XLSRConfig,
)
from srquant.quantizers import QuantizedNetwork

CONFIGS: dict[str, NetworkConfig] = {
    "edsr_x2": EDSRConfig(scale=2, blocks=2, width=8),
    "edsr_official_x3": EDSRConfig.official(3, blocks=1, width=6, res_scale=0.1),
    "edsr_x4": EDSRConfig(scale=4, blocks=1, width=4),
    "srresnet_x4": SRResNetConfig(scale=4, blocks=1, width=6),
    "srresnet_shared_x2": SRResNetConfig(scale=2, blocks=1, width=4, shared_slope=True),
    "rdn_x2": RDNConfig(scale=2, blocks=2, layers=2, growth=4, width=6),
    "imdn_x2": IMDNConfig(scale=2, blocks=2, width=8, reduction=2),
    "abpn_x3": ABPNConfig(scale=3, layers=4, width=8),
    "xlsr_x3": XLSRConfig(scale=3, blocks=1, width=8, shallow=4),
    "plainusr_ultra_x2": PlainUSRConfig(scale=2, width=8, outer=8, middle=4, ultra=True),
    "plainusr_x3": PlainUSRConfig(scale=3, width=8, outer=8, inner=6, middle=4, squeezed=3),
    "span_x2": SPANConfig(scale=2, blocks=2, width=6, joined=5),
    "rlfn_x2": RLFNConfig(scale=2, blocks=1, width=8, middle=6, squeezed=4),
}
"""EDSR in both normalisations, SRResNet with both kinds of slope, PlainUSR with both kinds of attention."""

SIX = ("edsr_x2", "srresnet_x4", "rdn_x2", "imdn_x2", "abpn_x3", "xlsr_x3")
"""One of each family."""

_LAST = {
    "edsr": "tail.1",
    "srresnet": "conv_out",
    "rdn": "UPNet.2",
    "imdn": "upsampler.0",
    "abpn": "body.6",
    "xlsr": "conv4",
    "plainusr": "tail.0",
    "span": "upsampler.0",
    "rlfn": "upsampler.0",
}
_CENTRED = ("edsr", "srresnet", "abpn")
"""Families that add a grey level or the picture behind their last convolution."""


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(picture: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, C] -> float32 [1, C, H, W] of pixel values."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()


def build(config: NetworkConfig, name: str, seed: int = 0) -> SRNetwork:
    """A seeded network whose statistics are alive and whose output covers most of 0..255."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name].from_config(config).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features) * 0.1
                module.running_var = torch.rand(module.num_features) + 0.5
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, 0.05, 0.6)
    _fill_range(network)
    return network


def _fill_range(network: SRNetwork) -> None:
    last = network.get_submodule(_LAST[network.name])
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    seen: list[torch.Tensor] = []
    handle = last.register_forward_hook(lambda _m, _i, output: seen.append(output))
    peak, gain = network.info.peak, 2.0 if network.name in ("edsr", "srresnet") and network.info.peak == 1 else 1.0
    with torch.no_grad():
        network(tensor(noise(24, 24, seed=99)) / 255 * peak)
        handle.remove()
        middle = 0.0 if network.name in _CENTRED else 0.5 * peak
        mean, spread = seen[0].mean((0, 2, 3)), seen[0].std()
        factor = 0.2 * peak * gain / spread
        last.weight *= factor
        last.bias.copy_((last.bias - mean) * factor + middle)


@functools.cache
def float_network(key: str) -> SRNetwork:
    """One of `CONFIGS`, shared by all tests: do not change it."""
    return build(CONFIGS[key], key.split("_")[0])


@functools.cache
def quantized_network(key: str, bits: int = 8, exact: bool = False, placement: str = "strict") -> QuantizedNetwork:
    """One of `CONFIGS` calibrated on noise, shared by all tests: do not change it."""
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, exact=exact, placement=placement)
    return calibrated(float_network(key), config)


def calibrated(network: SRNetwork, config: QuantizationConfig) -> QuantizedNetwork:
    quantized = QuantizedNetwork(network, config)
    crops = [tensor(noise(16, 18, seed)) for seed in range(3)]
    quantized.calibrate(lambda: iter(crops))
    quantized.calibration = {"pictures": [], "seed": 0}
    return quantized.eval()
