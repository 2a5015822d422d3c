"""Images in files, or in columns of bytes, decoded when they are needed."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.data.examples import Examples

Array: TypeAlias = "np.ndarray[Any, Any]"

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}


class Images:
    """Images that are indexed like an array, and decoded then.

    Args:
        files: Paths, or files' contents.
        size: Height and width to resize to; None where all have the same.
        channels: 1, 3 or 4; None for that of the images, of which all have the
            same then.

    Raises:
        ValueError: If one is no image, or their sizes differ.
        ImportError: If Pillow isn't there.
    """

    dtype = np.dtype("uint8")

    def __init__(
        self,
        files: Sequence[pathlib.Path | bytes],
        size: tuple[int, int] | None = None,
        channels: int | None = None,
    ) -> None:
        self._files = files
        self._size = size
        found = [self._facts(number) for number in range(len(files))]
        height, width, own = found[0]
        for number, other in enumerate(found):
            if size is None and other[:2] != (height, width):
                raise ValueError(
                    "Images of a data set have one size. Received: "
                    f"{self._name(number)} of {other[0]}x{other[1]} and "
                    f"{self._name(0)} of {height}x{width}. Say what to resize "
                    "them to."
                )
            if channels is None and other[2] != own:
                raise ValueError(
                    "Images of a data set have as many channels. Received: "
                    f"{self._name(number)} with {other[2]} and "
                    f"{self._name(0)} with {own}. Say how many to read."
                )
        self._channels = own if channels is None else channels
        self.shape = (len(files), *(size or (height, width)), self._channels)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, numbers: Any) -> Array:
        """Decode some images, or one."""
        chosen = np.arange(len(self))[numbers]
        if chosen.ndim == 0:
            return self._decode(int(chosen))
        return np.stack([self._decode(n) for n in chosen])

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        """Decode all images."""
        array = self[:]
        return array if dtype is None else array.astype(dtype)

    def _open(self, number: int) -> Any:
        file = self._files[number]
        return io.BytesIO(file) if isinstance(file, bytes) else file

    def _name(self, number: int) -> str:
        file = self._files[number]
        return f"row {number}" if isinstance(file, bytes) else f"'{file}'"

    def _facts(self, number: int) -> tuple[int, int, int]:
        """Height, width and channels, from the image's header."""
        from PIL import Image

        try:
            with Image.open(self._open(number)) as image:
                self._check_depth(number, image.mode)
                bands = {"L": 1, "1": 1, "RGBA": 4}
                return image.height, image.width, bands.get(image.mode, 3)
        except _unreadable() as error:
            raise self._damaged(number, error) from error

    def _check_depth(self, number: int, mode: str) -> None:
        """Raise where a byte holds no value of the image."""
        if mode[0] in "IF":
            raise ValueError(
                "its pixels are of more than 8 bits, which would be cut off. "
                f"Received: mode='{mode}'. Convert it, or save arrays with "
                "np.savez"
            )

    def _decode(self, number: int) -> Array:
        try:
            image = keras.utils.load_img(
                self._path_or_file(number),
                color_mode=_MODES[self._channels],
                target_size=self._size,
                interpolation="bilinear",
            )
            # Pillow reads the pixels when somebody looks at them.
            array: Array = keras.utils.img_to_array(
                image, data_format="channels_last", dtype="uint8"
            )
        except _unreadable() as error:
            raise self._damaged(number, error) from error
        return array

    def _path_or_file(self, number: int) -> Any:
        opened = self._open(number)
        return str(opened) if isinstance(opened, pathlib.Path) else opened

    def _damaged(self, number: int, error: Exception) -> ValueError:
        return ValueError(
            f"An image can't be read. Received: {self._name(number)}, "
            f"{type(error).__name__}: {error}"
        )


def _unreadable() -> tuple[type[Exception], ...]:
    """What Pillow raises for a file that it can't read, or won't."""
    from PIL import Image

    return OSError, ValueError, SyntaxError, Image.DecompressionBombError


def load_folder(
    path: pathlib.Path, size: tuple[int, int] | None, channels: int | None
) -> Examples:
    """Images of a folder with a folder for each class, in order of names.

    Raises:
        ValueError: If there are none, or something else among them.
    """
    classes = []
    for entry in _visible(path):
        if entry.is_dir():
            classes.append(entry)
        elif entry.suffix.lower() in _SUFFIXES:
            raise ValueError(
                "A folder of images has a folder for each class. Received: "
                f"'{entry}', which is of no class."
            )
    files: list[pathlib.Path] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        inside = _visible(folder)
        for file in inside:
            _require_image(file)
        if not inside:
            raise ValueError(
                "A class has a folder of images. Received: "
                f"'{folder}' without files that end in {', '.join(_SUFFIXES)}."
            )
        files += inside
        labels += [label] * len(inside)
    if not files:
        raise ValueError(
            "A folder of images has a folder for each class. Received: "
            f"'{path}' without folders."
        )
    require_pillow()
    return Examples(
        Images(files, size, channels),
        np.array(labels),
        tuple(folder.name for folder in classes),
        str(path),
    )


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder, but what systems hide there."""
    return sorted(x for x in folder.iterdir() if not x.name.startswith("."))


def _require_image(file: pathlib.Path) -> None:
    """Raise where a class's folder holds something else."""
    if file.is_dir():
        raise ValueError(
            "A folder of images has a folder for each class, and images in "
            f"it. Received: '{file}', a folder in a class's. If it is a class "
            f"itself, pass '{file.parent}'."
        )
    if file.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"Images are files that end in {', '.join(_SUFFIXES)}. Received: "
            f"'{file}'. Convert it, or move it elsewhere."
        )


def require_pillow() -> None:
    """Raise where images can't be read.

    Raises:
        ImportError: If Pillow isn't there.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Images are read by Pillow. Received: no PIL. Run `pip install "
            "'keras-distill[data]'`."
        ) from error
