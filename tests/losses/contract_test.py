"""What every exported loss keeps to. It is found by itself: nothing to add."""

import doctest
import inspect
import re

import keras
import numpy as np
import pytest
import support
from keras import layers, ops
from support import values

import keras_distill as kd


def built(layer):
    """A layer of the maps' channels, with weights."""
    layer.build((None, 5))
    return layer


BASES = (
    kd.losses.DistillationLoss,
    kd.losses.FeatureLoss,
    kd.losses.LogitLoss,
)
LOSSES = [
    exported
    for exported in (getattr(kd.losses, name) for name in kd.losses.__all__)
    if inspect.isclass(exported)
    and issubclass(exported, kd.losses.DistillationLoss)
    and exported not in BASES
]
# Arguments that have no default.
REQUIRED = {
    "FactorTransfer": lambda: {
        "paraphraser": kd.losses.paraphraser((None, None, None, 5))[0]
    },
    "FeatureOverhaul": lambda: {"margin": [-1.0] * 5},
    "SoftmaxRegression": lambda: {"teacher_head": built(layers.Dense(3))},
    "SparseSoftTargets": lambda: {"k": 3},
    "StandardizedLogits": lambda: {"loss": kd.losses.SoftTargets(2.0)},
}
# Losses whose values don't move with the examples, and why.
ORDERED = {
    "MaskedGeneration": "Each place in the batch draws a mask of its own.",
    "SampledSoftTargets": "Each place of a batch has draws of its own.",
    "CorrelationCongruence": "It compares each example with the next.",
}
# Losses that draw random numbers in each call.
RANDOM = {"MaskedGeneration", "SampledSoftTargets"}
# Losses that aren't zero where the student equals the teacher, and why.
NOT_ZERO_AT_MATCH = {
    "ActivationBoundary": "The student is to be further from zero.",
    "ContrastiveRepresentation": "It has an entropy, and embeds both sides.",
    "CorrectedTeacher": "The teacher is corrected before it is compared.",
    "FactorTransfer": "Translator and paraphraser are different networks.",
    "FeatureOverhaul": "Where the teacher is below the margin, so is a match.",
    "HardTargets": "A cross-entropy with the decision.",
    "KnowledgeReview": "The student's side goes through layers.",
    "MaskedGeneration": "The student's side goes through layers.",
    "NormalizedSoftTargets": "Cross-entropies, with the teacher's entropy.",
    "OneForAll": "A cross-entropy, with the teacher's entropy.",
    "SampledSoftTargets": "A cross-entropy, with the teacher's entropy.",
    "SemanticCalibration": "The student's side goes through layers.",
    "SoftmaxRegression": "The student's side goes through layers.",
    "TeacherFree": "Its teacher is made up from the label.",
    "WeightedSoftTargets": "A cross-entropy, with the teacher's entropy.",
    "CorrelationCongruence": "Each side goes through a layer of its own.",
    "VariationalInformation": "The student's side goes through layers.",
}
# Losses that have no slope where both are sure of different classes, and why.
SATURATED = {
    "ClassAttention": "Opposite maps are as different as can be.",
    "ContrastiveRepresentation": "Examples that are alike can't be told apart.",
    "JensenShannon": "It is bounded.",
    "LogitCorrelation": "Probabilities of 0 and 1 have no slope.",
    "SkewedDivergence": "It is bounded.",
    "SoftmaxRegression": "Averages of opposite signs stay as they are.",
    "SortedProbabilities": "Both are equally sure, which makes it 0.",
    "StandardizedLogits": "Logits of two levels stay the same, moved apart.",
    "TotalVariation": "It is bounded.",
    "AttentionTransfer": "The sign of a layer makes no difference.",
    "InterChannelCorrelation": "The sign of a layer makes no difference.",
    "KernelCongruence": "The sign of a layer makes no difference.",
    "NeuronSelectivity": "The sign of a layer makes no difference.",
    "ProbabilisticTransfer": "The sign of a layer makes no difference.",
    "RelationalAngle": "The sign of a layer makes no difference.",
    "RelationalDistance": "The sign of a layer makes no difference.",
    "SimilarityPreserving": "The sign of a layer makes no difference.",
    "PearsonCorrelation": "The negative is as far away as can be.",
}
# Losses that don't look at the teacher's numbers themselves, and why.
TEACHER_WITHOUT_NAN = {
    "ActivationBoundary": "It asks whether the teacher is active.",
    "FeatureOverhaul": "What is below the margin counts as the margin.",
    "HardTargets": "It asks for the largest.",
    "SampledSoftTargets": "Some backends refuse to draw, others can't.",
    "TeacherFree": "Its teacher is made up from the label.",
}
# Losses of several layers at once, which are tested where they are.
SEVERAL_LAYERS = {"FlowOfSolution"}
# Losses for which the classes may differ.
OTHER_CLASSES = {"SortedProbabilities"}
SECTIONS = ["Formula", "Args", "Shapes", "Raises", "Example", "Reference"]


