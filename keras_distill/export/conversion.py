"""From a saved student to a LiteRT file, with Keras on TensorFlow.

Runs in the process of `processes`, whatever the caller's backend: the one
route that worked for all three.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import pathlib
import re
import runpy
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from keras_distill.export.layer_names import readable, scope_of
from keras_distill.export.signature import TensorInfo
from keras_distill.model_graphs import layers_of


class UnsupportedOpsError(RuntimeError):
    """The student has operations that LiteRT's built-in ones can't express."""


class ConversionRequest(NamedTuple):
    """What the process must know of the caller's student.

    Attributes:
        folder: Where the student was saved.
        custom_objects: Modules and qualified names of its custom objects.
        main_script: The running script, if it defines some of them.
        image_data_format: The caller's.
        inputs: The file's inputs, with the batch size that it shall have.
        input_names: Their names, in the structure of the student's inputs.
        output_names: The same of the outputs.
        allow_flex: Whether the file may have operations of TensorFlow.
        unroll: Whether to unroll recurrent layers.
        signature: Name of the file's signature.
    """

    folder: str
    custom_objects: dict[str, tuple[str, str]]
    main_script: str | None
    image_data_format: str
    inputs: tuple[TensorInfo, ...]
    input_names: Any
    output_names: Any
    allow_flex: bool = False
    unroll: bool = False
    signature: str = "serving_default"


def convert(request: ConversionRequest) -> tuple[bytes, dict[str, str]]:
    """The student's float32 file.

    Returns:
        The file's content, and by its outputs' names those of the operations
        that they come from: the file's own tensors don't say.
    """
    frozen = frozen_student(request)
    names = keras.tree.flatten(request.output_names)
    sources = dict(zip(names, map(_source, frozen.outputs), strict=True))
    return _convert(frozen, request), sources


def frozen_student(request: ConversionRequest) -> Any:
    """The saved student as a function of flat tensors, without variables."""
    student = _load(request)
    for layer in layers_of(student):
        _simplify(layer, request.unroll)
    return _freeze(student, request)


def run_frozen(
    request: ConversionRequest, batch: dict[str, Any]
) -> dict[str, Any]:
    """The outputs of `frozen_student`, by name, for a batch of any size."""
    import tensorflow as tf

    frozen = frozen_student(request)
    tensors = [tf.constant(batch[info.name]) for info in request.inputs]
    size = request.inputs[0].shape[0] or len(tensors[0])
    rows = [
        frozen(*(tensor[start : start + size] for tensor in tensors))
        for start in range(0, len(tensors[0]), size)
    ]
    columns = zip(*rows, strict=True)
    names = keras.tree.flatten(request.output_names)
    return {
        name: tf.concat(column, 0).numpy()
        for name, column in zip(names, columns, strict=True)
    }


def _load(request: ConversionRequest) -> keras.Model:
    custom_objects = _import_custom_objects(
        request.custom_objects, request.main_script
    )
    # After the imports, which may set these themselves.
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format(request.image_data_format)
    return keras.saving.load_model(
        request.folder, custom_objects=custom_objects, compile=False
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


def _simplify(layer: keras.Layer, unroll: bool) -> None:
    """The same computation in operations that more runtimes have."""
    layer.name = scope_of(layer.name)
    if type(layer) is keras.layers.Embedding:
        # Keras adds operations for negative ids.
        layer.call = functools.partial(_gather, layer)
    if unroll and isinstance(layer, keras.layers.RNN):
        layer.unroll = True


def _gather(layer: keras.layers.Embedding, inputs: Any) -> Any:
    import tensorflow as tf

    return tf.gather(layer.embeddings.value, tf.cast(inputs, "int32"))


def _freeze(student: keras.Model, request: ConversionRequest) -> Any:
    """The student as a function of flat tensors, its weights constants.

    Variables that aren't frozen give files that return NaN under XNNPACK.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    specs = _specs(request, _positions(request))

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def call(*tensors: Any) -> list[Any]:
        inputs = keras.tree.pack_sequence_as(request.input_names, list(tensors))
        outputs = keras.tree.flatten(student(inputs, training=False))
        return [tf.identity(output) for output in outputs]

    # LiteRT has structured loops, not the Switch and Merge of lowered ones.
    return convert_variables_to_constants_v2(
        call.get_concrete_function(), lower_control_flow=False
    )


def _source(tensor: Any) -> str:
    """The name of the operation that a tensor is from."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return str(tensor.op.name)


def _positions(request: ConversionRequest) -> list[str]:
    """Names that TensorFlow takes: "self", "_x" or "größe" it does not."""
    return [f"input_{i}" for i in range(len(request.inputs))]


def _specs(request: ConversionRequest, names: list[str]) -> list[Any]:
    import tensorflow as tf

    return [
        tf.TensorSpec(info.shape, info.dtype, name)
        for info, name in zip(request.inputs, names, strict=True)
    ]


def save_named(frozen: Any, request: ConversionRequest, folder: str) -> None:
    """Write what `frozen_student` returned as a SavedModel for a converter.

    Its signature has the inputs' names, whatever they are.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    positions = _positions(request)
    save_frozen(frozen, request, positions, folder)
    file = pathlib.Path(folder, "saved_model.pb")
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    inputs = model.meta_graphs[0].signature_def[request.signature].inputs
    tensors = {name: inputs[name].SerializeToString() for name in positions}
    inputs.clear()
    for name, info in zip(positions, request.inputs, strict=True):
        inputs[info.name].ParseFromString(tensors[name])
    file.write_bytes(model.SerializeToString())


def save_frozen(
    frozen: Any, request: ConversionRequest, arguments: list[str], folder: str
) -> None:
    """Write what `frozen_student` returned as a SavedModel.

    Args:
        frozen: What it returned.
        request: What it was called with.
        arguments: Names of the signature's inputs.
        folder: Where the SavedModel goes.
    """
    import tensorflow as tf

    names = keras.tree.flatten(request.output_names)
    specs = _specs(request, arguments)

    class Served(tf.Module):  # type: ignore[misc]  # tensorflow is untyped
        @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
        def serve(self, *inputs: Any) -> dict[str, Any]:
            return dict(zip(names, frozen(*inputs), strict=True))

    served = Served()
    # Otherwise nets with SiLU silently lose their signature.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    signatures = {request.signature: served.serve}
    tf.saved_model.save(served, folder, signatures, options)


def _convert(frozen: Any, request: ConversionRequest) -> bytes:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder, _named_ops(frozen):
        save_named(frozen, request, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=[request.signature]
        )
        sets = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if request.allow_flex:
            sets.append(tf.lite.OpsSet.SELECT_TF_OPS)
        converter.target_spec.supported_ops = sets
        content: bytes = converter.convert()
    return content


@contextlib.contextmanager
def _named_ops(frozen: Any) -> Iterator[None]:
    """Say which operations, of which layers, couldn't be converted."""
    try:
        yield
    except Exception as error:
        ops = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if not ops:
            raise
        raise UnsupportedOpsError(places_of(frozen, ops)) from error


def places_of(frozen: Any, ops: list[str]) -> str:
    """Where some operations are in what `frozen_student` returned."""
    graph = frozen.graph.as_graph_def()
    nodes = [
        *graph.node,
        *(n for f in graph.library.function for n in f.node_def),
    ]
    places = [f"{n.op} at '{readable(n.name)}'" for n in nodes if n.op in ops]
    return ", ".join(places[:5] or ops)
