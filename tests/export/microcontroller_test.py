"""C++ for microcontrollers: what is in it, and that it compiles and runs."""

import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import only_on

from keras_distill.export import (
    LiteRTArtifact,
    Metadata,
    Quantization,
    export_litert,
    export_microcontroller,
    micro_runner,
    microcontroller,
)
from keras_distill.export import microcontroller_sources as sources

layers = keras.layers
LABELS = ("yes", 'a "no"\\', "vielleicht \u00fc?")
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="There is no C++ compiler."
)
needs_tflite_micro = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None,
    reason="tflite-micro is optional.",
)


def recordings(count=12):
    random = np.random.default_rng(1)
    return random.normal(size=(count, 12, 4)).astype("float32")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A classifier of sound, in integers or with floats in and out."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    sound = keras.Input((12, 4), name="sound")
    first = keras.initializers.GlorotUniform(seed=5)
    x = layers.Conv1D(6, 3, activation="relu", kernel_initializer=first)(sound)
    x = layers.GlobalAveragePooling1D()(x)
    # Sure of its classes, so that no rounding of a machine's changes one.
    steep = keras.initializers.RandomNormal(stddev=4, seed=0)
    outputs = layers.Dense(3, activation="softmax", kernel_initializer=steep)
    student = keras.Model(sound, outputs(x))

    def get(integer_io=True):
        if integer_io not in made:
            made[integer_io] = export_litert(
                student,
                folder / f"listener {integer_io}.tflite",
                Quantization("int8", integer_io=integer_io),
                calibration_data=recordings(),
                metadata=Metadata(labels=LABELS),
            )
        return made[integer_io]

    return get


def package_of(artifact, folder):
    return export_microcontroller(artifact, folder, recordings(), arena=16384)


@pytest.fixture(scope="module")
def package(artifact, tmp_path_factory):
    """A package that no test changes."""
    return package_of(artifact(), tmp_path_factory.mktemp("c") / "package")


@pytest.fixture
def unchecked(monkeypatch):
    """Without tflite-micro, whose check takes a second."""
    monkeypatch.setattr(microcontroller, "find_spec", lambda name: None)


def read(package, ending):
    return (package.folder / f"{package.name}{ending}").read_text()


@only_on("jax")
def test_package_has_the_model_and_the_test_vector(artifact, package):
    assert package.name == "listener_True"
    assert sorted(os.listdir(package.folder)) == list(package.files)
    source = read(package, "_model.cc")
    numbers = re.findall(r"0x([0-9a-f]{2})", source)
    model = artifact().model()
    assert bytes(int(number, 16) for number in numbers) == model
    assert f"_model_length = {len(model)};" in source
    assert package.model_size == len(model) < artifact().size
    vector = read(package, "_test_vector.h")
    assert "constexpr int8_t listener_True_input_0[4][48]" in vector
    assert "constexpr int8_t listener_True_output_0[4][3]" in vector
    main = (package.folder / "main.cc").read_text()
    assert "kTensorArenaSize = 16384;" in main
    assert '"a \\042no\\042\\134"' in main
    assert '"vielleicht \\303\\274\\077"' in main


@only_on("jax")
def test_resolver_has_the_operations_of_the_model(artifact, package):
    header = read(package, "_ops.h")
    methods = re.findall(r"resolver\.(Add\w+)\(\)", header)
    assert methods == sources.resolver_methods(
        operation.name for operation in artifact().operations
    )
    assert f"MicroMutableOpResolver<{len(methods)}>" in header
    assert "AddConv2D" in methods


