"""Students made from their teachers, and what a model costs."""

from keras_distill.shrinking.costs import ModelCost as ModelCost
from keras_distill.shrinking.costs import model_cost as model_cost
from keras_distill.shrinking.shrink import shrink as shrink

__all__ = ["ModelCost", "model_cost", "shrink"]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
