"""A teacher's stored outputs, joined to batches of a pipeline of its own."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_distill.features import TransferBatch

if TYPE_CHECKING:
    from keras_distill.cache.teacher_cache import TeacherCache

Read: Any = Callable[[Any], TransferBatch]


def attach(cache: TeacherCache, data: Any, read: Any) -> Any:
    """Something like `data`, whose batches hold what the teacher said."""
    for module, kind, join in (
        ("tensorflow", "data.Dataset", _to_tf_dataset),
        ("torch", "utils.data.DataLoader", _to_loader),
        ("grain", "MapDataset", _to_grain),
        ("grain", "IterDataset", _to_grain),
    ):
        if _is_a(data, module, kind):
            return join(cache, data, read)
    if isinstance(data, keras.utils.PyDataset):
        return _Attached(data, read)
    raise TypeError(
        "Stored outputs can be joined to pipelines of four kinds. Received: "
        f"{data!r} of type {type(data).__name__}. Pass a tf.data.Dataset, a "
        "torch DataLoader, a Grain MapDataset or IterDataset, or a "
        "keras.utils.PyDataset; for arrays, use cache.batches."
    )


def joined(batch: Any, read: Any) -> tuple[Any, ...]:
    """A batch, of which the ids are replaced by what is stored for them."""
    first, *rest = batch if type(batch) in (tuple, list) else (batch,)
    if not isinstance(first, TransferBatch) or _has_no(first.sample_ids):
        raise TypeError(
            "A pipeline must say which examples its batches hold. Received: "
            f"batches whose first part is a {type(first).__name__}"
            f"{' without sample_ids' * isinstance(first, TransferBatch)}. "
            "Let it yield (TransferBatch(inputs, sample_ids=ids), labels)."
        )
    said = read(first.sample_ids)
    return (said._replace(inputs=first.inputs), *rest)


def _has_no(ids: Any) -> bool:
    return isinstance(ids, dict)


def _is_a(data: Any, module: str, kind: str) -> bool:
    """Whether it is of a library's class; who has one has imported it."""
    found = sys.modules.get(module)
    if found is None:
        return False
    return isinstance(data, operator.attrgetter(kind)(found))


class _Attached(keras.utils.PyDataset):  # type: ignore[misc]
    """A PyDataset with the teacher's outputs."""

    def __init__(self, data: Any, read: Any) -> None:
        super().__init__(
            workers=data.workers,
            use_multiprocessing=data.use_multiprocessing,
            max_queue_size=data.max_queue_size,
        )
        self.data = data
        self.read = read

    @property
    def num_batches(self) -> int | None:
        batches: int | None = self.data.num_batches
        return batches

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return joined(self.data[index], self.read)

    def on_epoch_begin(self) -> None:
        self.data.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.data.on_epoch_end()


class _Join:
    """`joined`, for a worker process."""

    def __init__(self, read: Any) -> None:
        self.read = read

    def __call__(self, batch: Any) -> tuple[Any, ...]:
        return joined(batch, self.read)


class _Collate(_Join):
    """Puts examples together as before, and what is stored for them as well.

    In tensors of PyTorch, of which alone Keras expects a loader's batches.
    """

    def __init__(self, read: Any, before: Any) -> None:
        super().__init__(read)
        self.before = before

    def __call__(self, examples: Any) -> tuple[Any, ...]:
        torch = importlib.import_module("torch")
        batch: tuple[Any, ...] = keras.tree.map_structure(
            torch.as_tensor, super().__call__(self.before(examples))
        )
        return batch


def _to_grain(cache: TeacherCache, data: Any, read: Any) -> Any:
    return data.map(_Join(read))


def _to_loader(cache: TeacherCache, data: Any, read: Any) -> Any:
    torch_data = importlib.import_module("torch.utils.data")
    options: dict[str, Any] = {
        "num_workers": data.num_workers,
        "pin_memory": data.pin_memory,
        "timeout": data.timeout,
        "worker_init_fn": data.worker_init_fn,
        "multiprocessing_context": data.multiprocessing_context,
        "generator": data.generator,
        "persistent_workers": data.persistent_workers,
        "prefetch_factor": data.prefetch_factor,
        "collate_fn": _Collate(read, data.collate_fn),
    }
    if isinstance(data.dataset, torch_data.IterableDataset):
        options["batch_size"] = data.batch_size
        options["drop_last"] = data.drop_last
    elif data.batch_sampler is not None:
        options["batch_sampler"] = data.batch_sampler
    else:
        options["batch_size"] = None
        options["sampler"] = data.sampler
    return torch_data.DataLoader(data.dataset, **options)


def _to_tf_dataset(cache: TeacherCache, data: Any, read: Any) -> Any:
    tf = sys.modules["tensorflow"]
    like = read(np.zeros(1, np.int64))
    # Without the inputs, of which it has none.
    outputs, features = like.teacher_output, like.teacher_features
    leaves = keras.tree.flatten((outputs, features))
    types = [tf.as_dtype(leaf.dtype) for leaf in leaves]

    def look_up(ids: Any) -> list[Any]:
        said = read(ids)
        return list(
            keras.tree.flatten((said.teacher_output, said.teacher_features))
        )

    def join(*batch: Any) -> tuple[Any, ...]:
        def said(ids: Any) -> TransferBatch:
            found = tf.numpy_function(look_up, [ids], types, stateful=False)
            for tensor, leaf in zip(found, leaves, strict=True):
                tensor.set_shape((ids.shape[0], *leaf.shape[1:]))
            output, by_layer = keras.tree.pack_sequence_as(
                (outputs, features), found
            )
            return TransferBatch({}, output, by_layer, ids)

        return joined(batch, said)

    return data.map(join, num_parallel_calls=tf.data.AUTOTUNE)
