"""The quantised network: a folded network with quantisers, its calibration, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.networks.cost import halo
from srquant.networks.info import NetworkInfo, SRNetwork
from srquant.quantizers.agreement import settle, widen
from srquant.quantizers.clipping import calibrate_output
from srquant.quantizers.equalization import ChannelFactors, equalizing_factors, rescale
from srquant.quantizers.folding import fold, in_pixel_units
from srquant.quantizers.gating import GatedQuantizer
from srquant.quantizers.grid import IMAGE_GRID, grid_from_range
from srquant.quantizers.insertion import insert_quantizers
from srquant.quantizers.joining import join_last_sum
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.offsets import ChannelQuantizer
from srquant.quantizers.placement import PlacementReport
from srquant.quantizers.ranges import Range, RangeObserver, check_ranges
from srquant.quantizers.structure import Structure

Calibration = dict[str, Any]


class QuantizedNetwork(nn.Module):
    """A network that computes on integer grids, in pixel units.

    Built from a float network it is not yet usable: `calibrate` (or loading an artefact) gives it its grids, or,
    where it is `trainable`, a method does, and `srquant.quantizers.deployment.deploy` makes the deployed network.

    Args:
        network: the float network; it is not changed.
        quantization: how to quantise it.
        equalized_on: crops as `calibrate` takes them; the channels are equalised on them first.
        channel_factors: of another network that was `equalized_on` crops, to be equalised alike.
        join_sum: leave a sum in front of the last convolution to it where that costs little.
        trainable: keep batch normalisation, and concatenations whole.
        gated: names of tensors that get a grid per picture, by a `GatedQuantizer`.

    Attributes:
        info: what the float network was.
        network_config: plain data that rebuilds the float network.
        quantization: how it is quantised.
        placement: which tensor carries how many bits.
        method: name of what chose the grids, as files tell it.
        training_facts: how it was trained (plain data); empty for post-training quantisation.
        calibration: which pictures the ranges came from (plain data).
        ranges: what `calibrate` or `use_ranges` chose grids from, by tensor; empty where neither did.
        widened: the tensors whose range was widened for black and white; see `srquant.quantizers.calibration`.
        channel_factors: what equalisation divided the channels of each convolution by; empty where it did not.
        joined_sum: whether there was such a sum.
        equalized: whether equalised channels were kept; see `srquant.quantizers.calibration`.
        halo: receptive-field radius in low-resolution pixels; None for a network with global operations.
        features_at: name of the convolution whose input is the feature map before the upsampler; the float
            network has it under the same name.
        graph: the traced network with quantisers.

    Raises:
        UserError: a layer cannot be quantised; rest "float" for a network that is not to be trained; or a kept clip
            or calibrated output for one that is.
    """

    def __init__(
        self,
        network: SRNetwork,
        quantization: QuantizationConfig,
        *,
        equalized_on: Sequence[Tensor] = (),
        channel_factors: ChannelFactors | None = None,
        join_sum: bool = False,
        trainable: bool = False,
        gated: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        if quantization.rest == "float" and not trainable:
            raise UserError("rest = 'float' is a simulation for training; a network that runs as integers has 'int8'")
        keep_clip, own_output = quantization.clip == "keep", quantization.output_range == "calibrated"
        if trainable and (keep_clip or own_output):
            given = "clip = 'keep'" if keep_clip else "output_range = 'calibrated'"
            raise UserError(f"{given} is for calibration only; training has clip = 'fold' and output_range = 'picture'")
        network = network.collapsed()
        self.info: NetworkInfo = network.info
        self.network_config: dict[str, Any] = asdict(network.config)
        self.quantization = quantization
        self.method = "post-training"
        self.training_facts: dict[str, Any] = {}
        self.calibration: Calibration = {}
        self.ranges: dict[str, Range] = {}
        self.widened: frozenset[str] = frozenset()
        self.equalized = False
        unfolded = quantization.rest == "float"
        self.graph: fx.GraphModule = (
            in_pixel_units(network) if unfolded else fold(network, keep_batch_norm=trainable, keep_clip=keep_clip)
        )
        self.joined_sum = join_sum and join_last_sum(self.graph)
        self.channel_factors = channel_factors or (equalizing_factors(self.graph, equalized_on) if equalized_on else {})
        rescale(self.graph, self.channel_factors)
        self.features_at = Structure(self.graph).first_tail_convolution()
        self.placement: PlacementReport = insert_quantizers(
            self.graph, network.info.name, quantization, trainable=trainable, gated=gated
        )
        if own_output:
            bits = {**self.placement.activation_bits, calibrate_output(self.graph): IMAGE_GRID.bits}
            self.placement = replace(self.placement, activation_bits=bits)
        self.halo = None if gated else halo(network)
        self.eval()
        if trainable:
            self._count_channels()

    def forward(self, picture: Tensor) -> Tensor:
        """Float32 [N,C,H,W], pixel values 0..255 -> [N,C,s*H,s*W], integers 0..255 held as float32."""
        return self.graph(picture)

    def activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """The quantisers by name, without the prefix of the graph."""
        found = self.graph.named_modules()
        return {n.removeprefix("quantizers."): m for n, m in found if isinstance(m, ActivationQuantizer)}

    def gates(self) -> list[str]:
        """Names of the tensors whose grid a gate chooses picture by picture."""
        return [name for name, q in self.activation_quantizers().items() if isinstance(q, GatedQuantizer)]

    def offsets(self) -> list[str]:
        """Names of the tensors whose channels have windows or factors of their own."""
        return [name for name, q in self.activation_quantizers().items() if isinstance(q, ChannelQuantizer)]

    def shifted(self) -> list[str]:
        """Names of the tensors whose channels have windows of their own."""
        quantizers = self.activation_quantizers()
        return [n for n, q in quantizers.items() if isinstance(q, ChannelQuantizer) and q.lowest is not None]

    def convolutions(self) -> dict[str, QuantConv2d]:
        """The quantised convolutions by the name they have in the float network."""
        return {name: m for name, m in self.graph.named_modules() if isinstance(m, QuantConv2d)}

    def replace_quantizers(self, make: Callable[[str, ActivationQuantizer], ActivationQuantizer]) -> None:
        """Put a method's quantiser in the place of every one that is not fixed.

        Args:
            make: from a name and the present quantiser (its bits, channels and `low_bit`) the new one.
        """
        for name, old in self.activation_quantizers().items():
            if old.fixed:
                continue
            new = make(name, old)
            new.low_bit, new.channels = old.low_bit, old.channels
            self.put_quantizer(name, new)

    def put_quantizer(self, name: str, quantizer: ActivationQuantizer) -> None:
        """Put a quantiser in the place of the one with this name, for all who read the tensor."""
        old = self.graph.get_submodule(f"quantizers.{name}")
        self.graph.set_submodule(f"quantizers.{name}", quantizer)
        for convolution in self.convolutions().values():
            if convolution.source is old:
                convolution.read_from(quantizer)

    def _count_channels(self) -> None:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, ActivationQuantizer)
            module.channels = inputs[0].shape[1]

        hooks = [q.register_forward_pre_hook(note) for q in self.activation_quantizers().values()]
        with torch.no_grad():
            side = 4 * self.info.size_multiple
            self(torch.zeros(1, self.info.channels, side, side))
        for hook in hooks:
            hook.remove()

    def calibrate(self, crops: Callable[[], Iterable[Tensor]]) -> None:
        """Choose all grids from pictures: two passes over them, one picture in memory at a time.

        Args:
            crops: called twice; yields float32 [1,C,H,W], pixel values 0..255.
        """
        free = self._free_quantizers()
        for quantizer in free.values():
            quantizer.grid, quantizer.observer = None, RangeObserver()
        for convolution in self.convolutions().values():
            convolution.frozen = None
        phases = ("extremes",) if self.quantization.ranges == "minmax" else ("extremes", "histogram")
        with torch.inference_mode():
            for phase in phases:
                for quantizer in free.values():
                    assert quantizer.observer is not None
                    quantizer.observer.phase = phase
                for crop in crops():
                    self(crop)
        found: dict[str, Range] = {}
        for name, quantizer in free.items():
            assert quantizer.observer is not None
            found[name] = quantizer.observer.range(
                self.quantization.ranges, quantizer.bits, self.quantization.percentile
            )
            quantizer.observer = None
        self.use_ranges(found)

    def use_ranges(self, ranges: Mapping[str, Range]) -> None:
        """Choose all grids from given ranges, and with them the codes of the convolutions.

        Args:
            ranges: lower and upper end of every tensor whose grid is not fixed, by name.

        Raises:
            UserError: a tensor is unknown or missing, or a range is not finite or ends before it starts.
        """
        free = self._free_quantizers()
        check_ranges(ranges, free, self.activation_quantizers())
        self.ranges = {name: ranges[name] for name in free}
        for name, quantizer in free.items():
            quantizer.grid = grid_from_range(*ranges[name], quantizer.bits, exact=self.quantization.exact)
        widen(self.graph, exact=self.quantization.exact)
        if not self.quantization.exact:
            settle(self.graph)
        for convolution in self.convolutions().values():
            convolution.freeze(exact=self.quantization.exact)

    def _free_quantizers(self) -> dict[str, ActivationQuantizer]:
        """The quantisers whose grid is to be chosen."""
        return {name: q for name, q in self.activation_quantizers().items() if not q.fixed}

    def storage_bytes(self) -> int:
        """Bytes of the packed weight codes, bias codes, steps and offsets: the true size of the network."""
        quantizers = self.activation_quantizers().values()
        total = sum(q.stored_bytes() for q in quantizers if isinstance(q, ChannelQuantizer))
        for convolution in self.convolutions().values():
            total += -(-convolution.weight.numel() * convolution.bits // 8) + 8 * convolution.out_channels
        return total + 4 * sum(p.numel() for p in self.float_parameters().values())

    def float_parameters(self) -> dict[str, Tensor]:
        """Parameters of layers that stay in float, by name."""
        quantized = {f"{name}.{part}" for name in self.convolutions() for part in ("weight", "bias")}
        return {name: t for name, t in self.graph.state_dict().items() if name not in quantized}

    def load_float_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Put back what `float_parameters` gave.

        Raises:
            RuntimeError: a shape does not fit.
        """
        self.graph.load_state_dict({**self.graph.state_dict(), **parameters})
