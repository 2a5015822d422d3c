"""Augmented views that can be made again: each from its own seed."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.cache.fingerprints import function_fingerprint
from keras_distill.cache.transfer_set import TransferSet

Array: TypeAlias = "np.ndarray[Any, Any]"
Augment: TypeAlias = "keras.Layer | Callable[[Any, int], Any]"

_MIX = 2**32  # beyond the numbers of epochs, so that no seed is used twice


@dataclass(frozen=True)
class Mixing(ABC):
    """Blends an example with another one, its partner.

    Args:
        alpha: The share of the example is drawn from `Beta(alpha, alpha)`.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(
                "The share of an example is drawn from Beta(alpha, alpha), "
                f"which needs a positive number. Received: alpha={self.alpha}."
                " Pass 1.0 for any share alike, 0.2 for mostly one example."
            )

    @abstractmethod
    def mix(
        self, image: Array, partner: Array, random: np.random.Generator
    ) -> tuple[Array, float]:
        """The blend, and the share that `image` has in it."""


class MixUp(Mixing):
    """A weighted mean of two examples.

    Formula:
        `share * image + (1 - share) * partner`, with `share` drawn from
        `Beta(alpha, alpha)`; labels are blended alike.

    Args:
        alpha: Of the distribution.

    Raises:
        ValueError: If `alpha` isn't positive.

    Example:
        >>> import numpy as np
        >>> image, partner = np.ones((2, 2, 1)), np.zeros((2, 2, 1))
        >>> mixed, share = MixUp().mix(image, partner, np.random.default_rng(0))
        >>> bool(np.allclose(mixed, share))
        True

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """

    def mix(
        self, image: Array, partner: Array, random: np.random.Generator
    ) -> tuple[Array, float]:
        """The weighted mean."""
        share = float(random.beta(self.alpha, self.alpha))
        return share * image + (1 - share) * partner, share


class CutMix(Mixing):
    """A rectangle of an example is replaced by that of another.

    Formula:
        The rectangle has `sqrt(1 - share)` of the height and of the width,
        with `share` drawn from `Beta(alpha, alpha)` and a centre anywhere in
        the image. Labels are blended by the areas that remain.

    Args:
        alpha: Of the distribution.

    Shapes:
        Images `(height, width, channels)`.

    Raises:
        ValueError: If `alpha` isn't positive.

    Example:
        >>> import numpy as np
        >>> image, partner = np.ones((8, 8, 1)), np.zeros((8, 8, 1))
        >>> mixed, share = CutMix().mix(image, partner,
        ...                             np.random.default_rng(0))
        >>> bool(mixed.mean() == share)
        True

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong
        Classifiers with Localizable Features", ICCV 2019.
    """

    def mix(
        self, image: Array, partner: Array, random: np.random.Generator
    ) -> tuple[Array, float]:
        """The image with a rectangle of its partner."""
        height, width = image.shape[:2]
        side = np.sqrt(1 - random.beta(self.alpha, self.alpha))
        top, bottom = _span(height, side, random.integers(height))
        left, right = _span(width, side, random.integers(width))
        mixed = np.array(image)
        mixed[top:bottom, left:right] = partner[top:bottom, left:right]
        cut = (bottom - top) * (right - left)
        return mixed, 1 - cut / (height * width)


def _span(length: int, share: float, centre: int) -> tuple[int, int]:
    half = int(length * share) // 2
    return max(centre - half, 0), min(centre + half, length)


