"""The process that turns a saved student into a LiteRT file.

`export_litert` starts it with Keras on TensorFlow, whatever the caller's
backend: the one route that worked for all three. Usage:
`python -m keras_distill.export.litert_worker FOLDER`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import operator
import pathlib
import re
import runpy
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import keras


class UnsupportedOpsError(RuntimeError):
    """The student has operations that LiteRT's built-in ones can't express."""


def main(folder: pathlib.Path) -> None:
    """Convert `folder/student` to `folder/model.tflite`, or say why not."""
    request = json.loads((folder / "request.json").read_text())
    try:
        student = _load(folder / "student", request)
        (folder / "model.tflite").write_bytes(_convert(student, request))
    except Exception as error:
        # Keras prints whole configurations before the reason.
        reason = str(error).split("Exception encountered: ")[-1][:2000]
        report = [type(error).__name__, reason]
        (folder / "error.json").write_text(json.dumps(report))
        raise


def _load(folder: pathlib.Path, request: dict[str, Any]) -> keras.Model:
    custom_objects = _import_custom_objects(
        request["custom_objects"], request["main_script"]
    )
    # After the imports, which may set these themselves.
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format(request["image_data_format"])
    return keras.saving.load_model(
        folder, custom_objects=custom_objects, compile=False
    )


def _import_custom_objects(
    places: dict[str, tuple[str, str]], main_script: str | None
) -> dict[str, Any]:
    if main_script is not None:
        # As the spawn method of `multiprocessing` does it.
        main = types.ModuleType("__mp_main__")
        vars(main).update(runpy.run_path(main_script, run_name="__mp_main__"))
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return {
        name: operator.attrgetter(attribute)(importlib.import_module(module))
        for name, (module, attribute) in places.items()
    }


def _convert(student: keras.Model, request: dict[str, Any]) -> bytes:
    import tensorflow as tf

    specs = [
        tf.TensorSpec(shape, dtype, name)
        for name, shape, dtype in request["inputs"]
    ]
    frozen = _freeze(student, specs, request["input_names"])
    output_names = keras.tree.flatten(request["output_names"])

    class Served(tf.Module):  # type: ignore[misc]  # tensorflow is untyped
        @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
        def serve(self, *inputs: Any) -> dict[str, Any]:
            return dict(zip(output_names, frozen(*inputs), strict=True))

    served = Served()
    # Otherwise nets with SiLU silently lose their signature.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with tempfile.TemporaryDirectory() as folder, _named_ops(frozen):
        tf.saved_model.save(served, folder, served.serve, options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        content: bytes = converter.convert()
    return content


def _freeze(student: keras.Model, specs: list[Any], input_names: Any) -> Any:
    """The student as a function of flat tensors, its weights constants.

    Variables that aren't frozen give files that return NaN under XNNPACK.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def call(*tensors: Any) -> list[Any]:
        inputs = keras.tree.pack_sequence_as(input_names, list(tensors))
        outputs = keras.tree.flatten(student(inputs, training=False))
        return [tf.identity(output) for output in outputs]

    # LiteRT has structured loops, not the Switch and Merge of lowered ones.
    return convert_variables_to_constants_v2(
        call.get_concrete_function(), lower_control_flow=False
    )


@contextlib.contextmanager
def _named_ops(frozen: Any) -> Iterator[None]:
    """Say which operations, of which layers, couldn't be converted."""
    try:
        yield
    except Exception as error:
        ops = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if not ops:
            raise
        graph = frozen.graph.as_graph_def()
        nodes = [
            *graph.node,
            *(n for f in graph.library.function for n in f.node_def),
        ]
        places = [f"{n.op} at '{n.name}'" for n in nodes if n.op in ops]
        raise UnsupportedOpsError(", ".join(places[:5] or ops)) from error


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
