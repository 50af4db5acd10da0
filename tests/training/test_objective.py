from __future__ import annotations

import pytest
import torch

from srquant.networks import EDSR, EDSRConfig
from srquant.training import Objective, Reconstruction


@pytest.mark.parametrize("config", [EDSRConfig(scale=2, blocks=1, width=4), EDSRConfig.official(2, 1, 4)])
def test_the_network_works_in_grey_levels(config: EDSRConfig) -> None:
    network = EDSR(config)
    objective: Objective = Reconstruction(network, 1e-4)
    low, high = torch.rand(2, 3, 6, 5) * 255, torch.rand(2, 3, 12, 10) * 255
    peak = network.info.peak
    expected = network(low * (peak / 255)) * (255 / peak)
    torch.testing.assert_close(objective.network(low), expected)
    parts = objective.forward(low, high)
    assert list(parts) == ["l1"]
    torch.testing.assert_close(parts["l1"], (expected - high).abs().mean())


def test_all_parameters_learn_at_the_given_rate() -> None:
    network = EDSR(EDSRConfig(scale=2, blocks=1, width=4))
    objective = Reconstruction(network, 3e-4)
    (group,) = objective.parameter_groups()
    assert group["lr"] == 3e-4
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    assert objective.learns(1)
    assert objective.describe() == {"method": "float", "network": "edsr", "scale": 2, "learning_rate": 3e-4}
