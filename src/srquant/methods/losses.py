"""The losses that several methods share. Pure functions of tensors, computed in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def attention_map(features: Tensor) -> Tensor:
    """Where a feature map is strong: [N,C,H,W] -> [N,H*W], the mean square over the channels, of length 1."""
    return functional.normalize(features.float().square().mean(1).flatten(1))


def knowledge_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Structured knowledge transfer (SKT) of PAMS, which DDTB uses too.

    The squared distance of the two attention maps, averaged over the batch *and* the pixels.

    Args:
        student: features [N,C,H,W] in front of the upsampler, of the network in training.
        teacher: the same of the frozen network; the channel counts may differ.
    """
    return (attention_map(student) - attention_map(teacher)).square().mean()
