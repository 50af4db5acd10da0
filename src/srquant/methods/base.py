"""What all methods share: the objective, the module that the training loop makes smaller step by step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from srquant.config import TrainingConfig, build
from srquant.errors import UserError
from srquant.methods.losses import knowledge_transfer_loss
from srquant.methods.passing import PassingBounds
from srquant.networks.info import SRNetwork
from srquant.quantizers.folding import PICTURE_PEAK
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.weights import SymmetricWeights, WeightQuantizer

_REST_LEVELS = 255


class MethodConfig(BaseModel):
    """Options that every method has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skt_weight: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="of the knowledge transfer (SKT) loss; needs a teacher"
    )
    bounds_learning_rate: float = Field(
        default=1e-2,
        gt=0,
        allow_inf_nan=False,
        description="of the low-bit activation ranges, in the network's own values (0..1 or 0..255), at the start",
    )


class QuantizedObjective(nn.Module):
    """A quantised network in training: its quantisers, its loss, its parameter groups, its phases.

    A method is a subclass that says how a low-bit tensor and a low-bit weight are rounded. The loss is L1 plus,
    with a teacher, `skt_weight` times the knowledge transfer loss on the feature map before the upsampler.

    What lies outside the low-bit layers, where it is not in float, gets 8 bit: activations between trained bounds
    that start at the ends of the first batch, weights symmetric per output channel.

    Args:
        network: trainable; gets this method's quantisers.
        teacher: the float network, copied and frozen; it is not part of the state.
        config: options of the method.
        learning_rate: of everything but ranges.

    Attributes:
        network: the network in training.
        epoch: the current one, from 1; 0 before the first. Part of the state.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[MethodConfig]]

    def __init__(
        self, network: QuantizedNetwork, teacher: SRNetwork | None, config: MethodConfig, learning_rate: float
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.learning_rate = learning_rate
        self.epoch = 0
        self._teacher: tuple[SRNetwork, ...] = ()
        if teacher is not None and config.skt_weight:
            self._teacher = (copy.deepcopy(teacher).eval().requires_grad_(False),)
        network.method = self.name
        network.replace_quantizers(lambda _, old: self.quantizer(old) if old.low_bit else self.rest_quantizer(old))
        for convolution in network.convolutions().values():
            low = convolution.low_bit
            convolution.weight_quantizer = self.weights(convolution) if low else self.rest_weights(convolution)
            convolution.snap_bias = network.quantization.rest == "int8"
        self.train()

    @classmethod
    def from_options(
        cls, network: QuantizedNetwork, teacher: SRNetwork | None, options: dict[str, Any], learning_rate: float
    ) -> Self:
        """The objective from plain data.

        Raises:
            UserError: an unknown option (the nearest valid one is named) or a value out of its bounds.
        """
        return cls(network, teacher, build(cls.config_type, options), learning_rate)

    def quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """The quantiser of a low-bit tensor, in place of `old`."""
        raise NotImplementedError

    def weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """The quantiser of low-bit weights."""
        raise NotImplementedError

    def rest_quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """The quantiser of an 8-bit tensor, in place of `old`."""
        return PassingBounds(old.bits, percentile=100.0)

    def rest_weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """The quantiser of 8-bit weights."""
        return SymmetricWeights(convolution.bits, per_channel=True)

    def check(self, training: TrainingConfig) -> None:
        """Refuse a training in which the method cannot do its work; to be called before it begins.

        Raises:
            UserError: it is too short, or its kernel cannot compute what the method needs.
        """
        if not self.is_final(training.epochs):
            raise UserError(
                f"training.epochs = {training.epochs} is too short for {self.name}: the network gets its final form "
                "only later (method.gate_start_epoch)"
            )

    def start_epoch(self, epoch: int) -> None:
        """Enter an epoch, from 1."""
        self.epoch = epoch
        self.train()
        self._hold_still()

    def learns(self, epoch: int) -> bool:  # noqa: ARG002 - methods with statistics epochs look at it
        """Whether gradient steps are taken in this epoch."""
        return True

    def is_final(self, epoch: int) -> bool:
        """Whether the network computes in this epoch as it will when it is trained."""
        return self.learns(epoch)

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """The parts of the loss, weighted; their sum is the loss.

        Args:
            low: float32 [B,3,h,w], 0..255.
            high: float32 [B,3,s*h,s*w], 0..255.
        """
        self._hold_still()
        if not self._teacher or not self.learns(self.epoch):
            return {"l1": functional.l1_loss(self.network(low).float(), high)}
        tail = self.network.features_at
        with input_of(self.network.graph.get_submodule(tail)) as student:
            output = self.network(low)
        teacher = self._teacher[0].to(low.device)
        with torch.no_grad(), input_of(teacher.get_submodule(tail)) as wanted:
            teacher(low * (teacher.info.peak / PICTURE_PEAK))
        transfer = knowledge_transfer_loss(student[0], wanted[0])
        return {"l1": functional.l1_loss(output.float(), high), "skt": self.config.skt_weight * transfer}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything but ranges, the ranges of low-bit tensors, and those of 8-bit tensors.

        The 8-bit ranges move more slowly than the low-bit ones, as much as their steps are finer.
        """
        fine = (2**self.network.quantization.activation_bits - 1) / _REST_LEVELS
        ranges: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for quantizer in self.network.activation_quantizers().values():
            ranges[quantizer.low_bit] += quantizer.parameters(recurse=False)
        known = {id(parameter) for group in ranges.values() for parameter in group}
        others = [p for p in self.network.parameters() if id(p) not in known and p.requires_grad]
        rate = self.config.bounds_learning_rate
        groups = [
            {"name": "network", "params": others, "lr": self.learning_rate},
            {"name": "bounds", "params": ranges[True], "lr": rate},
            {"name": "rest bounds", "params": ranges[False], "lr": rate * min(fine, 1.0)},
        ]
        return [group for group in groups if group["params"]]

    def describe(self) -> dict[str, Any]:
        """Plain data for logs."""
        return {"method": self.name, **self.config.model_dump()}

    def get_extra_state(self) -> Tensor:
        """The epoch, for `state_dict`."""
        return torch.tensor(self.epoch)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the epoch back from `state_dict`."""
        self.epoch = int(state)

    def _hold_still(self) -> None:
        """In an epoch without gradient steps the network is in eval mode."""
        if self.network.training and not self.learns(self.epoch):
            self.network.eval()


@contextmanager
def input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first inputs of a module's calls inside the block, in order."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of all calls of some modules inside the block, in order."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
