"""Switches of a quantiser that live in its state: one-element buffers, read without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Flags(nn.Module):
    """Named booleans that are saved, moved and copied as buffers are.

    A flag on an accelerator is read again only after it was written, so that a forward pass does not wait.
    """

    def __init__(self, **values: bool) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value))
        self._seen: dict[str, tuple[Tensor, int, bool]] = {}

    def __getitem__(self, name: str) -> bool:
        flag = self.get_buffer(name)
        if self.is_here(flag):
            return bool(flag)
        seen = self._seen.get(name)
        if seen is None or seen[0] is not flag or seen[1] != flag._version:
            seen = self._seen[name] = flag, flag._version, bool(flag)
        return seen[2]

    def __setitem__(self, name: str, value: bool) -> None:
        self.get_buffer(name).fill_(value)

    def is_here(self, flag: Tensor) -> bool:
        """Whether reading the buffer costs nothing."""
        return flag.device.type == "cpu"
