"""Teachers and students of every shape, and how their parts are named."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import cnn, crossentropy, images, mlp, teacher, values

import keras_distill as kd


def hint_value(guide, student, guide_name, student_name):
    """The hint loss between two layers of unprojected, equal shape."""
    # Soft targets give the layers behind the hint a gradient as well.
    losses = [kd.losses.Hint(guide_name, student_name), kd.losses.SoftTargets()]
    distiller = kd.Distiller(guide, student, losses=losses)
    distiller.compile(keras.optimizers.SGD(0.0), loss=None)
    logs = distiller.train_on_batch(images()[0], return_dict=True)
    return logs["hint_loss"]


def nested(seed, width=4):
    """A model whose convolutions are in a sub-model."""
    backbone = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, name="conv4"),
            layers.Flatten(name="flat"),
        ],
        name="backbone",
    )
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    outputs = layers.Dense(3, name="logits")(backbone(inputs))
    model = keras.Model(inputs, outputs)
    for v in model.weights:
        v.assign(np.random.default_rng(seed).normal(size=v.shape))
    return model, backbone


def test_layers_inside_sub_models_have_paths():
    (guide, backbone), (student, other) = nested(1), nested(2)
    x, _ = images()
    maps = [
        keras.Model(b.inputs, b.get_layer("conv4").output).predict(x, verbose=0)
        for b in (backbone, other)
    ]
    expected = ((maps[0] - maps[1]) ** 2).mean()
    value = hint_value(guide, student, "backbone/conv4", "backbone/conv4")
    assert value == pytest.approx(expected, rel=1e-5)


def test_a_sub_models_own_output():
    (guide, backbone), (student, other) = nested(1), nested(2)
    x, _ = images()
    flats = [b.predict(x, verbose=0) for b in (backbone, other)]
    expected = ((flats[0] - flats[1]) ** 2).mean()
    value = hint_value(guide, student, "backbone", "backbone")
    assert value == pytest.approx(expected, rel=1e-5)


class Subclassed(keras.Model):
    """A subclassed model, which shows no graph."""

    def __init__(self, width=4, returns="logits"):
        super().__init__()
        self.hidden = layers.Dense(width, activation="relu", name="hidden")
        self.head = layers.Dense(3, name="head")
        self.flat = layers.Flatten()
        self.returns = returns

    def call(self, inputs):
        features = self.hidden(self.flat(inputs))
        logits = self.head(features)
        if self.returns == "named":
            return {"logits": logits, "features": features}
        return logits


def built(model):
    model(images()[0])
    return model


@pytest.mark.traced
def test_subclassed_models():
    guide, student = built(Subclassed(4)), built(Subclassed(4))
    x, y = images()
    distiller = kd.Distiller(guide, student)
    history = distiller.fit(x, y, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    flat = x.reshape(len(x), -1)
    hidden = [
        np.maximum(flat @ kernel + bias, 0)
        for kernel, bias in (values(m.hidden.weights) for m in (guide, student))
    ]
    expected = ((hidden[0] - hidden[1]) ** 2).mean()
    value = hint_value(guide, student, "hidden", "hidden")
    assert value == pytest.approx(expected, rel=1e-5)


def test_subclassed_models_that_return_named_features():
    guide = built(Subclassed(16, returns="named"))
    student = built(Subclassed(4, returns="named"))
    losses = [
        kd.losses.SoftTargets(
            teacher_layer_name="logits", student_layer_name="logits"
        ),
        kd.losses.Hint("features", "features", projector="auto"),
    ]
    distiller = kd.Distiller(guide, student, losses=losses)
    logs = distiller.fit(images()[0], verbose=0).history
    assert logs["hint_loss"][0] > 0
    assert distiller.projector_1_0.kernel.shape == (4, 16)


def heads(kind, width, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Dense(width, name="hidden")(layers.Flatten()(inputs))
    a = layers.Dense(3, name="a")(hidden)
    b = layers.Dense(5, name="b")(hidden)
    outputs = {"dict": {"a": a, "b": b}, "list": [a, b], "tuple": (a, b)}
    return keras.Model(inputs, outputs[kind])


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("dict", ("a", "b")),
        ("list", (0, 1)),
        ("tuple", (0, -1)),
        ("list", ("a", "b")),
    ],
)
def test_outputs_by_key_index_or_layer(kind, names):
    guide, student = heads(kind, 16, 1), heads(kind, 4, 2)
    x, _ = images()
    distiller = kd.Distiller(
        guide,
        student,
        losses=[
            kd.losses.LogitMatching(n, n, name=f"at{i}")
            for i, n in enumerate(names)
        ],
    )
    logs = distiller.train_on_batch(x, return_dict=True)
    theirs, ours = (m.predict(x, verbose=0) for m in (guide, heads(kind, 4, 2)))
    for i, key in enumerate("ab"):
        t, s = (o[key] if kind == "dict" else o[i] for o in (theirs, ours))
        expected = ((t - s) ** 2).sum(-1).mean() / 2
        assert logs[f"at{i}_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # for output b
def test_only_some_outputs_and_a_different_structure():
    guide, student = mlp(16), heads("dict", 4, 2)
    soft = kd.losses.SoftTargets(
        teacher_layer_name=None, student_layer_name="a"
    )
    distiller = kd.Distiller(guide, student, losses=soft)
    logs = distiller.train_on_batch(images()[0], return_dict=True)
    assert set(logs) == {"loss", "soft_targets_loss"}
    with pytest.raises(ValueError, match="no default loss"):
        kd.Distiller(guide, student)
    with pytest.raises(ValueError, match=r"dict with keys \['a', 'b'\]"):
        kd.Distiller(guide, student, losses=kd.losses.SoftTargets())
    x, y = images()
    with pytest.raises(ValueError, match=r"compile\(loss=...\)"):
        distiller.train_on_batch(x, {"a": y, "b": y})


def test_a_student_under_another_dtype_policy():
    x, y = images()
    guide = teacher()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student = cnn()
    finally:
        keras.config.set_dtype_policy("float32")
    losses = [kd.losses.SoftTargets(), kd.losses.Hint("relu", "relu", "auto")]
    distiller = kd.Distiller(guide, student, losses=losses)
    history = distiller.fit(x, y, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert guide.dtype_policy.name == "float32"
    assert guide.compute_dtype == "float32"
    # The other way round: a teacher in half precision.
    distiller = kd.Distiller(student, cnn(seed=9))
    history = distiller.fit(x, y, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def two_inputs(names, sizes, seed, width=4):
    keras.utils.set_random_seed(seed)
    inputs = {
        name: keras.Input(size, name=name)
        for name, size in zip(names, sizes, strict=True)
    }
    parts = [layers.Flatten()(i) for i in inputs.values()]
    joined = layers.concatenate(parts) if len(parts) > 1 else parts[0]
    outputs = layers.Dense(3)(layers.Dense(width)(joined))
    return keras.Model(inputs, outputs)


def test_each_model_takes_its_inputs_from_a_dict_by_name():
    # Also where each has one input, of another size.
    kd.Distiller(
        two_inputs(["large"], [(16, 16, 1)], 1),
        two_inputs(["small"], [(8, 8, 1)], 2),
    ).train_on_batch(
        {"large": np.zeros((2, 16, 16, 1)), "small": np.zeros((2, 8, 8, 1))}
    )
    guide = two_inputs(["large", "tone"], [(16, 16, 1), (2,)], 1)
    student = two_inputs(["small"], [(8, 8, 1)], 2)
    random = np.random.default_rng(0)
    x = {
        "large": random.normal(size=(20, 16, 16, 1)).astype("float32"),
        "tone": random.normal(size=(20, 2)).astype("float32"),
        "small": random.normal(size=(20, 8, 8, 1)).astype("float32"),
    }
    y = np.arange(20) % 3
    distiller = kd.Distiller(guide, student, losses=kd.losses.LogitMatching())
    logs = distiller.train_on_batch(x, return_dict=True)
    pair = {k: v for k, v in x.items() if k != "small"}
    theirs = guide.predict(pair, verbose=0)
    ours = two_inputs(["small"], [(8, 8, 1)], 2).predict(
        {"small": x["small"]}, verbose=0
    )
    expected = ((theirs - ours) ** 2).sum(-1).mean() / 2
    assert logs["logit_matching_loss"] == pytest.approx(expected, rel=1e-4)
    distiller.fit(x, y, validation_data=(x, y), verbose=0)
    assert distiller.predict(x, verbose=0).shape == (20, 3)
    with pytest.raises(ValueError, match=r"no \['tone'\]"):
        distiller.train_on_batch({k: x[k] for k in ("large", "small")})


def bytes_teacher():
    """Takes 16x16 images of bytes."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((16, 16, 1), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def test_teacher_inputs_are_a_function_of_the_batch():
    def enlarge(x):
        x = ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
        return ops.cast(ops.round(x * 255), "uint8")

    guide, student = bytes_teacher(), mlp()
    x = np.random.default_rng(0).random((20, 8, 8, 1)).astype("float32")
    distiller = kd.Distiller(
        guide,
        student,
        losses=kd.losses.LogitMatching(),
        teacher_inputs=enlarge,
    )
    large = np.round(x.repeat(2, 1).repeat(2, 2) * 255).astype("uint8")
    theirs, ours = (
        guide.predict(large, verbose=0),
        student.predict(x, verbose=0),
    )
    logs = distiller.train_on_batch(x, return_dict=True)
    expected = ((theirs - ours) ** 2).sum(-1).mean() / 2
    assert logs["logit_matching_loss"] == pytest.approx(expected, rel=1e-4)


