"""Examples from files, folders and public data sets."""

from keras_distill.data.examples import Examples as Examples
from keras_distill.data.loading import load_data as load_data

__all__ = ["Examples", "load_data"]


def __dir__() -> list[str]:
    # Without the modules, which are nobody's to import.
    return __all__
