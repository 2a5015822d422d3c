"""A Python function on NumPy arrays as a teacher."""

from __future__ import annotations

import dis
import hashlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.teachers import fingerprints
from keras_distill.teachers.base import Array, Teacher

_VALUES = (bool, int, float, complex, str, bytes, type(None), type(...))
_NAMED = (types.ModuleType, types.BuiltinFunctionType, np.ufunc)
# Not what inherits from an array and has more to it, such as a mask.
_ARRAYS = (np.ndarray, *np.sctypeDict.values())
_COMPOSED = (types.CodeType, tuple, list, dict, frozenset)


class NumpyTeacher(Teacher):
    """A function of NumPy arrays.

    A bare function that is passed as a teacher is known by its name, its
    bytecode and the values that it takes from elsewhere, as far as these are
    numbers, texts, arrays, modules, and other such functions. Of a module that
    it uses, only the name counts. A function that uses anything else, such as
    an object, needs a fingerprint.

    Args:
        function: Makes the output, arrays, of a batch of inputs.
        fingerprint: What names this function in this version: another one for
            whatever says something else. `None` for that of its bytecode.
        probabilities: Whether the output is probabilities; `None` if unknown.

    Raises:
        TypeError: If it can't be called.
        ValueError: If it needs a fingerprint.

    Example:
        >>> import numpy as np
        >>> import keras_distill as kd
        >>> def brightness(images):
        ...     mean = images.mean((1, 2, 3))
        ...     return np.stack([-mean, mean], 1)
        >>> teacher = kd.teachers.NumpyTeacher(brightness, fingerprint="v1")
        >>> teacher.label(np.ones((2, 8, 8, 1)))[0].tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """

    runtime = "numpy"

    def __init__(
        self,
        function: Callable[[Any], Any],
        fingerprint: str | None = None,
        probabilities: bool | None = None,
    ) -> None:
        if not callable(function):
            raise TypeError(
                "A NumpyTeacher calls a function. Received: "
                f"function={function!r}. Pass a function of a batch of inputs."
            )
        self.function = function
        self.probabilities = probabilities
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self._fingerprint = {"kind": "function", "name": name}
        if fingerprint is None:
            self._fingerprint["sha256"] = _of_function(function)
        else:
            self._fingerprint["version"] = fingerprint

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Call the function on a batch."""
        return keras.tree.map_structure(np.asarray, self.function(inputs)), {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The function's name, and its version or checksum."""
        return self._fingerprint


def _of_function(function: Any) -> str:
    digest = hashlib.sha256()
    _add(digest, function, function, set())
    return digest.hexdigest()


def _add(digest: Any, value: Any, function: Any, seen: set[int]) -> None:
    """Add to a checksum what a function is made of."""
    if isinstance(value, types.FunctionType):
        if id(value) not in seen:  # it may call itself
            seen.add(id(value))
            _add_function(digest, value, function, seen)
    elif isinstance(value, _NAMED) or _is_library_type(value):
        digest.update(f"{value.__name__};".encode())
    elif type(value) in _ARRAYS and value.dtype != object:
        fingerprints.add_array(digest, np.asarray(value))
    elif isinstance(value, _COMPOSED):
        parts = _parts(value)
        digest.update(f"{type(value).__name__} {len(parts)};".encode())
        for part in parts:
            _add(digest, part, function, seen)
    elif isinstance(value, _VALUES):
        digest.update(f"{value!r};".encode())
    else:
        raise ValueError(
            "What a function says may change with what it uses, and that "
            f"can't be seen here. Received: {function!r}, which uses a "
            f"{type(value).__name__}. Pass `kd.teachers.NumpyTeacher("
            'function, fingerprint="v1")`, with another fingerprint for each '
            "version."
        )


def _is_library_type(value: Any) -> bool:
    """Whether it is a class that no user changes, such as `float`."""
    return isinstance(value, type) and value.__module__.split(".")[0] in (
        "builtins",
        "numpy",
    )


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return list(value.items()) if isinstance(value, dict) else value


def _add_function(
    digest: Any, value: types.FunctionType, function: Any, seen: set[int]
) -> None:
    code = value.__code__
    defaults = (value.__defaults__, value.__kwdefaults__)
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    found = [
        (name, value.__globals__[name])
        for name in sorted(_names(code))
        if name in value.__globals__
    ]
    _add(digest, (code, defaults, cells, found), function, seen)


def _names(code: types.CodeType) -> set[str]:
    """Names that a function and those inside it may take from its module."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    # `co_names` has attributes as well.
    mine = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return mine.union(*map(_names, inner))
