"""Students as files for the device."""

from keras_distill.export.artifact import LiteRTArtifact as LiteRTArtifact
from keras_distill.export.base_artifact import ExportArtifact as ExportArtifact
from keras_distill.export.budget import BOARDS as BOARDS
from keras_distill.export.budget import Board as Board
from keras_distill.export.budget import Budget as Budget
from keras_distill.export.flatbuffer import DamagedFileError as DamagedFileError
from keras_distill.export.flatbuffer import Operation as Operation
from keras_distill.export.formats import ONNXArtifact as ONNXArtifact
from keras_distill.export.formats import OpenVINOArtifact as OpenVINOArtifact
from keras_distill.export.formats import (
    SavedModelArtifact as SavedModelArtifact,
)
from keras_distill.export.formats import export_onnx as export_onnx
from keras_distill.export.formats import export_openvino as export_openvino
from keras_distill.export.formats import (
    export_saved_model as export_saved_model,
)
from keras_distill.export.inspection import inspect as inspect
from keras_distill.export.litert import export_litert as export_litert
from keras_distill.export.litert import layer_errors as layer_errors
from keras_distill.export.measure import Latency as Latency
from keras_distill.export.measure import OperationTime as OperationTime
from keras_distill.export.metadata import Metadata as Metadata
from keras_distill.export.micro_runner import MicroCheck as MicroCheck
from keras_distill.export.micro_runner import check_on_micro as check_on_micro
from keras_distill.export.microcontroller import (
    MicrocontrollerPackage as MicrocontrollerPackage,
)
from keras_distill.export.microcontroller import (
    export_microcontroller as export_microcontroller,
)
from keras_distill.export.quantized_file import LayerError as LayerError
from keras_distill.export.schemes import Quantization as Quantization
from keras_distill.export.signature import TensorInfo as TensorInfo
from keras_distill.export.verify import LiteRTCheck as LiteRTCheck
from keras_distill.export.verify import OutputCheck as OutputCheck
from keras_distill.export.verify import verify_litert as verify_litert

__all__ = [
    "BOARDS",
    "Board",
    "Budget",
    "DamagedFileError",
    "ExportArtifact",
    "Latency",
    "LayerError",
    "LiteRTArtifact",
    "LiteRTCheck",
    "Metadata",
    "MicroCheck",
    "MicrocontrollerPackage",
    "ONNXArtifact",
    "OpenVINOArtifact",
    "Operation",
    "OperationTime",
    "OutputCheck",
    "Quantization",
    "SavedModelArtifact",
    "TensorInfo",
    "check_on_micro",
    "export_litert",
    "export_microcontroller",
    "export_onnx",
    "export_openvino",
    "export_saved_model",
    "inspect",
    "layer_errors",
    "verify_litert",
]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
