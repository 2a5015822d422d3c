"""Mistakes are named when the distiller is made, with what to do."""

import keras
import numpy as np
import pytest
from keras import layers
from support import cnn, crossentropy, images, mlp, teacher

import keras_distill as kd


def test_one_model_as_both():
    model = mlp()
    with pytest.raises(ValueError, match="share weights"):
        kd.Distiller(model, model)


def test_shared_layers():
    backbone = mlp()
    inputs = keras.Input((8, 8, 1))
    student = keras.Model(inputs, layers.Dense(3)(backbone(inputs)))
    with pytest.raises(ValueError, match="clone_model"):
        kd.Distiller(backbone, student)


def test_models_built_on_one_input_share_nothing():
    inputs = keras.Input((4,))
    guide = keras.Model(inputs, layers.Dense(3)(inputs))
    student = keras.Model(inputs, layers.Dense(3)(inputs))
    assert kd.Distiller(guide, student).teacher is guide


def test_what_is_no_model():
    with pytest.raises(TypeError, match="The teacher must be"):
        kd.Distiller(lambda x: x, mlp())
    with pytest.raises(TypeError, match="The student must be"):
        kd.Distiller(mlp(), None)


def test_models_that_are_not_built():
    unbuilt = keras.Sequential([layers.Dense(3)])
    with pytest.raises(ValueError, match="teacher isn't built"):
        kd.Distiller(unbuilt, mlp())
    with pytest.raises(ValueError, match="student isn't built"):
        kd.Distiller(mlp(), unbuilt)


def test_what_is_no_distillation_loss():
    with pytest.raises(TypeError, match=r"compile\(loss=...\)"):
        kd.Distiller(mlp(), mlp(), losses="mse")
    with pytest.raises(TypeError, match=r"compile\(loss=...\)"):
        kd.Distiller(mlp(), mlp(), losses=[crossentropy()])


def test_weights():
    with pytest.raises(ValueError, match="Pass 1 numbers"):
        kd.Distiller(mlp(), mlp(), loss_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="hard_label_weight=-1"):
        kd.Distiller(mlp(), mlp(), hard_label_weight=-1.0)
    with pytest.raises(ValueError, match="finite"):
        kd.Distiller(mlp(), mlp(), loss_weights=float("nan"))


def test_other_classes():
    with pytest.raises(ValueError, match="class_map=") as error:
        kd.Distiller(cnn(classes=5), cnn())
    assert "projector=" in str(error.value)
    assert "5 and 3 classes" in str(error.value)
    mapped = kd.losses.SoftTargets(class_map=[4, 0, 2])
    distiller = kd.Distiller(cnn(classes=5), cnn(), losses=mapped)
    logs = distiller.train_on_batch(images()[0], return_dict=True)
    assert logs["loss"] > 0
    with pytest.raises(ValueError, match=r"classes \[5\]"):
        kd.Distiller(
            cnn(classes=5),
            cnn(),
            losses=kd.losses.SoftTargets(class_map=[5, 0, 2]),
        )
    projected = kd.losses.SoftTargets(projector=layers.Dense(5))
    assert kd.Distiller(cnn(classes=5), cnn(), losses=projected).built


def test_feature_shapes():
    with pytest.raises(ValueError, match="projector=") as error:
        kd.Distiller(teacher(), cnn(), losses=kd.losses.Hint("relu", "relu"))
    assert "(None, 8, 8, 16) of teacher layer 'relu'" in str(error.value)
    assert "(None, 8, 8, 4) of student layer 'relu'" in str(error.value)
    # 16 channels against 1 would broadcast.
    with pytest.raises(ValueError, match="projector="):
        kd.Distiller(
            teacher(), cnn(width=1), losses=kd.losses.Hint("relu", "relu")
        )
    # Half the size, and a different width.
    distiller = kd.Distiller(
        teacher(), cnn(), losses=kd.losses.Hint("relu", "pool", "auto")
    )
    assert len(distiller.projector_0_0.layers) == 2
    with pytest.raises(ValueError, match="number of axes"):
        kd.Distiller(
            teacher(), cnn(), losses=kd.losses.Hint("relu", "logits", "auto")
        )


def channels_first(width):
    return keras.Sequential(
        [
            keras.Input((1, 8, 8)),
            layers.Conv2D(width, 3, data_format="channels_first", name="conv"),
            layers.Flatten(),
            layers.Dense(width, name="hidden"),
            layers.Dense(3),
        ]
    )


