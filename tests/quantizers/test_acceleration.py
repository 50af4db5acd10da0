from __future__ import annotations

import copy

import pytest
import torch
from small_quantized import noise, tensor
from small_trained import trained_network
from torch import Tensor

from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.acceleration import Fusion, TrainingKernel, use_kernel
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.deployment import deploy

KEYS = ["edsr_x2", "rdn_x2", "srresnet_x4"]


def passed(network: QuantizedNetwork) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one training pass."""
    network.train()
    network.zero_grad()
    batch = torch.cat([tensor(noise(16, 18, seed)) for seed in (7, 8)])
    output = network(batch)
    (output - 127).abs().mean().backward()
    return output.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def fused(network: QuantizedNetwork) -> list[str]:
    return [name for name, layer in network.convolutions().items() if layer.fusion is not None]


@pytest.mark.parametrize("placement", ["strict", "ddtb"])
@pytest.mark.parametrize("kernel", ["fused", "integer"])
@pytest.mark.parametrize("key", KEYS)
def test_a_fused_network_computes_the_same(key: str, kernel: TrainingKernel, placement: str) -> None:
    plain = trained_network(key, 4, placement)
    other = copy.deepcopy(plain)
    # a copied quantiser is read by the copied layers
    assert all(
        o.source is not p.source for o, p in zip(*(n.convolutions().values() for n in (other, plain)), strict=True)
    )
    use_kernel(other, kernel)
    assert fused(other)
    wanted, wanted_gradients = passed(plain)
    found, gradients = passed(other)
    assert wanted.std() > 5
    assert (found - wanted).abs().mean() < 0.05  # single codes may flip where the sums round differently
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        if name.endswith(("lower", "upper")):
            continue  # kept in one byte, noisy: tests/quantizers/test_fused.py
        assert torch.nn.functional.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0) > 0.95, name


def test_a_quantiser_with_other_readers_stays_apart() -> None:
    network = trained_network("edsr_x2", 2, "ddtb")
    use_kernel(network, "fused")
    assert "body.0.body.2" in fused(network)  # it alone reads the rectified values
    assert "body.0.body.0" not in fused(network)  # the skip reads its input too
    layer = network.convolutions()["body.0.body.2"]
    assert isinstance(layer.fusion, Fusion)
    assert layer.fusion.relu


def test_state_and_deployment_do_not_depend_on_the_kernel() -> None:
    plain = trained_network("edsr_x2", 2, "ddtb")
    other = copy.deepcopy(plain)
    use_kernel(other, "integer")
    assert other.state_dict().keys() == plain.state_dict().keys()
    other.load_state_dict(plain.state_dict())
    picture = tensor(noise(14, 16, seed=5))
    with torch.inference_mode():
        assert torch.equal(deploy(other)(picture), deploy(plain)(picture))
        assert (other.eval()(picture) - plain.eval()(picture)).abs().mean() < 0.05


def test_compiled_is_told_to_the_quantisers() -> None:
    network = trained_network("edsr_x2", 2, "ddtb")
    use_kernel(network, "compiled")
    kernels = {q.kernel for q in network.activation_quantizers().values() if isinstance(q, BoundsQuantizer)}
    assert kernels == {"compiled"}
    assert not fused(network)
