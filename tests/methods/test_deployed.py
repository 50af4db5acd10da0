"""Networks that methods trained, as they are deployed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives import batch, float_network, objective, total

from srquant.errors import UserError
from srquant.methods import QuantizedObjective
from srquant.methods.ddtb import DDTB
from srquant.quantizers.deployment import deploy
from srquant.quantizers.gating import GatedQuantizer


def trained(method: str, name: str, bits: int, options: dict[str, Any] | None = None) -> QuantizedObjective:
    made = objective(method, float_network(name), options, bits=bits, learning_rate=1e-3)
    optimizer = torch.optim.Adam(made.parameter_groups())
    for epoch in (1, 2):
        made.start_epoch(epoch)
        for step in range(3):
            with torch.set_grad_enabled(made.learns(epoch)):
                loss = total(made(*batch(10 * epoch + step)))
            if made.learns(epoch):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    made.eval()
    return made


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["edsr", "rdn", "srresnet"])
@pytest.mark.parametrize("method", ["ddtb", "odm", "pams", "lsq", "minmax"])
def test_the_deployed_network_computes_what_was_trained(method: str, name: str, bits: int):
    options = {"gate": "none"} if method == "ddtb" else {}
    made = trained(method, name, bits, options)
    low = batch(50)[0].round()
    with torch.inference_mode():
        wanted, got = made.network(low), deploy(made.network)(low)
    assert wanted.std() > 3
    difference = (got - wanted).abs()
    # A value halfway between two codes may go either way; what normalisation adds is rounded when it is folded.
    assert (difference > 1).float().mean() < (0.03 if name == "srresnet" else 0.01)
    assert difference.mean() < (0.5 if name == "srresnet" else 0.1)


@pytest.mark.parametrize("gate", ["repaired", "official"])
@pytest.mark.parametrize("name", ["edsr", "rdn", "srresnet"])
def test_active_gates_are_deployed(name: str, gate: str):
    made = trained("ddtb", name, 2, {"gate": gate, "gate_start_epoch": 2, "dynamic_ratio": 0.5})
    assert isinstance(made, DDTB)
    gated = {key for key, quantizer in made.low_bit_quantizers().items() if quantizer.gated}
    assert len(gated) == len(made.low_bit_quantizers()) // 2
    deployed = deploy(made.network)
    kinds = {key for key, q in deployed.activation_quantizers().items() if isinstance(q, GatedQuantizer)}
    assert kinds == gated
    torch.manual_seed(0)
    for key in gated:
        quantizer, other = made.low_bit_quantizers()[key], deployed.activation_quantizers()[key]
        values = 2 * torch.randn(1, quantizer.channels, 7, 7)
        with torch.no_grad():
            torch.testing.assert_close(other(values), quantizer(values), rtol=1e-4, atol=1e-5)


def test_gates_that_do_not_act_are_left_behind():
    made = trained("ddtb", "edsr", 2, {"gate_start_epoch": 3, "dynamic_ratio": 1.0})
    assert not [q for q in deploy(made.network).activation_quantizers().values() if isinstance(q, GatedQuantizer)]


def test_daq_is_refused():
    with pytest.raises(UserError, match="DAQ computes its grids per picture"):
        deploy(trained("daq", "edsr", 4).network)


@pytest.mark.parametrize("method", ["ddtb", "odm", "pams", "daq", "lsq", "minmax"])
def test_the_rest_in_float_is_refused(method: str):
    made = objective(method, float_network("edsr"), rest="float")
    with pytest.raises(UserError, match="rest"):
        deploy(made.network)
