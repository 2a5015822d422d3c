"""The text of a microcontroller package: C++ made of a model and examples.

All of it is written for both layouts of TensorFlow Lite Micro: older versions
have their classes in the namespace `tflite`, newer ones in `tflite::micro`.
"""

from __future__ import annotations

import keyword
import re
import string
import textwrap
import unicodedata
from collections.abc import Iterable

import numpy as np

# What TensorFlow Lite Micro's MicroMutableOpResolver has a method for, without
# the operations on variables: they need memory that `main.cc` doesn't give.
_OPERATIONS = """
ABS ADD ADD_N ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
BROADCAST_ARGS BROADCAST_TO CAST CEIL CONCATENATION CONV_2D COS CUMSUM
DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU
EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD
FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF
L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND
LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM
MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE REDUCE_ALL
REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR
RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE
SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE
TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK WHILE ZEROS_LIKE
"""
# Methods whose names don't follow from the operations'.
_METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
_C_TYPES = {
    "bool": "bool",
    "float32": "float",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
}
# Words that C or C++ keeps for itself and Python doesn't.
_RESERVED = """
alignas alignof asm auto bool case catch char const constexpr decltype
default delete do double enum explicit export extern float friend goto
inline int long main mutable namespace new noexcept nullptr operator
private protected public register restrict short signed sizeof static
struct switch template this throw typedef typeid typename union unsigned
using virtual void volatile
"""


class _Template(string.Template):
    # C++ has no @, and code has $ and {} of its own.
    delimiter = "@"


_MODEL_HEADER = _Template("""\
// @mark
#ifndef @{guard}_MODEL_H_
#define @{guard}_MODEL_H_

extern const unsigned char @{name}_model[];
extern const unsigned int @{name}_model_length;

#endif  // @{guard}_MODEL_H_
""")

_MODEL_SOURCE = _Template("""\
// @mark
#include "@{name}_model.h"

// The runtime reads numbers in place, so their alignment has to be right.
alignas(16) const unsigned char @{name}_model[] = {
@bytes
};
const unsigned int @{name}_model_length = @length;
""")

_OPS = _Template("""\
// @mark
#ifndef @{guard}_OPS_H_
#define @{guard}_OPS_H_

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace tflite {
namespace micro {}
}  // namespace tflite

namespace @{name}_tflm {

// Older versions of TensorFlow Lite Micro have their classes in tflite, newer
// ones in tflite::micro.
using namespace tflite;
using namespace tflite::micro;

using ModelInterpreter = MicroInterpreter;
using ModelOpResolver = MicroMutableOpResolver<@count>;

// Adds the operations that the model has, and no others: each takes flash
// memory.
inline bool AddModelOps(ModelOpResolver& resolver) {
  return @calls;
}

}  // namespace @{name}_tflm

#endif  // @{guard}_OPS_H_
""")

_TEST_VECTOR = _Template("""\
// @mark
// Examples, and what the model returned for them on @runtime.
#ifndef @{guard}_TEST_VECTOR_H_
#define @{guard}_TEST_VECTOR_H_

#include <cmath>
#include <cstdint>

constexpr int @{name}_examples = @examples;

@arrays
#endif  // @{guard}_TEST_VECTOR_H_
""")

