"""Arguments of a method that is replaced, whichever way they were passed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def named_arguments(
    method: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """All arguments of a call by name, with the method's defaults."""
    bound = inspect.signature(method).bind(model, *args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    del given["self"]
    more = given.pop("kwargs", {})
    return {**given, **more}
