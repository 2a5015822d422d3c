"""The command `keras-distill`: the public functions, for a shell."""

from keras_distill.cli.program import main as main

__all__ = ["main"]
