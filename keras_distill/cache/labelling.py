"""A teacher speaks about each example, shard by shard."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.cache.fingerprints import (
    arrays_digest,
    function_fingerprint,
)
from keras_distill.cache.folders import MARKER, Folder, as_folder
from keras_distill.cache.plan import (
    DIFFERENT,
    Field,
    Plan,
    StaleCacheError,
    as_plan,
    check_shard,
    from_bytes,
    library_versions,
    said,
    shard_name,
    structure_of,
    to_bytes,
)
from keras_distill.cache.sources import Batches, as_source
from keras_distill.cache.storage import (
    Dense,
    Storage,
    as_storage,
    for_features,
)
from keras_distill.cache.views import Views
from keras_distill.teachers import Teacher, as_teacher

Array: TypeAlias = "np.ndarray[Any, Any]"

_SHARD_BYTES = 64 * 2**20
# Of a slow teacher, no more than this is lost when it is interrupted.
_SHARD_ROWS = 2**14


def require_rank(rank: int, world: int) -> None:
    """Raise where a process's number isn't one of those of all processes."""
    if not 0 <= rank < world:
        raise ValueError(
            "Ranks count from 0 to one less than the number of processes. "
            f"Received: rank={rank}, world={world}."
        )


class Labelling:
    """The work of filling a cache, of which any process can do any part.

    `TeacherCache.write` does all of it. On a cluster, each process makes the
    same `Labelling` and calls `run(rank, world)`: they need nothing but the
    folder in common. A shard is written aside and then appears; one that is
    there is never written again. So the same command, given again, does what
    is missing.

    Args:
        folder: Where the cache is to be: a path, or a URL that fsspec knows.
        teacher: Whatever `teachers.as_teacher` takes.
        transfer_set: Arrays; a tuple `(inputs, labels)` or `(inputs, labels,
            sample_weight)` of them; or what gives batches in the same order
            each time, such as a `tf.data.Dataset`.
        layers: Names of hidden layers of the teacher.
        storage: `"float32"`, `"float16"`, `"bfloat16"`, `"uint8"`,
            `"top-10"`, `"sampled-50"`; see `TeacherCache`.
        views: `Views` to label instead of the examples themselves.
        teacher_inputs: A function or layer that makes the teacher's inputs
            from the transfer set's.
        probabilities: `"softmax"` or `"sigmoid"` if the teacher ends in one,
            `"none"` if it gives logits. `"auto"` finds out, or raises.
        batch_size: How many examples the teacher sees at a time.
        shard_rows: Records of a shard, a multiple of `batch_size`.
        runtime: As in `teachers.as_teacher`.

    Raises:
        StaleCacheError: If the folder holds a cache of something else.
        ValueError: If an argument is out of range.

    Example:
        >>> import tempfile, numpy as np, keras_distill as kd
        >>> teacher = kd.teachers.NumpyTeacher(
        ...     lambda x: np.concatenate([x, -x], axis=-1), fingerprint="v1")
        >>> x = np.arange(6.0).reshape(6, 1)
        >>> folder = tempfile.mkdtemp()
        >>> job = Labelling(folder, teacher, x, batch_size=2, shard_rows=2)
        >>> job.run(rank=0, world=2, verbose=0)
        >>> job.missing()
        [1]
        >>> job.run(rank=1, world=2, verbose=0)
        >>> job.missing()
        []
    """

    def __init__(
        self,
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
    ) -> None:
        _check_rows(batch_size, shard_rows)
        if isinstance(layers, str):
            raise TypeError(
                "Layers come as a list of names. Received: "
                f"layers={layers!r}. Pass [{layers!r}]."
            )
        self.folder: Folder = as_folder(folder)
        self.source = as_source(transfer_set, views)
        self.teacher_inputs = teacher_inputs
        example = self._for_teacher(self.source.first(batch_size))
        self.teacher: Teacher = as_teacher(
            teacher, layers=tuple(layers), runtime=runtime, example=example
        )
        output, features = self.teacher.label(example)
        structure, leaves = structure_of(output)
        for tensor in (*leaves, *features.values()):
            _require_rows(tensor, len(keras.tree.flatten(example)[0]))
        activation = _activation(
            probabilities, self.teacher.probabilities, leaves
        )
        chosen = as_storage(storage)
        named: list[tuple[str | None, Any]] = [(None, leaf) for leaf in leaves]
        named += [(layer, features[layer]) for layer in layers]
        fields = tuple(
            _field(i, layer, tensor, chosen)
            for i, (layer, tensor) in enumerate(named)
        )
        if any(0 in field.shape for field in fields):
            raise ValueError(
                "The teacher says nothing. Received: an output or layer of "
                f"shape {next(f.shape for f in fields if 0 in f.shape)}. Leave "
                "it out."
            )
        bytes_per_row = sum(field.record.itemsize for field in fields)
        plan = Plan(
            size=self.source.size,
            epochs=1 if views is None else views.epochs,
            shard_rows=shard_rows or _shard_rows(bytes_per_row, batch_size),
            batch_size=batch_size,
            output=structure,
            fields=fields,
            probabilities=activation,
            teacher=self.teacher.fingerprint,
            transfer_set=self.source.fingerprint,
            preprocessing=function_fingerprint(teacher_inputs),
            views=None if views is None else views.facts(self.source.data),
            versions={**library_versions(), "runtime": self.teacher.runtime},
        )
        self.plan = self._agreed(plan)
        self._streamed: int | None = None

    def _for_teacher(self, inputs: Any) -> Any:
        if self.teacher_inputs is None:
            return inputs
        return keras.tree.map_structure(
            keras.ops.convert_to_numpy, self.teacher_inputs(inputs)
        )

    def _agreed(self, plan: Plan) -> Plan:
        """The plan that is there, if it is the same; else this one."""
        found = self.folder.read("plan.json")
        if found is None:  # a complete cache may be on a read-only disk
            self.folder.create("plan.json", to_bytes(plan.facts()))
            found = self.folder.read("plan.json")
        there = as_plan(from_bytes(found or b"", "plan.json"), "plan.json")
        mine, theirs = plan.facts(), there.facts()
        versions = mine.pop("versions"), theirs.pop("versions")
        apart = [name for name in mine if mine[name] != theirs[name]]
        if apart:
            name = apart[0]
            raise StaleCacheError(
                "The folder holds a cache, begun or finished, of "
                f"{' and '.join(DIFFERENT[name] for name in apart)}. Received: "
                f"{said(name, mine[name])}, there is "
                f"{said(name, theirs[name])}. Label into an empty folder, or "
                "remove this one."
            )
        if versions[0] != versions[1]:
            warnings.warn(
                "The cache was begun with other versions or another runtime, "
                "whose numbers may differ in the last digits. Received: "
                f"{versions[0]}, begun with {versions[1]}.",
                stacklevel=4,
            )
        return there

    def missing(self) -> list[int]:
        """The shards that aren't finished, as far as their number is known."""
        done = self._done()
        return [s for s in range(self.plan.shards) if s not in done]

    def _done(self) -> set[int]:
        names = [name.split("/") for name in self.folder.sizes()]
        return {int(shard) for _, shard, file in names if file == MARKER}

    def run(
        self, rank: int = 0, world: int = 1, verbose: str | int = "auto"
    ) -> None:
        """Write the shards of this process that are missing.

        Args:
            rank: This process's number, from 0.
            world: How many processes there are.
            verbose: Whether to show progress; `"auto"` means yes.

        Raises:
            ValueError: If the teacher says what isn't a finite number.
            StaleCacheError: If a stream's examples come in another order than
                when shards were written before.
        """
        require_rank(rank, world)
        self._run(lambda shard: shard % world == rank, verbose)

    def label_shard(self, shard: int) -> None:
        """Write one shard, unless it is there.

        Args:
            shard: Its number, from 0.
        """
        if not 0 <= shard < self.plan.shards and self.source.size is not None:
            raise ValueError(
                f"There are {self.plan.shards} shards. Received: shard={shard}."
            )
        self._run(lambda number: number == shard, verbose=0)

    def _run(self, mine: Callable[[int], bool], verbose: str | int) -> None:
        done = self._done()
        for shard in done:  # of this plan, before the teacher works for long
            self._facts(shard)
        bar = keras.utils.Progbar(
            self.plan.shards or None,
            verbose=1 if verbose == "auto" else int(verbose),
            unit_name="shard",
        )
        size = 0
        # One thread writes a shard while the teacher speaks about the next.
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for shard, batches in self.source.shards(self.plan):
                if mine(shard) and shard not in done:
                    filled = self._filled(shard, batches)
                    size += filled.rows
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(self._publish, filled)
                elif self.source.size is None:
                    size += self._pass_by(shard, batches, shard in done)
                bar.update(shard + 1)
            if writing is not None:
                writing.result()
        if self.source.size is None:
            self._streamed = size

    def _filled(self, shard: int, batches: Batches) -> _Filled:
        """A shard's records, made by the teacher."""
        plan, digest, rows = self.plan, hashlib.sha256(), 0
        records = [np.empty(plan.shard_rows, f.record) for f in plan.fields]
        for inputs in batches:
            digest.update(arrays_digest(inputs).encode())
            numbers = shard * plan.shard_rows + rows
            tensors = self._ask(inputs, numbers)
            stop = rows + len(tensors[0])
            for field, tensor, record in zip(
                plan.fields, tensors, records, strict=True
            ):
                record[rows:stop] = field.stored.encode(
                    tensor,
                    field.shape,
                    np.arange(numbers, numbers + len(tensor)),
                )
            rows = stop
        return _Filled(
            shard, rows, digest.hexdigest(), [r[:rows] for r in records]
        )

    def _ask(self, inputs: Any, first: int) -> list[Array]:
        """What the teacher says, checked, in the order of the fields."""
        size = len(keras.tree.flatten(inputs)[0])
        # A batch of another size would be compiled anew.
        wanted = min(self.plan.batch_size, self.source.size or size)
        places = np.minimum(np.arange(max(wanted, size)), size - 1)
        whole = keras.tree.map_structure(lambda a: a[places], inputs)
        output, features = self.teacher.label(self._for_teacher(whole))
        leaves = structure_of(output)[1]
        tensors = []
        for field, tensor in zip(
            self.plan.fields,
            [
                *leaves,
                *(features[f.layer] for f in self.plan.fields if f.layer),
            ],
            strict=True,
        ):
            _require_rows(tensor, len(places))
            values = _as_floats(field, np.asarray(tensor)[:size])
            if field.layer is None:
                values = _as_logits(values, self.plan.probabilities)
            _check_tensor(field, values, size, first)
            tensors.append(values)
        return tensors

    def _publish(self, filled: _Filled) -> None:
        """Write a shard's files."""
        files: dict[str, bytes | memoryview] = {}
        for field, records in zip(
            self.plan.fields, filled.records, strict=True
        ):
            file = io.BytesIO()
            np.save(file, records, allow_pickle=False)
            files[field.file] = file.getbuffer()
        facts = {
            "plan": self.plan.digest,
            "shard": filled.shard,
            "rows": filled.rows,
            "inputs": filled.inputs,
            "files": {
                name: {
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
                for name, data in files.items()
            },
        }
        files[MARKER] = to_bytes(facts)
        self.folder.publish(shard_name(filled.shard), files)

    def _pass_by(self, shard: int, batches: Batches, finished: bool) -> int:
        """Read a stream past a shard; how many examples that was."""
        digest, rows = hashlib.sha256(), 0
        for inputs in batches:
            digest.update(arrays_digest(inputs).encode())
            rows += len(keras.tree.flatten(inputs)[0])
        if finished and digest.hexdigest() != self._facts(shard)["inputs"]:
            raise StaleCacheError(
                "The transfer set gives other examples, or another order, than "
                f"when shard {shard} was labelled. Received: inputs that its "
                "digest doesn't fit. Don't shuffle while labelling; label "
                "other data into an empty folder."
            )
        return rows

    def _facts(self, shard: int) -> dict[str, Any]:
        name = f"{shard_name(shard)}/{MARKER}"
        facts = from_bytes(self.folder.read(name) or b"", name)
        check_shard(self.plan, shard, facts)
        return facts

    def finish(self) -> None:
        """Write the manifest, which makes it a cache.

        Raises:
            ValueError: If there are shards missing.
        """
        plan = self.plan
        if plan.size is None:
            if self._streamed is None:
                raise ValueError(
                    "The end of the stream wasn't seen, so how many shards "
                    "there are isn't known. Call run() first."
                )
            plan = replace(plan, size=self._streamed)
        missing = sorted(set(range(plan.shards)) - self._done())
        if missing:
            raise ValueError(
                f"There are {len(missing)} of {plan.shards} shards missing. "
                f"Received: no {missing[:10]}. Let their processes run again."
            )
        shards = [self._facts(shard) for shard in range(plan.shards)]
        manifest = {"plan": plan.facts(), "shards": shards}
        self.folder.create("manifest.json", to_bytes(manifest))
        self.folder.sweep()

    def close(self) -> None:
        """Let go of what the teacher holds."""
        self.teacher.close()


@dataclass(frozen=True)
class _Filled:
    """A shard that isn't written yet."""

    shard: int
    rows: int
    inputs: str
    records: list[Array]


def _check_rows(batch_size: int, shard_rows: int | None) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            "A batch holds at least one example. Received: "
            f"batch_size={batch_size!r}."
        )
    if shard_rows is not None and (
        shard_rows < 1 or shard_rows % batch_size != 0
    ):
        raise ValueError(
            "A shard holds whole batches. Received: "
            f"shard_rows={shard_rows}, batch_size={batch_size}. Pass a "
            "multiple of the batch size."
        )


