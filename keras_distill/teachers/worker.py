"""The process that `process` starts: it opens a teacher, and labels.

Usage: `python -m keras_distill.teachers.worker`. Messages come in by the
standard input and go out by the standard output.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Callable
from typing import IO, Any

import keras
import numpy as np

from keras_distill.export.format_runners import Arrays
from keras_distill.export.keras_file import load_keras
from keras_distill.teachers import messages
from keras_distill.teachers.keras_model import KerasTeacher

_Label = Callable[[Any], dict[str, Any]]


def main() -> None:
    """Answer until the caller is gone."""
    # What libraries print isn't an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # And what they read isn't a question.
    questions = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    label: _Label | None = None
    while True:
        try:
            message = messages.read(questions)
        except EOFError:
            return
        try:
            if label is None:
                label, answer = _OPEN[message["kind"]](message)
            else:
                answer = label(message["inputs"])
        except Exception as error:
            # Keras prints whole configurations before the reason.
            reason = str(error).split("Exception encountered: ")[-1][:4000]
            answer = {"error": [type(error).__name__, reason]}
        _send(answers, answer)


def _send(answers: IO[bytes], answer: dict[str, Any]) -> None:
    messages.write(answers, keras.tree.map_structure(_storable, answer))


def _storable(value: Any) -> Any:
    # A file of NumPy has no bfloat16.
    is_brain = isinstance(value, np.ndarray) and value.dtype.name == "bfloat16"
    return value.astype("float32") if is_brain else value


def _open_keras(request: dict[str, Any]) -> tuple[_Label, dict[str, Any]]:
    for module in request["imports"]:
        importlib.import_module(module)
    model = load_keras(pathlib.Path(request["path"]))
    teacher = KerasTeacher(model, request["layers"])

    def label(inputs: Any) -> dict[str, Any]:
        output, features = teacher.label(inputs)
        return {"output": output, "features": features}

    facts = {
        "fingerprint": teacher.fingerprint,
        "probabilities": teacher.probabilities,
    }
    return label, facts


def _open_saved_model(request: dict[str, Any]) -> tuple[_Label, dict[str, Any]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(request["path"])
    signature = loaded.signatures[request["signature"]]
    _, specs = signature.structured_input_signature

    def label(inputs: Arrays) -> dict[str, Any]:
        # A model that was loaded goes with its signature.
        assert loaded is not None
        tensors = {name: tf.constant(array) for name, array in inputs.items()}
        outputs = signature(**tensors)
        return {"output": {name: t.numpy() for name, t in outputs.items()}}

    infos = [
        [name, spec.shape.as_list(), spec.dtype.name]
        for name, spec in specs.items()
    ]
    return label, {"inputs": infos}


_OPEN = {"keras": _open_keras, "saved_model": _open_saved_model}


if __name__ == "__main__":
    main()
