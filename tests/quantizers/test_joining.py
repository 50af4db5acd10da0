from __future__ import annotations

import dataclasses
import operator

import pytest
import torch
from small_quantized import CONFIGS, build, float_network, noise, tensor

from srquant.config import QuantizationConfig
from srquant.integer import lower
from srquant.integer.graph import Add
from srquant.networks import IMDNConfig, RLFNConfig
from srquant.progress import Silent
from srquant.quantizers import load_artefact, save_artefact
from srquant.quantizers.calibration import quantize_network
from srquant.quantizers.folding import fold
from srquant.quantizers.joining import join_last_sum

CROPS = [torch.from_numpy(noise(24, 20, seed)).permute(2, 0, 1)[None] for seed in range(4)]


def deep(key: str):
    """A network whose last convolution is a small part of it."""
    config = CONFIGS[key]
    assert isinstance(config, IMDNConfig | RLFNConfig)
    return build(dataclasses.replace(config, blocks=8), key.split("_")[0])


@pytest.mark.parametrize("key", ["imdn_x2", "rlfn_x2"])
def test_the_joined_network_computes_the_same(key: str) -> None:
    plain, joined = fold(deep(key)), fold(deep(key))
    sums = sum(node.target is operator.add for node in plain.graph.nodes)
    assert join_last_sum(joined)
    assert sum(node.target is operator.add for node in joined.graph.nodes) == sums - 1
    picture = tensor(noise(17, 19))
    with torch.inference_mode():
        assert (plain(picture) - joined(picture)).abs().max() < 1e-2
    assert not join_last_sum(joined)


@pytest.mark.parametrize("key", ["edsr_x2", "edsr_x4", "abpn_x3", "xlsr_x3", "plainusr_x3", "srresnet_x4", "imdn_x2"])
def test_without_such_a_sum_or_where_it_costs_much_nothing_changes(key: str) -> None:
    graph = fold(float_network(key))
    before = str(graph.graph)
    assert not join_last_sum(graph)
    assert str(graph.graph) == before


def test_a_joined_sum_is_written_read_and_lowered(tmp_path) -> None:
    network = quantize_network(deep("imdn_x2"), QuantizationConfig(equalize=False), CROPS, Silent())
    assert network.joined_sum
    save_artefact(network, tmp_path / "q.safetensors")
    again = load_artefact(tmp_path / "q.safetensors")
    assert again.joined_sum
    picture = tensor(noise(17, 19))
    with torch.inference_mode():
        assert torch.equal(network(picture), again(picture))
    graph = lower(again)
    assert sum(isinstance(operation, Add) for operation in graph.operations) == 8
