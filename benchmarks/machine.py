"""What a measurement says about the machine and the packages it was taken with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_UNITS = {
    "AMX int8": "amx_int8",
    "AMX bf16": "amx_bf16",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-VNNI": "avx_vnni",
    "AVX-512 bf16": "avx512_bf16",
}
_PACKAGES = ("torch", "onnxruntime", "openvino", "ai-edge-litert")


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its flags, both empty where the system does not tell."""
    source = Path("/proc/cpuinfo")
    told: dict[str, str] = {}
    for line in source.read_text().splitlines() if source.is_file() else []:
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    return told.get("model name", platform.processor()), frozenset(told.get("flags", "").split())


def describe() -> str:
    """Two lines: the processor with its integer and bfloat16 units, and the packages."""
    name, flags = processor()
    units = ", ".join(f"{unit} {'yes' if flag in flags else 'no'}" for unit, flag in _UNITS.items())
    return f"{name or 'unknown processor'}: {units}.  \n{', '.join(_installed())}."


def _installed() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return found