@pytest.fixture(params=LOSSES, ids=lambda loss: loss.__name__)
def loss_class(request):
    return request.param


@pytest.fixture
def shape(loss_class):
    """Logits for the losses between logits, and feature maps for others."""
    if loss_class.__name__ in SEVERAL_LAYERS:
        pytest.skip("It compares several layers at once.")
    is_logit_loss = issubclass(loss_class, kd.losses.LogitLoss)
    return (4, 6) if is_logit_loss else (4, 3, 2, 5)


@pytest.fixture
def pair(shape):
    """A teacher's and a student's tensor."""
    random = np.random.default_rng(0)
    return [random.normal(0, 3, shape).astype("float32") for _ in range(2)]


@pytest.fixture
def make(loss_class, shape):
    """Makes the loss, with what it can't do without, and its parts."""

    def made(build=shape, **arguments):
        keras.utils.set_random_seed(0)
        required = REQUIRED.get(loss_class.__name__, dict)()
        loss = loss_class(**required, **arguments)
        if build:
            loss.build(build, build)
        return loss

    return made


def teacher_side(loss, teacher, order=None):
    """The first argument of a loss: with labels or ids, where it uses them."""
    order = np.arange(len(teacher)) if order is None else order
    labels = {"labels": order % 3} if loss.uses_labels else {}
    ids = {"sample_ids": order} if loss.uses_sample_ids else {}
    if not (labels or ids):
        return teacher
    return {"teacher": teacher, **labels, **ids}


def look(loss, teacher, student, weights=None, order=None):
    """A loss's value, and the slope of its mean in the student."""
    teacher = teacher_side(loss, teacher, order)
    if keras.backend.backend() == "jax":
        if weights is None:
            weights = np.ones(len(student), "float32")
        value, slope = program(loss)(teacher, student, weights)
        return np.asarray(value), support.as_float(slope)
    values = []

    def mean(student):
        values.append(loss(teacher, student, weights))
        return ops.mean(values[0])

    slope = support.gradient(mean, student)
    return ops.convert_to_numpy(values[0]), slope


PROGRAMS = {}


def program(loss):
    """What JAX makes of a loss: one for all that are equal.

    To compile takes most of the time, and `make` gives equal losses equal
    weights.
    """
    import jax

    def mean(student, teacher, weights):
        with keras.StatelessScope():
            value = loss(teacher, student, weights)
            return ops.mean(value), value

    key = type(loss), repr(loss.get_config())
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(jax.value_and_grad(mean, has_aux=True))

    def run(teacher, student, weights):
        (_, value), slope = PROGRAMS[key](student, teacher, weights)
        return value, slope

    return run


def evaluate(loss, teacher, student, weights=None, order=None):
    """A loss's value alone, where that takes less time."""
    if keras.backend.backend() == "jax":
        return look(loss, teacher, student, weights, order)[0]
    teacher = teacher_side(loss, teacher, order)
    return ops.convert_to_numpy(loss(teacher, student, weights))


def test_finds_the_losses():
    assert {
        kd.losses.BinarySoftTargets,
        kd.losses.Hint,
        kd.losses.LogitMatching,
        kd.losses.SoftTargets,
    } <= set(LOSSES)


def test_gives_one_value_for_each_example(make, pair):
    values = evaluate(make(reduction=None), *pair)
    assert values.shape == (4,)
    mean = evaluate(make(), *pair)
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-6)


def test_gives_the_same_value_twice(loss_class, make, pair):
    first = make(reduction=None)
    # One that draws random numbers starts again with the seed.
    again = make(reduction=None) if loss_class.__name__ in RANDOM else first
    values = evaluate(first, *pair)
    np.testing.assert_array_equal(values, evaluate(again, *pair))


