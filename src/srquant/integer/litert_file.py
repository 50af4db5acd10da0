"""LiteRT (TFLite) files: tensors, constants and operators gathered and packed into a flatbuffer, and read back.

The tables are those of the schema that comes with `ai-edge-litert`; nothing of a runtime is loaded. Behind the
flatbuffer stands a seal, the SHA-256 of what is before it: runtimes do not look there, and they crash on damaged files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from srquant.errors import UserError, missing_package

Kind = Literal["int8", "uint8", "int32", "float32"]

IDENTIFIER = b"TFL3"
_SEAL = b"srquant sha256 "
_SCHEMA_VERSION = 3
_LAST_DEPRECATED_CODE = 127
_VERSIONS = {
    "ADD": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEPTH_TO_SPACE": 2,
    "DEQUANTIZE": 2,
    "GATHER": 2,
    "LOGISTIC": 2,
    "MAXIMUM": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "SLICE": 2,
    "SUB": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
}
"""The version in which an operator learned int8; 1 for all others."""


class FileBuilder:
    """Gathers one graph; tensors are told by their index.

    Args:
        model: from `read_model`, to be continued; a new one by default.

    Attributes:
        graph: its tensors and operators (`SubGraphT`).

    Raises:
        UserError: the package is missing.
    """

    def __init__(self, model: Any = None) -> None:
        self._schema = schema()
        self._model = model or self._empty()
        self.graph = self._model.subgraphs[0]
        self._codes: dict[str, int] = {}
        self._constants: dict[tuple[object, ...], int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: Kind,
        scale: NDArray[Any] | float | None = None,
        zero_point: int = 0,
        axis: int = 0,
    ) -> int:
        """Add a tensor that an operator or the caller fills.

        Args:
            name: for people.
            shape: of the values, [N, H, W, C].
            kind: of the values.
            scale: one, or one per index of `axis`; None for a tensor without a grid.
            zero_point: code of zero.
            axis: where several scales lie.
        """
        made = self._schema.TensorT()
        made.name, made.shape = name.encode(), list(map(int, shape))
        made.type, made.buffer = getattr(self._schema.TensorType, kind.upper()), 0
        if scale is not None:
            grid = self._schema.QuantizationParametersT()
            grid.scale = np.atleast_1d(np.asarray(scale, np.float32))
            grid.zeroPoint = np.full(len(grid.scale), zero_point, np.int64)
            grid.quantizedDimension = axis
            made.quantization = grid
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(
        self,
        name: str,
        values: NDArray[Any],
        scale: NDArray[Any] | float | None = None,
        zero_point: int = 0,
        axis: int = 0,
    ) -> int:
        """Add a tensor with values, or find it again; arguments as of `tensor`."""
        scales = None if scale is None else np.asarray(scale, np.float32).tobytes()
        key = values.tobytes(), values.shape, values.dtype.name, scales, zero_point, axis
        if key not in self._constants:
            kind: Any = values.dtype.name
            index = self.tensor(name, values.shape, kind, scale, zero_point, axis)
            self.graph.tensors[index].buffer = self._buffer(values.tobytes())
            self._constants[key] = index
        return self._constants[key]

    def operator(
        self, kind: str, inputs: Sequence[int], output: int, options: str | None = None, **settings: Any
    ) -> int:
        """Add an operator and return its output.

        Args:
            kind: its name in the schema, such as CONV_2D.
            inputs: tensors; -1 for one that is left out.
            output: tensor.
            options: name of the table of its options, such as Conv2DOptions.
            settings: fields of that table.
        """
        made = self._schema.OperatorT()
        if kind not in self._codes:
            self._codes[kind] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(self._operator_code(kind))
        made.opcodeIndex = self._codes[kind]
        made.inputs, made.outputs = list(inputs), [output]
        if options is not None:
            made.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self._schema, f"{options}T")()
            for field, value in settings.items():
                assert hasattr(made.builtinOptions, field), field
                setattr(made.builtinOptions, field, value)
        self.graph.operators.append(made)
        return output

    def shape(self, tensor: int) -> list[int]:
        """The shape of a tensor."""
        return list(self.graph.tensors[tensor].shape)

    def finish(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], name: str, metadata: Mapping[str, str]
    ) -> bytes:
        """The file.

        Args:
            inputs: tensors that the caller fills, by the names of the signature.
            outputs: tensors that the caller reads.
            name: what the file says it is.
            metadata: texts that the file carries.
        """
        import flatbuffers

        schema, model = self._schema, self._model
        self.graph.name = b"main"
        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        model.version, model.description = _SCHEMA_VERSION, name.encode()
        model.metadata = model.metadata or []
        for key, text in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = key.encode(), self._buffer(text.encode())
            model.metadata.append(entry)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = self._tensor_maps(inputs), self._tensor_maps(outputs)
        model.signatureDefs = [signature]
        size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
        builder = flatbuffers.Builder(size + (1 << 16))
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        content = bytes(builder.Output())
        return content + _seal(content)

    def _empty(self) -> Any:
        model, graph = self._schema.ModelT(), self._schema.SubGraphT()
        graph.tensors, graph.operators = [], []
        model.subgraphs, model.buffers, model.operatorCodes = [graph], [self._schema.BufferT()], []
        return model

    def _buffer(self, content: bytes) -> int:
        made = self._schema.BufferT()
        made.data = np.frombuffer(content, np.uint8)
        self._model.buffers.append(made)
        return len(self._model.buffers) - 1

    def _operator_code(self, kind: str) -> Any:
        code, made = getattr(self._schema.BuiltinOperator, kind), self._schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode = code, min(code, _LAST_DEPRECATED_CODE)
        made.version = _VERSIONS.get(kind, 1)
        return made

    def _tensor_maps(self, tensors: Mapping[str, int]) -> list[Any]:
        made = []
        for name, index in tensors.items():
            entry = self._schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), index
            made.append(entry)
        return made


def schema() -> Any:
    """The module of the schema's tables.

    Raises:
        UserError: the package is missing.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise missing_package("ai-edge-litert", "a LiteRT file", "litert") from error
    return schema_py_generated


