"""Packages that only a report needs."""

from __future__ import annotations

import importlib.util

_NEEDED = ("jinja2", "matplotlib", "scipy")


def require_report_packages() -> None:
    """Say what to install, before anything is measured.

    Raises:
        ImportError: If a package isn't there.
    """
    missing = [
        name for name in _NEEDED if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ImportError(
            "A report is drawn and written by packages that are installed "
            f"with an extra. Received: no {' and no '.join(missing)}. Run "
            "`pip install 'keras-distill[report]'`."
        )
