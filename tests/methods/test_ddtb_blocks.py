"""Whole blocks of the three networks against the released code: output, every gradient, statistics, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden_vectors import Golden, same
from objectives import float_network, load_quantizer, official_ddtb, run_part
from torch import nn

from srquant.methods.ddtb import DDTB
from srquant.networks import EDSRConfig, NetworkConfig, RDNConfig, SRResNetConfig


@dataclass(frozen=True)
class Block:
    config: NetworkConfig
    start: str
    end: str
    quantizers: dict[str, str]
    layers: dict[str, str]
    options: dict[str, str]


BLOCKS = {
    "edsr": Block(
        EDSRConfig.official(2, blocks=1, width=8),
        "head_0",
        "add",
        {"quant_act1": "head_0_2bit", "quant_act2": "body_0_body_1", "quant_act3": "body_0_body_2"},
        {"body.0": "body.0.body.0", "body.3": "body.0.body.2"},
        {},
    ),
    "rdn": Block(
        RDNConfig(scale=2, blocks=1, layers=3, growth=4, width=8),
        "sfenet2",
        "add",
        {"act1": "sfenet2_2bit", "convs.1.act": "cat", "convs.2.act": "cat_1", "act2": "cat_2"},
        {f"convs.{c}.conv.0": f"RDBs.0.convs.{c}.conv.0" for c in range(3)} | {"LFF": "RDBs.0.LFF"},
        {"weight_range": "minmax"},
    ),
    "srresnet": Block(
        SRResNetConfig(scale=2, blocks=1, width=64, shared_slope=True),
        "prelu_in",
        "add",
        {"act1": "prelu_in_2bit", "act2": "body_0_prelu"},
        {"conv1": "conv1", "in1": "bn1", "relu": "prelu", "conv2": "conv2", "in2": "bn2"},
        {},
    ),
}


def loaded(name: str, bits: int, golden: Golden) -> tuple[DDTB, dict[str, nn.Module]]:
    """The objective with the recorded state, and the float layers and quantisers by their official names."""
    block = BLOCKS[name]
    objective = official_ddtb(float_network(name, block.config), bits, **block.options)
    quantizers = objective.low_bit_quantizers()
    modules: dict[str, nn.Module] = {}
    for official, ours in block.quantizers.items():
        quantizer = quantizers[ours.replace("2bit", f"{bits}bit")]
        load_quantizer(quantizer, golden.part(f"sd_{official}."))
        quantizer.flags["gates_act"] = True
        modules[official] = quantizer
        if official == "quant_act2":
            modules["body.2"] = quantizer  # registered under both names
    prefix = "body.0." if name == "srresnet" else ""
    for official, ours in block.layers.items():
        layer = objective.network.graph.get_submodule(prefix + ours)
        with torch.no_grad():
            for part, tensor in layer.state_dict().items():
                if f"sd_{official}.{part}" in golden:
                    tensor.copy_(golden[f"sd_{official}.{part}"])
                else:
                    assert not tensor.any(), f"{official}.{part}"
        modules[official] = layer
    return objective, modules


OUR_NAMES = {"alpha_upper": "upper", "alpha_lower": "lower", "atten_c.5.weight": "gate.5.weight"}


@pytest.mark.parametrize(("name", "bits"), [("edsr", 2), ("edsr", 4), ("rdn", 2), ("rdn", 4), ("srresnet", 2)])
def test_block(shared: Path, name: str, bits: int):
    golden = Golden(shared / "golden" / f"block_{name}_b{bits}.npz")
    block = BLOCKS[name]
    objective, modules = loaded(name, bits, golden)
    graph = objective.network.graph
    graph.train()
    x = golden["x"].requires_grad_()
    out = run_part(graph, block.start, block.end, x)
    same(out, golden["out_train"], what="output")
    out.backward(golden["g"])
    same(x.grad, golden["gx"], what="gradient of x")
    compared: set[int] = set()
    for grad in golden.part("grad_").names():
        official = next(key for key in modules if grad.startswith(f"{key}."))
        part = grad.removeprefix(f"{official}.")
        parameter = modules[official].get_parameter(OUR_NAMES.get(part, part))
        same(parameter.grad, golden[f"grad_{grad}"], what=grad)
        compared.add(id(parameter))
    parameters = {f"{key}.{n}": p for key, module in modules.items() for n, p in module.named_parameters()}
    others = {key for key, p in parameters.items() if p.grad is not None and id(p) not in compared}
    assert others == set()
    for after in [key for key in golden.names() if key.startswith("after_") and "convs.0.act" not in key]:
        # (the released code builds RDN's convs.0.act and never calls it)
        official = next(key for key in modules if after.startswith(f"after_{key}."))
        part = after.removeprefix(f"after_{official}.")
        same(modules[official].get_buffer(part.replace("atten_c", "gate")), golden[after], what=after)
    graph.eval()
    with torch.no_grad():
        same(run_part(graph, block.start, block.end, golden["x"]), golden["out_eval"], what="evaluation")
