"""Reading `.pth` and `.pt` without running what is in them, and telling what a wrong file is instead."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import torch

from srquant.errors import UserError

_SNIFFED = 512


def read_pickle(path: Path) -> object:
    """What `torch.save` put into a file, weights only: tensors, numbers, text and containers of them.

    Raises:
        UserError: pickled code, or a damaged or truncated file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a forged or cut file makes the unpickler raise nearly anything
        code = re.search(r"nsupported (?:global: )?GLOBAL (\S+)", str(error))
        if code and _names_whole(path, code[1]):
            name = code[1][:60]
            raise UserError(f"holds pickled code ({name}), which is refused; save the state dict") from error
        raise UserError("no whole PyTorch file: damaged, cut short or not written by torch.save") from error


def _names_whole(path: Path, name: str) -> bool:
    """Whether an old-style pickle really names this object: one that is cut ends inside a harmless name."""
    spelled = "\n".join([*name.rsplit(".", 1), ""])
    return zipfile.is_zipfile(path) or spelled.encode() in path.read_bytes()


def foreign(path: Path) -> str | None:
    """What a file is by its first bytes, when it is certainly not what its suffix says.

    Tells a web page, a Git LFS pointer, a safetensors file and a PyTorch one under each other's suffix, a
    TorchScript program, a foreign or damaged zip archive, and a file that is neither archive nor pickle.
    """
    with path.open("rb") as file:
        start = file.read(_SNIFFED)
    suffix = path.suffix.lower()
    if start[8:9] == b"{":  # a safetensors header behind its length; no pickle or zip looks like this
        return None if suffix == ".safetensors" else "holds safetensors; rename it to .safetensors"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "holds a web page (HTML), not a checkpoint; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the checkpoint; fetch it with 'git lfs pull'"
    if suffix == ".safetensors":
        return "holds a PyTorch file; rename it to .pth" if start.startswith((b"PK", b"\x80")) else None
    if start.startswith(b"PK"):
        return _foreign_zip(path)
    if not start.startswith(b"\x80"):
        return "holds no PyTorch checkpoint (neither a zip archive nor a pickle)"
    return None


def _foreign_zip(path: Path) -> str | None:
    """What a zip archive is, when it is not one that `torch.save` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        return f"no whole PyTorch file: the zip archive is damaged or cut short ({error!s:.80})"
    if any(name.endswith("constants.pkl") for name in names):
        return "holds a TorchScript program, which is refused; save the state dict"
    if not any(name.endswith("data.pkl") for name in names):
        first = f", first entry {names[0]!r:.60}" if names else ""
        return f"holds a zip archive that is no PyTorch checkpoint ({len(names)} entries{first})"
    return None
