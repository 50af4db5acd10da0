"""Seven epochs of the released trainer on a tiny EDSR, step by step: bounds, gradients, losses, gates, validations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_vectors import Golden, same
from objectives import float_network, load_gate, official_ddtb, total
from torch import Tensor

from srquant.methods.base import input_of
from srquant.methods.ddtb import DDTB, GatedBoundsQuantizer
from srquant.networks import EDSRConfig, SRNetwork

EPOCHS, BATCHES, DECAY_EPOCHS, DYNAMIC_RATIO = 7, 3, 2, 0.5
TENSORS = {
    "body.0.quant_act1": "head_0_2bit",
    "body.0.quant_act2": "body_0_body_1",
    "body.0.quant_act3": "body_0_body_2",
    "body.1.quant_act1": "add_2bit",
    "body.1.quant_act2": "body_1_body_1",
    "body.1.quant_act3": "body_1_body_2",
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "golden" / "train_tiny_edsr_b2.npz")


def tiny_network(golden: Golden) -> SRNetwork:
    red, green, blue = golden["teacher_add_mean.bias"].double().tolist()
    config = EDSRConfig(scale=4, blocks=2, width=8, peak=255.0, mean=(red, green, blue), gain=1.0)
    network = float_network("edsr", config)
    network.load_state_dict({name: golden[f"teacher_{name}"] for name in network.state_dict()})
    return network


def start(golden: Golden) -> tuple[DDTB, list[GatedBoundsQuantizer]]:
    objective = official_ddtb(tiny_network(golden), 2, dynamic_ratio=DYNAMIC_RATIO)
    found = objective.low_bit_quantizers()
    quantizers = [found[TENSORS[name]] for name in golden.words("act_names")]
    assert len(quantizers) == len(found)
    for name, quantizer in zip(golden.words("act_names"), quantizers, strict=True):
        load_gate(quantizer, golden.part(f"init_{name}."))
    return objective, quantizers


def of_all(quantizers: list[GatedBoundsQuantizer], name: str) -> Tensor:
    return torch.cat([getattr(quantizer, name).detach() for quantizer in quantizers])


def grads(quantizers: list[GatedBoundsQuantizer], name: str) -> Tensor:
    return torch.cat([getattr(quantizer, name).grad for quantizer in quantizers])


def check_state(objective: DDTB, golden: Golden, prefix: str) -> None:
    for name, ours in TENSORS.items():
        quantizer = objective.low_bit_quantizers()[ours]
        assert quantizer.gate is not None
        for part, tensor in quantizer.gate.state_dict().items():
            # logits drawn to zero have gradients of nothing but rounding errors, which Adam makes full steps of
            tolerance = 1e-3 if part == "5.weight" and prefix == "final_" else 1e-5
            same(tensor.float(), golden[f"{prefix}{name}.atten_c.{part}"], tolerance, f"{name}.{part}")
    for name, layer in objective.network.graph.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and not name.startswith("quantizers."):
            official = name.replace(".body.2", ".body.3")
            same(layer.weight, golden[f"{prefix}{official}.weight"], what=name)
            same(layer.bias, golden[f"{prefix}{official}.bias"], what=name)


def test_trajectory(golden: Golden):
    objective, quantizers = start(golden)
    check_state(objective, golden, "init_")
    optimizer = torch.optim.Adam(objective.parameter_groups())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, DECAY_EPOCHS, 0.5)
    steps = 0
    for epoch in range(1, EPOCHS + 1):
        objective.start_epoch(epoch)
        if not objective.learns(epoch):
            ends = measure(objective, quantizers, golden)
            same(ends[0], golden["fp_max"])
            same(ends[1], golden["fp_min"])
            optimizer.step()  # of nothing: the schedule counts this epoch
            schedule.step()
            continue
        for low, high in zip(golden["lr"], golden["hr"], strict=True):
            optimizer.zero_grad()
            loss = total(objective(low, high))
            loss.backward()
            rates = torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64)
            optimizer.step()
            step = golden.part(f"step{steps}_")
            same(loss, step["loss"], what=f"loss {steps}")
            same(rates, step["lrs"], what=f"rates {steps}")
            same(grads(quantizers, "upper"), step["grad_upper"], what=f"grad upper {steps}")
            same(grads(quantizers, "lower"), step["grad_lower"], what=f"grad lower {steps}")
            same(of_all(quantizers, "upper"), step["upper"], what=f"upper {steps}")
            same(of_all(quantizers, "lower"), step["lower"], what=f"lower {steps}")
            first = objective.network.graph.get_submodule("body.0.body.0")
            same(first.get_parameter("weight").grad, step["grad_conv"], what=f"grad conv {steps}")
            steps += 1
        assert [float(q.flags["is_dynamic"]) for q in quantizers] == golden["is_dynamic"].tolist()
        validate(objective, golden, epoch)
        schedule.step()
    assert steps == (EPOCHS - 1) * BATCHES
    check_state(objective, golden, "final_")
    assert all(
        quantizer.gated == bool(dynamic) for quantizer, dynamic in zip(quantizers, golden["is_dynamic"], strict=True)
    )


def measure(objective: DDTB, quantizers: list[GatedBoundsQuantizer], golden: Golden) -> tuple[Tensor, Tensor]:
    """The statistics epoch; the released code counts the validation picture too. Returns the ends, batch by batch."""
    highest, lowest = [], []
    batches = [*zip(golden["lr"], golden["hr"], strict=True), (golden["val_lr"], golden["val_hr"])]
    for number, (low, high) in enumerate(batches, start=1):
        before = torch.stack([quantizer.spread.mean for quantizer in quantizers])
        with torch.no_grad():
            objective(low, high)
        after = torch.stack([quantizer.spread.mean for quantizer in quantizers])
        batch = after * number - before * (number - 1)
        highest.append(batch[:, 0])
        lowest.append(batch[:, 1])
    expected = golden["fp_max"].var(1, unbiased=False) + golden["fp_min"].var(1, unbiased=False)
    same(torch.tensor([quantizer.spread.intensity() for quantizer in quantizers]), expected)
    return torch.stack(highest, 1), torch.stack(lowest, 1)


def validate(objective: DDTB, golden: Golden, epoch: int) -> None:
    objective.eval()
    graph = objective.network.graph
    with torch.no_grad(), input_of(graph.get_submodule(objective.network.features_at)) as features:
        picture = objective.network(golden["val_lr"])
    same(features[0], golden[f"epoch{epoch}_val_feat"], what=f"features after epoch {epoch}")
    same(picture, golden[f"epoch{epoch}_val_sr"], what=f"picture after epoch {epoch}")
    objective.train()
