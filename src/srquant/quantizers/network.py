"""The quantised network: a folded network with quantisers, its calibration, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx, nn

from srquant.config import QuantizationConfig
from srquant.networks.cost import halo
from srquant.networks.info import NetworkInfo, SRNetwork
from srquant.quantizers.equalization import equalize
from srquant.quantizers.folding import fold
from srquant.quantizers.grid import grid_from_range
from srquant.quantizers.insertion import insert_quantizers
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.placement import PlacementReport, get_placement
from srquant.quantizers.ranges import RangeObserver

Calibration = dict[str, Any]


class QuantizedNetwork(nn.Module):
    """A network that computes on integer grids, in pixel units.

    Built from a float network it is not yet usable: `calibrate` (or loading an artefact) gives it its grids.

    Args:
        network: the float network; it is not changed.
        quantization: how to quantise it.
        equalized_on: crops as `calibrate` takes them; the channels are equalised on them first.

    Attributes:
        info: what the float network was.
        network_config: plain data that rebuilds the float network.
        quantization: how it is quantised.
        placement: which tensor carries how many bits.
        calibration: which pictures the ranges came from (plain data).
        equalized: whether equalised channels were kept; see `srquant.quantizers.calibration`.
        halo: receptive-field radius in low-resolution pixels; None for a network with global operations.
        graph: the traced network with quantisers.
    """

    def __init__(
        self, network: SRNetwork, quantization: QuantizationConfig, *, equalized_on: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.info: NetworkInfo = network.info
        self.network_config: dict[str, Any] = asdict(network.config)
        self.quantization = quantization
        self.calibration: Calibration = {}
        self.equalized = False
        self.graph: fx.GraphModule = fold(network)
        if equalized_on:
            equalize(self.graph, equalized_on)
        self.placement: PlacementReport = insert_quantizers(
            self.graph,
            get_placement(quantization.placement),
            quantization.weight_bits,
            quantization.activation_bits,
        )
        self.halo = halo(network)

    def forward(self, picture: Tensor) -> Tensor:
        """Float32 [N,C,H,W], pixel values 0..255 -> [N,C,s*H,s*W], integers 0..255 held as float32."""
        return self.graph(picture)

    def activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """The quantisers by name, without the prefix of the graph."""
        found = self.graph.named_modules()
        return {n.removeprefix("quantizers."): m for n, m in found if isinstance(m, ActivationQuantizer)}

    def convolutions(self) -> dict[str, QuantConv2d]:
        """The quantised convolutions by the name they have in the float network."""
        return {name: m for name, m in self.graph.named_modules() if isinstance(m, QuantConv2d)}

    def calibrate(self, crops: Callable[[], Iterable[Tensor]]) -> None:
        """Choose all grids from pictures: two passes over them, one picture in memory at a time.

        Args:
            crops: called twice; yields float32 [1,C,H,W], pixel values 0..255.
        """
        free = {name: q for name, q in self.activation_quantizers().items() if not q.fixed}
        for quantizer in free.values():
            quantizer.grid, quantizer.observer = None, RangeObserver()
        for convolution in self.convolutions().values():
            convolution.steps = None
        phases = ("extremes",) if self.quantization.ranges == "minmax" else ("extremes", "histogram")
        with torch.inference_mode():
            for phase in phases:
                for quantizer in free.values():
                    assert quantizer.observer is not None
                    quantizer.observer.phase = phase
                for crop in crops():
                    self(crop)
        for quantizer in free.values():
            assert quantizer.observer is not None
            lower, upper = quantizer.observer.range(
                self.quantization.ranges, quantizer.bits, self.quantization.percentile
            )
            quantizer.grid = grid_from_range(lower, upper, quantizer.bits, exact=self.quantization.exact)
            quantizer.observer = None
        for convolution in self.convolutions().values():
            convolution.freeze(exact=self.quantization.exact)

    def storage_bytes(self) -> int:
        """Bytes of the packed weight codes, bias codes and steps: the true size of the network."""
        total = 0
        for convolution in self.convolutions().values():
            total += -(-convolution.weight.numel() * convolution.bits // 8) + 8 * convolution.out_channels
        return total + 4 * sum(p.numel() for p in self.float_parameters().values())

    def float_parameters(self) -> dict[str, Tensor]:
        """Parameters of layers that stay in float, by name."""
        quantized = {f"{name}.{part}" for name in self.convolutions() for part in ("weight", "bias", "steps")}
        return {name: t for name, t in self.graph.state_dict().items() if name not in quantized}

    def load_float_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Put back what `float_parameters` gave.

        Raises:
            RuntimeError: a shape does not fit.
        """
        self.graph.load_state_dict({**self.graph.state_dict(), **parameters})
