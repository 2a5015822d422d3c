"""Test examples as small images."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from keras_distill.reports.facts import Picture

Array = np.ndarray[Any, Any]

# Larger images lose rows and columns.
_LARGEST = 64
_CHANNELS = (1, 3)


def pictures_of(x: Any, indices: Array) -> list[Picture | None]:
    """Images of some examples; None for inputs that are none.

    Images are one array `(examples, height, width, channels)` with 1 or 3
    channels, or with the channels first. Black is the smallest value of all
    examples, and white the largest.
    """
    if not isinstance(x, np.ndarray) or x.ndim != 4:
        return [None] * len(indices)
    if x.shape[-1] not in _CHANNELS and x.shape[1] in _CHANNELS:
        x = np.moveaxis(x, 1, -1)
    if x.shape[-1] not in _CHANNELS:
        return [None] * len(indices)
    low, high = float(x.min()), float(x.max())
    step = -(-max(x.shape[1:3]) // _LARGEST)
    chosen = x[indices, ::step, ::step].astype("float64")
    scaled = 255 * (chosen - low) / ((high - low) or 1.0)
    return [_picture(image) for image in scaled.round().astype("uint8")]


def _picture(image: Array) -> Picture:
    height, width, channels = image.shape
    pixels = base64.b64encode(image.tobytes()).decode()
    return Picture((height, width, channels), pixels)


def png(picture: Picture) -> str:
    """The image as a PNG file in base64."""
    from matplotlib.image import imsave

    pixels = np.frombuffer(base64.b64decode(picture.pixels), "uint8")
    image = pixels.reshape(picture.shape)
    file = io.BytesIO()
    # matplotlib wants three channels, or none, which it would colour.
    imsave(file, np.broadcast_to(image, (*image.shape[:2], 3)), format="png")
    return base64.b64encode(file.getvalue()).decode()
