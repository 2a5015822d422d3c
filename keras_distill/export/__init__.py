"""Students as files for the device."""

from keras_distill.export.artifact import LiteRTArtifact as LiteRTArtifact
from keras_distill.export.flatbuffer import DamagedFileError as DamagedFileError
from keras_distill.export.flatbuffer import Operation as Operation
from keras_distill.export.litert import export_litert as export_litert
from keras_distill.export.litert import layer_errors as layer_errors
from keras_distill.export.metadata import Metadata as Metadata
from keras_distill.export.quantized_file import LayerError as LayerError
from keras_distill.export.schemes import Quantization as Quantization
from keras_distill.export.signature import TensorInfo as TensorInfo

__all__ = [
    "DamagedFileError",
    "LayerError",
    "LiteRTArtifact",
    "Metadata",
    "Operation",
    "Quantization",
    "TensorInfo",
    "export_litert",
    "layer_errors",
]
