from __future__ import annotations

import pytest
import torch
from small_quantized import float_network, noise, quantized_network, tensor

from srquant.quantizers.folding import fold
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.stepwise import StepwiseRun


def output(network: QuantizedNetwork, picture: torch.Tensor, *, rounded: bool) -> tuple[torch.Tensor, int]:
    """What a run gives, and how many values it held at most."""
    run, held = StepwiseRun(network.graph, picture, rounded=rounded), 0
    *nodes, last = network.graph.graph.nodes
    with torch.inference_mode():
        for node in nodes:
            run.step(node)
            held = max(held, len(run.env))
    return run.env[last.args[0]], held


@pytest.mark.parametrize("key", ["edsr_x2", "srresnet_x4", "plainusr_x3", "imdn_x2", "xlsr_x3"])
def test_a_run_is_the_network_or_the_float_network(key: str) -> None:
    network, picture = quantized_network(key), tensor(noise(17, 19, seed=3))
    wanted, plain = network(picture), fold(float_network(key))(picture)
    found, held = output(network, picture, rounded=True)
    assert torch.equal(found, wanted)
    assert held < len(network.graph.graph.nodes) / 2
    found, _ = output(network, picture, rounded=False)
    assert torch.allclose(found, plain, atol=1e-3)
    assert not torch.equal(found, wanted)