# Of TensorFlow Lite Micro's micro_mutable_op_resolver.h, those that add an
# operation of LiteRT's.
METHODS = """
AddAbs AddAdd AddAddN AddArgMax AddArgMin AddAssignVariable AddAveragePool2D
AddBatchMatMul AddBatchToSpaceNd AddBroadcastArgs AddBroadcastTo AddCallOnce
AddCast AddCeil AddConcatenation AddConv2D AddCos AddCumSum AddDepthToSpace
AddDepthwiseConv2D AddDequantize AddDiv AddDynamicUpdateSlice AddElu
AddEmbeddingLookup AddEqual AddExp AddExpandDims AddFill AddFloor AddFloorDiv
AddFloorMod AddFullyConnected AddGather AddGatherNd AddGreater AddGreaterEqual
AddHardSwish AddIf AddL2Normalization AddL2Pool2D AddLeakyRelu AddLess
AddLessEqual AddLog AddLogSoftmax AddLogicalAnd AddLogicalNot AddLogicalOr
AddLogistic AddMaxPool2D AddMaximum AddMean AddMinimum AddMirrorPad AddMul
AddNeg AddNotEqual AddPack AddPad AddPadV2 AddPrelu AddQuantize AddReadVariable
AddReduceAll AddReduceMax AddReduceMin AddRelu AddRelu6 AddReshape
AddResizeBilinear AddResizeNearestNeighbor AddReverseV2 AddRound AddRsqrt
AddSelectV2 AddShape AddSin AddSlice AddSoftmax AddSpaceToBatchNd
AddSpaceToDepth AddSplit AddSplitV AddSqrt AddSquare AddSquaredDifference
AddSqueeze AddStridedSlice AddSub AddSum AddSvdf AddTanh AddTranspose
AddTransposeConv AddUnidirectionalSequenceLSTM AddUnpack AddVarHandle AddWhile
AddZerosLike
""".split()  # noqa: SIM905
# They need memory for variables, which main.cc doesn't give.
VARIABLES = {"AssignVariable", "CallOnce", "ReadVariable", "VarHandle"}


@only_on("jax")
def test_names_of_the_resolvers_methods():
    seen = sources.resolver_methods(sources._OPERATIONS.split())
    assert set(seen) == set(METHODS) - {f"Add{name}" for name in VARIABLES}
    assert len(seen) == len(set(seen))
    for name in ("GELU", "FlexErf", "VAR_HANDLE"):
        with pytest.raises(ValueError, match=f"a file with {name}"):
            sources.resolver_methods(["ADD", name])


@only_on("jax")
@needs_tflite_micro
def test_every_operation_has_a_kernel():
    runtime = runtime_library().read_bytes()
    for name in sources._OPERATIONS.split():
        assert f"Register_{name}Ev".encode() in runtime, name


def runtime_library():
    spec = importlib.util.find_spec("tflite_micro.python.tflite_micro._runtime")
    return pathlib.Path(spec.origin)


@only_on("jax")
@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("student", "student"),
        ("Net v1.2", "Net_v1_2"),
        ("3d", "student_3d"),
        ("class", "student_class"),
        ("int", "student_int"),
        ("lambda", "student_lambda"),
        ("__x__", "x"),
        ("caf\u00e9", "cafe"),
        ("\u8033", "student"),
    ],
)
def test_names_are_those_of_c(stem, name):
    assert sources.identifier(stem) == name


@only_on("jax")
def test_numbers_are_those_of_c():
    values = np.array([[0.1, -1e-40, np.inf, -np.inf, np.nan]], "float32")
    text = sources._array("x", values)
    assert "{1.00000001e-01f, -9.99994610e-41f, INFINITY, -INFINITY, NAN}" in (
        text
    )
    numbers = np.array([[-(2**63), 5]], "int64")
    assert "{INT64_MIN, 5}" in sources._array("x", numbers)
    assert "{true, false}" in sources._array("x", np.array([[True, False]]))
    with pytest.raises(ValueError, match="complex64"):
        sources._array("x", np.ones((1, 2), "complex64"))


@only_on("jax")
@needs_tflite_micro
def test_arena_is_measured_and_has_room(artifact, tmp_path):
    package = export_microcontroller(
        # It can be read once.
        artifact(),
        tmp_path / "package",
        (recordings()[i : i + 4] for i in (0, 4, 8)),
    )
    assert package.check.agreement == 1.0
    assert package.check.arena * 1.1 <= package.arena < 20_000
    assert package.arena % 16 == 0
    main = (package.folder / "main.cc").read_text()
    assert f"kTensorArenaSize = {package.arena};" in main
    assert "TensorFlow Lite Micro's" in read(package, "_test_vector.h")
    with pytest.raises(ValueError, match="Pass at least"):
        export_microcontroller(
            artifact(), tmp_path / "small", recordings(), arena=512
        )
    assert os.listdir(tmp_path) == ["package"]