def test_channels_elsewhere():
    models = channels_first(6), channels_first(6)
    names = "conv", "conv"
    with pytest.raises(
        ValueError, match="data_format='channels_last'"
    ) as error:
        kd.Distiller(*models, losses=kd.losses.AttentionTransfer(*names))
    assert "which is 'channels_first'" in str(error.value)
    fitting = kd.losses.AttentionTransfer(*names, data_format="channels_first")
    assert kd.Distiller(*models, losses=fitting).built
    vectors = kd.losses.SimilarityPreserving("hidden", "hidden")
    assert kd.Distiller(*models, losses=vectors).built


def test_advice_leads_on():
    def tokens(length):
        return keras.Sequential(
            [keras.Input((length, 4)), layers.Dense(3, name="tokens")]
        )

    with pytest.raises(ValueError, match="sizes don't fit") as error:
        kd.Distiller(
            tokens(5), tokens(6), losses=kd.losses.Hint("tokens", "tokens")
        )
    assert "auto" not in str(error.value)
    loss = kd.losses.Hint(["pool", "pool"], ["pool", "relu"])
    with pytest.raises(ValueError, match="Pair 1 of the layers: Hint"):
        kd.Distiller(cnn(), cnn(), losses=loss)


def test_hard_labels_weigh_as_in_the_papers():
    def weight(*losses):
        made = kd.Distiller(mlp(), mlp(), losses=list(losses))
        return float(made.hard_label_weight.value)

    hint = kd.losses.Hint("hidden", "hidden")
    assert weight(kd.losses.SoftTargets()) == pytest.approx(0.1)
    assert weight(hint) == 1.0
    assert weight(hint, kd.losses.SoftTargets()) == pytest.approx(0.1)
    assert weight(kd.losses.TeacherFree()) == pytest.approx(0.9)
    inside = kd.losses.DecoupledSoftTargets()
    assert weight(kd.losses.StandardizedLogits(inside)) == 1.0


def test_losses_that_are_not_one_number():
    loss = kd.losses.SoftTargets(reduction=None)
    with pytest.raises(ValueError, match="one number for a batch"):
        kd.Distiller(mlp(), mlp(), losses=loss)


def test_weights_that_are_no_numbers():
    with pytest.raises(ValueError, match="hard_label_weight=a"):
        kd.Distiller(mlp(), mlp(), hard_label_weight="a")


def test_sample_ids_of_another_shape():
    loss = kd.losses.ContrastiveRepresentation("hidden", "hidden", 40)
    distiller = kd.Distiller(mlp(), mlp(), losses=loss)
    x, y = images()
    batch = kd.TransferBatch(x, sample_ids=np.arange(40)[:, None])
    with pytest.raises(ValueError, match=r"Pass shape \(batch,\)"):
        distiller.train_on_batch(batch, y)


def test_targets_that_were_stored_for_another_loss():
    x, y = images()
    targets = kd.losses.SparseSoftTargets(k=2).targets(teacher()(x))
    distiller = kd.Distiller(None, mlp(), losses=kd.losses.SoftTargets())
    with pytest.raises(ValueError, match="a SparseTargets, which this loss"):
        distiller.train_on_batch(kd.TransferBatch(x, targets), y)


def test_names():
    with pytest.raises(ValueError, match=r"Did you mean \['relu'\]"):
        kd.Distiller(
            teacher(), cnn(), losses=kd.losses.Hint("relv", "relu", "auto")
        )
    with pytest.raises(ValueError, match="lists of the same length"):
        kd.losses.Hint(["relu"], "relu")


def test_a_layer_called_twice():
    inputs = keras.Input((4,))
    twice = layers.Dense(4, name="twice")
    guide = keras.Model(inputs, twice(twice(inputs)))
    student = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d")])
    with pytest.raises(ValueError, match="more than once"):
        kd.Distiller(guide, student, losses=kd.losses.Hint("twice", "d"))


def test_a_head_that_the_loss_is_not_made_for():
    inputs = keras.Input((8, 8, 1))
    flat = layers.Flatten()(inputs)
    labels = keras.Model(inputs, layers.Dense(3, "sigmoid")(flat))
    with pytest.raises(ValueError, match="BinarySoftTargets"):
        kd.Distiller(labels, mlp(), losses=kd.losses.SoftTargets())
    one = keras.Model(inputs, layers.Dense(1)(flat))
    other = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()])
    other.add(layers.Dense(1))
    with pytest.raises(ValueError, match="BinarySoftTargets"):
        kd.Distiller(one, other, losses=kd.losses.SoftTargets())
    other.compile("sgd", "mse")
    with pytest.raises(ValueError, match="no default loss"):
        kd.Distiller(one, other)
