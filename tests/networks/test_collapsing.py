"""The plain form of a network computes what its training form is defined to compute."""

from __future__ import annotations

import pytest
import torch
from small_networks import build
from torch import Tensor, nn
from torch.nn import functional

from srquant.networks import ECBSR, SESR, ECBSRConfig, EDSRConfig, NetworkConfig, SESRConfig
from srquant.networks.collapsing import Collapsible
from srquant.networks.ecbsr import EdgeBlock, EdgeBranch, WideBranch
from srquant.networks.sesr import LinearBlock

CONFIGS: list[tuple[str, NetworkConfig]] = [
    ("sesr", SESRConfig(scale=2, blocks=2, width=4, expanded=24)),
    ("sesr", SESRConfig(scale=3, blocks=3, width=5, colours=3, prelu=False, expanded=16)),
    ("sesr", SESRConfig(scale=4, blocks=1, width=32, colours=3, expanded=64)),
    ("ecbsr", ECBSRConfig(scale=2, blocks=2, width=6)),
    ("ecbsr", ECBSRConfig(scale=4, blocks=1, width=8)),
]


def alive(name: str, config: NetworkConfig) -> nn.Module:
    """A float64 network in training form in which every branch counts."""
    network = build(name, config).double()
    for module in network.modules():
        if isinstance(module, EdgeBranch):
            nn.init.normal_(module.scale)
            nn.init.normal_(module.bias)
    return network


def by_definition(block: Collapsible, x: Tensor) -> Tensor:
    """The block step by step, as the papers draw it, without its activation."""
    if isinstance(block, LinearBlock):
        wide = block.conv_squeeze(block.conv_expand(x))
        return wide + x if block.short else wide
    assert isinstance(block, EdgeBlock)
    total = block.conv3x3(x)
    for branch in (block.conv1x1_3x3, block.conv1x1_sbx, block.conv1x1_sby, block.conv1x1_lpl):
        inside = functional.conv2d(x, branch.k0, branch.b0)
        rim = branch.b0.view(1, -1, 1, 1).expand(1, -1, inside.shape[2] + 2, inside.shape[3] + 2).clone()
        rim[..., 1:-1, 1:-1] = inside
        if isinstance(branch, WideBranch):
            total = total + functional.conv2d(rim, branch.k1, branch.b1)
        else:
            edges = branch.scale * branch.mask
            total = total + functional.conv2d(rim, edges, branch.bias, groups=len(edges))
    return total


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_every_block_is_one_convolution_up_to_the_edge_of_the_picture(name: str, config: NetworkConfig) -> None:
    blocks = [module for module in alive(name, config).modules() if isinstance(module, Collapsible)]
    assert len(blocks) == getattr(config, "blocks") + 2  # noqa: B009 - of several classes
    with torch.no_grad():
        for block in blocks:
            weight, bias = block.collapse()
            x = torch.randn(1, weight.shape[1], 7, 6, dtype=torch.float64)
            expected = by_definition(block, x)
            found = functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
            assert expected.std() > 0.1
            assert (found - expected).abs().max() < 1e-12
            activated = block(x)
            act = getattr(block, "act", None)
            assert torch.allclose(activated, expected if act is None else act(expected), atol=1e-12)


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_collapsed_network_gives_the_pixels_of_the_training_form(name: str, config: NetworkConfig) -> None:
    network = alive(name, config)
    assert isinstance(network, SESR | ECBSR)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    plain = network.collapsed()
    assert not any(isinstance(module, Collapsible) for module in plain.modules())
    assert plain.config.collapsed
    assert plain.collapsed() is plain
    assert not plain.training
    picture = torch.rand(1, network.info.channels, 9, 8, dtype=torch.float64) * network.info.peak
    with torch.no_grad():
        assert (plain(picture) - network(picture)).abs().max() < 1e-9 * network.info.peak
    assert type(network).recognise(plain.state_dict()) == plain.config
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in before.items())


def test_training_reaches_every_parameter_of_the_wide_form() -> None:
    for name, config in CONFIGS:
        network = alive(name, config).train()
        assert isinstance(network, SESR | ECBSR)
        network(torch.rand(2, network.info.channels, 8, 8, dtype=torch.float64)).square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
        still = [key for key, p in network.named_parameters() if p.grad is not None and not p.grad.any()]
        assert not [key for key in still if not key.endswith(("sbx.b0", "sby.b0", "lpl.b0"))]  # edges of a flat are 0


def test_a_network_without_a_training_form_is_its_own_plain_form() -> None:
    network = build("edsr", EDSRConfig(scale=2, blocks=1, width=4))
    assert network.collapsed() is network


def test_drawing_fresh_weights_for_the_plain_form_leaves_the_random_state_alone() -> None:
    network = build("sesr", SESRConfig(scale=2, blocks=1, width=4, expanded=8))
    state = torch.get_rng_state()
    network.collapsed()
    assert torch.equal(torch.get_rng_state(), state)
