"""Who is there: the processes that a launcher started."""

from __future__ import annotations

import atexit
import os
import sys
from datetime import timedelta
from typing import Any, NamedTuple

import keras


class World(NamedTuple):
    """The processes that train together.

    Attributes:
        rank: The number of this process, from 0.
        size: How many processes there are.

    Example:
        >>> import keras_distill as kd
        >>> kd.distribution.world()
        World(rank=0, size=1)
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0


def world() -> World:
    """This process and how many there are, as far as they have joined."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
    if backend == "jax":
        import jax

        # Only those that were told of each other: asking how many there are
        # would choose the devices, which must not happen before they join.
        if jax.distributed.is_initialized():
            return World(jax.process_index(), jax.process_count())
    return World()


def initialize(timeout: float = 600.0) -> World:
    """Join the processes that a launcher started; on one, nothing happens.

    Call it first, before anything is computed. It understands

    - on PyTorch, `torchrun` and whatever else sets `RANK`, `WORLD_SIZE`,
      `MASTER_ADDR` and `MASTER_PORT` (and `LOCAL_RANK`, on several GPUs); and a
      process group that is there already, as in a worker of Ray Train. A group
      that it made itself is left when the program ends without an error.
    - on JAX, `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
      `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`.
      It then sets `keras.distribution.DataParallel` over all devices, if there
      are several and no distribution was set.
    - on TensorFlow, nothing: make the models in the scope of a
      `tf.distribute.MirroredStrategy`.

    Args:
        timeout: Seconds after which a process that gets no answer from the
            others, which are alive but silent, gives up. One that was killed is
            noticed at once. More than any process ever takes for what the
            others wait for, such as the first batch or a checkpoint.

    Returns:
        This process's rank, and how many there are.

    Raises:
        ValueError: If the launcher's settings aren't complete, or are for
            what the backend can't do.

    Example:
        >>> import keras_distill as kd
        >>> kd.distribution.initialize()
        World(rank=0, size=1)
    """
    backend = keras.backend.backend()
    if backend == "torch":
        _join_torch(timeout)
    if backend == "jax":
        _join_jax(timeout)
    if backend == "tensorflow":
        _refuse_cluster()
    return world()


def gone(error: Exception, rank: int, size: int) -> RuntimeError:
    """What to say where an exchange with other processes failed."""
    return RuntimeError(
        "Another process of this training has gone, or gives no answer. "
        f"Received: {str(error).splitlines()[0]!r} in process {rank} of "
        f"{size}. Look at the others' output for the reason, and start all "
        "again: with keras.callbacks.BackupAndRestore, `fit` goes on after "
        "the last epoch."
    )


def _join_torch(timeout: float) -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_available() or dist.is_initialized():
        return
    size = os.environ.get("WORLD_SIZE")
    if size is None or int(size) == 1:
        return
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise ValueError(
            "The launcher's settings aren't complete. Received: "
            f"WORLD_SIZE={size} and no {', '.join(missing)}. Start the script "
            "with torchrun, or set them."
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(_place_on_this_machine(torch))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout)
    )
    atexit.register(_leave_torch)


def _leave_torch() -> None:
    """Stop PyTorch's threads, which may abort a program that ends with them."""
    import torch.distributed as dist

    # Where Python ended with an error, GPUs could wait for those of processes
    # that know nothing of it.
    if dist.is_initialized() and "last_value" not in vars(sys):
        dist.destroy_process_group()


def _place_on_this_machine(torch: Any) -> int:
    """Which of a machine's GPUs is this process's."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return int(os.environ[name])
    if torch.cuda.device_count() > 1:
        raise ValueError(
            "Which GPU is this process's? Received: several GPUs, and neither "
            "LOCAL_RANK nor SLURM_LOCALID. Start the script with torchrun, or "
            "set LOCAL_RANK."
        )
    return 0


def _join_jax(timeout: float) -> None:
    import jax

    if jax.distributed.is_initialized():
        _agree_on_seed()
        _use_all_devices()
        return
    size = os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES")
    if size is not None and int(size) > 1:
        addresses = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")
        rank = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID")
        if addresses is None or rank is None:
            raise ValueError(
                "The launcher's settings aren't complete. Received: "
                f"KERAS_DISTRIBUTION_NUM_PROCESSES={size}, "
                f"KERAS_DISTRIBUTION_JOB_ADDRESSES={addresses}, "
                f"KERAS_DISTRIBUTION_PROCESS_ID={rank}. Set all three."
            )
        # As `keras.distribution.initialize` does it, but that a process that
        # was killed is noticed within a minute.
        jax.distributed.initialize(
            addresses.split(",")[0],
            int(size),
            int(rank),
            initialization_timeout=int(timeout),
            heartbeat_timeout_seconds=30,
        )
        _agree_on_seed()
    _use_all_devices()


def _agree_on_seed() -> None:
    """All processes initialise the same student."""
    import numpy as np
    from jax.experimental import multihost_utils

    # Of the generator that `keras.utils.set_random_seed` seeds, so that a seed
    # that was set decides.
    seed = np.random.randint(2**31 - 1)
    seed = multihost_utils.broadcast_one_to_all(np.uint32(seed))
    keras.utils.set_random_seed(int(seed))


def _use_all_devices() -> None:
    distribution: Any = keras.distribution
    if (
        distribution.distribution() is None
        and len(distribution.list_devices()) > 1
    ):
        distribution.set_distribution(
            distribution.DataParallel(auto_shard_dataset=False)
        )


def _refuse_cluster() -> None:
    if "TF_CONFIG" in os.environ:
        raise ValueError(
            "Keras 3 doesn't train on several TensorFlow processes: "
            "`tf.distribute.MultiWorkerMirroredStrategy` fails in `fit` "
            "(https://github.com/keras-team/keras/issues/20585). Received: "
            "TF_CONFIG. Use KERAS_BACKEND=jax with keras.distribution, or "
            "KERAS_BACKEND=torch with torchrun; on one machine, TensorFlow's "
            "MirroredStrategy."
        )
