"""Knowledge distillation for Keras 3, from teacher to device."""

from keras_distill import losses as losses
from keras_distill.distiller import Distiller as Distiller
from keras_distill.features import TransferBatch as TransferBatch
from keras_distill.hard_labels import HardLabelAccuracy as HardLabelAccuracy
from keras_distill.hard_labels import HardLabels as HardLabels

__all__ = [
    "Distiller",
    "HardLabelAccuracy",
    "HardLabels",
    "TransferBatch",
    "losses",
]