def _shard_rows(row_bytes: int, batch_size: int) -> int:
    rows = min(_SHARD_BYTES // max(row_bytes, 1), _SHARD_ROWS)
    return max(rows // batch_size, 1) * batch_size


def _field(
    index: int, layer: str | None, tensor: Any, storage: Storage
) -> Field:
    shape = tuple(np.shape(tensor)[1:])
    if layer is not None:
        storage = for_features(storage)
    if not shape and not isinstance(storage, Dense):
        raise ValueError(
            "A teacher's output of one number for each example has no axis to "
            f"choose from. Received: storage='{storage.name}' for an output of "
            f"shape {np.shape(tensor)}. Pass 'float16' or 'float32'."
        )
    kind = "output" if layer is None else "feature"
    return Field(f"{kind}_{index}.npy", layer, shape, storage.name)


def _activation(
    said: str, known: bool | None, leaves: list[Array]
) -> str | None:
    """Which function made the output's probabilities, if any did."""
    if said not in ("auto", "softmax", "sigmoid", "none"):
        raise ValueError(
            "A teacher gives logits, or ends in a softmax or in sigmoids. "
            f"Received: probabilities={said!r}. Pass 'none', 'softmax', "
            "'sigmoid' or 'auto'."
        )
    if said != "auto":
        return None if said == "none" else said
    looks = all(_look_like_probabilities(np.asarray(leaf)) for leaf in leaves)
    if known is False or not looks:
        return None
    if known and len(leaves) == 1 and _sum_to_one(np.asarray(leaves[0])):
        return "softmax"
    raise ValueError(
        "What the teacher gives are numbers between 0 and 1, so they may be "
        "probabilities, of which the logarithm is stored, or logits. Received: "
        "probabilities='auto'. Pass 'softmax', 'sigmoid', or 'none' for "
        "logits."
    )


def _look_like_probabilities(values: Array) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _sum_to_one(values: Array, tolerance: float = 1e-3) -> bool:
    return values.ndim > 1 and bool(
        np.allclose(values.sum(axis=-1, dtype=np.float64), 1, atol=tolerance)
    )


def _require_probabilities(values: Array, activation: str) -> None:
    if _look_like_probabilities(values) and (
        activation == "sigmoid" or _sum_to_one(values, 1e-2)
    ):
        return
    raise ValueError(
        "The logarithms of probabilities are stored. Received: "
        f"probabilities='{activation}', and an output from {values.min():g} "
        f"to {values.max():g}, whose rows are none. Pass 'none' for logits."
    )


def _as_logits(values: Array, activation: str | None) -> Array:
    """Logits, of which a few numbers far apart keep their differences."""
    if activation is None:
        return values
    least = np.finfo(np.float32).tiny
    wide = values.astype(np.float64)
    if np.isfinite(wide).all():
        _require_probabilities(wide, activation)
    logs: Array = np.log(np.maximum(wide, least))
    if activation == "sigmoid":
        logs = logs - np.log(np.maximum(1 - wide, least))
    return logs


def _require_rows(tensor: Any, rows: int) -> None:
    """Raise where a teacher says more or less than one thing of each."""
    shape = np.shape(tensor)
    if shape[:1] != (rows,):
        raise ValueError(
            "A teacher says one thing of each example. Received: an output or "
            f"layer of shape {shape} for {rows} examples. Average what it says "
            "of several crops, or use Views."
        )


def _as_floats(field: Field, values: Array) -> Array:
    """Numbers that float32 holds."""
    name = _name(field)
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
        raise TypeError(
            "A teacher says numbers. Received: its "
            f"{name} of dtype {values.dtype}. Convert it to float32."
        )
    with np.errstate(over="ignore"):
        floats: Array = values.astype(np.float32)
    if (
        values.dtype.kind in "iu"
        and (np.abs(values.astype(np.float64)) > 2**24).any()
    ):
        raise ValueError(
            "Whole numbers are stored as floats, which hold them exactly up to "
            f"16,777,216. Received: {values.dtype} up to {values.max()} in its "
            f"{name}. Leave this output out."
        )
    return floats


def _name(field: Field) -> str:
    return "output" if field.layer is None else f"layer '{field.layer}'"


def _check_tensor(field: Field, tensor: Array, size: int, first: int) -> None:
    name = _name(field)
    if tensor.shape != (size, *field.shape):
        raise ValueError(
            "A cache's records are all of one size. Received: the teacher's "
            f"{name} of shape {tensor.shape} where the first batch had "
            f"{(size, *field.shape)}. Pad the inputs to one length."
        )
    finite = np.isfinite(tensor).reshape(size, -1).all(axis=1)
    if not finite.all():
        rows = (first + np.flatnonzero(~finite)[:5]).tolist()
        raise ValueError(
            "The teacher says what isn't a finite number. Received: NaN or "
            f"infinity in its {name} for rows {rows}. Check the teacher's "
            "weights, and the inputs of these rows."
        )