_MAIN = _Template("""\
// @mark
// Runs the examples of the test vector, and says whether the outputs are those
// that they should be. A starting point for an application of your own.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "@{name}_model.h"
#include "@{name}_ops.h"
#include "@{name}_test_vector.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"

namespace {

using namespace @{name}_tflm;

@arena
constexpr size_t kTensorArenaSize = @arena_size;
alignas(16) uint8_t tensor_arena[kTensorArenaSize];

template <typename T, size_t kSize>
bool SetInput(TfLiteTensor* tensor, const T (&values)[kSize]) {
  if (tensor == nullptr || tensor->bytes != sizeof(values)) {
    MicroPrintf("The model takes an input of another size.");
    return false;
  }
  std::memcpy(tensor->data.raw, values, sizeof(values));
  return true;
}

// Whether two values differ by more than `allowed`.
template <typename T>
bool Differs(T expected, T seen, double allowed) {
  // NaN isn't equal to anything, and so differs.
  return !(std::fabs(static_cast<double>(expected) -
                     static_cast<double>(seen)) <= allowed);
}

template <typename T, size_t kSize>
int CountDifferences(const TfLiteTensor* tensor, const T (&expected)[kSize],
                     double allowed) {
  if (tensor == nullptr || tensor->bytes != sizeof(expected)) {
    MicroPrintf("The model has an output of another size.");
    return static_cast<int>(kSize);
  }
  const T* seen = reinterpret_cast<const T*>(tensor->data.raw);
  int count = 0;
  for (size_t i = 0; i < kSize; ++i) {
    count += Differs(expected[i], seen[i], allowed) ? 1 : 0;
  }
  return count;
}
@labels
// Sets the inputs, runs the model, and counts the outputs that are wrong.
int RunExample(ModelInterpreter& interpreter, int example) {
  if (@set_inputs) {
    return 1;
  }
  if (interpreter.Invoke() != kTfLiteOk) {
    MicroPrintf("Example %d: the model didn't run.", example);
    return 1;
  }
  int differences = 0;
@compare_outputs
  MicroPrintf("Example %d: %d values differ.", example, differences);
@{print_label}  return differences;
}

}  // namespace

int main() {
  InitializeTarget();
  static ModelOpResolver resolver;
  if (!AddModelOps(resolver)) {
    MicroPrintf("FAIL: the operations couldn't be added.");
    return 1;
  }
  static ModelInterpreter interpreter(GetModel(@{name}_model), resolver,
                                      tensor_arena, kTensorArenaSize);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    MicroPrintf("FAIL: the model needs a larger kTensorArenaSize.");
    return 1;
  }
  MicroPrintf("Arena: %d of %d bytes used.",
              static_cast<int>(interpreter.arena_used_bytes()),
              static_cast<int>(kTensorArenaSize));
  int differences = 0;
  for (int example = 0; example < @{name}_examples; ++example) {
    differences += RunExample(interpreter, example);
  }
  MicroPrintf(differences == 0 ? "PASS" : "FAIL");
  return differences == 0 ? 0 : 1;
}
""")

_LABELS = _Template("""
const char* const kLabels[] = {
@labels
};

template <typename T, size_t kSize>
size_t Largest(const T (&values)[kSize]) {
  size_t largest = 0;
  for (size_t i = 1; i < kSize; ++i) {
    if (values[i] > values[largest]) largest = i;
  }
  return largest;
}
""")

_PRINT_LABEL = _Template("""\
  @{type} values[@size];
  std::memcpy(values, interpreter.output(@position)->data.raw, sizeof(values));
  MicroPrintf("Example %d: %s", example, kLabels[Largest(values)]);
""")

_CMAKE = _Template("""\
# @mark
cmake_minimum_required(VERSION 3.16)
project(@{name} C CXX)

set(TFLM_TREE "" CACHE PATH "Folder that create_tflm_tree.py wrote")
if(NOT EXISTS "${TFLM_TREE}/tensorflow/lite/micro/micro_interpreter.h")
  message(FATAL_ERROR "Pass -DTFLM_TREE=..., as README.txt says")
endif()

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)

file(GLOB_RECURSE tflm_sources
  "${TFLM_TREE}/signal/*.c" "${TFLM_TREE}/signal/*.cc"
  "${TFLM_TREE}/tensorflow/*.c" "${TFLM_TREE}/tensorflow/*.cc"
  "${TFLM_TREE}/third_party/*.c" "${TFLM_TREE}/third_party/*.cc")
# Some of the sources are included by others, and don't compile alone.
list(FILTER tflm_sources EXCLUDE REGEX "/third_party/kissfft/")
add_library(tflm STATIC ${tflm_sources})
target_include_directories(tflm SYSTEM PUBLIC
  "${TFLM_TREE}"
  "${TFLM_TREE}/third_party/flatbuffers/include"
  "${TFLM_TREE}/third_party/gemmlowp"
  "${TFLM_TREE}/third_party/kissfft"
  "${TFLM_TREE}/third_party/ruy")
# Tensors have another layout without it, so the program needs it too.
target_compile_definitions(tflm PUBLIC TF_LITE_STATIC_MEMORY)

add_executable(@{name}_example main.cc @{name}_model.cc)
target_link_libraries(@{name}_example PRIVATE tflm)

enable_testing()
add_test(NAME test_vector COMMAND @{name}_example)
""")

