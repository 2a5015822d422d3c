"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from keras_distill.call_arguments import named_arguments


@contextlib.contextmanager
def written_whole(
    method: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Arguments for a model's `save` or `save_weights`, with another path.

    The file gets its name when it is complete: a process may be killed as it
    writes a checkpoint, and needs the one before then.
    """
    given = named_arguments(method, model, args, kwargs)
    path = pathlib.Path(str(given["filepath"]))
    one_file = path.name.endswith((".keras", ".weights.h5")) and not (
        given.get("max_shard_size") or given.get("zipped") is False
    )
    # Otherwise Keras asks, or says what is wrong.
    if not (one_file and given["overwrite"] and path.parent.is_dir()):
        yield given
        return
    temporary = path.with_name(f"writing-{os.getpid()}-{path.name}")
    try:
        yield {**given, "filepath": str(temporary)}
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
