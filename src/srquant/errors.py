"""The exception that a user's mistake raises, and the words it is told with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_NAMES = 24
_NEAREST = 3


class UserError(ValueError):
    """A mistake of the caller: the message is one line that says what was given and what is allowed.

    The command line prints the message and exits with code 2; a program catches it as `ValueError`.
    """


class NotFiniteError(UserError):
    """What is computed has become infinite or no number, as where a training diverges."""


class DepthError(UserError):
    """A picture of 9 to 16 bits per channel where 8 are taken; rounding it would help."""


def unknown(kind: str, given: str, allowed: Iterable[str], listed_by: str | None = None) -> UserError:
    """The error for a name that is not one of `allowed`; names the nearest valid one.

    Of more than 24 names only the nearest are told, or the first where none is near, and `listed_by`, the command
    that lists them all.
    """
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=_NEAREST, cutoff=0.5)
    known = f"known: {', '.join(names)}"
    if len(names) > _MOST_NAMES:
        listed = f" ('{listed_by}' lists them)" if listed_by else ""
        known = f"known: {len(names)}{listed}, such as {', '.join(near or names[:_NEAREST])}"
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{given}'; {known}{hint}")


def missing_package(package: str, purpose: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{purpose} needs the package '{package}': pip install 'srquant[{extra}]'")
