"""What a file may say of itself, and what it can't."""

import keras
import numpy as np
import pytest
from support import mlp, only_on

import keras_distill as kd
from keras_distill.export import float_file

pytestmark = only_on("torch")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"labels": "cat"}, TypeError, "labels='cat'"),
        ({"labels": {"cat", "dog"}}, TypeError, "tuple of names"),
        ({"labels": (1, 2)}, TypeError, r"labels=\(1, 2\).*map\(str"),
        ({"labels": ("a\nb",)}, ValueError, "one line"),
        ({"labels": ("a", "a")}, ValueError, "label of its own"),
        ({"normalization": "x / 255"}, TypeError, "normalization='x / 255'"),
        ({"normalization": {"x": 255}}, TypeError, "texts by input name"),
        ({"description": 7}, TypeError, "description=7"),
        ({"teacher": "resnet"}, TypeError, "teacher='resnet'"),
        ({"teacher": keras.Sequential()}, ValueError, "isn't built"),
        ({"data": iter([])}, TypeError, "data=list_iterator"),
        ({"data": "mnist"}, TypeError, "data=str"),
        ({"figures": {"accuracy": "high"}}, TypeError, "dict of numbers"),
        ({"figures": [0.9]}, TypeError, "dict of numbers"),
        ({"figures": {"a": float("nan")}}, ValueError, "'a': nan"),
        ({"figures": {"a": float("inf")}}, ValueError, "'a': inf"),
    ],
)
def test_arguments_are_looked_at_at_once(arguments, kind, message):
    with pytest.raises(kind, match=message):
        kd.Metadata(**arguments)


def test_what_json_and_a_text_file_can_hold_is_taken():
    metadata = kd.Metadata(
        labels=["cat", "dog"],
        teacher=mlp(),
        data={"x": np.zeros((2, 3)), "y": keras.ops.ones((2,))},
        figures={"accuracy": np.float32(0.5), "epochs": 3},
    )
    assert metadata.labels == ("cat", "dog")
    facts = metadata.facts(mlp())
    assert facts["figures"] == {"accuracy": 0.5, "epochs": 3.0}
    assert facts["data"]["shapes"] == [[2, 3], [2]]


@pytest.mark.parametrize(
    ("shape", "labels", "fits"),
    [
        ((4, 3), 3, True),
        ((4, 3), 2, False),
        ((4, 8, 8, 3), 3, True),
        ((4, 1), 2, True),
        ((4, 1), 1, False),
        ((4,), 2, True),
        ((4, 3), 0, True),
    ],
)
def test_each_class_has_a_label(shape, labels, fits):
    metadata = kd.Metadata(labels=tuple("abcdef"[:labels]))
    outputs = np.zeros(shape)
    metadata.require_classes({"boxes": outputs, "scores": outputs})
    if fits:
        metadata.require_classes(outputs)
        return
    with pytest.raises(ValueError, match=f"Received: {labels} labels"):
        metadata.require_classes(outputs)


def test_metadata_of_another_student_is_refused_before_converting(
    tmp_path, monkeypatch
):
    def convert(*args):
        raise AssertionError("converted")

    monkeypatch.setattr(float_file, "run_converter", convert)
    path = tmp_path / "student.tflite"
    for metadata, kind, message in [
        (kd.Metadata(labels=("a",)), ValueError, "Each of the 3 classes"),
        (
            kd.Metadata(normalization={"imgae": "x / 255"}),
            ValueError,
            r"\['imgae'\] for a student with inputs \['input_0'\]",
        ),
        ({"labels": ("a",)}, TypeError, r"metadata=dict.*Metadata\(\*\*"),
        (("a", "b", "c"), TypeError, "metadata=tuple"),
    ]:
        with pytest.raises(kind, match=message):
            kd.export_litert(mlp(), path, metadata=metadata)