_README = _Template("""\
@mark

@files

To build and run it on this machine, with a checkout of
https://github.com/tensorflow/tflite-micro (TFLM stands for its folder):

    (cd TFLM && python3 \\
        tensorflow/lite/micro/tools/project_generation/create_tflm_tree.py \\
        /tmp/tflm-tree)
    cmake -S . -B /tmp/build -DTFLM_TREE=/tmp/tflm-tree
    cmake --build /tmp/build && ctest --test-dir /tmp/build -V

For a board, add main.cc and @{name}_model.cc to a project of
the board's that has TensorFlow Lite Micro, or see new_platform_support.md in
the checkout.

Outputs of the test vector: @runtime.
@arena
""")


def identifier(stem: str) -> str:
    """A file's name as one that C and C++ take anywhere."""
    ascii_only = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore")
    # Two underscores in a row are the compiler's.
    name = re.sub(r"[^0-9A-Za-z]+", "_", ascii_only.decode()).strip("_")
    reserved = name in _RESERVED.split() or keyword.iskeyword(name)
    if not name or name[0].isdigit() or reserved:
        return f"student_{name}".strip("_")
    return name


def resolver_methods(operations: Iterable[str]) -> list[str]:
    """The resolver's methods that add the operations.

    Raises:
        ValueError: If there is none for an operation.
    """
    names, known = sorted(set(operations)), set(_OPERATIONS.split())
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            "TensorFlow Lite Micro has no such operations, or they need "
            f"variables. Received: a file with {', '.join(missing)}. Replace "
            "the layers that need them, and export again."
        )
    return [_METHODS.get(name, _method(name)) for name in names]


def _method(operation: str) -> str:
    words = (word.capitalize() for word in operation.split("_"))
    return "Add" + "".join(words).replace("2d", "2D")


def model_header(name: str, mark: str) -> str:
    """`<name>_model.h`."""
    return _MODEL_HEADER.substitute(name=name, guard=name.upper(), mark=mark)


def model_source(name: str, mark: str, model: bytes) -> str:
    """`<name>_model.cc`: the model's bytes as an array."""
    rows = (model[i : i + 12] for i in range(0, len(model), 12))
    text = "\n".join(
        "  " + "".join(f"0x{b:02x}, " for b in row) for row in rows
    )
    return _MODEL_SOURCE.substitute(
        name=name,
        mark=mark,
        bytes=re.sub(" $", "", text, flags=re.M),
        length=len(model),
    )


def ops_header(name: str, mark: str, methods: list[str]) -> str:
    """`<name>_ops.h`: a resolver with the operations that are needed."""
    calls = " &&\n         ".join(
        f"resolver.{m}() == kTfLiteOk" for m in methods
    )
    return _OPS.substitute(
        name=name,
        guard=name.upper(),
        mark=mark,
        count=len(methods),
        calls=calls,
    )


def test_vector(
    name: str,
    mark: str,
    runtime: str,
    arrays: dict[str, np.ndarray],
    allowed: dict[str, float],
) -> str:
    """`<name>_test_vector.h`.

    Args:
        name: The model's name in C.
        mark: The first line.
        runtime: What computed the outputs.
        arrays: Inputs and outputs by "input_0", "output_0" and so on.
        allowed: By how much each output may differ.
    """
    parts = [_array(f"{name}_{key}", array) for key, array in arrays.items()]
    parts += [
        f"// By so much may a value of {name}_{key} differ.\n"
        f"constexpr double {name}_{key}_allowed = {value!r};\n"
        for key, value in allowed.items()
    ]
    return _TEST_VECTOR.substitute(
        name=name,
        guard=name.upper(),
        mark=mark,
        runtime=runtime,
        examples=len(next(iter(arrays.values()))),
        arrays="\n".join(parts),
    )