class Views:
    """Makes the view of an example in an epoch, the same whenever asked.

    A teacher that saw another crop than the student teaches something else:
    consistent views are what makes long distillation work (Beyer et al.). So
    the view that a stored output belongs to must be made again, and it is: it
    follows from `(seed, epoch, number of the example)` alone. No image and no
    seed is stored.

    Args:
        augment: A function of `(example, seed)` that returns the example's
            view, of the same shape for all, with no other source of chance
            than the seed, a whole number; or a Keras layer that augments
            images, or a `Sequential` of them. `None` for the example itself.
            A layer is called for one example at a time, which takes
            milliseconds; a function in NumPy takes microseconds. A layer's
            views differ between backends, and a function is known by its
            bytecode, which is that of a version of Python: both is noticed.
        epochs: How many views there are of each example. Longer training
            begins anew with the first.
        seed: A whole number.
        mix: `MixUp()`, `CutMix()`, or `None`. Labels become one-hot rows, for
            a loss that takes such (`HardLabels` does). The partner is drawn
            from all examples, and is the view of its own in that epoch.

    Raises:
        ValueError: If `epochs` is below 1.
        TypeError: If `augment` can't be called.

    Example:
        >>> import numpy as np
        >>> def flip(image, seed):
        ...     random = np.random.default_rng(seed)
        ...     return image[:, ::-1] if random.random() < 0.5 else image
        >>> views = Views(flip, epochs=3)
        >>> data = TransferSet(np.random.rand(10, 4, 4, 1))
        >>> once, again = [views.make(data, np.array([7, 2]), epoch=1)[0]
        ...                for _ in range(2)]
        >>> bool((once == again).all())
        True

    Reference:
        Beyer et al., "Knowledge distillation: A good teacher is patient and
        consistent", CVPR 2022.
    """

    def __init__(
        self,
        augment: Augment | None = None,
        epochs: int = 1,
        seed: int = 0,
        mix: Mixing | None = None,
    ) -> None:
        if not isinstance(epochs, int) or epochs < 1:
            raise ValueError(
                "There is at least one view of each example. Received: "
                f"epochs={epochs!r}. Pass a whole number from 1 upwards."
            )
        if augment is not None and not callable(augment):
            raise TypeError(
                "Views are made by a Keras layer or by a function of (example, "
                f"seed). Received: augment={augment!r}."
            )
        if mix is not None and not isinstance(mix, Mixing):
            raise TypeError(
                "Examples are mixed by MixUp() or CutMix(). Received: "
                f"mix={mix!r}. Pass kd.cache.MixUp()."
            )
        self.augment = augment
        self.epochs = epochs
        self.seed = seed
        self.mix = mix
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For another process."""
        return {k: v for k, v in vars(self).items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def make(
        self, data: TransferSet, ids: Array, epoch: int
    ) -> tuple[Any, Array | None, Array | None]:
        """Views of some examples in an epoch.

        Returns:
            The views; and, if examples are mixed, the partners' numbers and
            the share of each example itself, else `None` twice.
        """
        if self.mix is None:
            return self._plain(data, ids, epoch), None, None
        partners = self._seeds(ids, epoch + _MIX) % np.uint64(data.size)
        partners = partners.astype(np.int64)
        images = self._plain(data, ids, epoch)
        others = self._plain(data, partners, epoch)
        if keras.tree.is_nested(images):
            raise ValueError(
                "Examples of several arrays can't be mixed. Received: inputs "
                f"of {len(keras.tree.flatten(images))} arrays. Pass mix=None."
            )
        seeds = self._seeds(ids, epoch + 2 * _MIX)
        mixed = [
            self.mix.mix(image, other, np.random.default_rng(int(seed)))
            for image, other, seed in zip(images, others, seeds, strict=True)
        ]
        pictures, shares = zip(*mixed, strict=True)
        stacked = np.stack(pictures)
        if images.dtype.kind in "iu":
            stacked = np.rint(stacked)
        return (
            stacked.astype(images.dtype),
            partners,
            np.array(shares, np.float32),
        )

    def _plain(self, data: TransferSet, ids: Array, epoch: int) -> Any:
        examples = data.inputs(ids)
        augment = self.augment
        if augment is None:
            return examples
        seeds = self._seeds(ids, epoch)
        views = [
            self._view(augment, _row(examples, i), int(seed))
            for i, seed in enumerate(seeds)
        ]
        return keras.tree.map_structure(lambda *rows: np.stack(rows), *views)

    def _view(self, augment: Augment, example: Any, seed: int) -> Any:
        if not isinstance(augment, keras.Layer):
            return augment(example, seed)
        batch = keras.tree.map_structure(lambda a: a[None], example)
        with self._lock, _seeded(augment, seed):
            view = augment(batch, training=True)
        return keras.tree.map_structure(
            lambda a: keras.ops.convert_to_numpy(a)[0], view
        )

    def _seeds(self, ids: Array, epoch: int) -> Array:
        """A number of 63 bits for each example, as if at random."""
        state = _scrambled(np.uint64(self.seed % 2**64))
        state = _scrambled(state ^ np.uint64(epoch))
        seeds: Array = _scrambled(state ^ ids.astype(np.uint64)) >> np.uint64(1)
        return seeds

    def facts(self, data: TransferSet) -> dict[str, Any]:
        """What tells these views from others, with a sample of them."""
        mixing = None
        if self.mix is not None:
            mixing = {"kind": type(self.mix).__name__, **asdict(self.mix)}
        once, again = self.sample(data), self.sample(data)
        if once != again:
            raise ValueError(
                "These views can't be made again: made twice from the same "
                f"seeds, they differ. Received: augment={self.augment!r}. Let "
                "the seed be the only source of chance; some layers of Keras "
                "have another."
            )
        return {
            "augment": function_fingerprint(self.augment),
            "epochs": self.epochs,
            "seed": self.seed,
            "mix": mixing,
            "sample": once,
        }

    def sample(self, data: TransferSet) -> list[float]:
        """A few numbers of a few views, to see whether they are the same."""
        count = 8 if isinstance(self.augment, keras.Layer) else 64
        ids = np.unique(np.linspace(0, data.size - 1, count).astype(np.int64))
        views = keras.tree.flatten(self.make(data, ids, self.epochs - 1)[0])
        numbers = np.concatenate(
            [_spread(view.astype(np.float64)) for view in views]
        )
        return [float(number) for number in numbers]


def _spread(view: Array) -> Array:
    flat = view.reshape(-1)
    return np.asarray(flat[np.linspace(0, len(flat) - 1, 64).astype(np.int64)])


def _row(structure: Any, i: int) -> Any:
    return keras.tree.map_structure(lambda a: a[i], structure)


def _scrambled(value: Any) -> Any:
    """The finaliser of splitmix64: each bit of the input changes half of all.

    Reference: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
    Generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(
            0xBF58476D1CE4E5B9
        )
        value = (value ^ (value >> np.uint64(27))) * np.uint64(
            0x94D049BB133111EB
        )
        return value ^ (value >> np.uint64(31))


@contextmanager
def _seeded(layer: keras.Layer, seed: int) -> Iterator[None]:
    """Let all that a layer draws at random follow from a number, for once."""
    weights = {id(weight) for weight in layer.weights}
    states = [v for v in layer.variables if id(v) not in weights]
    before = [keras.ops.convert_to_numpy(state.value) for state in states]
    for i, state in enumerate(states):
        words = np.random.SeedSequence([seed, i]).generate_state(2)
        state.assign(words.astype(before[i].dtype))
    try:
        yield
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)