def test_treats_examples_alike(loss_class, make, pair):
    if loss_class.__name__ in ORDERED:
        pytest.skip(ORDERED[loss_class.__name__])
    order = np.array([2, 0, 3, 1])
    teacher, student = (side[order] for side in pair)
    values = evaluate(make(reduction=None), teacher, student, order=order)
    expected = evaluate(make(reduction=None), *pair)[order]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_is_zero_where_the_student_equals_the_teacher(loss_class, make, pair):
    assert evaluate(make(reduction=None), *pair).min() > 0
    if loss_class.__name__ in NOT_ZERO_AT_MATCH:
        pytest.skip(NOT_ZERO_AT_MATCH[loss_class.__name__])
    values = evaluate(make(reduction=None), pair[0], pair[0])
    np.testing.assert_allclose(values, 0, atol=1e-6)


def test_weight_of_zero_takes_value_and_gradient(make, pair):
    loss = make()
    weights = np.array([0.0, 1.0, 0.0, 0.0], "float32")
    if loss.relates_examples:
        # The value of one example moves with the others.
        weights = np.zeros(4, "float32")
    _, slope = look(loss, *pair, weights)
    assert np.all(slope[[0, 2, 3]] == 0)
    assert np.any(slope[1] != 0) or loss.relates_examples
    assert evaluate(loss, *pair, np.zeros(4, "float32")) == 0


def test_weights_each_example(make, pair):
    weights = np.array([3.0, 0.0, 1.0, 0.5], "float32")
    expected = weights @ evaluate(make(reduction=None), *pair) / 4
    value = evaluate(make(), *pair, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_is_finite_at_extreme_outputs(loss_class, make, shape, dtype):
    signs = np.where(np.arange(np.prod(shape)).reshape(shape) % 2, 1.0, -1.0)
    teacher = ops.cast(1e4 * signs, dtype)
    student = ops.cast(-1e4 * signs, dtype)
    values, slope = look(make(reduction=None), teacher, student)
    assert np.all(np.isfinite(slope))
    if loss_class.__name__ in SATURATED:
        assert np.all(np.isfinite(values))
        pytest.skip(SATURATED[loss_class.__name__])
    assert 0 < values.mean() < np.inf
    assert np.any(slope != 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_in_float32(make, pair, dtype):
    low = [ops.cast(side, dtype) for side in pair]
    values = evaluate(make(reduction=None), *low)
    assert values.dtype == "float32"
    same = [ops.cast(side, "float32") for side in low]
    # To the bit, but where a compiler rounds elsewhere.
    np.testing.assert_allclose(
        values, evaluate(make(reduction=None), *same), rtol=1e-5
    )


def test_computes_in_float32_under_float16(make):
    floatx = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        assert make().dtype == "float32"
    finally:
        keras.config.set_floatx(floatx)


# NumPy says so, too.
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_shows_what_is_not_a_number(loss_class, make, pair, who):
    if who == "teacher" and loss_class.__name__ in TEACHER_WITHOUT_NAN:
        pytest.skip(TEACHER_WITHOUT_NAN[loss_class.__name__])
    broken = [side.copy() for side in pair]
    broken[who == "student"][1] = np.nan
    assert np.any(np.isnan(evaluate(make(reduction=None), *broken)))


def test_labels_beyond_the_classes_are_seen(make, pair):
    loss = make(reduction=None)
    if not loss.uses_labels:
        pytest.skip("It has none.")
    teacher, student = pair
    values = ops.convert_to_numpy(
        loss({"teacher": teacher, "labels": np.array([0, 6, 5, -1])}, student)
    )
    np.testing.assert_array_equal(np.isnan(values), [False, True, False, False])
    rows = np.eye(7)[[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="a column for each class"):
        loss({"teacher": teacher, "labels": rows}, student)


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="Whether gradients are recorded is PyTorch's to ask.",
)
def test_is_the_same_without_gradients(make, pair):
    import torch

    loss, (teacher, student) = make(reduction=None), pair
    teacher = teacher_side(loss, ops.convert_to_tensor(teacher))
    with torch.inference_mode():
        values = loss(teacher, ops.convert_to_tensor(student)).numpy()
    expected = evaluate(make(reduction=None), *pair)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="Elsewhere, shapes are known when a function is traced.",
)
def test_a_graph_of_unknown_sizes_equals_eager(make, pair):
    import tensorflow as tf

    loss = make(reduction=None)
    shape = (*[None] * (pair[0].ndim - 1), pair[0].shape[-1])
    spec = tf.TensorSpec(shape, "float32")
    if loss.uses_labels or loss.uses_sample_ids:
        places = tf.TensorSpec([None], "int64")
        keys = teacher_side(loss, pair[0])
        teacher_spec = {
            key: spec if key == "teacher" else places for key in keys
        }
    else:
        teacher_spec = spec

    def unweighted(teacher, student):
        return loss(teacher, student)

    traced = tf.function(unweighted).get_concrete_function(teacher_spec, spec)
    teacher = tf.nest.map_structure(
        tf.convert_to_tensor, teacher_side(loss, pair[0])
    )
    values = traced(teacher, tf.convert_to_tensor(pair[1]))
    expected = evaluate(make(reduction=None), *pair)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5)


