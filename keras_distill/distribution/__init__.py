"""Many devices: the same `fit` on the engines that Keras' backends have."""

from keras_distill.distribution.batches import (
    GlobalBatches as GlobalBatches,
)
from keras_distill.distribution.batches import (
    ShardedBatches as ShardedBatches,
)
from keras_distill.distribution.batches import batches as batches
from keras_distill.distribution.world import World as World
from keras_distill.distribution.world import initialize as initialize
from keras_distill.distribution.world import world as world
from keras_distill.local_devices import local as local

__all__ = [
    "GlobalBatches",
    "ShardedBatches",
    "World",
    "batches",
    "initialize",
    "local",
    "world",
]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
