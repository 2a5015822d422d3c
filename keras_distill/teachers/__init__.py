"""Teachers: whatever can label a transfer set."""

from keras_distill.teachers.base import Teacher as Teacher
from keras_distill.teachers.ensemble import Ensemble as Ensemble
from keras_distill.teachers.factory import as_teacher as as_teacher
from keras_distill.teachers.function import NumpyTeacher as NumpyTeacher
from keras_distill.teachers.keras_file import KerasFile as KerasFile
from keras_distill.teachers.keras_model import KerasTeacher as KerasTeacher
from keras_distill.teachers.litert_file import LiteRTFile as LiteRTFile
from keras_distill.teachers.onnx_file import OnnxFile as OnnxFile
from keras_distill.teachers.runtimes import (
    OnnxRuntimeTeacher as OnnxRuntimeTeacher,
)
from keras_distill.teachers.saved_model import (
    SavedModelFolder as SavedModelFolder,
)
from keras_distill.teachers.sklearn_classifier import (
    SklearnTeacher as SklearnTeacher,
)
from keras_distill.teachers.torch_module import TorchTeacher as TorchTeacher

__all__ = [
    "Ensemble",
    "KerasFile",
    "KerasTeacher",
    "LiteRTFile",
    "NumpyTeacher",
    "OnnxFile",
    "OnnxRuntimeTeacher",
    "SavedModelFolder",
    "SklearnTeacher",
    "Teacher",
    "TorchTeacher",
    "as_teacher",
]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
