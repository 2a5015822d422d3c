"""Students as files for the device."""

from keras_distill.export.litert import LiteRTArtifact as LiteRTArtifact
from keras_distill.export.litert import export_litert as export_litert
from keras_distill.export.signature import TensorInfo as TensorInfo

__all__ = ["LiteRTArtifact", "TensorInfo", "export_litert"]
