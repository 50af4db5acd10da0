"""The FP32 networks: one file each, one line in `NETWORKS` each."""

from __future__ import annotations

from srquant.networks.abpn import ABPN, ABPNConfig
from srquant.networks.ecbsr import ECBSR, ECBSRConfig
from srquant.networks.edsr import EDSR, EDSRConfig
from srquant.networks.espcn import ESPCN, ESPCNConfig
from srquant.networks.fsrcnn import FSRCNN, FSRCNNConfig
from srquant.networks.imdn import IMDN, IMDNConfig
from srquant.networks.info import NetworkConfig, NetworkInfo, SRNetwork
from srquant.networks.plainusr import PlainUSR, PlainUSRConfig
from srquant.networks.quicksrnet import QuickSRNet, QuickSRNetConfig
from srquant.networks.rdn import RDN, RDNConfig
from srquant.networks.rfdn import RFDN, RFDNConfig
from srquant.networks.rlfn import RLFN, RLFNConfig
from srquant.networks.sesr import SESR, SESRConfig
from srquant.networks.span import SPAN, SPANConfig
from srquant.networks.srresnet import SRResNet, SRResNetConfig
from srquant.networks.xlsr import XLSR, XLSRConfig

NETWORKS: dict[str, type[SRNetwork]] = {
    "edsr": EDSR,
    "srresnet": SRResNet,
    "rdn": RDN,
    "imdn": IMDN,
    "abpn": ABPN,
    "xlsr": XLSR,
    "sesr": SESR,
    "quicksrnet": QuickSRNet,
    "fsrcnn": FSRCNN,
    "espcn": ESPCN,
    "ecbsr": ECBSR,
    "plainusr": PlainUSR,
    "span": SPAN,
    "rlfn": RLFN,
    "rfdn": RFDN,
}

__all__ = [
    "ABPN",
    "ECBSR",
    "EDSR",
    "ESPCN",
    "FSRCNN",
    "IMDN",
    "NETWORKS",
    "RDN",
    "RFDN",
    "RLFN",
    "SESR",
    "SPAN",
    "XLSR",
    "ABPNConfig",
    "ECBSRConfig",
    "EDSRConfig",
    "ESPCNConfig",
    "FSRCNNConfig",
    "IMDNConfig",
    "NetworkConfig",
    "NetworkInfo",
    "PlainUSR",
    "PlainUSRConfig",
    "QuickSRNet",
    "QuickSRNetConfig",
    "RDNConfig",
    "RFDNConfig",
    "RLFNConfig",
    "SESRConfig",
    "SPANConfig",
    "SRNetwork",
    "SRResNet",
    "SRResNetConfig",
    "XLSRConfig",
]
