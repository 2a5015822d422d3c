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

Tensor: TypeAlias = Any


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

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.replicas = size
        self.share = Share(rank, size, marked=True)
        self._count = 0
        self._counts: list[int] | None = None

    def prepare(self, model: Any) -> None:
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

    @contextlib.contextmanager
    def step(self, model: Any, data: Any, count: int | None) -> Iterator[None]:
        """Note how many examples there are; none count for no metric."""
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
        facts = torch.tensor([*flags, weight], dtype=parts[0].dtype)
        flat = torch.cat([*parts, facts.to(parts[0].device)])
        self._sum(flat)
        *used, total = flat[-len(facts) :].tolist()
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
            self._counts = [int(x) for x in self._each(self._count)]
        return self._counts

    def metrics_result(
        self, model: Any, result: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Results of metrics over all processes."""
        import torch

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
            numbers = [int(x) for x in self._each(number)]
            if len(set(numbers)) > 1:
                raise ValueError(
                    "All processes must do the same steps, or they wait for "
                    f"each other for ever. Received: {what} {numbers}, by "
                    f"process. {advice}."
                )
        variables = [*model.variables, *model.optimizer.variables]
        with torch.no_grad():
            for variable in {id(v): v for v in variables}.values():
                value = variable.value.detach().contiguous()
                self._collective("broadcast", value, 0)
                variable.assign(value)
        for state in _random_states(model):
            _draw_apart(state, self.rank)

    def of_first(self, number: int) -> int:
        """The first process's number, for all."""
        return int(self._each(number)[0])

    def any(self, flag: bool) -> bool:
        """Whether it is so in any of the processes."""
        return any(self._each(float(flag)))

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

    def _each(self, number: float) -> list[float]:
        """A number of each process."""
        import torch

        device = keras.ops.zeros(()).device
        mine = torch.tensor([number], dtype=torch.float64, device=device)
        numbers = [torch.empty_like(mine) for _ in range(self.replicas)]
        self._collective("all_gather", numbers, mine)
        return [float(x) for x in numbers]

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
    return [v for v in found.values() if "float" in str(v.dtype)]


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
