"""Knowledge distillation for Keras 3, from teacher to device."""

from keras_distill import cache as cache
from keras_distill import data as data
from keras_distill import distribution as distribution
from keras_distill import export as export
from keras_distill import losses as losses
from keras_distill import metrics as metrics
from keras_distill import reports as reports
from keras_distill import shrinking as shrinking
from keras_distill import teachers as teachers
from keras_distill.average_heads import average_heads as average_heads
from keras_distill.cache import TeacherCache as TeacherCache
from keras_distill.cache import Views as Views
from keras_distill.classifier_reuse import (
    reuse_classifier as reuse_classifier,
)
from keras_distill.data import load_data as load_data
from keras_distill.distiller import Distiller as Distiller
from keras_distill.export import Budget as Budget
from keras_distill.export import ExportArtifact as ExportArtifact
from keras_distill.export import LiteRTArtifact as LiteRTArtifact
from keras_distill.export import Metadata as Metadata
from keras_distill.export import ONNXArtifact as ONNXArtifact
from keras_distill.export import OpenVINOArtifact as OpenVINOArtifact
from keras_distill.export import Quantization as Quantization
from keras_distill.export import SavedModelArtifact as SavedModelArtifact
from keras_distill.export import export_litert as export_litert
from keras_distill.export import (
    export_microcontroller as export_microcontroller,
)
from keras_distill.export import export_onnx as export_onnx
from keras_distill.export import export_openvino as export_openvino
from keras_distill.export import export_saved_model as export_saved_model
from keras_distill.export import layer_errors as layer_errors
from keras_distill.export import verify_litert as verify_litert
from keras_distill.features import StoredTeacher as StoredTeacher
from keras_distill.features import TransferBatch as TransferBatch
from keras_distill.hard_labels import HardLabelAccuracy as HardLabelAccuracy
from keras_distill.hard_labels import HardLabels as HardLabels
from keras_distill.quantization_aware import (
    quantization_aware as quantization_aware,
)
from keras_distill.reports import Report as Report
from keras_distill.reports import report as report
from keras_distill.shrinking import ModelCost as ModelCost
from keras_distill.shrinking import model_cost as model_cost
from keras_distill.shrinking import shrink as shrink

__all__ = [
    "Budget",
    "Distiller",
    "ExportArtifact",
    "HardLabelAccuracy",
    "HardLabels",
    "LiteRTArtifact",
    "Metadata",
    "ModelCost",
    "ONNXArtifact",
    "OpenVINOArtifact",
    "Quantization",
    "Report",
    "SavedModelArtifact",
    "StoredTeacher",
    "TeacherCache",
    "TransferBatch",
    "Views",
    "average_heads",
    "cache",
    "data",
    "distribution",
    "export",
    "export_litert",
    "export_microcontroller",
    "export_onnx",
    "export_openvino",
    "export_saved_model",
    "layer_errors",
    "load_data",
    "losses",
    "metrics",
    "model_cost",
    "quantization_aware",
    "report",
    "reports",
    "reuse_classifier",
    "shrink",
    "shrinking",
    "teachers",
    "verify_litert",
]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
