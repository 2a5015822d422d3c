"""What does a loss of `keras_distill` cost, beyond the same in plain PyTorch?

Each loss runs forward and backward on Keras' PyTorch backend, and so does the
function of `losses_in_torch.py`, in turns (A B, B A, ...), so that what else
the machine does falls on both. First, both must have the same value and the
same gradient.

    python examples/benchmark_losses.py

A ratio is the median over the rounds, with the middle half of them, of
processor time on one core. Batches are of 256 examples, as ImageNet's: logits
for 1,000 classes, 8x8 maps of 64 channels, vectors of 512 features. An
operation costs some microseconds more in Keras, however small its tensors, and
a layer half a millisecond: smaller batches have larger ratios.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import figures
import keras
import losses_in_torch as plain
import numpy as np
import torch
from torch import nn

import keras_distill as kd

RESULTS = figures.RESULTS / "benchmark_losses.json"
LIMIT = 1.5
BATCH, CLASSES, SIZE, CHANNELS, FEATURES = 256, 1000, 8, 64, 512
SHAPES = {
    "logits": (BATCH, CLASSES),
    "maps": (BATCH, SIZE, SIZE, CHANNELS),
    "vectors": (BATCH, FEATURES),
}
TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3


@dataclass
class Case:
    """A loss's inputs and arguments, and what it is compared with.

    Attributes:
        kind: What it compares, a key of `SHAPES`.
        reference: Of the plain function and its parts, given the loss.
        arguments: Makes the loss's arguments.
        layers: How many layers it gets; 0 for one that isn't in a list.
        draw: Makes what the loss draws at random in its first call.
    """

    kind: str
    reference: Callable[[Any], tuple[Callable[..., Any], Sequence[Any]]]
    arguments: Callable[[], dict[str, Any]] = dict
    layers: int = 0
    draw: Callable[[Any], Any] | None = None


@dataclass
class Job:
    """One side of a comparison: a function to a scalar, and its inputs."""

    function: Callable[..., Any]
    teacher: Any
    students: Sequence[Any]
    parts: Sequence[Any] = field(default_factory=list)

    def run(self, **arguments: Any) -> tuple[Any, Sequence[Any]]:
        """The value, and the gradients of the student and of the parts."""
        value = self.function(self.teacher, self.students, **arguments)
        inputs = [*self.students, *self.parts]
        return value, torch.autograd.grad(value, inputs)


# Parts of the losses as modules of PyTorch


def module(layer: Any, frozen: bool = False, maps: bool = True) -> nn.Module:
    """A Keras layer of a loss, with copies of its weights, as a module."""
    made = _module(layer, maps)
    if frozen:
        made.eval().requires_grad_(False)
    return made


def _module(layer: Any, maps: bool) -> nn.Module:
    if isinstance(layer, keras.Model):
        inner = [x for x in layer.layers if type(x).__name__ != "InputLayer"]
        return nn.Sequential(*[_module(x, maps) for x in inner])
    kinds: dict[str, Callable[..., nn.Module]] = {
        "Conv2D": _convolution,
        "Dense": _convolution if maps else _linear,
        "BatchNormalization": _batch_norm,
        "LeakyReLU": lambda x: nn.LeakyReLU(x.negative_slope),
        "ReLU": lambda x: nn.ReLU(),
    }
    made = kinds[type(layer).__name__](layer)
    activations = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
    name = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if name == "linear":
        return made
    return nn.Sequential(made, activations[name]())


def _convolution(layer: Any) -> nn.Module:
    kernel = layer.kernel.value.detach()
    if kernel.ndim == 2:
        kernel = kernel[None, None]
    height, width, inputs, outputs = kernel.shape
    made = nn.Conv2d(
        inputs,
        outputs,
        (height, width),
        padding=(height // 2, width // 2),
        bias=layer.use_bias,
    )
    return _filled(made, kernel.permute(3, 2, 0, 1), layer)


def _linear(layer: Any) -> nn.Module:
    kernel = layer.kernel.value.detach()
    return _filled(nn.Linear(*kernel.shape, layer.use_bias), kernel.T, layer)


def _filled(made: Any, kernel: Any, layer: Any) -> nn.Module:
    with torch.no_grad():
        made.weight.copy_(kernel)
        if layer.use_bias:
            made.bias.copy_(layer.bias.value)
    return made


def _batch_norm(layer: Any) -> nn.Module:
    made = nn.BatchNorm2d(
        layer.gamma.shape[0], layer.epsilon, momentum=1 - layer.momentum
    )
    with torch.no_grad():
        made.weight.copy_(layer.gamma.value)
        made.bias.copy_(layer.beta.value)
        made.running_mean.copy_(layer.moving_mean.value)
        made.running_var.copy_(layer.moving_variance.value)
    return made


# The cases


def bare(function: Callable[..., Any], **arguments: Any) -> Any:
    """A reference without parts."""
    return lambda loss: (
        lambda *sides, **drawn: function(*sides, **arguments, **drawn),
        [],
    )


def with_parts(function: Callable[..., Any], make: Any) -> Any:
    """A reference with modules, made from the loss's parts."""

    def made(loss: Any) -> tuple[Callable[..., Any], Sequence[Any]]:
        parts = make(loss)
        modules = [x for part in parts for x in _flat(part)]
        trained = [
            weight
            for x in modules
            for weight in (x.parameters() if isinstance(x, nn.Module) else [x])
            if weight.requires_grad
        ]
        return lambda *sides, **drawn: function(
            *sides, *parts, **drawn
        ), trained

    return made


