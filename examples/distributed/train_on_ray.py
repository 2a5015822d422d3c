"""The same training as train.py's, by workers of Ray Train.

    python train.py teacher --folder /shared/run
    python train_on_ray.py --workers 2 --folder /shared/run

On a Ray cluster, submit it as a job; without one, Ray starts here.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

# What this script imports is looked for where it lies, on each worker too.
HERE = pathlib.Path(__file__).parent.resolve()


def work(config: dict[str, Any]) -> None:
    """What each worker does; Ray has made the process group."""
    import sys

    sys.path.insert(0, config["code"])
    import train

    train.distil(pathlib.Path(config["folder"]), config["epochs"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one for each")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "torch"
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "code": str(HERE),
            "folder": str(args.folder.resolve()),
            "epochs": args.epochs,
        },
        scaling_config=ScalingConfig(
            num_workers=args.workers, use_gpu=args.gpu
        ),
        run_config=RunConfig(
            storage_path=str(args.folder.resolve() / "ray"),
            # Workers that can't be started end the run: by default Ray tries
            # without end.
            failure_config=FailureConfig(controller_failure_limit=3),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