@only_on("jax")
@pytest.mark.parametrize("integer_io", [True, False])
def test_without_tflite_micro_the_outputs_are_litert_s(
    integer_io, artifact, tmp_path, unchecked
):
    folder = tmp_path / "package"
    with pytest.raises(ImportError, match=r"or pass arena="):
        export_microcontroller(artifact(integer_io), folder, recordings())
    assert not folder.exists()
    package = package_of(artifact(integer_io), folder)
    assert package.check is None
    vector = read(package, "_test_vector.h")
    assert "LiteRT, whose kernels may round" in vector
    allowed = float(re.search(r"_allowed = (.*);", vector)[1])
    # Two steps of a softmax.
    expected = 2 if integer_io else 2 / 256
    np.testing.assert_allclose(allowed, expected, rtol=0.02)


@only_on("jax")
def test_file_that_takes_batches_is_an_error(artifact, tmp_path):
    batched = dataclasses.replace(
        artifact(),
        inputs=tuple(i._replace(shape=(8, 12, 4)) for i in artifact().inputs),
    )
    with pytest.raises(ValueError, match="Export with batch_size=1"):
        package_of(batched, tmp_path / "package")


@only_on("jax")
def test_folder_is_replaced_only_if_it_is_an_earlier_package(
    artifact, tmp_path, unchecked
):
    folder = tmp_path / "package"
    folder.mkdir()
    package_of(artifact(False), folder)
    package = package_of(artifact(), folder)
    assert sorted(os.listdir(folder)) == list(package.files)
    assert os.listdir(tmp_path) == ["package"]

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"with notes\.txt\. Pass another"):
        package_of(artifact(), folder)
    (folder / "notes.txt").unlink()
    (folder / "main.cc").write_text("// mine")
    with pytest.raises(ValueError, match=r"with main\.cc\. Pass another"):
        package_of(artifact(), folder)
    assert (folder / "main.cc").read_text() == "// mine"
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"with CMakeLists\.txt, README\.txt"):
        package_of(artifact(), folder)


@only_on("jax")
def test_folder_that_cannot_be_one(artifact, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="which is a file"):
        package_of(artifact(), tmp_path / "file")
    with pytest.raises(ValueError, match="There is no folder"):
        package_of(artifact(), tmp_path / "no" / "package")


@only_on("jax")
def test_package_is_written_whole_or_not_at_all(
    artifact, tmp_path, unchecked, monkeypatch
):
    folder = tmp_path / "package"
    before = package_of(artifact(), folder)
    rename, seen = os.rename, []

    def fail(source, target):
        seen.append(target)
        if len(seen) == 2:
            raise OSError("full")
        rename(source, target)

    monkeypatch.setattr(microcontroller.os, "rename", fail)
    with pytest.raises(OSError, match="full"):
        package_of(artifact(), folder)
    assert os.listdir(tmp_path) == ["package"]
    assert sorted(os.listdir(folder)) == list(before.files)


