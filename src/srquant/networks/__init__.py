"""The FP32 networks: one file each, one line in `NETWORKS` each."""

from __future__ import annotations

from srquant.networks.abpn import ABPN, ABPNConfig
from srquant.networks.edsr import EDSR, EDSRConfig
from srquant.networks.imdn import IMDN, IMDNConfig
from srquant.networks.info import NetworkConfig, NetworkInfo, SRNetwork
from srquant.networks.rdn import RDN, RDNConfig
from srquant.networks.srresnet import SRResNet, SRResNetConfig
from srquant.networks.xlsr import XLSR, XLSRConfig

NETWORKS: dict[str, type[SRNetwork]] = {
    "edsr": EDSR,
    "srresnet": SRResNet,
    "rdn": RDN,
    "imdn": IMDN,
    "abpn": ABPN,
    "xlsr": XLSR,
}

__all__ = [
    "ABPN",
    "EDSR",
    "IMDN",
    "NETWORKS",
    "RDN",
    "XLSR",
    "ABPNConfig",
    "EDSRConfig",
    "IMDNConfig",
    "NetworkConfig",
    "NetworkInfo",
    "RDNConfig",
    "SRNetwork",
    "SRResNet",
    "SRResNetConfig",
    "XLSRConfig",
]
