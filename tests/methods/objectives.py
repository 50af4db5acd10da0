"""Small networks in training, official and of one's own, and a graph run in part."""

from __future__ import annotations

from typing import Any

import torch
from golden_vectors import Golden
from torch import Tensor, fx

from srquant.config import QuantizationConfig
from srquant.methods import METHODS, QuantizedObjective
from srquant.methods.ddtb import DDTB, GatedBoundsQuantizer
from srquant.networks import NETWORKS, EDSRConfig, NetworkConfig, RDNConfig, SRNetwork, SRResNetConfig
from srquant.quantizers import QuantizedNetwork

SMALL: dict[str, NetworkConfig] = {
    "edsr": EDSRConfig(scale=2, blocks=2, width=8),
    "rdn": RDNConfig(scale=2, blocks=2, layers=2, growth=4, width=6),
    "srresnet": SRResNetConfig(scale=2, blocks=2, width=6, shared_slope=True),
}

OFFICIAL = {"calibration": "official", "grid": "official", "gradient": "official", "gate": "official"}


def float_network(name: str, config: NetworkConfig | None = None) -> SRNetwork:
    torch.manual_seed(3)
    return NETWORKS[name].from_config(config or SMALL[name])


def objective(
    method: str,
    network: SRNetwork,
    options: dict[str, Any] | None = None,
    *,
    bits: int = 2,
    placement: str = "ddtb",
    rest: str = "int8",
    teacher: bool = True,
    learning_rate: float = 1e-4,
) -> QuantizedObjective:
    quantization = QuantizationConfig.model_validate(
        {"weight_bits": bits, "activation_bits": bits, "placement": placement, "rest": rest}
    )
    student = QuantizedNetwork(network, quantization, trainable=True)
    return METHODS[method].from_options(student, network if teacher else None, options or {}, learning_rate)


def official_ddtb(network: SRNetwork, bits: int, **options: Any) -> DDTB:
    made = objective("ddtb", network, {**OFFICIAL, **options}, bits=bits, placement="ddtb-official", rest="float")
    assert isinstance(made, DDTB)
    return made


def batch(seed: int = 0, samples: int = 2, side: int = 12, scale: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    high = torch.rand(samples, 3, side * scale, side * scale, generator=generator) * 255
    return torch.nn.functional.avg_pool2d(high, scale), high


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def load_quantizer(quantizer: GatedBoundsQuantizer, state: Golden) -> None:
    """Take over an official activation quantiser."""
    with torch.no_grad():
        quantizer.upper.copy_(state["alpha_upper"])
        quantizer.lower.copy_(state["alpha_lower"])
        quantizer.initialised.fill_(True)
    quantizer.flags["is_dynamic"] = bool(state["is_dynamic"])
    load_gate(quantizer, state)


def load_gate(quantizer: GatedBoundsQuantizer, state: Golden) -> None:
    gate = quantizer.gate
    assert gate is not None
    gate.load_state_dict({name: state[f"atten_c.{name}"] for name in gate.state_dict()})


def run_part(graph_module: fx.GraphModule, start: str, end: str, value: Tensor) -> Tensor:
    """The node `end` when the node `start` has the given value; nodes between them may read no other."""
    interpreter = fx.Interpreter(graph_module)
    nodes = list(graph_module.graph.nodes)
    names = [node.name for node in nodes]
    first, last = names.index(start), names.index(end)
    interpreter.env = {nodes[first]: value}
    for node in nodes[first + 1 : last + 1]:
        interpreter.env[node] = interpreter.run_node(node)
    return interpreter.env[nodes[last]]
