"""What is trained: a network with its loss, as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from srquant.networks.info import SRNetwork


class Objective(Protocol):
    """A module that turns a batch into named loss parts; everything it learns or counts is in its state dict.

    An implementation is an `nn.Module`. Frozen teachers are held outside the module tree (in a tuple), so that they
    are neither trained nor saved. Batches come in the channels-last memory format.
    """

    @property
    def network(self) -> nn.Module:
        """Float32 [N,3,H,W], 0..255, to [N,3,s*H,s*W], about 0..255; validated in eval mode, averaged by an EMA."""
        ...

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """Scalar loss parts by name, weighted already; their sum is the loss.

        Args:
            low: float32 [B,3,h,w], 0..255.
            high: float32 [B,3,s*h,s*w], 0..255.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: {"name": str, "params": list, "lr": float}."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Called once before each epoch, from 1, in training mode; not again when a run goes on inside an epoch."""
        ...

    def learns(self, epoch: int) -> bool:
        """False for an epoch that only gathers statistics: no gradients, no optimiser step."""
        ...

    def is_final(self, epoch: int) -> bool:
        """Whether the network has its final form in this epoch; only then can its state become the best one."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain data that says what is trained; a run can only go on with an objective of the same description."""
        ...


@runtime_checkable
class Combining(Protocol):
    """An objective that combines the gradients of its loss parts in a way of its own, where others add them."""

    @property
    def apart(self) -> frozenset[str]:
        """Names of loss parts that get a backward pass of their own."""
        ...

    def combine(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], apart: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The gradient of each parameter that the optimiser gets, after averaging over processes.

        Args:
            parameters: all that are trained.
            gradients: of the sum of the other parts; None where there is none.
            apart: of the sum of the parts that are `apart`.
        """
        ...


class PixelUnits(nn.Module):
    """A float network that takes and gives 0..255, whatever its own value of white is."""

    def __init__(self, network: SRNetwork) -> None:
        super().__init__()
        self.network = network
        self._gain = network.info.peak / 255

    def forward(self, picture: Tensor) -> Tensor:
        """Float32 [N,3,H,W], 0..255, to [N,3,s*H,s*W]."""
        if self._gain == 1:
            return self.network(picture)
        return self.network(picture * self._gain) / self._gain


class Reconstruction(nn.Module):
    """A float network trained by the mean absolute error of its pixels, in grey levels.

    Args:
        network: trained in place, in the channels-last memory format.
        learning_rate: of all its parameters.
    """

    def __init__(self, network: SRNetwork, learning_rate: float) -> None:
        super().__init__()
        self.network = PixelUnits(network)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # PyTorch's stub
        self._learning_rate = learning_rate

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """The part `l1`; see `Objective.forward`."""
        return {"l1": nn.functional.l1_loss(self.network(low).float(), high)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group."""
        return [{"name": "network", "params": list(self.parameters()), "lr": self._learning_rate}]

    def start_epoch(self, epoch: int) -> None:
        """Nothing changes between epochs."""

    def learns(self, epoch: int) -> bool:  # noqa: ARG002  # part of the protocol
        """Every epoch learns."""
        return True

    def is_final(self, epoch: int) -> bool:  # noqa: ARG002  # part of the protocol
        """The network never changes its form."""
        return True

    def describe(self) -> dict[str, Any]:
        """Network, scale and loss."""
        info = self.network.network.info
        return {"method": "float", "network": info.name, "scale": info.scale, "learning_rate": self._learning_rate}