# The part of TensorFlow Lite Micro's interface that a package uses, as its
# binaries have it on 64-bit machines (TF_LITE_STATIC_MEMORY), in either
# namespace.
INTERFACE = """\
#pragma once
#include <cstddef>
#include <cstdint>

namespace tflite {
struct Model;
enum BuiltinOperator : int32_t {};
inline const Model* GetModel(const void* buffer) {
  const uint8_t* bytes = static_cast<const uint8_t*>(buffer);
  return reinterpret_cast<const Model*>(
      bytes + *reinterpret_cast<const uint32_t*>(bytes));
}
inline void InitializeTarget() {}
@OPEN
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
union TfLitePtrUnion { char* raw; };
struct TfLiteTensor {
  struct { int type; void* params; } quantization;
  struct { float scale; int32_t zero_point; } params;
  TfLitePtrUnion data;
  void* dims;
  size_t bytes;
  int type;
  int allocation_type;
  bool is_variable;
};
struct TFLMRegistration;
class BuiltinDataAllocator;
class MicroResourceVariables;
class MicroProfilerInterface;

class MicroOpResolver {
 public:
  typedef TfLiteStatus (*Parser)(const void*, BuiltinDataAllocator*, void**);
  virtual const TFLMRegistration* FindOp(BuiltinOperator op) const = 0;
  virtual const TFLMRegistration* FindOp(const char* op) const = 0;
  virtual Parser GetOpDataParser(BuiltinOperator op) const = 0;
  virtual ~MicroOpResolver() {}
};

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver,
                   uint8_t* arena, size_t arena_size,
                   MicroResourceVariables* variables = nullptr,
                   MicroProfilerInterface* profiler = nullptr,
                   bool preserve_all_tensors = false);
  ~MicroInterpreter();
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(size_t index);
  TfLiteTensor* output(size_t index);
  size_t arena_used_bytes() const { return 0; }

 private:
  alignas(16) unsigned char members_[65536];
};

void Construct(void* resolver) asm("_ZN6tflite17PythonOpsResolverC1Ev");

// Has the operations that were added, of all that `all` has.
template <unsigned int kCount>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
  MicroMutableOpResolver() { Construct(all_); }
  const TFLMRegistration* FindOp(BuiltinOperator op) const override {
    return Has(op) ? All().FindOp(op) : nullptr;
  }
  const TFLMRegistration* FindOp(const char*) const override {
    return nullptr;
  }
  Parser GetOpDataParser(BuiltinOperator op) const override {
    return All().GetOpDataParser(op);
  }
@METHODS

 private:
  const MicroOpResolver& All() const {
    return *reinterpret_cast<const MicroOpResolver*>(all_);
  }
  bool Has(int op) const {
    for (unsigned int i = 0; i < count_; ++i) {
      if (added_[i] == op) return true;
    }
    return false;
  }
  TfLiteStatus Add(int op) {
    if (count_ == kCount || Has(op)) return kTfLiteError;
    added_[count_++] = op;
    return kTfLiteOk;
  }

  alignas(16) unsigned char all_[65536];
  int added_[kCount];
  unsigned int count_ = 0;
};
@CLOSE
}  // namespace tflite

@ALIASES
void MicroPrintf(const char* format, ...);
"""
GLOBAL = ("TfLiteStatus", "TfLiteTensor", "kTfLiteOk", "kTfLiteError")
HEADERS = (
    "micro_interpreter.h",
    "micro_log.h",
    "micro_mutable_op_resolver.h",
    "system_setup.h",
)


def write_interface(folder, inner):
    """Headers with the classes in `tflite`, or in a namespace in that."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    methods = "\n".join(
        f"  TfLiteStatus {sources.resolver_methods([name])[0]}() "
        f"{{ return Add({getattr(BuiltinOperator, name)}); }}"
        for name in sources._OPERATIONS.split()
    )
    path = f"tflite::{inner}" if inner else "tflite"
    text = (
        INTERFACE.replace("@OPEN", f"namespace {inner} {{" if inner else "")
        .replace("@CLOSE", "}" if inner else "")
        .replace("@METHODS", methods)
        .replace("@ALIASES", "\n".join(f"using {path}::{n};" for n in GLOBAL))
    )
    target = folder / "tensorflow" / "lite" / "micro"
    target.mkdir(parents=True)
    for header in HEADERS:
        (target / header).write_text('#include "interface.h"\n')
    (target / "interface.h").write_text(text)
    return folder


def compile_package(package, *arguments):
    subprocess.run(
        ["g++", *FLAGS, *map(str, arguments), "-I", str(package.folder)]
        + [
            str(package.folder / name)
            for name in package.files
            if ".cc" in name
        ],
        check=True,
        timeout=100,
    )


@only_on("jax")
@needs_compiler
@pytest.mark.parametrize("inner", ["", "micro"])
def test_package_compiles_without_a_warning(inner, package, tmp_path):
    interface = write_interface(tmp_path / "tflm", inner)
    compile_package(package, "-fsyntax-only", "-I", interface)


HARNESS = """
#include <cstdio>
#include "{name}_model.h"
#include "{name}_test_vector.h"
int main() {{
  std::fwrite({name}_model, 1, {name}_model_length, stdout);
  std::fwrite({name}_input_0, 1, sizeof({name}_input_0), stdout);
}}
"""


@only_on("jax")
@needs_compiler
def test_compiled_arrays_are_those_of_the_file(artifact, package, tmp_path):
    harness, program = tmp_path / "harness.cc", tmp_path / "harness"
    harness.write_text(HARNESS.format(name=package.name))
    source = package.folder / f"{package.name}_model.cc"
    subprocess.run(
        ["g++", *FLAGS, "-I", package.folder, harness, source, "-o", program],
        check=True,
    )
    printed = subprocess.run([program], check=True, capture_output=True).stdout
    model = artifact().model()
    assert printed[: len(model)] == model
    integers = micro_runner.to_file_dtypes(model, {"sound": recordings()[:4]})
    assert printed[len(model) :] == integers["sound"].tobytes()


RUN = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
sys.exit(ctypes.CDLL(sys.argv[2]).main())
"""


