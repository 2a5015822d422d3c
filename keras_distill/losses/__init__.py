"""Losses between a teacher and a student."""

from keras_distill.losses.base import DistillationLoss as DistillationLoss
from keras_distill.losses.base import LogitLoss as LogitLoss
from keras_distill.losses.corrected_teacher import (
    CorrectedTeacher as CorrectedTeacher,
)
from keras_distill.losses.curriculum_temperature import (
    CurriculumTemperature as CurriculumTemperature,
)
from keras_distill.losses.decoupled import (
    DecoupledSoftTargets as DecoupledSoftTargets,
)
from keras_distill.losses.feature_loss import FeatureLoss as FeatureLoss
from keras_distill.losses.hard_targets import HardTargets as HardTargets
from keras_distill.losses.hint import Hint as Hint
from keras_distill.losses.logit_matching import LogitMatching as LogitMatching
from keras_distill.losses.normalized import (
    NormalizedSoftTargets as NormalizedSoftTargets,
)
from keras_distill.losses.one_for_all import OneForAll as OneForAll
from keras_distill.losses.soft_targets import (
    BinarySoftTargets as BinarySoftTargets,
)
from keras_distill.losses.soft_targets import SoftTargets as SoftTargets
from keras_distill.losses.teacher_free import TeacherFree as TeacherFree
from keras_distill.losses.weighted import (
    WeightedSoftTargets as WeightedSoftTargets,
)

__all__ = [
    "BinarySoftTargets",
    "CorrectedTeacher",
    "CurriculumTemperature",
    "DecoupledSoftTargets",
    "DistillationLoss",
    "FeatureLoss",
    "HardTargets",
    "Hint",
    "LogitLoss",
    "LogitMatching",
    "NormalizedSoftTargets",
    "OneForAll",
    "SoftTargets",
    "TeacherFree",
    "WeightedSoftTargets",
]
