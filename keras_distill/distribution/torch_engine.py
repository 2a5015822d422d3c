"""PyTorch: one process for each device, one exchange for each step."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_distill.backends import untraced
from keras_distill.distribution.callbacks import AsOne
from keras_distill.distribution.engines import OneDevice
from keras_distill.distribution.shares import Share
from keras_distill.distribution.world import gone, world
from keras_distill.features import sublayers

Tensor: TypeAlias = Any

# What a process is at when it tells the others a number. Where they are at
# different things, what they exchange next would have different sizes, which
# ends the programs without a word of Python's.
_AGREES, _IN_A_STEP, _AT_AN_END = range(3)
_DOING = ("agrees with the others", "is in a step", "has no more batches")


def torch_engine() -> OneDevice:
    """The engine for the processes that have joined."""
    rank, size = world()
    return _processes(rank, size) if size > 1 else OneDevice()


@functools.cache
def _processes(rank: int, size: int) -> TorchProcesses:
    return TorchProcesses(rank, size)


class TorchProcesses(OneDevice):
    """Processes of `torch.distributed`, each with a student of its own.

    Keras' trainer knows nothing of them. Around the optimizer's `apply`, one
    exchange sums what each process has, weighted by how many examples it saw:
    its gradients, and what its student keeps besides, such as BatchNorm's
    statistics. Afterwards all students are equal.
    """

    splits_arrays = True
    sums_metrics = True
    trains_in_fit_alone = True

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.replicas = size
        self.share = Share(rank, size, marked=True)
        self._count = 0
        self._counts: list[int] | None = None
        # Whether this process is to stop, and whether some other is.
        self.wants_stop = False
        self.stops = False
        self._may_end = False
        # Whether all processes are in a step.
        self._together = False
        self._some_lack_labels = False

    def check(self, model: Any) -> None:
        """Refuse a Keras that averages by itself."""
        version = tuple(int(x) for x in keras.__version__.split(".")[:2])
        if version >= (3, 16):
            raise ValueError(
                "From 3.16 on, Keras averages gradients itself, equally over "
                "processes, which is wrong where some have fewer examples; "
                "nothing is proven yet with it. Received: keras "
                f"{keras.__version__} in {self.replicas} PyTorch processes. "
                "Install keras<3.16, or use KERAS_BACKEND=jax."
            )

    @contextlib.contextmanager
    def training(self, model: Any) -> Iterator[None]:
        """Average what the optimizer gets."""
        self._check_same_teacher(model)
        self.wants_stop = self.stops = False
        optimizer = model.optimizer
        apply = optimizer.apply
        kept = _kept_besides(model)
        exchange = self._exchange
        if model.jit_compile:
            exchange = untraced(exchange)

        def averaged(grads: Any, trainable_variables: Any) -> Any:
            variables = list(trainable_variables)
            return apply(exchange(list(grads), variables, kept), variables)

        # An attribute of the instance hides the method of the class; deleting
        # it restores the optimizer exactly.
        optimizer.apply = averaged
        try:
            yield
        finally:
            del optimizer.apply
            self._may_end = self._some_lack_labels = False

    @contextlib.contextmanager
    def step(
        self, model: Any, data: Any, count: int | None, trains: bool
    ) -> Iterator[None]:
        """Note how many examples there are; none count for no metric."""
        # Data of each process's own may differ in length when they evaluate.
        self._together = trains or count is not None
        if count is None:
            count = int(keras.tree.flatten(data)[0].shape[0])
        self._count, self._counts = count, None
        if count > 0:
            yield
            return
        before = [(v, ops.copy(v.value)) for v in model.metrics_variables]
        yield
        for variable, value in before:
            variable.assign(value)

    def _exchange(
        self, grads: list[Any], variables: list[Any], kept: list[Any]
    ) -> list[Any]:
        """Weighted means of gradients, and of variables, over processes."""
        import torch

        if self._may_end:
            self._each(0, _IN_A_STEP)
        sent = [
            torch.zeros_like(v.value) if g is None else g
            for g, v in zip(grads, variables, strict=True)
        ] + [v.value for v in kept]
        weight = self._count
        parts = [
            (x * weight if weight else torch.zeros_like(x)).flatten()
            for x in sent
        ]
        flags = [float(g is not None) for g in grads]
        facts = [*flags, float(self.wants_stop), weight]
        facts = torch.tensor(facts, dtype=parts[0].dtype)
        flat = torch.cat([*parts, facts.to(parts[0].device)])
        self._sum(flat)
        *used, stops, total = flat[-len(facts) :].tolist()
        self.stops = stops > 0
        means = [
            part.view(x.shape).to(x.dtype)
            for part, x in zip(
                torch.split(
                    flat[: -len(facts)] / total, [p.numel() for p in parts]
                ),
                sent,
                strict=True,
            )
        ]
        for variable, mean in zip(kept, means[len(grads) :], strict=True):
            variable.assign(mean)
        return [
            mean if flag else None
            for mean, flag in zip(means, used, strict=False)
        ]

    def note_labels(self, labels: Any) -> None:
        """See whether an example may lack one."""
        known = [x for x in keras.tree.flatten(labels) if x is not None]
        complete = all(
            isinstance(x, np.ndarray) and x.min() >= 0 for x in known
        )
        self._some_lack_labels = self.any(not complete)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of what the examples of all processes have."""
        import torch

        # To wait for the others in the middle of a step costs a tenth of it.
        # With one value for each example, there is nothing that a mask hides.
        together = values.ndim > 1 or self._some_lack_labels
        if not (self._together and together):
            return ops.mean(values)
        mine = values[: self._count]
        total = mine.sum(dtype=torch.float64)
        flat = torch.stack([total, torch.full_like(total, mine.numel())])
        self._sum(flat)
        return (flat[0] / flat[1]).to(values.dtype)

    def gather(self, tensors: Any) -> Any:
        """Tensors of the whole global batch."""
        return keras.tree.map_structure(self._gathered, tensors)

    def _gathered(self, tensor: Any) -> Any:
        import torch

        if tensor is None:
            return None
        counts = self._all_counts()
        longest, mine = max(counts), tensor[: self._count].detach()
        filled = torch.zeros(
            (longest, *mine.shape[1:]), dtype=mine.dtype, device=mine.device
        )
        filled[: len(mine)] = mine
        pieces = [torch.empty_like(filled) for _ in counts]
        self._collective("all_gather", pieces, filled)
        rows = [x[:n] for x, n in zip(pieces, counts, strict=True)]
        if tensor.requires_grad:
            # Zero, with a gradient that is larger by as much as the exchange
            # will make it smaller. No rows have one too, which is empty.
            own = tensor[: self._count]
            scale = sum(counts) / max(self._count, 1)
            rows[self.rank] = mine + (own - mine) * scale
        return torch.cat(rows)

    def _all_counts(self) -> list[int]:
        if self._counts is None:
            counts = self._each(self._count, _IN_A_STEP)
            self._counts = [int(x) for x in counts]
        return self._counts

    def metrics_result(
        self, model: Any, result: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Results of metrics over all processes."""
        import torch

        if self._may_end:
            self._each(0, _AT_AN_END)
        variables = model.metrics_variables
        if not variables:
            return result()
        before = [v.value.detach().clone() for v in variables]
        share = {"sum": 1.0, "mean": 1 / self.replicas}
        first = float(self.rank == 0)
        flat = torch.cat(
            [
                x.flatten().double() * share.get(v.aggregation, first)
                for v, x in zip(variables, before, strict=True)
            ]
        )
        self._sum(flat)
        sums = torch.split(flat, [x.numel() for x in before])
        try:
            for variable, x in zip(variables, sums, strict=True):
                variable.assign(x.view(tuple(variable.shape)))
            return {name: ops.copy(x) for name, x in result().items()}
        finally:
            for variable, x in zip(variables, before, strict=True):
                variable.assign(x)

    def callbacks(self, user: list[Any]) -> list[Any]:
        """One callback, which keeps the processes together."""
        return [AsOne(self, user)]

    def start(self, model: Any, steps: int | None, epoch: int) -> None:
        """All begin with the first process's student, at the same place."""
        import torch

        for what, number, advice in (
            (
                "batches",
                steps or -1,
                "Give each as many (distribution.batches does)",
            ),
            ("first epoch", epoch, "Keep backups where all see them"),
        ):
            numbers = self.each(number)
            if len(set(numbers)) > 1:
                raise ValueError(
                    "All processes must do the same steps, or they wait for "
                    f"each other for ever. Received: {what} {numbers}, by "
                    f"process. {advice}."
                )
        # Of data without a length, only the end says how long they are.
        self._may_end = steps is None
        variables = [*model.variables, *model.optimizer.variables]
        with torch.no_grad():
            for variable in {id(v): v for v in variables}.values():
                value = variable.value.detach().contiguous()
                self._collective("broadcast", value, 0)
                variable.assign(value)
        for state in _random_states(model):
            _draw_apart(state, self.rank)

    def each(self, number: int) -> list[int]:
        """A number of each process."""
        return [int(x) for x in self._each(number)]

    def any(self, flag: bool) -> bool:
        """Whether it is so in any of the processes."""
        return any(self._each(float(flag)))

    def require_alike(self, model: Any) -> None:
        """Raise where a process has another student, or learns otherwise.

        Raises:
            RuntimeError: If so.
        """
        for what, number in (
            ("learning rates", model.optimizer.learning_rate),
            ("sums of weights", _sum_of(model.student.trainable_variables)),
        ):
            numbers = self._each(float(ops.convert_to_numpy(number)))
            if not np.allclose(numbers, numbers[0], 1e-6, 0, equal_nan=True):
                raise RuntimeError(
                    "All processes train the same student in the same way. "
                    f"Received: {what} {numbers}, by process. A callback that "
                    "changes the student or the learning rate is one that all "
                    "processes need."
                )

    def _check_same_teacher(self, model: Any) -> None:
        import torch.distributed as dist

        digest = hashlib.sha256()
        for variable in model.teacher.weights if model.teacher else ():
            value = ops.convert_to_numpy(ops.cast(variable.value, "float32"))
            digest.update(np.ascontiguousarray(value).tobytes())
        digests: list[Any] = [None] * self.replicas
        dist.all_gather_object(digests, digest.hexdigest())
        if len(set(digests)) > 1:
            raise ValueError(
                "The processes have different teachers. Received: weights "
                f"with fingerprints {[x[:8] for x in digests]}. Load the "
                "teacher from one file in all of them."
            )

    def _each(self, number: float, doing: int = _AGREES) -> list[float]:
        """A number of each process, all of which do the same thing."""
        import torch

        device = keras.ops.zeros(()).device
        mine = torch.tensor([number, doing], dtype=torch.float64, device=device)
        found = [torch.empty_like(mine) for _ in range(self.replicas)]
        self._collective("all_gather", found, mine)
        numbers, places = zip(*(x.tolist() for x in found), strict=True)
        if len({*places}) > 1:
            said = ", ".join(
                f"process {i} {_DOING[int(place)]}"
                for i, place in enumerate(places)
            )
            raise ValueError(
                "All processes must do the same steps, or they wait for each "
                f"other for ever. Received: {said}. Give each as many batches "
                "(distribution.batches does)."
            )
        return [*numbers]

    def _sum(self, flat: Any) -> None:
        self._collective("all_reduce", flat)

    def _collective(self, name: str, *args: Any) -> None:
        import torch.distributed as dist

        try:
            getattr(dist, name)(*args)
        except RuntimeError as error:
            raise gone(error, self.rank, self.replicas) from error


def _kept_besides(model: Any) -> list[Any]:
    """What layers that are trained change without gradients."""
    layers = [model.student, *model.trained_layers]
    found = {
        id(v): v for layer in layers for v in layer.non_trainable_variables
    }
    # Nobody changes these, and an average would round them.
    frozen = {id(v) for layer in layers for v in _frozen(layer)}
    return [
        v
        for key, v in found.items()
        if key not in frozen and "float" in str(v.dtype)
    ]


def _frozen(layer: Any) -> list[Any]:
    """Variables of the layers in a layer that aren't trained."""
    if not layer.trainable:
        return list(layer.variables)
    return [v for inner in sublayers(layer) for v in _frozen(inner)]


def _sum_of(variables: list[Any]) -> float:
    """A number that tells students apart."""
    arrays = (ops.convert_to_numpy(v.value) for v in variables)
    return float(sum(np.abs(x).sum(dtype="float64") for x in arrays))


def _random_states(model: Any) -> list[Any]:
    """States of random numbers that belong to examples.

    Those of a loss that sees the global batch are the same everywhere.
    """
    weights = {id(v) for v in model.weights}
    shared = set()
    if model.gather_relations:
        shared = {
            id(part.state)
            for loss in model.distillation_losses.values()
            for _, part in loss.parts()
            if loss.relates_examples
            and isinstance(part, keras.random.SeedGenerator)
        }
    return [
        v
        for v in model.variables
        if "int" in str(v.dtype)
        and tuple(v.shape) == (2,)
        and id(v) not in weights | shared
    ]


def _draw_apart(state: Any, rank: int) -> None:
    """Each process draws other numbers, from a seed that follows from one."""
    if rank == 0:
        return
    seed, counter = (int(x) for x in ops.convert_to_numpy(state.value))
    (mine,) = np.random.SeedSequence([seed, rank]).generate_state(1)
    state.assign(np.array([mine % 2**31, counter]))
