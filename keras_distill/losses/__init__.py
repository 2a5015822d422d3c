"""Losses between a teacher and a student."""

from keras_distill.losses.base import DistillationLoss as DistillationLoss
from keras_distill.losses.base import LogitLoss as LogitLoss
from keras_distill.losses.hint import Hint as Hint
from keras_distill.losses.logit_matching import LogitMatching as LogitMatching
from keras_distill.losses.soft_targets import (
    BinarySoftTargets as BinarySoftTargets,
)
from keras_distill.losses.soft_targets import SoftTargets as SoftTargets

__all__ = [
    "BinarySoftTargets",
    "DistillationLoss",
    "Hint",
    "LogitLoss",
    "LogitMatching",
    "SoftTargets",
]