@only_on("jax")
@needs_compiler
@needs_tflite_micro
@pytest.mark.skipif(
    sys.platform != "linux" or sys.maxsize < 2**32, reason="One binary layout."
)
@pytest.mark.parametrize("integer_io", [True, False])
def test_example_passes_on_the_runtime_itself(integer_io, artifact, tmp_path):
    """`main.cc` with the runtime that is inside the Python package.

    That package has no headers, but the symbols of all that they declare.
    """
    runtime = runtime_library()
    constructor = (
        b"_ZN6tflite5micro16MicroInterpreterC1EPKNS_5ModelERKNS0_"
        b"15MicroOpResolverEPhmPNS0_22MicroResourceVariablesEPNS0_"
        b"22MicroProfilerInterfaceEb"
    )
    if constructor not in runtime.read_bytes():
        pytest.skip("This tflite-micro has another binary interface.")
    interface = write_interface(tmp_path / "tflm", "micro")
    package = package_of(artifact(integer_io), tmp_path / "package")

    def run():
        library = tmp_path / "main.so"
        compile_package(
            package, "-shared", "-fPIC", "-I", interface, "-o", library
        )
        return subprocess.run(
            [sys.executable, "-c", RUN, runtime, library],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )

    result = run()
    assert result.returncode == 0, result.stderr
    assert "PASS" in result.stderr
    assert "Example 3: 0 values differ." in result.stderr
    classes = artifact(integer_io).predict(recordings()[:4]).argmax(-1)
    printed = re.findall(r"Example \d: (?!\d)(.*)", result.stderr)
    assert printed == [LABELS[i] for i in classes]

    # An output of another model.
    vector = package.folder / f"{package.name}_test_vector.h"
    vector.write_text(
        re.sub(
            r"(_output_0\[4\]\[3\] = \{\n *\{)[^,]+",
            r"\g<1>1",
            vector.read_text(),
        )
    )
    result = run()
    assert result.returncode == 1
    assert "Example 0: 1 values differ." in result.stderr
    assert "FAIL" in result.stderr


FAKE_RUNTIME = """
#include "tensorflow/lite/micro/interface.h"
void MicroPrintf(const char*, ...) {}
namespace tflite {
MicroInterpreter::MicroInterpreter(const Model*, const MicroOpResolver&,
                                   uint8_t*, size_t, MicroResourceVariables*,
                                   MicroProfilerInterface*, bool) {}
MicroInterpreter::~MicroInterpreter() {}
TfLiteStatus MicroInterpreter::AllocateTensors() { return kTfLiteError; }
TfLiteStatus MicroInterpreter::Invoke() { return kTfLiteError; }
TfLiteTensor* MicroInterpreter::input(size_t) { return nullptr; }
TfLiteTensor* MicroInterpreter::output(size_t) { return nullptr; }
}
extern "C" void _ZN6tflite17PythonOpsResolverC1Ev(void*) {}
"""


@only_on("jax")
@needs_compiler
@pytest.mark.skipif(shutil.which("cmake") is None, reason="There is no CMake.")
def test_cmake_builds_the_example(package, tmp_path):
    tree = write_interface(tmp_path / "tflm", "")
    (tree / "tensorflow" / "runtime.cc").write_text(FAKE_RUNTIME)

    def cmake(*arguments):
        command = ["cmake", *map(str, arguments)]
        return subprocess.run(
            command, check=False, capture_output=True, text=True
        )

    configure = ["-S", package.folder, "-B", tmp_path / "build"]
    assert "Pass -DTFLM_TREE" in cmake(*configure).stderr
    result = cmake(*configure, f"-DTFLM_TREE={tree}")
    assert result.returncode == 0, result.stderr
    result = cmake("--build", tmp_path / "build")
    assert result.returncode == 0, result.stderr
    program = tmp_path / "build" / f"{package.name}_example"
    # The runtime that it was built with does nothing.
    assert subprocess.run([program], check=False).returncode == 1


@only_on("jax")
def test_loaded_artifact_makes_the_same_package(artifact, package, tmp_path):
    loaded = LiteRTArtifact.load(artifact().path)
    second = package_of(loaded, tmp_path / "second")
    for name in package.files:
        assert (package.folder / name).read_bytes() == (
            second.folder / name
        ).read_bytes()