def test_reads_both_data_formats(loss_class, make, pair, shape):
    if not issubclass(loss_class, kd.losses.FeatureLoss):
        pytest.skip("Logits have no data format.")
    first = (shape[0], shape[-1], *shape[1:-1])
    loss = make(first, data_format="channels_first", reduction=None)
    moved = [np.moveaxis(side, -1, 1) for side in pair]
    assert keras.config.image_data_format() == "channels_last"
    last = make(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, *moved), evaluate(last, *pair), rtol=1e-5
    )


def test_comes_back_from_its_config(loss_class, make, pair):
    loss = make(
        teacher_layer_name="deep",
        student_layer_name="shallow",
        projector="auto",
        reduction="sum",
        name="mine",
        dtype="float32",
    )
    config = loss.get_config()
    arguments = inspect.signature(loss_class).parameters
    assert set(config) == set(arguments)
    serialized = keras.saving.serialize_keras_object(loss)
    for copy in (
        loss_class.from_config(config),
        keras.saving.deserialize_keras_object(serialized),
    ):
        assert type(copy) is loss_class
        assert copy.get_config() == config
        # On JAX, `evaluate` takes equal configurations for one loss.
        draws = loss.has_parts or loss_class.__name__ in RANDOM
        if not draws and keras.backend.backend() != "jax":
            assert evaluate(copy, *pair) == evaluate(loss, *pair)


def test_keeps_its_projector_in_its_config(loss_class, make):
    loss = make(projector=layers.Dense(7, name="wider"))
    copy = loss_class.from_config(loss.get_config())
    assert copy.projector.get_config() == loss.projector.get_config()
    assert copy.projector is not loss.projector


def test_is_registered(loss_class):
    name = keras.saving.get_registered_name(loss_class)
    assert name == f"keras_distill>{loss_class.__name__}"
    assert keras.saving.get_registered_object(name) is loss_class


@pytest.mark.usefixtures("differentiable")
def test_works_in_compile_on_stored_outputs(loss_class, make, pair):
    loss = make()
    if loss.uses_labels or loss.uses_sample_ids:
        pytest.skip("model.compile has no place for a teacher and labels.")
    teacher, x = pair
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), layers.Dense(x.shape[-1])]
    )
    model.compile(keras.optimizers.SGD(1e-3), loss)
    expected = evaluate(make(), teacher, model(x))
    told = model.fit(x, teacher, epochs=3, shuffle=False, verbose=0)
    history = told.history["loss"]
    np.testing.assert_allclose(history[0], expected, rtol=1e-5)
    assert evaluate(make(), teacher, model(x)) < history[0]


