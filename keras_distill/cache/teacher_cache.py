"""The front of the cache: write, open, check, read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.cache.attach import attach
from keras_distill.cache.batches import CachedBatches
from keras_distill.cache.fingerprints import arrays_digest
from keras_distill.cache.folders import MARKER, Folder, as_folder
from keras_distill.cache.labelling import Labelling
from keras_distill.cache.plan import (
    DIFFERENT,
    DamagedCacheError,
    Plan,
    StaleCacheError,
    as_plan,
    check_shard,
    from_bytes,
    rebuild,
    said,
    shard_name,
    to_bytes,
)
from keras_distill.cache.reader import Reader
from keras_distill.cache.sources import ArraySource, Batches, as_source
from keras_distill.cache.storage import Sampled, TopK
from keras_distill.cache.transfer_set import TransferSet, as_transfer_set
from keras_distill.cache.views import Views
from keras_distill.features import StoredTeacher, TransferBatch
from keras_distill.teachers import as_teacher

Array: TypeAlias = "np.ndarray[Any, Any]"


class TeacherCache:
    """What a teacher says about each example of a transfer set, on disk.

    The teacher runs once over the transfer set. Training the student then
    costs what it costs without a teacher, in any number of epochs and
    experiments, at any temperature. Make one with `write`, or `open` one.

    Storage, for outputs of `C` classes, in bytes for each example:

    - `"float32"`, `"float16"`, `"bfloat16"`: `4 C` and `2 C`.
    - `"uint8"`: `C + 8`; 256 steps between a row's smallest and largest.
    - `"top-10"`: 64, or 84 above 65,536 classes: the greatest logits, and the
      weight of all others at any temperature from 1 upwards. A batch holds
      `losses.SparseTargets`, for `losses.SparseSoftTargets`.
    - `"sampled-50"`, `"sampled-50@2.0"`: 100, or 200: classes drawn from the
      softmax at a temperature. A batch holds `losses.SampledTargets`, for
      `losses.SampledSoftTargets` of that temperature.

    Hidden layers are stored densely, in float16 beside the last two.

    The folder holds `plan.json`, which says what the content follows from;
    `shards/`, a folder for each shard with a `.npy` file for each of the
    teacher's tensors; and, once all is there, `manifest.json` with the
    checksums. No file is ever changed. Nothing in it is run when it is read.

    Example:
        >>> import tempfile, keras, numpy as np, keras_distill as kd
        >>> teacher = keras.Sequential([keras.Input((4,)),
        ...                             keras.layers.Dense(3)])
        >>> x, y = np.random.rand(10, 4), np.arange(10) % 3
        >>> cache = kd.TeacherCache.write(
        ...     tempfile.mkdtemp(), teacher, (x, y), verbose=0)
        >>> student = keras.Sequential([keras.Input((4,)),
        ...                             keras.layers.Dense(3)])
        >>> distiller = kd.Distiller(None, student)
        >>> history = distiller.fit(cache.batches(5, shuffle=True), epochs=2,
        ...                         verbose=0)
        >>> cache.verify((x, y))

    Reference:
        Shen and Xing, "A Fast Knowledge Distillation Framework for Visual
        Recognition", ECCV 2022; Wu et al., "TinyViT: Fast Pretraining
        Distillation for Small Vision Transformers", ECCV 2022.
    """

    def __init__(
        self, folder: Folder, facts: dict[str, Any], data: Any, views: Any
    ) -> None:
        self.folder = folder
        self.plan: Plan = as_plan(facts.get("plan"), "manifest.json")
        shards = facts.get("shards")
        if self.plan.size is None or not isinstance(shards, list):
            raise _damaged("manifest.json")
        if len(shards) != self.plan.shards:
            raise _damaged("manifest.json")
        for shard, entry in enumerate(shards):
            check_shard(self.plan, shard, entry)
        self._shards = shards
        self._reader = Reader(folder, self.plan)
        self._data: TransferSet | None = data
        self._views: Views | None = views

    @classmethod
    def write(
        cls,
        folder: Any,
        teacher: Any,
        transfer_set: Any,
        layers: Sequence[str] = (),
        storage: Any = "float16",
        views: Views | None = None,
        teacher_inputs: Callable[[Any], Any] | None = None,
        *,
        probabilities: str = "auto",
        batch_size: int = 256,
        shard_rows: int | None = None,
        runtime: str = "keras",
        verbose: str | int = "auto",
    ) -> TeacherCache:
        """Let the teacher speak, and store what it says.

        Interrupted, the same call goes on where it was: finished shards are
        kept. Finished, it opens the cache, after a look at whether it is of
        this teacher and this transfer set.

        Args:
            folder: Where the cache is to be: a path, or a URL that fsspec
                knows, such as `"s3://bucket/cache"`.
            teacher: A Keras model, or whatever `teachers.as_teacher` takes.
            transfer_set: Arrays; a tuple `(inputs, labels)` or `(inputs,
                labels, sample_weight)` of them; or what gives batches in the
                same order each time, such as a `tf.data.Dataset`.
            layers: Names of hidden layers of the teacher to store too.
            storage: See above.
            views: `Views` to store outputs for, instead of for the examples
                themselves.
            teacher_inputs: A function or layer that makes the teacher's
                inputs from the transfer set's, as for a `Distiller`.
            probabilities: `"softmax"` or `"sigmoid"` if the teacher ends in
                one, `"none"` if it gives logits. `"auto"` finds out, or
                raises.
            batch_size: How many examples the teacher sees at a time.
            shard_rows: Records of a shard, a multiple of `batch_size`: what
                is lost, at most, when it is interrupted.
            runtime: `"keras"`, `"auto"` or another of
                `teachers.as_teacher`: what runs a Keras model.
            verbose: 0 for no progress bar.

        Returns:
            The cache.

        Raises:
            StaleCacheError: If the folder holds a cache of something else.
            DamagedCacheError: If its files aren't what was written.
            ValueError: If the teacher gives NaN or infinity, numbers that the
                storage can't hold, or another shape for some examples.
        """
        job = Labelling(
            folder,
            teacher,
            transfer_set,
            layers,
            storage,
            views,
            teacher_inputs,
            probabilities=probabilities,
            batch_size=batch_size,
            shard_rows=shard_rows,
            runtime=runtime,
        )
        try:
            if job.folder.read("manifest.json") is None:
                job.run(verbose=verbose)
                job.finish()
        finally:
            job.close()
        data = job.source.data if isinstance(job.source, ArraySource) else None
        return cls._opened(job.folder, data, views)

    @classmethod
    def open(
        cls,
        folder: Any,
        transfer_set: Any = None,
        teacher: Any = None,
        views: Views | None = None,
        copy: Any = None,
    ) -> TeacherCache:
        """Open a cache that is complete, after a look at whether it fits.

        Checks the manifest, all files' sizes, and the fingerprints of what is
        passed. `verify` reads all of it.

        Args:
            folder: A path, or a URL that fsspec knows.
            transfer_set: As for `write`, for `batches`; not needed for
                `attach` and `read`.
            teacher: To make sure that it is of this teacher; it doesn't run.
            views: The `Views` that it was written with, for `batches`.
            copy: For a URL: a folder of this machine to keep copies in.

        Raises:
            FileNotFoundError: If there is no cache, or it isn't complete.
            DamagedCacheError: If a file is missing or of another size.
            StaleCacheError: If it is of another teacher, transfer set or
                other views.
        """
        where = as_folder(folder, copy)
        data = None
        if transfer_set is not None:
            data = as_transfer_set(transfer_set)
            if data is None:
                raise TypeError(
                    "Batches are made of examples that can be had by number. "
                    f"Received: data of type {type(transfer_set).__name__}. "
                    "Open without data, and join it with cache.attach."
                )
        cache = cls._opened(where, data, views)
        if teacher is not None:
            cache._check_teacher(teacher)
        return cache

    @classmethod
    def _opened(cls, folder: Folder, data: Any, views: Any) -> TeacherCache:
        manifest = folder.read("manifest.json")
        if manifest is None:
            raise FileNotFoundError(_not_there(folder))
        facts = from_bytes(manifest, "manifest.json")
        cache = cls(folder, facts, data, views)
        cache._check_sizes()
        if data is not None:
            cache._check_data(data)
            cache._check_views(data, views)
        return cache

    @property
    def size(self) -> int:
        """How many examples there are."""
        return self.plan.size or 0

    @property
    def layers(self) -> list[str]:
        """The hidden layers that are stored."""
        return [f.layer for f in self.plan.fields if f.layer is not None]

    @property
    def teacher(self) -> StoredTeacher:
        """What a `Distiller` needs to know of the teacher.

        With it, projectors can be made, and losses that don't fit the stored
        outputs are refused at once.
        """
        tensors = [
            keras.KerasTensor((None, *field.shape))
            for field in self.plan.fields
        ]
        pairs = zip(self.plan.fields, tensors, strict=True)
        features = {f.layer: t for f, t in pairs if f.layer is not None}
        few = isinstance(self.plan.fields[0].stored, (Sampled, TopK))
        return StoredTeacher(
            rebuild(self.plan.output, tensors),
            features,
            None if few else self.plan.probabilities,
        )

    def __repr__(self) -> str:
        """What it is, in a line."""
        plan = self.plan
        names = ", ".join(f.layer or "output" for f in plan.fields)
        return (
            f"TeacherCache({self.size} examples, {plan.epochs} view(s) each, "
            f"{names} as {plan.fields[0].storage}, {plan.shards} shards)"
        )

    def batches(
        self,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        temperature: float | None = None,
        as_logits: bool | None = None,
        workers: int = 1,
    ) -> CachedBatches:
        """A data set for `fit`: `(TransferBatch, labels, sample_weight)`.

        Args:
            batch_size: Examples in a batch; the last one of an epoch has what
                is left.
            shuffle: Whether each epoch has an order of its own. `fit` then
                takes no `steps_per_epoch`: an epoch is once through all of
                them.
            seed: What the orders follow from.
            epoch: The first epoch, to go on with an interrupted training:
                what `fit` gets as `initial_epoch`.
            temperature: That of the loss, where few classes are stored;
                nothing else takes one.
            as_logits: For a teacher that ends in a softmax or in sigmoids:
                False for what the teacher returns, which
                `Distiller(cache.teacher, student)` expects, and a distiller
                that holds the teacher; True for logits, which
                `Distiller(None, student)` expects.
            workers: As in `keras.utils.PyDataset`.

        Raises:
            ValueError: If there is no data to make batches of, or a choice is
                missing.
        """
        if self._data is None:
            raise ValueError(
                "The cache holds what the teacher said, not the examples. "
                "Received: a cache opened without a transfer set. Open it "
                "with TeacherCache.open(folder, (inputs, labels)), or join it "
                "to a pipeline with cache.attach."
            )
        self._temperature(temperature)  # is checked now
        return CachedBatches(
            self,
            self._data,
            self._views,
            batch_size,
            shuffle,
            seed,
            epoch,
            temperature,
            self._logits_wanted(as_logits),
            workers,
        )

    def attach(
        self,
        data: Any,
        epoch: int = 0,
        temperature: float | None = None,
        as_logits: bool | None = None,
    ) -> Any:
        """Join a pipeline that says which examples its batches hold.

        Args:
            data: A `tf.data.Dataset`, torch `DataLoader`, Grain `MapDataset`
                or `IterDataset`, or `keras.utils.PyDataset`, whose batches
                begin with `TransferBatch(inputs, sample_ids=ids)`.
            epoch: Which of the stored views the pipeline gives.
            temperature: As in `batches`.
            as_logits: As in `batches`.

        Returns:
            The same kind of pipeline, for `fit`. Ids that the cache has no
            records of raise an error when they come.

        Raises:
            TypeError: If it is another kind of pipeline.
        """
        self._temperature(temperature)  # is checked now
        read = partial(
            self.read,
            epoch=epoch,
            temperature=temperature,
            as_logits=self._logits_wanted(as_logits),
        )
        return attach(self, data, read)

    def read(
        self,
        sample_ids: Any,
        epoch: int = 0,
        temperature: float | None = None,
        as_logits: bool | None = None,
    ) -> TransferBatch:
        """What the teacher said about some examples, without their inputs.

        Args:
            sample_ids: Integers `(batch,)`, from 0.
            epoch: Of the views; it begins anew after the last that is stored.
            temperature: As in `batches`.
            as_logits: As in `batches`.

        Raises:
            ValueError: If the cache has no records of an id.
        """
        ids = _as_ids(sample_ids, self.size)
        rows = (epoch % self.plan.epochs) * self.size + ids
        wanted = self._temperature(temperature)
        keep = self._logits_wanted(as_logits)
        leaves, features = [], {}
        for field in self.plan.fields:
            records = self._reader.read(field, rows)
            values = field.stored.decode(records, field.shape, wanted)
            if field.layer is not None:
                features[field.layer] = values
            elif keep:
                leaves.append(values)
            else:
                leaves.append(_probabilities(values, self.plan.probabilities))
        output = rebuild(self.plan.output, leaves)
        return TransferBatch({}, output, features, ids.astype(np.int32))

    def verify(self, transfer_set: Any = None) -> None:
        """Read every byte, and compare it with the checksums.

        Args:
            transfer_set: To read it too, and to make sure that the cache is
                of these inputs, in this order.

        Raises:
            DamagedCacheError: If a file isn't what was written; it is named.
            StaleCacheError: If the inputs are others.
        """
        plan = self.folder.read("plan.json") or b""
        said = as_plan(from_bytes(plan, "plan.json"), "plan.json")
        if replace(said, size=self.plan.size) != self.plan:
            raise DamagedCacheError(
                "'plan.json' isn't the plan of this manifest. Received: "
                "another plan. Label anew, into an empty folder."
            )
        sizes = self.folder.sizes()
        for shard, facts in enumerate(self._shards):
            self._verify_shard(shard, facts, sizes)
        if transfer_set is not None:
            self._verify_inputs(transfer_set)

    def _verify_shard(
        self, shard: int, facts: dict[str, Any], sizes: dict[str, int]
    ) -> None:
        name = f"{shard_name(shard)}/{MARKER}"
        if self.folder.read(name) != to_bytes(facts):
            raise _damaged(name)
        for file, expected in facts["files"].items():
            name = f"{shard_name(shard)}/{file}"
            if sizes.get(name) != expected["bytes"]:
                raise _damaged(name)
            data = self.folder.read(name) or b""
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise _damaged(name)

    def _verify_inputs(self, transfer_set: Any) -> None:
        if self.plan.views is not None and self._views is None:
            raise ValueError(
                "The cache is of augmented views, which have to be made again. "
                "Received: a cache opened without views. Pass views= to "
                "TeacherCache.open."
            )
        source = as_source(transfer_set, self._views)
        if source.size not in (None, self.size):
            raise StaleCacheError(
                f"The transfer set has {source.size} examples. Received: a "
                f"cache of {self.size}. Pass the one that was labelled."
            )
        seen = 0
        for shard, batches in source.shards(self.plan):
            seen += 1
            if not self._is_labelled(shard, batches):
                raise StaleCacheError(
                    "The transfer set isn't the one that was labelled, or in "
                    f"another order. Received: other inputs in shard {shard}. "
                    "Pass the inputs that the teacher saw, or label anew."
                )
        if seen != self.plan.shards:
            raise StaleCacheError(
                "The transfer set is shorter than the one that was labelled. "
                f"Received: {seen} shards of inputs for {self.plan.shards}."
            )

    def _check_sizes(self) -> None:
        found = self.folder.sizes()
        for shard, facts in enumerate(self._shards):
            # Shards that have changed places are of the same sizes.
            name = f"{shard_name(shard)}/{MARKER}"
            if name in found and self.folder.read(name) != to_bytes(facts):
                raise _damaged(name)
            for file, expected in facts["files"].items():
                name = f"{shard_name(shard)}/{file}"
                if found.get(name) != expected["bytes"]:
                    raise DamagedCacheError(
                        f"A file of the cache is missing or cut off. Received: "
                        f"'{name}' of {found.get(name, 0)} bytes where there "
                        f"were {expected['bytes']}. Remove 'manifest.json' and "
                        f"'{shard_name(shard)}', and write again: what is "
                        "missing is labelled."
                    )

    def _check_teacher(self, teacher: Any) -> None:
        with as_teacher(teacher, layers=tuple(self.layers)) as labeller:
            self._same("teacher", labeller.fingerprint)

    def _check_data(self, data: TransferSet) -> None:
        if "size" in self.plan.transfer_set:
            self._same("transfer_set", data.fingerprint)
            return
        # It was labelled as a stream, of which no more is known beforehand.
        source = ArraySource(data, None)
        _, batches = next(source.shards(self.plan))
        same = data.size == self.size and self._is_labelled(0, batches)
        if not same:
            raise StaleCacheError(
                "The cache is of another transfer set. Received: "
                f"{data.size} examples, or others than were labelled as the "
                f"first ones; the cache has {self.size}. Pass the inputs in "
                "the stream's order, or label anew."
            )

    def _is_labelled(self, shard: int, batches: Batches) -> bool:
        """Whether these inputs are those of a shard."""
        digest = hashlib.sha256()
        for inputs in batches:
            digest.update(arrays_digest(inputs).encode())
        known = shard < self.plan.shards
        return known and digest.hexdigest() == self._shards[shard]["inputs"]

    def _check_views(self, data: TransferSet, views: Views | None) -> None:
        stored = self.plan.views
        if (views is None) != (stored is None):
            raise StaleCacheError(
                "The cache is of augmented views, which have to be made again. "
                "Received: views=None. Pass the `Views` that it was written "
                "with."
                if views is None
                else "The cache is of the examples themselves. Received: views."
            )
        if views is None or stored is None:
            return
        mine = views.facts(data)
        told = {k: v for k, v in stored.items() if k != "sample"}
        self._same("views", {k: mine[k] for k in told}, told)
        scale = max(map(abs, stored["sample"]), default=1.0)
        if not np.allclose(
            mine["sample"], stored["sample"], rtol=0, atol=1e-4 * scale
        ):
            raise StaleCacheError(
                "The views aren't those that the teacher saw. Received: views "
                "of the same description but with other values, as those of a "
                "Keras layer have on another backend (stored on "
                f"{self.plan.versions['backend']}, here "
                f"{keras.backend.backend()}), or of a function with another "
                "source of chance than its seed. Use the same backend, or a "
                "NumPy function of (example, seed)."
            )

    def _same(self, what: str, mine: Any, stored: Any = None) -> None:
        expected = self.plan.facts()[what] if stored is None else stored
        if mine != expected:
            raise StaleCacheError(
                f"The cache is of {DIFFERENT[what]}. Received: "
                f"{said(what, mine)}, stored is {said(what, expected)}. Pass "
                "what it was written with, or label anew."
            )

    def _temperature(self, temperature: float | None) -> float:
        if temperature is not None:
            self.plan.fields[0].stored.check_temperature(temperature)
            return float(temperature)
        if self._holds_few_classes:
            raise ValueError(
                "Targets of few classes are for one temperature. Received: "
                f"temperature=None, storage='{self.plan.fields[0].storage}'. "
                "Pass temperature=..., that of the loss."
            )
        return 1.0

    @property
    def _holds_few_classes(self) -> bool:
        return isinstance(self.plan.fields[0].stored, (Sampled, TopK))

    def _logits_wanted(self, as_logits: bool | None) -> bool:
        activation = self.plan.probabilities
        if activation is None or self._holds_few_classes:
            return True
        if as_logits is None:
            raise ValueError(
                f"The teacher ends in a {activation}, and there are two ways "
                "to distil from it. Received: as_logits=None. Pass False for "
                "Distiller(cache.teacher, student), or one that holds the "
                "teacher; True for Distiller(None, student)."
            )
        return as_logits


def _as_ids(sample_ids: Any, size: int) -> Array:
    ids = np.asarray(sample_ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            "Examples are known by whole numbers, one each. Received: "
            f"sample_ids of shape {ids.shape} and dtype {ids.dtype}. Pass "
            "integers of shape (batch,)."
        )
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(
            f"The cache knows examples 0 to {size - 1}. Received: sample_ids "
            f"from {ids.min()} to {ids.max()}. Number the examples in the "
            "order in which they were labelled."
        )
    return ids.astype(np.int64)


def _probabilities(logits: Array, activation: str | None) -> Array:
    if activation is None:
        return logits
    logits = logits.astype(np.float32)
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _not_there(folder: Folder) -> str:
    if folder.read("plan.json") is None:
        return (
            f"There is no cache in '{folder}'. Received: a folder without "
            "'manifest.json'. Write it with TeacherCache.write."
        )
    return (
        "The cache isn't complete: labelling was interrupted, or goes on. "
        f"Received: '{folder}' of {len(folder.sizes())} files and no "
        "'manifest.json'. Give "
        "the command again that wrote it, which does what is missing."
    )


def _damaged(name: str) -> DamagedCacheError:
    return DamagedCacheError(
        f"A file of the cache isn't what was written. Received: '{name}' with "
        "another checksum. Remove 'manifest.json' and the shard's folder, and "
        "write again: what is missing is labelled."
    )
