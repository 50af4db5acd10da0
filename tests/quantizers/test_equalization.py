from __future__ import annotations

import pytest
import torch
from small_quantized import CONFIGS, float_network, noise, tensor

from srquant.networks.layers import FloatLayer
from srquant.quantizers.equalization import equalizing_factors, rescale
from srquant.quantizers.folding import fold


@pytest.mark.parametrize("key", CONFIGS)
def test_equalised_channels_change_nothing_in_float(key: str) -> None:
    plain, equalized = fold(float_network(key)), fold(float_network(key))
    rescale(equalized, equalizing_factors(equalized, [tensor(noise(20, 18, seed)) for seed in range(2)]))
    picture = tensor(noise(21, 17, seed=5))
    with torch.no_grad():
        assert (plain(picture) - equalized(picture)).abs().max() < 0.02
    before, after = plain.state_dict(), equalized.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("key", "scaled"),
    [("rlfn_x2", "block_1.c5"), ("plainusr_x3", "block1.body.2"), ("plainusr_ultra_x2", "blockm.body.2")],
)
def test_what_is_multiplied_by_an_attention_is_scaled_and_what_it_cannot_undo_is_not(key: str, scaled: str) -> None:
    plain, equalized = fold(float_network(key)), fold(float_network(key))
    rescale(equalized, equalizing_factors(equalized, [tensor(noise(20, 18, seed)) for seed in range(2)]))
    before, after = plain.state_dict(), equalized.state_dict()
    factors = before[f"{scaled}.bias"] / after[f"{scaled}.bias"]
    assert (factors - 1).abs().max() > 0.05
    for node in [node for node in plain.graph.nodes if node.op == "call_module"]:
        layer = plain.get_submodule(str(node.target))
        if isinstance(layer, FloatLayer) and not layer.reader:
            squeezing = node.all_input_nodes[0].target
            assert torch.equal(before[f"{squeezing}.bias"], after[f"{squeezing}.bias"])
