"""Students made from their teachers, and what a model costs."""

from keras_distill.shrinking.shrink import shrink as shrink

__all__ = ["shrink"]
