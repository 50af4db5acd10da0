from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_quantized import noise, tensor
from small_trained import gated_network, random_gate

from srquant.engines import open_engine
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels
from srquant.integer import lower
from srquant.integer.graph import GatedRound
from srquant.integer.onnx import to_onnx
from srquant.quantizers import load_artefact, save_artefact
from srquant.quantizers.deployment import deploy
from srquant.quantizers.gating import GatedQuantizer, GateWeights, PictureGrid
from srquant.quantizers.straight_through import integer_grid

KEYS = ["edsr_x2", "rdn_x2", "srresnet_x4"]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(one.astype(np.float64) - other).mean(), 1e-9)))


@pytest.mark.parametrize("key", KEYS)
def test_gated_networks_run_on_integers_as_they_were_trained(key: str, tmp_path: Path) -> None:
    trained = gated_network(key)
    with torch.inference_mode():
        wanted = trained(tensor(noise(14, 16, seed=5)))[0].permute(1, 2, 0).clamp(0, 255).round().numpy()
    path = tmp_path / "gated.safetensors"
    save_artefact(deploy(trained), path)
    loaded = load_artefact(path)
    check_levels(loaded)
    assert loaded.gates()
    assert loaded.halo is None  # a gate looks at the whole picture
    assert lower(loaded).gates() == [op.output for op in lower(loaded).operations if isinstance(op, GatedRound)]
    picture = noise(14, 16, seed=5)
    reference = open_engine(loaded, "reference").run(picture)
    assert psnr(reference, wanted) > 35
    for engine in ("simulate", "torch"):
        assert psnr(open_engine(loaded, engine).run(picture), reference) > 35, engine


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("key", KEYS)
def test_gates_are_exported(key: str, engine: str) -> None:
    pytest.importorskip(engine)
    deployed = deploy(gated_network(key))
    runner, reference = open_engine(deployed, engine), open_engine(deployed, "reference")
    for seed, side in ((5, 14), (6, 9)):
        picture = noise(side, side + 2, seed)
        assert psnr(runner.run(picture), reference.run(picture)) > 40
    made = {node.output[0] for node in to_onnx(lower(deployed)).graph.node if node.op_type == "QuantizeLinear"}
    assert set(lower(deployed).gates()) <= made


def test_gates_take_at_most_seven_bits() -> None:
    with pytest.raises(UserError, match=r"8 bit.*at most 7"):
        GatedQuantizer(PictureGrid(-3.0, 5.0, 8, random_gate(4, seed=2)))


def test_a_gate_changes_the_grid_from_picture_to_picture() -> None:
    grid = PictureGrid(-3.0, 5.0, 2, random_gate(6, seed=1))
    random = np.random.default_rng(0)
    scales = {grid.of(random.normal(size=6) * 4).scale for _ in range(8)}
    assert len(scales) > 4
    assert all(0 < scale < 2 * grid.nominal().scale for scale in scales)


def test_a_gate_of_zero_weights_leaves_the_bounds_alone() -> None:
    still = GateWeights(
        np.zeros((4, 3), np.float32), np.ones(4, np.float32), np.ones(4, np.float32), np.zeros((2, 4), np.float32)
    )
    grid = PictureGrid(-3.0, 5.0, 3, still)
    assert still.factors(np.array([1.0, 2.0, 3.0])) == (1.0, 1.0)
    assert grid.of(np.zeros(3)) == grid.nominal()


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    quantizer = GatedQuantizer(PictureGrid(-3.0, 5.0, 2, random_gate(4, seed=2)))
    batch = torch.randn(3, 4, 5, 6) * torch.tensor([1.0, 3.0, 6.0]).view(-1, 1, 1, 1)
    alone = torch.cat([quantizer(one[None]) for one in batch])
    assert torch.equal(quantizer(batch), alone)
    assert len(torch.unique(alone[0])) <= 4


@pytest.mark.parametrize("part", ["bounds", "gate.first", "gate.shift", "gate.second"])
def test_an_impossible_gate_is_a_user_error(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = deploy(gated_network("edsr_x2"))
    name = deployed.gates()[0]
    path = tmp_path / "gated.safetensors"
    from srquant.quantizers import artefact

    honest = artefact._gate_tensors
    monkeypatch.setattr(
        artefact, "_gate_tensors", lambda grid: {**honest(grid), part: honest(grid)[part] * float("nan")}
    )
    save_artefact(deployed, path)
    with pytest.raises(UserError, match=f"the gate of '{name}' is impossible"):
        load_artefact(path)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_grid_of_a_picture_is_that_of_training(bits: int) -> None:
    """Symmetric bounds, which a range that is never clipped keeps, lie on a tie."""
    random = torch.Generator().manual_seed(bits)
    for upper in (10.0, *(torch.rand(50, generator=random) * 20).tolist()):
        upper_bound = torch.tensor([upper])
        scale, zero_point = integer_grid(-upper_bound, upper_bound, bits)
        grid = PictureGrid(-upper_bound.item(), upper_bound.item(), bits, random_gate(4, seed=2)).nominal()
        assert (grid.scale, grid.zero_point) == (scale.item(), int(zero_point))
