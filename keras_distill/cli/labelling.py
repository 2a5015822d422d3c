"""`keras-distill label`."""

from __future__ import annotations

import argparse
import pathlib

from keras_distill.cache import Labelling
from keras_distill.cache.labelling import require_rank
from keras_distill.cli.arguments import Commands, add_command, number, positive
from keras_distill.cli.console import print_json, progress
from keras_distill.cli.files import require_cache_folder, require_finite
from keras_distill.data import load_data
from keras_distill.export.table import as_table


def add(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "label",
        _run,
        "store what a teacher says about a transfer set",
        "Store a teacher's outputs in a cache, for TeacherCache.open. Several\n"
        "processes share the work if each gets its --rank and their number.",
        "  keras-distill label teacher.keras data.npz cache --storage uint8",
        interrupted="What is finished is kept: the same command goes on.",
    )
    command.add_argument(
        "teacher", help="a .keras, .onnx or .tflite file, or a SavedModel"
    )
    command.add_argument("data", help="as for distill; labels are left out")
    command.add_argument("cache", help="the folder to write")
    command.add_argument(
        "--storage",
        default="float16",
        help="float32, float16, bfloat16, uint8, top-10, sampled-50, ...",
    )
    command.add_argument("--layers", nargs="*", default=[], metavar="LAYER")
    command.add_argument("--probabilities", default="auto")
    command.add_argument("--batch-size", type=positive, default=256)
    command.add_argument("--shard-rows", type=positive)
    command.add_argument("--runtime", default="keras")
    command.add_argument("--rank", type=int, default=0)
    command.add_argument("--world", type=int, default=1)
    command.add_argument("--split", help="part of data that have parts")
    command.add_argument(
        "--labels", metavar="NAME", help="the array or column to leave out"
    )
    command.add_argument(
        "--size",
        type=positive,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="resize images of files to it",
    )
    command.add_argument("--scale", type=number, metavar="FACTOR")
    command.add_argument("--data-dir", type=pathlib.Path, metavar="FOLDER")


def _run(parsed: argparse.Namespace) -> int:
    if not parsed.cache:
        raise ValueError("A cache has a folder. Received: an empty name.")
    require_rank(parsed.rank, parsed.world)
    if "://" not in parsed.cache:
        require_cache_folder(pathlib.Path(parsed.cache))
    examples = load_data(
        parsed.data,
        parsed.split,
        label=parsed.labels,
        size=None if parsed.size is None else tuple(parsed.size),
        scale=parsed.scale,
        data_dir=parsed.data_dir,
    )
    if parsed.rank == 0:  # others would read all of it again
        require_finite(examples)
    job = Labelling(
        parsed.cache,
        parsed.teacher,
        examples.inputs,
        parsed.layers,
        parsed.storage,
        probabilities=parsed.probabilities,
        batch_size=parsed.batch_size,
        shard_rows=parsed.shard_rows,
        runtime=parsed.runtime,
    )
    try:
        with progress() as verbose:
            job.run(parsed.rank, parsed.world, verbose=verbose)
        missing = job.missing()
        if not missing:
            job.finish()
    finally:
        job.close()
    facts = {
        "cache": parsed.cache,
        "examples": job.plan.size,
        "shards": job.plan.shards,
        "missing": len(missing),
        "complete": not missing,
    }
    if parsed.json:
        print_json(facts)
    else:
        print(as_table(facts))
    return 0