def read_model(content: bytes) -> Any:
    """The tables of a file as objects (`ModelT`).

    Raises:
        UserError: the package is missing.
        Exception: it is no such file; the reader's errors have types of their own.
    """
    tables = schema()
    if content[4:8] != IDENTIFIER:
        raise ValueError("not a LiteRT file")
    return tables.ModelT.InitFromObj(tables.Model.GetRootAs(content, 0))


def read_text(path: Path, key: str) -> str | None:
    """The text that a file carries under a name, None where it has none.

    Raises:
        UserError: the package is missing, or the file is not as it was written.
        Exception: as `read_model`.
    """
    content = path.read_bytes()
    at = len(content) - len(_seal(b""))
    is_sealed = content[at:].startswith(_SEAL)
    if is_sealed and content[at:] != _seal(content[:at]):
        raise UserError(f"'{path}' is damaged: its checksum does not fit")
    model = read_model(content)
    for entry in model.metadata or []:
        if entry.name == key.encode():
            if not is_sealed:
                raise UserError(f"'{path}' was cut or changed after it was written: it has no checksum")
            return bytes(model.buffers[entry.buffer].data).decode()
    return None


def _seal(content: bytes) -> bytes:
    return _SEAL + hashlib.sha256(content).digest()


def float_operators(content: bytes) -> list[str]:
    """Names of the tensors that operators of a file compute on real numbers; errors as of `read_model`."""
    return [tensor for tensor, _ in real_operators(read_model(content))]


def real_operators(model: Any) -> list[tuple[str, str]]:
    """Of every operator that computes on real numbers, the tensor it makes and its kind; `model` from `read_model`."""
    tables, graph = schema(), model.subgraphs[0]
    kinds = {code: name for name, code in vars(tables.BuiltinOperator).items() if not name.startswith("_")}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    found = []
    for operator in graph.operators:
        made, kind = graph.tensors[operator.outputs[0]], kinds[codes[operator.opcodeIndex]]
        reads_real = any(graph.tensors[i].type == tables.TensorType.FLOAT32 for i in operator.inputs if i >= 0)
        if reads_real and kind != "QUANTIZE":
            found.append((made.name.decode(), kind))
    return found
