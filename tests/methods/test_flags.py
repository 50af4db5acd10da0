from __future__ import annotations

import copy

import torch

from srquant.methods.flags import Flags


def test_flags_are_state():
    flags = Flags(one=False, two=True)
    assert (flags["one"], flags["two"]) == (False, True)
    flags["one"] = True
    other = Flags(one=False, two=False)
    other.load_state_dict(flags.state_dict())
    assert (other["one"], other["two"]) == (True, True)
    copied = copy.deepcopy(flags)
    copied["two"] = False
    assert flags["two"]
    assert not list(flags.parameters())


class Elsewhere(Flags):
    """Flags whose buffers claim to live on an accelerator, which are read again only after they were written."""

    def is_here(self, flag: torch.Tensor) -> bool:
        return False


def test_flags_elsewhere_are_read_again_after_they_were_written():
    flags = Elsewhere(one=False)
    assert not flags["one"]
    flags["one"] = True
    assert flags["one"]
    flags.load_state_dict(Flags(one=False).state_dict())
    assert not flags["one"]
    flags.get_buffer("one").copy_(torch.tensor(True))
    assert flags["one"]
    copied = copy.deepcopy(flags)
    copied["one"] = False
    assert (flags["one"], copied["one"]) == (True, False)
    assert flags.to(torch.float64)["one"]