def _flat(part: Any) -> Sequence[Any]:
    return part if isinstance(part, list) else [part]


def _modules(layers: Sequence[Any], maps: bool = True) -> list[nn.Module]:
    return [module(layer, maps=maps) for layer in layers]


def _weight(variable: Any) -> Any:
    return variable.value.detach().clone().requires_grad_()


def _embeddings(loss: Any) -> list[nn.Module]:
    layers = (loss.teacher_embedding, loss.student_embedding)
    return _modules(layers, maps=False)


def _head() -> Any:
    head = keras.layers.Dense(CLASSES)
    head.build((None, CHANNELS))
    return head


def _uniform(shape: tuple[int, ...]) -> Any:
    seed = keras.random.SeedGenerator(0)
    return keras.random.uniform(shape, seed=seed)


def _categories(teacher: Any) -> Any:
    seed = keras.random.SeedGenerator(0)
    drawn = keras.random.categorical(teacher, 50, dtype="int32", seed=seed)
    return drawn.long()


MARGIN = [-0.5 - 0.01 * i for i in range(CHANNELS)]


def on(kind: str, function: Any, arguments: Any = dict, **own: Any) -> Case:
    """A case without parts."""
    return Case(kind, bare(function, **own), arguments)


CASES = {
    "ActivationBoundary": on("maps", plain.activation_boundary),
    "AttentionTransfer": on("maps", plain.attention_transfer),
    "BinarySoftTargets": on(
        "logits", plain.binary_soft_targets, temperature=4.0
    ),
    "ChannelWise": on("maps", plain.channel_wise),
    "ClassAttention": on("maps", plain.class_attention),
    "ContrastiveRepresentation": Case(
        "vectors", with_parts(plain.contrastive, _embeddings)
    ),
    "CorrectedTeacher": on("logits", plain.corrected_teacher),
    "CorrelationCongruence": Case(
        "vectors",
        with_parts(
            plain.correlation,
            lambda loss: _modules(
                [*loss.teacher_embeddings, *loss.student_embeddings], maps=False
            ),
        ),
    ),
    "CurriculumTemperature": Case(
        "logits",
        with_parts(plain.curriculum, lambda loss: [_weight(loss.theta)]),
    ),
    "DecoupledSoftTargets": on("logits", plain.decoupled),
    "FactorTransfer": Case(
        "maps",
        with_parts(
            plain.factor_transfer,
            lambda loss: [
                module(loss.paraphraser, frozen=True),
                module(loss.translator),
            ],
        ),
        lambda: {"paraphraser": kd.losses.paraphraser(SHAPES["maps"])[0]},
    ),
    "FeatureOverhaul": Case(
        "maps",
        bare(plain.overhaul, margin=torch.tensor(MARGIN)),
        lambda: {"margin": MARGIN},
    ),
    "FlowOfSolution": Case("maps", bare(plain.flow_of_solution), layers=2),
    "HardTargets": on("logits", plain.hard_targets),
    "Hint": on("maps", plain.hint),
    "InterChannelCorrelation": on("maps", plain.inter_channel),
    "JensenShannon": on("logits", plain.jensen_shannon),
    "KernelCongruence": on("vectors", plain.kernel_congruence),
    "KnowledgeReview": Case(
        "maps",
        with_parts(
            plain.knowledge_review,
            lambda loss: [
                _modules(loss.reducers),
                _modules(loss.attentions),
                _modules(loss.translators),
            ],
        ),
        layers=2,
    ),
    "LogitCorrelation": on("logits", plain.logit_correlation),
    "LogitMatching": on("logits", plain.logit_matching),
    "MaskedGeneration": Case(
        "maps",
        with_parts(
            plain.masked_generation,
            lambda loss: [module(loss.generators[0])],
        ),
        lambda: {"seed": 0},
        draw=lambda _: _uniform((BATCH, 1, 1, CHANNELS)).permute(0, 3, 1, 2),
    ),
    "MultiLevelLogits": on("logits", plain.multi_level),
    "NeuronSelectivity": on("maps", plain.neuron_selectivity),
    "NormalizedSoftTargets": on("logits", plain.normalized),
    "OneForAll": on("logits", plain.one_for_all, lambda: {"modulation": 1.5}),
    "PearsonCorrelation": on("maps", plain.pearson_maps),
    "ProbabilisticTransfer": on("vectors", plain.probabilistic),
    "RelationalAngle": on("vectors", plain.relational_angle),
    "RelationalDistance": on("vectors", plain.relational_distance),
    "SampledSoftTargets": Case(
        "logits", bare(plain.sampled), lambda: {"seed": 0}, draw=_categories
    ),
    "SemanticCalibration": Case(
        "maps",
        with_parts(
            plain.semantic_calibration,
            lambda loss: [
                _modules(loss.projectors),
                _modules(loss.queries, maps=False),
                _modules(loss.keys, maps=False),
            ],
        ),
        layers=2,
    ),
    "SimilarityPreserving": on("maps", plain.similarity),
    "SkewedDivergence": on("logits", plain.skewed),
    "SoftTargets": on("logits", plain.soft_targets),
    "SoftmaxRegression": Case(
        "maps",
        with_parts(
            plain.softmax_regression,
            lambda loss: [
                module(loss.connector),
                module(loss.teacher_head, frozen=True, maps=False),
            ],
        ),
        lambda: {"teacher_head": _head()},
    ),
    "SortedProbabilities": on("logits", plain.sorted_probabilities),
    "SparseSoftTargets": on("logits", plain.sparse, lambda: {"k": 10}, k=10),
    "StandardizedLogits": on(
        "logits",
        plain.standardized,
        lambda: {"loss": kd.losses.SoftTargets(2.0)},
    ),
    "TeacherFree": on("logits", plain.teacher_free),
    "TotalVariation": on("logits", plain.total_variation),
    "VariationalInformation": Case(
        "maps",
        with_parts(
            plain.variational,
            lambda loss: [
                nn.Sequential(*_modules(loss.regressors)),
                _weight(loss.raw_variances[0]),
            ],
        ),
    ),
    "WeightedSoftTargets": on("logits", plain.weighted),
}


