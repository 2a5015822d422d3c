"""Python runs this first, in the tests and in all processes that they start.

Keras imports scikit-learn and Matplotlib where they are installed, and that is
half of its import. Here it can't; everybody else can. To set a seed, it imports
TensorFlow: `HIDE_TENSORFLOW` is for processes that need none of it.
"""

import importlib.abc
import importlib.machinery
import os
import sys

HIDDEN = ("sklearn", "matplotlib")


class Missing(importlib.abc.Loader):
    """Of packages that aren't there."""

    def exec_module(self, module):
        name = module.__name__
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class HiddenFromKeras(importlib.abc.MetaPathFinder):
    """Hides packages as long as Keras isn't imported whole."""

    def find_spec(self, name, path, target=None):
        keras = sys.modules.get("keras")
        starts = keras and "Model" not in vars(keras)
        without = name == "tensorflow" and "HIDE_TENSORFLOW" in os.environ
        if without or (starts and name in HIDDEN):
            return importlib.machinery.ModuleSpec(name, Missing())
        return None


sys.meta_path.insert(0, HiddenFromKeras())