def test_teacher_inputs_may_be_a_layer_and_stay_as_they_are():
    norm = layers.Normalization(mean=[0.5], variance=[0.25])
    norm.build((None, 8, 8, 1))
    kept = values(norm.variables)
    distiller = kd.Distiller(teacher(), mlp(), teacher_inputs=norm)
    distiller.fit(*images(), verbose=0)
    for before, after in zip(kept, values(norm.variables), strict=True):
        np.testing.assert_array_equal(before, after)


def test_inputs_that_cannot_be_right_are_refused():
    distiller = kd.Distiller(bytes_teacher(), mlp())
    with pytest.raises(ValueError, match="a size of 8 instead of 16"):
        distiller.fit(*images(), verbose=0)
    distiller = kd.Distiller(
        bytes_teacher(),
        mlp(),
        teacher_inputs=lambda x: ops.repeat(ops.repeat(x, 2, 1), 2, 2),
    )
    with pytest.raises(ValueError, match="float32 instead of uint8"):
        distiller.fit(*images(), verbose=0)


@pytest.mark.traced
def test_a_batch_may_bring_the_teachers_outputs():
    x, y = images()
    guide = teacher()
    logits = guide.predict(x, verbose=0)
    live = kd.Distiller(guide, mlp())
    cached = kd.Distiller(None, mlp())
    for distiller in (live, cached):
        distiller.compile(keras.optimizers.Adam(0.01), crossentropy())
    first = live.fit(x, y, shuffle=False, epochs=2, verbose=0).history
    batch = kd.TransferBatch(x, logits, {})
    second = cached.fit(batch, y, shuffle=False, epochs=2, verbose=0).history
    for name, numbers in first.items():
        np.testing.assert_allclose(second[name], numbers, rtol=1e-4)
    assert cached.evaluate(batch, y, verbose=0) == pytest.approx(
        cached.evaluate(x, y, verbose=0)
    )
    with pytest.raises(ValueError, match="no teacher to ask"):
        cached.train_on_batch(x, y)