def methods() -> list[str]:
    """Names of the exported losses, without their bases."""
    exported = {name: getattr(kd.losses, name) for name in kd.losses.__all__}
    return [
        name
        for name, loss in exported.items()
        if inspect.isclass(loss)
        and issubclass(loss, kd.losses.DistillationLoss)
        and name not in ("DistillationLoss", "FeatureLoss", "LogitLoss")
    ]


def check_cases() -> None:
    """Raise where a loss has nothing to be compared with, or the reverse."""
    exported, known = set(methods()), set(CASES)
    missing, gone = sorted(exported - known), sorted(known - exported)
    if missing or gone:
        raise SystemExit(
            "Each exported loss needs a function in losses_in_torch.py and a "
            f"line in CASES. Missing: {missing}. Not exported: {gone}."
        )


def jobs(name: str) -> tuple[Job, Job, dict[str, Any]]:
    """The library's job, the plain one, and what the latter is to draw."""
    keras.utils.set_random_seed(0)
    case = CASES[name]
    random = np.random.default_rng(1)
    shape = SHAPES[case.kind]

    def tensors() -> list[Any]:
        count = max(case.layers, 1)
        made = random.normal(0, 2, (count, *shape)).astype("float32")
        return list(torch.from_numpy(made))

    teachers = tensors()
    students = [x.requires_grad_() for x in tensors()]
    labels = torch.from_numpy(random.integers(0, CLASSES, BATCH))
    names = [str(i) for i in range(case.layers)] or None
    loss = getattr(kd.losses, name)(
        **case.arguments(), teacher_layer_name=names, student_layer_name=names
    )
    shapes = [shape] * case.layers or shape
    loss.build(shapes, shapes)
    reference, weights = case.reference(loss)
    teacher = teachers if case.layers else teachers[0]
    given = (
        {"teacher": teacher, "labels": labels} if loss.uses_labels else teacher
    )

    def library(teacher: Any, students: Any) -> Any:
        return loss(teacher, students if case.layers else students[0])

    def by_hand(teacher: Any, students: Any, **drawn: Any) -> Any:
        sides = [
            [x.permute(0, 3, 1, 2) if x.ndim == 4 else x for x in side]
            for side in (teacher, students)
        ]
        if not case.layers:
            sides = [side[0] for side in sides]
        return reference(
            *sides, *([labels] if loss.uses_labels else []), **drawn
        )

    trained = [
        variable.value
        for _, part in loss.parts()
        for variable in getattr(part, "trainable_variables", [part])
        if isinstance(variable, keras.Variable) and variable.trainable
    ]
    drawn = {"drawn": case.draw(teacher)} if case.draw else {}
    return (
        Job(library, given, students, trained),
        Job(by_hand, teachers, students, weights),
        drawn,
    )