def _array(name: str, array: np.ndarray) -> str:
    rows = array.reshape(len(array), -1)
    values = ",\n".join(f"    {{{_numbers(row)}}}" for row in rows)
    kind = c_type(array.dtype)
    return (
        f"constexpr {kind} {name}[{len(rows)}][{rows.shape[1]}] = {{\n"
        f"{values},\n}};\n"
    )


def _numbers(row: np.ndarray) -> str:
    texts = [_number(value) for value in row.tolist()]
    lines = [", ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
    return ",\n     ".join(lines)


def _number(value: float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        # The smallest int64 has no literal of its own.
        return "INT64_MIN" if value == -(2**63) else str(value)
    if np.isfinite(value):
        return f"{value:.8e}f"
    return "NAN" if np.isnan(value) else f"{'-' if value < 0 else ''}INFINITY"


def c_type(dtype: np.dtype) -> str:
    """C's name for a dtype of a model's input or output."""
    if dtype.name not in _C_TYPES:
        known = ", ".join(_C_TYPES)
        raise ValueError(
            "A test vector has numbers of a type that microcontrollers have. "
            f"Received: an input or output of dtype {dtype.name}. Export a "
            f"student whose inputs and outputs are {known}."
        )
    return _C_TYPES[dtype.name]


def main_source(
    name: str,
    mark: str,
    arena: int,
    arena_reason: str,
    arrays: dict[str, np.ndarray],
    labels: tuple[str, ...],
) -> str:
    """`main.cc`: an example that runs the test vector."""
    ins = [key for key in arrays if key.startswith("input")]
    outs = [key for key in arrays if key.startswith("output")]
    label = _label_parts(outs, arrays, labels)
    return _MAIN.substitute(
        name=name,
        mark=mark,
        arena="\n".join(
            f"// {line}" for line in textwrap.wrap(arena_reason, 76)
        ),
        arena_size=arena,
        set_inputs=" ||\n      ".join(
            f"!SetInput(interpreter.input({i}), {name}_{key}[example])"
            for i, key in enumerate(ins)
        ),
        compare_outputs="\n".join(
            f"  differences += CountDifferences(\n"
            f"      interpreter.output({i}), {name}_{key}[example],\n"
            f"      {name}_{key}_allowed);"
            for i, key in enumerate(outs)
        ),
        labels=label[0],
        print_label=label[1],
    )


def _label_parts(
    outs: list[str], arrays: dict[str, np.ndarray], labels: tuple[str, ...]
) -> tuple[str, str]:
    """The labels, and what prints one, if an output has a value for each."""
    for position, key in enumerate(outs):
        array = arrays[key]
        if labels and array[0].size == len(labels) and array.dtype != bool:
            rows = "\n".join(f"    {c_string(label)}," for label in labels)
            return _LABELS.substitute(labels=rows), _PRINT_LABEL.substitute(
                type=c_type(array.dtype), size=len(labels), position=position
            )
    return "", ""


def c_string(text: str) -> str:
    """A text as a C string of its UTF-8 bytes."""
    plain = set(string.ascii_letters + string.digits + " _-.,:;+()/")
    # Three octal digits end by themselves; a hexadecimal escape doesn't.
    return (
        '"'
        + "".join(
            char
            if char in plain
            else "".join(f"\\{b:03o}" for b in char.encode())
            for char in text
        )
        + '"'
    )


def cmake(name: str, mark: str) -> str:
    """`CMakeLists.txt`."""
    return _CMAKE.substitute(name=name, mark=mark)


def readme(
    name: str, mark: str, length: int, runtime: str, arena_reason: str
) -> str:
    """`README.txt`."""
    files = {
        f"{name}_model.h, .cc": f"the model, {length} bytes",
        f"{name}_ops.h": "the operations that it has",
        f"{name}_test_vector.h": "examples, and what they should give",
        "main.cc": "runs the examples, and prints PASS or FAIL",
        "CMakeLists.txt": "builds main.cc for this machine",
        "SHA256SUMS": "`sha256sum -c SHA256SUMS` tells what was changed",
    }
    width = max(map(len, files))
    return _README.substitute(
        name=name,
        mark=mark,
        files="\n".join(f"{f:<{width}}  {what}" for f, what in files.items()),
        runtime=runtime,
        arena="\n".join(textwrap.wrap(f"Arena: {arena_reason}", 79)),
    )
