from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_vectors import Golden, same

from srquant.methods.losses import attention_map, knowledge_transfer_loss


def test_knowledge_transfer(shared: Path):
    case = Golden(shared / "golden" / "losses.npz", "skt_")
    student = case["student"].requires_grad_()
    loss = knowledge_transfer_loss(student, case["teacher"])
    loss.backward()
    same(loss, case["loss"])
    same(student.grad, case["grad_student"])
    same(attention_map(student), case["map_student"])


def test_equal_maps_lose_nothing_whatever_their_strength():
    features = torch.randn(2, 3, 4, 5)
    assert knowledge_transfer_loss(features, 7 * features) == pytest.approx(0, abs=1e-12)
    assert knowledge_transfer_loss(features, torch.randn(2, 3, 4, 5)) > 1e-4


def test_a_dead_feature_map_gives_no_nan():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = knowledge_transfer_loss(student, torch.randn(2, 3, 4, 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