def check_equal(name: str, ours: Job, theirs: Job, drawn: Any) -> None:
    """Raise unless both have the same value and gradient."""
    value, gradients = ours.run()
    expected, wanted = theirs.run(**drawn)
    value, expected = value.item(), expected.item()
    if not np.isclose(value, expected, rtol=TOLERANCE, atol=0):
        raise SystemExit(f"{name} is {value}, in plain PyTorch {expected}")
    if len(gradients) != len(wanted):
        raise SystemExit(f"{name} trains other parts than in plain PyTorch")
    count = len(ours.students)
    errors = [
        norm([gradient - want]) / norm([want])
        for gradient, want in zip(
            gradients[:count], wanted[:count], strict=True
        )
    ]
    if count < len(gradients):
        # Their order and layout differ, but not how large they are.
        size, want = norm(gradients[count:]), norm(wanted[count:])
        errors.append(abs(size - want) / want)
    if max(errors) > GRADIENT_TOLERANCE:
        raise SystemExit(f"{name}: gradients differ by {max(errors):.1e}")


def norm(tensors: Sequence[Any]) -> float:
    """The length of all together."""
    return float(np.sqrt(sum(x.square().sum().item() for x in tensors)))


def seconds(job: Job, repeats: int) -> float:
    """Processor time of one forward and backward pass."""
    start = time.process_time()
    for _ in range(repeats):
        job.run()
    return (time.process_time() - start) / repeats


def compare(name: str, rounds: int) -> tuple[float, ...]:
    """Milliseconds of both, and the quartiles of their ratio."""
    ours, theirs, drawn = jobs(name)
    check_equal(name, ours, theirs, drawn)
    once = max(seconds(job, 2) for job in (ours, theirs))
    repeats = max(1, min(100, int(0.03 / once)))
    costs = []
    for i in range(rounds):
        pair = (ours, theirs)[:: 1 if i % 2 else -1]
        taken = [seconds(job, repeats) for job in pair]
        costs.append(taken[:: 1 if i % 2 else -1])
    array = np.array(costs)
    low, middle, high = np.percentile(array[:, 0] / array[:, 1], [25, 50, 75])
    return (*(np.median(array, axis=0) * 1e3), low, middle, high)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=methods(), help="the losses to run"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--check", action="store_true", help=f"fail above a ratio of {LIMIT}"
    )
    figures.add_arguments(parser)
    return parser.parse_args()


def table(kept: dict[str, Any]) -> str:
    """The losses that take longest, and how many others there are."""
    (facts,) = kept.values()
    ratios = {name: found["ratio"] for name, found in facts["losses"].items()}
    slow = {name: ratio for name, ratio in ratios.items() if ratio > LIMIT}
    others = [ratio for ratio in ratios.values() if ratio <= LIMIT]
    rows = [
        (
            f"the other {len(others)}" if slow else f"all {len(others)}",
            f"{min(others):.2f} to {max(others):.2f}",
            "",
        )
    ]
    for name in sorted(slow, key=lambda name: slow[name]):
        ours, theirs = facts["losses"][name]["ms"]
        rows.append(
            (f"`{name}`", f"{slow[name]:.2f}", f"{ours - theirs:.1f} ms")
        )
    return figures.markdown(("loss", "times plain PyTorch", "more"), rows)


def main() -> None:
    args = arguments()
    if args.table:
        figures.show(args.json or RESULTS, table)
        return
    check_cases()
    torch.set_num_threads(1)
    slow, facts = [], {}
    print(f"{'loss':26} {'ours':>9} {'PyTorch':>9} {'ratio':>6}  (middle half)")
    for name in args.only or CASES:
        gc.collect()
        ours, theirs, low, ratio, high = compare(name, args.rounds)
        mark = "OVER" if ratio > LIMIT else ""
        slow += [name] if mark else []
        facts[name] = {"ms": [ours, theirs], "ratio": ratio}
        print(
            f"{name:26} {ours:6.2f} ms {theirs:6.2f} ms {ratio:6.2f}  "
            f"({low:.2f} to {high:.2f}) {mark}",
            flush=True,
        )
    if slow:
        print(f"\nAbove a ratio of {LIMIT}: {', '.join(slow)}")
    if args.json:
        figures.keep(args.json, {"losses": facts})
    if args.check and slow:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
