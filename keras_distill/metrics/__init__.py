"""Metrics: how good a student is, and how faithful to its teacher."""

from keras_distill.metrics.agreement import Agreement as Agreement
from keras_distill.metrics.brier import BrierScore as BrierScore
from keras_distill.metrics.calibration import (
    CalibrationError as CalibrationError,
)
from keras_distill.metrics.class_accuracy import ClassAccuracy as ClassAccuracy
from keras_distill.metrics.class_agreement import (
    ClassAgreement as ClassAgreement,
)
from keras_distill.metrics.divergence import (
    TeacherDivergence as TeacherDivergence,
)
from keras_distill.metrics.fidelity_metric import (
    FidelityMetric as FidelityMetric,
)
from keras_distill.metrics.fidelity_metric import (
    LogitFidelityMetric as LogitFidelityMetric,
)
from keras_distill.metrics.gap_closed import GapClosed as GapClosed
from keras_distill.metrics.label_metric import LabelMetric as LabelMetric
from keras_distill.metrics.likelihood import (
    NegativeLogLikelihood as NegativeLogLikelihood,
)
from keras_distill.metrics.linear_cka import LinearCKA as LinearCKA
from keras_distill.metrics.outcomes import Outcomes as Outcomes

__all__ = [
    "Agreement",
    "BrierScore",
    "CalibrationError",
    "ClassAccuracy",
    "ClassAgreement",
    "FidelityMetric",
    "GapClosed",
    "LabelMetric",
    "LinearCKA",
    "LogitFidelityMetric",
    "NegativeLogLikelihood",
    "Outcomes",
    "TeacherDivergence",
]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