@pytest.mark.usefixtures("differentiable")
def test_trains_student_and_parts_and_not_the_teacher(make, pair, tmp_path):
    loss = make(build=None)
    x = pair[0]
    teacher, student = (
        keras.Sequential([keras.Input(x.shape[1:]), layers.Dense(5)])
        for _ in range(2)
    )
    weights = [model.get_weights() for model in (teacher, student)]
    if loss.has_parts:
        with pytest.raises(ValueError, match="before `build`"):
            loss(teacher_side(loss, x), x)
    distiller = kd.Distiller(teacher, student, losses=loss)
    distiller.compile("sgd", loss=None, metrics=None)
    parts = trainable_variables(loss)
    before = values(parts)
    if loss.uses_sample_ids:
        x = kd.TransferBatch(x, sample_ids=np.arange(len(x)))
    labels = np.zeros(pair[0].shape[:-1])
    # Some parts move only when others have.
    distiller.fit(x, labels, epochs=3 if parts else 1, verbose=0)
    for old, new in zip(weights[0], teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert np.any(weights[1][0] != student.get_weights()[0])
    # Outside of the student, which is to be exported.
    assert len(student.variables) == len(weights[1])
    for part, old, new in zip(parts, before, values(parts), strict=True):
        assert np.any(old != new), part.path
    if loss.has_parts:
        distiller.save(tmp_path / "distiller.keras")
        loaded = keras.models.load_model(tmp_path / "distiller.keras")
        (copy,) = loaded.distillation_losses.values()
        for ours, theirs in zip(
            all_variables(loss), all_variables(copy), strict=True
        ):
            np.testing.assert_array_equal(*values([ours, theirs]))


def test_refuses_to_broadcast(loss_class, make, pair):
    teacher, student = pair
    loss = make()
    wrongs = [teacher[:1], teacher[:, None]]
    if loss_class.__name__ not in OTHER_CLASSES and (
        not issubclass(loss_class, kd.losses.FeatureLoss)
        or loss_class.same_channels
    ):
        wrongs.append(teacher[..., :1])
    for wrong in wrongs:
        with pytest.raises(ValueError, match="Received"):
            loss(teacher_side(loss, wrong), student)


def test_refuses_weights_with_too_many_axes(make, pair):
    with pytest.raises(ValueError, match=r"sample_weight of shape \(4, 2, 2\)"):
        evaluate(make(), *pair, np.ones((4, 2, 2)))


def test_refuses_other_dtypes(loss_class, make):
    if loss_class.__name__ == "StandardizedLogits":
        pytest.skip("It takes the dtype of the loss inside.")
    for dtype in ("float16", "int32"):
        with pytest.raises(ValueError, match="float32 at least"):
            make(build=None, dtype=dtype)


def test_refuses_other_forms_of_teachers_and_classes(loss_class, make):
    if not issubclass(loss_class, kd.losses.LogitLoss):
        pytest.skip("It compares features.")
    with pytest.raises(ValueError, match="from_logits='no'"):
        make(build=None, from_logits="no")
    for classes in ([True, False], [0.5, 1], "01"):
        with pytest.raises(ValueError, match="whole numbers"):
            make(build=None, class_map=classes)


def test_refuses_a_projector_that_is_no_layer(make):
    with pytest.raises(TypeError, match=r"Pass a keras\.Layer"):
        make(projector="automatic")


def test_refuses_one_layer_against_two(loss_class, make):
    if not loss_class.pairs_layers:
        pytest.skip("It weighs all layers of one against all of the other.")
    with pytest.raises(ValueError, match="pair by pair"):
        make(teacher_layer_name=["a", "b"], student_layer_name="c")


def all_variables(loss):
    return [
        variable
        for _, part in loss.parts()
        for variable in getattr(part, "variables", [part])
        if isinstance(variable, keras.Variable)
    ]


def trainable_variables(loss):
    return [
        variable
        for _, part in loss.parts()
        for variable in getattr(part, "trainable_variables", [part])
        if isinstance(variable, keras.Variable) and variable.trainable
    ]


def test_takes_the_teacher_first(loss_class):
    names = list(inspect.signature(loss_class).parameters)
    place = names.index("teacher_layer_name")
    assert names[place + 1] == "student_layer_name"
    assert list(inspect.signature(loss_class.call).parameters)[1:] == [
        "teacher",
        "student",
    ]


def test_is_documented(loss_class):
    text = inspect.getdoc(loss_class)
    headers = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert headers == SECTIONS
    described = re.search(r"^Args:\n(.*?)^Shapes:", text, re.M | re.S)[1]
    names = re.findall(r"^    (\w+):", described, re.MULTILINE)
    assert names == list(inspect.signature(loss_class).parameters)


def test_has_an_example(loss_class):
    """Which tests/package_test.py runs."""
    (example,) = doctest.DocTestFinder(recurse=False).find(
        loss_class, loss_class.__name__
    )
    assert example.examples
