"""The exception that a user's mistake raises, and the words it is told with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the caller: the message is one line that says what was given and what is allowed.

    The command line prints the message and exits with code 2; a program catches it as `ValueError`.
    """


class NotFiniteError(UserError):
    """What is computed has become infinite or no number, as where a training diverges."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not one of `allowed`; names the nearest valid one."""
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{given}'; known: {', '.join(names)}{hint}")


def missing_package(package: str, purpose: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{purpose} needs the package '{package}': pip install 'srquant[{extra}]'")
