"""What a teacher says, stored once and replayed to any number of students."""

from keras_distill.cache.batches import CachedBatches as CachedBatches
from keras_distill.cache.labelling import Labelling as Labelling
from keras_distill.cache.plan import DamagedCacheError as DamagedCacheError
from keras_distill.cache.plan import StaleCacheError as StaleCacheError
from keras_distill.cache.ray_engine import label_on_ray as label_on_ray
from keras_distill.cache.teacher_cache import TeacherCache as TeacherCache
from keras_distill.cache.transfer_set import TransferSet as TransferSet
from keras_distill.cache.views import CutMix as CutMix
from keras_distill.cache.views import MixUp as MixUp
from keras_distill.cache.views import Views as Views

__all__ = [
    "CachedBatches",
    "CutMix",
    "DamagedCacheError",
    "Labelling",
    "MixUp",
    "StaleCacheError",
    "TeacherCache",
    "TransferSet",
    "Views",
    "label_on_ray",
]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
