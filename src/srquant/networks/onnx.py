"""A float network as an ONNX file, for comparison: uint8 [N, H, W, C] in and out, float32 inside."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from srquant.errors import missing_package
from srquant.files import atomic_path
from srquant.networks.cost import halo
from srquant.networks.info import SRNetwork

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 21
METADATA_KEY = "srquant"


class _PixelNetwork(nn.Module):
    """The network between a picture in bytes and the enlarged picture in bytes."""

    def __init__(self, network: SRNetwork) -> None:
        super().__init__()
        self.network = network
        self.factor = network.info.peak / 255

    def forward(self, picture: Tensor) -> Tensor:
        values = self.network(picture.permute(0, 3, 1, 2).float() * self.factor) / self.factor
        return values.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def float_onnx(network: SRNetwork) -> ModelProto:
    """The checked ONNX model of a float network, batch, height and width symbolic, weights inside.

    Raises:
        UserError: the packages onnx and onnxscript are missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - used by torch.onnx
    except ImportError as error:
        raise missing_package("onnxscript", "export of a float network to ONNX", "onnx") from error
    network = network.collapsed()
    module = _PixelNetwork(copy.deepcopy(network).eval())
    picture = torch.zeros(2, 24, 20, network.info.channels, dtype=torch.uint8)
    sizes = {
        0: torch.export.Dim("N"),
        1: torch.export.Dim("H", max=1 << 16),
        2: torch.export.Dim("W", max=1 << 16),
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            (picture,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["picture"],
            output_names=["enlarged"],
            dynamic_shapes=(sizes,),
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA_KEY: describe_network(network)})
    onnx.checker.check_model(model)
    return model


def write_onnx(model: ModelProto, path: Path) -> None:
    """Write an ONNX model; the same model gives the same bytes.

    Raises:
        UserError: the path cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def describe_network(network: SRNetwork) -> str:
    """What the file says about itself, as JSON; see `srquant.engines.exported.Description`."""
    plain = network.collapsed()
    return json.dumps({"info": asdict(plain.info), "halo": halo(plain), "provenance": {}}, sort_keys=True)
