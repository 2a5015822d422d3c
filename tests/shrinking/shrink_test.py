"""Students of each family: what of the teacher they have, and what not."""

import sys
import pathlib

import keras
import numpy as np
import pytest
from keras import layers
from shrinking.families import FAMILIES, cnn, resnet, vit
from support import assert_same_values, mlp, values

import keras_distill as kd
from keras_distill.export.signature import layers_of

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
    return [
        keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(outputs)
    ]


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_student_is_its_teacher(family):
    teacher = _with_statistics(FAMILIES[family]())
    student = kd.shrink(teacher, width=1, initialize="norm")
    assert type(student) is type(teacher)
    assert_same_values(_outputs(student), _outputs(teacher))


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


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*NORMED}))
def test_what_goes_is_what_does_nothing(family):
    teacher = _without_odd_units(_with_statistics(FAMILIES[family]()))
    student = kd.shrink(teacher, width=0.5, initialize="norm")
    for ours, theirs in zip(
        _outputs(student), _outputs(teacher), strict=True
    ):
        assert np.abs(theirs).max() > 1e-3
        # Other sizes are added up in another order.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def _blocks(model):
    return [v.name for v in model.layers if isinstance(v, layers.Add)]


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


@pytest.mark.parametrize(
    ("depth", "kept"),
    [(0.75, "abce"), (0.5, "abd"), (0.3, "ab"), (0.1, "ab")],
)
def test_the_first_of_a_row_and_a_share_of_it_stay(depth, kept):
    # The first layer reads another size, and the last one is returned.
    student = kd.shrink(_chain(*"abcde"), width=1, depth=depth)
    names = [layer.name for layer in student.layers]
    assert names == [*kept, "logits"]


def test_a_transformer_loses_whole_layers():
    student = kd.shrink(FAMILIES["text"](), width=1, depth=0.5)
    names = {layer.name for layer in student.layers}
    for i, stays in enumerate((True, False, True, False)):
        for part in ("attention", "up", "down"):
            assert (f"{part}{i}" in names) == stays


def test_a_chain_loses_layers_with_their_normalisation():
    student = kd.shrink(cnn(), width=1, depth=0.5)
    names = [layer.name for layer in student.layers]
    assert names[:7] == [
        *("conv0", "norm0", "relu0", "conv2", "norm2", "relu2"),
        "flatten",
    ]