class Stored(keras.utils.PyDataset):
    """Batches that bring what the teacher's `relu` computed."""

    def __init__(self, x, logits, maps):
        super().__init__()
        self.x, self.logits, self.maps = x, logits, maps

    def __len__(self):
        return 5

    def __getitem__(self, index):
        part = slice(index * 8, index * 8 + 8)
        features = {"relu": self.maps[part]}
        return (kd.TransferBatch(self.x[part], self.logits[part], features),)


def test_stored_features_and_what_is_missing_from_a_batch():
    x, _ = images()
    guide = teacher()
    view = keras.Model(guide.inputs, guide.get_layer("relu").output)
    data = Stored(x, guide.predict(x, verbose=0), view.predict(x, verbose=0))
    hint = kd.losses.Hint("relu", "relu", projector="auto")
    losses = [kd.losses.SoftTargets(), hint]
    live, stored = (kd.Distiller(guide, cnn(), losses=losses) for _ in "ab")
    stored.projector_1_0.set_weights(live.projector_1_0.get_weights())
    first = live.fit(x, batch_size=8, shuffle=False, verbose=0).history
    second = stored.fit(data, shuffle=False, verbose=0).history
    assert second["hint_loss"] == pytest.approx(first["hint_loss"], rel=1e-4)
    with pytest.raises(ValueError, match="lacks what teacher layer 'relu'"):
        stored.train_on_batch(kd.TransferBatch(x, data.logits, {}))
