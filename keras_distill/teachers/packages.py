"""Packages that only some teachers need."""

from __future__ import annotations

import importlib.util


def require_package(module: str, what: str, extra: str) -> None:
    """Say what to install, where a package is missing.

    Raises:
        ImportError: If the module isn't there.
    """
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"{what} needs {module}. Received: no {module}. Run `pip install "
            f"'keras-distill[{extra}]'`."
        )
