"""What every plot needs."""

from __future__ import annotations

from srquant.errors import missing_package


def check_plot(what: str) -> None:
    """Refuse to begin what cannot be drawn at the end.

    Args:
        what: is to be drawn, for people.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_package("matplotlib", f"the plot of {what}", "plot") from error
