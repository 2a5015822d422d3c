"""A student that thinks with the teacher's classifier."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.features import find_layer, symbolic_output
from keras_distill.losses.feature_loss import frozen_copy


def reuse_classifier(
    teacher: keras.Model,
    student: keras.Model,
    teacher_layer_name: str,
    student_layer_name: str,
    factor: int = 2,
) -> keras.Model:
    """A student whose classifier is the teacher's, behind a projector (SimKD).

    Much of what a teacher knows is in its last layers. The student gets a copy
    of them, which stays as it is, and only learns the features that they take.
    There is no other loss, and no weight to choose.

    The model consists of the student's layers up to `student_layer_name`,
    which are used as they are, not copied: training it trains them. Then
    `"projector"`: three convolutions (or dense layers, for vectors), each with
    batch normalisation and a ReLU. Then `"teacher_head"`: a copy of all behind
    `teacher_layer_name`, which isn't trained, with batch normalisation in
    inference mode; dropout goes on in training, but only metrics see it. All
    three are needed to predict, so all are saved and exported.

    The authors average the larger of two maps to the size of the smaller. Here
    the student's is brought to the teacher's size, also where it is smaller,
    so that the copied layers see what they are used to.

    Args:
        teacher: A built Functional or Sequential model.
        student: A built Functional or Sequential model. What it has behind
            `student_layer_name` is left out.
        teacher_layer_name: Layer of the teacher, a feature map or a vector,
            that all behind it depends on, and on nothing else. It should end
            in a ReLU, as the projector does.
        student_layer_name: Layer of the student with as many axes.
        factor: What the teacher's channels are divided by within the
            projector, which makes it smaller.

    Returns:
        A Functional model. Train it with a `Hint` between
        `teacher_layer_name` and `"projector"`, with a weight of 1 and none for
        the hard labels, as in the example.

    Raises:
        ValueError: If there is no such layer, it isn't part of the model's own
            graph, other layers lead past it, or the shapes don't fit.

    Example:
        >>> import keras
        >>> import keras_distill as kd
        >>> def network(width):
        ...     return keras.Sequential([
        ...         keras.Input((8, 8, 3)),
        ...         keras.layers.Conv2D(width, 3, activation="relu", name="c"),
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(10)])
        >>> teacher = network(16)
        >>> student = kd.reuse_classifier(teacher, network(4), "c", "c")
        >>> [layer.name for layer in student.layers[-2:]]
        ['projector', 'teacher_head']
        >>> distiller = kd.Distiller(
        ...     teacher, student, losses=kd.losses.Hint("c", "projector"),
        ...     loss_weights=1.0, hard_label_weight=0.0)

    Reference:
        Chen et al., "Knowledge Distillation with the Reused Teacher
        Classifier", CVPR 2022.
    """
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(
            "The projector is narrower than the teacher by a factor. "
            f"Received: factor={factor!r}. Pass an integer of at least 1."
        )
    theirs, head = _classifier(teacher, teacher_layer_name)
    inputs, ours = _at(student, "student", student_layer_name)
    if isinstance(student, keras.Sequential):
        inputs, ours = _run(student, student_layer_name)
    projector = _projector(theirs.shape, ours.shape, factor)
    return keras.Model(
        inputs,
        head(projector(ours)),
        name=f"{student.name}_with_teacher_head",
    )


def _classifier(teacher: keras.Model, name: str) -> tuple[Any, keras.Model]:
    """Output of a layer of the teacher, and a copy of all behind it."""
    _, theirs = _at(teacher, "teacher", name)
    if isinstance(teacher, keras.Sequential):
        # `add` leaves several graphs behind, of which a layer's output is any.
        behind = teacher.layers[_place(teacher, name) + 1 :]
        copies = [frozen_copy(layer) for layer in behind]
        head = keras.Sequential(
            [keras.Input(batch_shape=theirs.shape), *copies],
            name="teacher_head",
        )
        head.trainable = False
        return theirs, head
    try:
        head = _between(theirs, symbolic_output(teacher), "teacher_head")
    except ValueError as error:
        raise ValueError(
            f"What the teacher computes behind '{name}' needs more than its "
            f"output. Received: teacher_layer_name={name!r}. Name a layer that "
            "all paths to the output go through, such as the pooling layer."
        ) from error
    return theirs, frozen_copy(head)


def _run(student: keras.Sequential, name: str) -> tuple[Any, Any]:
    """Fresh inputs, and what a layer makes of them."""
    first = student.inputs[0]
    inputs = x = keras.Input(batch_shape=first.shape, dtype=first.dtype)
    for layer in student.layers[: _place(student, name) + 1]:
        x = layer(x)
    return inputs, x


def _place(model: keras.Sequential, name: str) -> int:
    names: list[str] = [layer.name for layer in model.layers]
    return names.index(name)


def _at(model: keras.Model, who: str, name: str) -> tuple[Any, Any]:
    """Symbolic inputs of a model, and output of a layer in its graph."""
    if symbolic_output(model) is None:
        raise ValueError(
            f"The {who} shows no graph to take layers from. Received: "
            f"'{model.name}' of type {type(model).__name__}. Pass a built "
            "Functional or Sequential model."
        )
    layer = find_layer(model, name)
    sequential = isinstance(model, keras.Sequential)
    # Not a list of one, which another structure of inputs would be.
    inputs = model.inputs[0] if sequential else model.input
    # That of a sub-model as a layer of this model, not of its own graph.
    output = keras.Operation.output.fget(layer)
    if sequential and layer in model.layers:
        return inputs, output
    try:
        _between(inputs, output)
    except ValueError as error:
        raise ValueError(
            f"Layer '{name}' isn't called in the graph of the {who} itself. "
            f"Received: {who}_layer_name={name!r}. Name one of the layers of "
            f"'{model.name}', not one inside a layer: "
            f"{[layer.name for layer in model.layers]}."
        ) from error
    return inputs, output


def _between(inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
    """The part of a graph that leads from one to the other."""
    model = keras.Model(inputs, outputs, name=name)
    sources = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    ]
    # Newer versions of Keras raise that themselves.
    if len(sources) != len(model.inputs):
        raise ValueError("The outputs depend on more than the inputs.")
    return model


def _projector(teacher: Any, student: Any, factor: int) -> keras.Layer:
    if len(teacher) != len(student) or len(teacher) not in (2, 4):
        raise ValueError(
            "The projector goes from map to map or from vector to vector. "
            f"Received: {tuple(teacher)} of the teacher and {tuple(student)} "
            "of the student. Name other layers."
        )
    first = keras.config.image_data_format() == "channels_first"
    channel_axis = 1 if first else -1
    channels = teacher[channel_axis]
    narrow = max(1, channels // factor)
    is_map = len(teacher) == 4
    layers = _same_size(teacher, student) if is_map else []
    for filters, size in ((narrow, 1), (narrow, 3), (channels, 1)):
        layers += [
            keras.layers.Conv2D(filters, size, padding="same", use_bias=False)
            if is_map
            else keras.layers.Dense(filters, use_bias=False),
            keras.layers.BatchNormalization(
                channel_axis, momentum=0.9, epsilon=1e-5
            ),
            keras.layers.ReLU(),
        ]
    return keras.Sequential(layers, name="projector")


def _same_size(teacher: Any, student: Any) -> list[keras.Layer]:
    first = keras.config.image_data_format() == "channels_first"
    places = slice(2, 4) if first else slice(1, 3)
    theirs, ours = teacher[places], student[places]
    if theirs == ours:
        return []
    if None in (*theirs, *ours):
        raise ValueError(
            "To bring the student's map to the teacher's size, both must be "
            f"known. Received: {tuple(teacher)} of the teacher and "
            f"{tuple(student)} of the student. Give the models inputs of a "
            "fixed size."
        )
    if all(s % t == 0 for t, s in zip(theirs, ours, strict=True)):
        windows = tuple(s // t for t, s in zip(theirs, ours, strict=True))
        return [keras.layers.AveragePooling2D(windows)]
    return [keras.layers.Resizing(*theirs)]
