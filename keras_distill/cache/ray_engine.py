"""Labelling by actors of Ray, on a cluster that it looks after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_distill.cache.labelling import Labelling


def label_on_ray(
    make: Callable[[], Labelling],
    actors: int,
    retries: int = 3,
    options: dict[str, Any] | None = None,
) -> None:
    """Write all missing shards of a cache, by actors of Ray.

    Each actor makes the labelling and so loads the teacher, once. A shard whose
    actor dies is labelled again by the actor that Ray starts in its place:
    since finished shards are never written again, nothing is done twice.

    Args:
        make: Makes the labelling; it runs in each actor, so the folder must be
            one that all machines see.
        actors: How many.
        retries: How often a shard is tried again after its actor died.
        options: Of the actors, such as `{"num_gpus": 1}`.

    Raises:
        ImportError: If Ray isn't installed.
        ray.exceptions.RayError: If a shard fails, or its actor dies too often.

    Example:
        >>> import keras_distill as kd
        >>> def make():
        ...     teacher = kd.teachers.KerasFile("teacher.keras")
        ...     images = np.load("images.npy", mmap_mode="r")
        ...     return kd.cache.Labelling("s3://bucket/cache", teacher, images)
        >>> kd.cache.label_on_ray(make, actors=8)  # doctest: +SKIP

    Reference:
        Moritz et al., "Ray: A Distributed Framework for Emerging AI
        Applications", OSDI 2018.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ImportError(
            "Labelling on a cluster of Ray needs Ray. Run: pip install "
            "'keras-distill[ray]'"
        ) from error

    class Labeller:
        """An actor with a teacher."""

        def __init__(self) -> None:
            self.job = make()

        def missing(self) -> list[int]:
            return self.job.missing()

        def label(self, shard: int) -> None:
            self.job.label_shard(shard)

        def finish(self) -> None:
            self.job.finish()

    made = ray.remote(max_restarts=-1, max_task_retries=retries)(Labeller)
    if options:
        made = made.options(**options)
    workers = [made.remote() for _ in range(actors)]
    try:
        missing = ray.get(workers[0].missing.remote())
        pool = ActorPool(workers)
        for _ in pool.map_unordered(
            lambda worker, shard: worker.label.remote(shard), missing
        ):
            pass
        ray.get(workers[0].finish.remote())
    finally:
        for worker in workers:
            ray.kill(worker)
