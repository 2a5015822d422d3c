"""Students of each family: what of the teacher they have, and what not."""

import keras
import numpy as np
import pytest
from keras import layers
from shrinking.families import FAMILIES, cnn, resnet
from support import assert_same_values, mlp, only_on, values

import keras_distill as kd
from keras_distill.model_graphs import layers_of

# The layers differ between backends, and shrinking them doesn't; JAX takes
# long to compile some.
ON_THIS = FAMILIES if keras.backend.backend() == "torch" else ("cnn", "nested")
# Their norms are over units, so that fewer of them are another function.
NORMED = ("text", "vit")


def _examples(model):
    random = np.random.default_rng(0)
    found = [
        random.integers(0, 9, (3, *t.shape[1:]))
        if "int" in t.dtype
        else random.normal(size=(3, *t.shape[1:])).astype("float32")
        for t in model.inputs
    ]
    return found if len(found) > 1 else found[0]


def _outputs(model):
    outputs = model(_examples(model), training=False)
    return [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(outputs)]


def _with_statistics(model):
    """The model, with weights that differ from what a layer starts with."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        is_positive = weight.path.endswith("variance")
        low = 0.5 if is_positive else -1.0
        weight.assign(random.uniform(low, 1.0, weight.shape))
    return model


def _without_odd_units(model):
    """The model, with nothing in each second unit of its hidden layers."""
    for layer in layers_of(model):
        for weight in layer.weights:
            if isinstance(layer, keras.Model) or "logits" in weight.path:
                continue
            array = keras.ops.convert_to_numpy(weight).copy()
            name = weight.path.split("/")[-1]
            if "value" in weight.path and array.ndim == 3:
                array[:, 1::2] = 0
            elif "value" in weight.path and array.ndim == 2:
                array[1::2] = 0
            elif isinstance(layer, layers.Conv2DTranspose) and array.ndim > 1:
                array[:, :, 1::2] = 0
            elif name in ("moving_variance", "gamma"):
                continue
            else:
                array[..., 1::2] = 0
            weight.assign(array)
    return model


@pytest.mark.parametrize("family", ON_THIS)
def test_a_whole_student_is_its_teacher(family):
    teacher = _with_statistics(FAMILIES[family]())
    student = kd.shrink(teacher, width=1, initialize="norm")
    assert type(student) is type(teacher)
    assert_same_values(_outputs(student), _outputs(teacher))


@only_on("torch")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrow_student_has_the_teachers_form(family):
    teacher = FAMILIES[family]()
    before, config = values(teacher.variables), teacher.get_config()
    student = kd.shrink(teacher, width=0.5)
    assert 0 < student.count_params() < 0.6 * teacher.count_params()
    assert student.output_shape == teacher.output_shape
    assert student.input_shape == teacher.input_shape
    names = [layer.name for layer in teacher.layers]
    assert [layer.name for layer in student.layers] == names
    assert [t.shape for t in _outputs(student)] == [
        t.shape for t in _outputs(teacher)
    ]
    shared = {id(v) for v in teacher.variables}
    assert not shared & {id(v) for v in student.variables}
    assert_same_values(values(teacher.variables), before)
    assert teacher.get_config() == config


@pytest.mark.parametrize("family", sorted({*ON_THIS} - {*NORMED}))
def test_what_goes_is_what_does_nothing(family):
    teacher = _without_odd_units(_with_statistics(FAMILIES[family]()))
    student = kd.shrink(teacher, width=0.5, initialize="norm")
    for ours, theirs in zip(_outputs(student), _outputs(teacher), strict=True):
        assert np.abs(theirs).max() > 1e-3
        # Other sizes are added up in another order.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def _blocks(model):
    return [v.name for v in model.layers if isinstance(v, layers.Add)]


@only_on("torch")
def test_every_other_residual_block_stays():
    teacher = _with_statistics(resnet())
    # Without what the second block of a row adds, it is no block.
    for name in ("b1_2_norm", "b4_2_norm"):
        norm = teacher.get_layer(name)
        norm.gamma.assign(np.zeros(norm.gamma.shape))
        norm.beta.assign(np.zeros(norm.beta.shape))
    student = kd.shrink(teacher, width=1, depth=0.5, initialize="norm")
    assert _blocks(student) == ["b0_add", "b2_add", "b3_add"]
    np.testing.assert_allclose(
        _outputs(student)[0], _outputs(teacher)[0], rtol=1e-6
    )


def _chain(*names, head="logits"):
    sizes = [layers.Dense(4, name=name) for name in names]
    return keras.Sequential(
        [keras.Input((3,)), *sizes, layers.Dense(4, name=head)]
    )


@only_on("torch")
@pytest.mark.parametrize(
    ("depth", "kept"),
    [(0.75, "abce"), (0.5, "abd"), (0.3, "ab"), (0.1, "ab")],
)
def test_the_first_of_a_row_and_a_share_of_it_stay(depth, kept):
    # The first layer reads another size, and the last one is returned.
    student = kd.shrink(_chain(*"abcde"), width=1, depth=depth)
    names = [layer.name for layer in student.layers]
    assert names == [*kept, "logits"]


@only_on("torch")
def test_parts_that_read_other_tensors_are_not_alike():
    x, a, b = (keras.Input((8,), name=name) for name in "xab")
    h = layers.Add()([layers.Dense(8)(x), a])
    h = layers.Add()([layers.Dense(8)(h), b])
    teacher = keras.Model([x, a, b], layers.Dense(3)(h))
    with pytest.raises(ValueError, match=r"depth=0\.5"):
        kd.shrink(teacher, width=1, depth=0.5)


@only_on("torch")
def test_attention_by_keywords_returns_as_much_as_its_query():
    x, m = keras.Input((3, 8), name="x"), keras.Input((5, 6), name="m")
    attend = layers.MultiHeadAttention(2, 4)
    outputs = layers.Dense(3)(attend(query=x, value=m, key=m))
    student = kd.shrink(keras.Model([x, m], outputs), width=0.5)
    assert student.output_shape == (None, 3, 3)
    (shrunk,) = (
        layer
        for layer in student.layers
        if isinstance(layer, layers.MultiHeadAttention)
    )
    assert shrunk.get_config()["num_heads"] == 1


@only_on("torch")
@pytest.mark.parametrize("score_mode", ["concat", "dot"])
def test_scales_of_an_attention_come_along(score_mode):
    x = keras.Input((3, 8))
    attend = layers.Attention(use_scale=True, score_mode=score_mode)
    hidden = layers.Dense(6)(x)
    teacher = keras.Model(x, layers.Dense(2)(attend([hidden, hidden])))
    for number, scale in enumerate(attend.weights):
        scale.assign(number + 2)
    student = kd.shrink(teacher, width=0.5, initialize="norm")
    (shrunk,) = (v for v in student.layers if isinstance(v, layers.Attention))
    assert_same_values(values(shrunk.weights), values(attend.weights))


class Doubled(layers.Layer):
    """A layer that takes no argument, as those of examples often do."""

    def __init__(self):
        super().__init__()

    def get_config(self):
        return {}

    def call(self, x):
        return x * 2


@only_on("torch")
def test_a_layer_without_arguments_is_made_again():
    teacher = keras.Sequential(
        [keras.Input((4,)), *map(layers.Dense, (8, 8)), Doubled()]
    )
    with pytest.warns(UserWarning, match=r"\['doubled'\] read"):
        student = kd.shrink(teacher, width=0.5)
    assert isinstance(student.layers[-1], Doubled)


@only_on("torch")
def test_a_transformer_loses_whole_layers():
    student = kd.shrink(FAMILIES["text"](), width=1, depth=0.5)
    names = {layer.name for layer in student.layers}
    for i, stays in enumerate((True, False, True, False)):
        for part in ("attention", "up", "down"):
            assert (f"{part}{i}" in names) == stays


@only_on("torch")
def test_a_chain_loses_layers_with_their_normalisation():
    student = kd.shrink(cnn(), width=1, depth=0.5)
    names = [layer.name for layer in student.layers]
    assert names[:7] == [
        *("conv0", "norm0", "relu0", "conv2", "norm2", "relu2"),
        "flatten",
    ]


def test_groups_of_a_normalisation_go_as_a_whole():
    def network(groups):
        return keras.Sequential(
            [
                keras.Input((4, 4, 3)),
                layers.Conv2D(8, 1, name="conv"),
                layers.GroupNormalization(groups, name="norm"),
                layers.Conv2D(3, 1, name="logits"),
            ]
        )

    teacher = _with_statistics(network(4))
    kernel = keras.ops.convert_to_numpy(teacher.layers[0].kernel).copy()
    kernel[..., [0, 1, 4, 5]] = 0
    teacher.layers[0].kernel.assign(kernel)
    teacher.layers[0].bias.assign(np.repeat([0.0, 1.0, 0.0, 1.0], 2))
    teacher.get_layer("norm").beta.assign(np.repeat([0.0, 1, 0, 1], 2))
    student = kd.shrink(teacher, width=0.5, initialize="norm")
    assert student.get_layer("norm").groups == 2
    np.testing.assert_allclose(
        _outputs(student)[0], _outputs(teacher)[0], rtol=1e-5, atol=1e-5
    )
    # One group over all units is free in what it loses.
    assert kd.shrink(network(1), 0.25).get_layer("norm").groups == 1


def test_units_are_rounded_to_multiples():
    teacher = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(40, name="wide"),
            layers.Dense(6, name="narrow"),
            layers.Dense(3),
        ]
    )
    student = kd.shrink(teacher, width=0.3, multiple_of=8)
    assert student.get_layer("wide").units == 16
    # Never more than the teacher has.
    assert student.get_layer("narrow").units == 6


def test_a_student_keeps_policies_and_learns_all():
    teacher = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Normalization(mean=None, name="scale"),
            layers.Dense(4, dtype="mixed_bfloat16", name="hidden"),
            layers.Dense(3),
        ]
    )
    teacher.get_layer("scale").adapt(np.ones((2, 4)) * [[1.0], [3.0]])
    teacher.trainable = False
    student = kd.shrink(teacher)
    hidden = student.get_layer("hidden")
    assert hidden.dtype_policy.name == "mixed_bfloat16"
    assert len(student.trainable_weights) == 4
    assert not teacher.trainable_weights
    # Statistics of the data aren't learned, so that they come along.
    scale = student.get_layer("scale")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(scale(np.full((1, 4), 4.0))), [[2.0] * 4]
    )


class Doubling(layers.Layer):
    """A layer that nothing is known of."""

    def call(self, x):
        return 2 * x


def test_what_nothing_is_known_of_stays_and_is_named():
    teacher = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, name="free"),
            layers.Dense(8, name="read"),
            Doubling(name="doubling"),
            layers.Lambda(lambda x: x + 1, name="adding"),
            layers.Dense(3),
        ]
    )
    with pytest.warns(UserWarning, match=r"\['doubling'\] read"):
        student = kd.shrink(teacher, initialize="norm")
    assert student.get_layer("free").units == 4
    assert student.get_layer("read").units == 8
    assert _outputs(student)[0].shape == (3, 3)


class Nameless(layers.Layer):
    """A layer whose config doesn't say its argument."""

    def __init__(self, factor, name=None):
        super().__init__(name=name)
        self.factor = factor

    def get_config(self):
        return {"name": self.name}

    def call(self, x):
        return x * self.factor


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ValueError, "Received: width=0"),
        ({"width": 1.5}, ValueError, "Received: width=1.5"),
        ({"width": float("nan")}, ValueError, "Received: width=nan"),
        ({"width": "half"}, TypeError, "Received: width='half'"),
        ({"depth": -1}, ValueError, "Received: depth=-1"),
        ({"depth": True}, TypeError, "Received: depth=True"),
        ({"initialize": "best"}, ValueError, "Received: initialize='best'"),
        ({"multiple_of": 0}, ValueError, "Received: multiple_of=0"),
        ({"multiple_of": 1.0}, TypeError, "Received: multiple_of=1.0"),
        ({"depth": 0.5}, ValueError, "no blocks. Pass depth=1"),
        ({"width": 0.99}, ValueError, "Received: width=0.99 and"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        kd.shrink(mlp(), **arguments)


def test_a_depth_that_drops_nothing_is_no_depth():
    with pytest.raises(ValueError, match=r"repeat \[2\] times"):
        kd.shrink(_chain("a", "b", "c"), width=1, depth=0.9)


def test_units_that_only_unknown_layers_read():
    inputs = keras.Input((4,))
    x = layers.Dense(8)(inputs)
    teacher = keras.Model(inputs, layers.Dot(axes=1, name="product")([x, x]))
    with pytest.raises(ValueError, match=r"\['product'\] read keep"):
        kd.shrink(teacher)


def test_teachers_that_show_nothing_to_shrink():
    with pytest.raises(TypeError, match="teacher=None"):
        kd.shrink(None)
    with pytest.raises(ValueError, match="isn't built"):
        kd.shrink(keras.Sequential([layers.Dense(2)]))
    odd = keras.Sequential(
        [keras.Input((4,)), Nameless(2.0), layers.Dense(4), layers.Dense(3)]
    )
    with pytest.raises(ValueError, match="can't be made again from its own"):
        kd.shrink(odd)


def test_a_subclassed_teacher_shows_no_graph():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    teacher = Subclassed()
    teacher(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match="shows no graph"):
        kd.shrink(teacher)


def test_a_student_is_distilled_with_hints_by_the_same_names():
    teacher = _chain(*"abcde")
    student = kd.shrink(teacher, depth=0.5, initialize="norm")
    hint = kd.losses.Hint("d", "d", projector="auto")
    distiller = kd.Distiller(teacher, student, losses=hint)
    x = _examples(teacher)
    before = values(teacher.variables)
    history = distiller.fit(x, np.arange(3), epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]
    assert_same_values(values(teacher.variables), before)
