"""What a file does and costs, against arithmetic, and budgets."""

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd
from keras_distill.export import BOARDS, litert, search
from keras_distill.export.budget import Costs, parse_size
from keras_distill.export.metadata import fingerprint
from keras_distill.export.search import schemes_to_try

layers = keras.layers
# What comes after the float32 file is the same on each backend.
pytestmark = only_on("torch")


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(5, name="head"),
        ],
        name="student",
    )


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 20)).astype("float32")
    return x, random.integers(0, 5, 200)


@pytest.fixture(scope="module")
def artifact(student, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "student.tflite"
    return kd.export_litert(
        student, path, "dynamic_int4", calibration_data=data[0]
    )


def test_check_counts_what_numpy_counts(artifact, student, data):
    x, y = data
    check = kd.verify_litert(artifact, student, data, profile=True)
    theirs, ours = student.predict(x, verbose=0), artifact.predict(x)
    assert check.accuracy == np.mean(ours.argmax(-1) == y)
    assert check.keras_accuracy == np.mean(theirs.argmax(-1) == y)
    assert check.agreement == np.mean(ours.argmax(-1) == theirs.argmax(-1))
    assert check.agreement < 1
    error = np.abs(theirs.astype("float64") - ours)
    assert check.max_error == pytest.approx(error.max())
    assert check.outputs["output_0"].mean_error == pytest.approx(error.mean())
    ratio = 10 * np.log10((theirs**2.0).sum() / (error**2).sum())
    assert check.snr_db == pytest.approx(ratio, rel=1e-4)
    assert check.size == artifact.size
    assert check.examples == 200
    assert check.operations == {"FULLY_CONNECTED": 2}
    assert [p.operation for p in check.profile] == ["FULLY_CONNECTED"] * 2
    assert sum(p.share for p in check.profile) == pytest.approx(1)
    assert 0 < check.latency.median_ms <= check.latency.p90_ms
    assert check.latency.runs == 50
    for text in ("dynamic_int4", "agreement", "latency", "2 FULLY_CONNECTED"):
        assert text in str(check)


def test_labels_may_be_one_hot_or_missing_and_data_a_data_set(
    artifact, student, data
):
    x, y = data
    check = kd.verify_litert(artifact, student, (x, np.eye(5)[y]), runs=1)
    plain = kd.verify_litert(str(artifact.path), student, data, runs=1)
    assert check.accuracy == plain.accuracy
    batches = [(x[:150], y[:150]), (x[150:], y[150:])]
    assert kd.verify_litert(artifact, student, batches, runs=1).outputs == (
        plain.outputs
    )
    unlabelled = kd.verify_litert(artifact, student, x, runs=1)
    assert unlabelled.accuracy is unlabelled.accuracy_drop is None
    assert unlabelled.agreement == plain.agreement


def test_several_outputs_and_one_value_each(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    student = keras.Model(
        x,
        {
            "kind": layers.Dense(3)(x),
            "flag": layers.Dense(1, activation="sigmoid")(x),
            "logit": layers.Dense(1)(x),
        },
    )
    artifact = kd.export_litert(student, tmp_path / "s.tflite")
    inputs = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
    expected = student.predict(inputs, verbose=0)
    y = {
        "kind": expected["kind"].argmax(-1),
        "flag": (expected["flag"][:, 0] > 0.5).astype(int),
        "logit": 1 - (expected["logit"][:, 0] > 0).astype(int),
    }
    check = kd.verify_litert(artifact, student, (inputs, y))
    accuracies = {n: o.accuracy for n, o in check.outputs.items()}
    assert accuracies == {"kind": 1, "flag": 1, "logit": 0}
    assert check.accuracy == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="labels of its own"):
        kd.verify_litert(artifact, student, (inputs, y["kind"]))


def test_file_that_falls_short_is_an_error(artifact, student, data):
    for budget, name in [
        (kd.Budget(flash=100), "flash"),
        (kd.Budget(latency_ms=1e-9), "latency_ms"),
        (kd.Budget(agreement=1.0), "agreement"),
        (kd.Budget(snr_db=100), "snr_db"),
    ]:
        with pytest.raises(RuntimeError, match=rf"Received: {name}=.*asked"):
            kd.verify_litert(artifact, student, data, budget=budget, runs=1)
    generous = kd.Budget(flash="1MB", accuracy_drop=1.0, agreement=0.1)
    kd.verify_litert(artifact, student, data, budget=generous, runs=1)
    with pytest.raises(ValueError, match="needs labels"):
        kd.verify_litert(artifact, student, data[0], budget=generous)


def test_file_of_other_weights_is_an_error(artifact, student, data):
    other = keras.models.clone_model(student)
    with pytest.raises(ValueError, match=r"other weights.*'student' \(1,669 "):
        kd.verify_litert(artifact, other, data, runs=1)
    other.set_weights(student.get_weights())
    other.name = "renamed"
    assert kd.verify_litert(artifact, other, data, runs=1).agreement < 1
    with pytest.raises(TypeError, match="student=array"):
        kd.verify_litert(artifact, data[0], data)


def test_random_layers_count_for_nothing_in_what_a_student_learned():
    student = keras.Sequential(
        [keras.Input((4,)), layers.Dropout(0.5), layers.Dense(2)]
    )
    before = fingerprint(student)
    student(np.ones((2, 4)), training=True)
    assert fingerprint(student) == before


def test_numbers_that_count_nothing_are_refused(artifact, student, data):
    for name in ("runs", "threads"):
        for value in (0, -1, 1.5):
            with pytest.raises(ValueError, match=f"{name}={value}"):
                kd.verify_litert(artifact, student, data, **{name: value})


class Hidden(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def get_config(self):
        return {}

    def call(self, x):
        return self.dense(x)


def test_one_value_whose_meaning_is_hidden_needs_a_threshold(tmp_path):
    student = Hidden()
    x = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    logits = student.predict(x, verbose=0)[:, 0]
    y = (logits > 0.2).astype(int)
    artifact = kd.export_litert(student, tmp_path / "s.tflite")
    check = kd.verify_litert(artifact, student, (x, y), threshold=0.2, runs=1)
    assert check.accuracy == check.agreement == 1
    with pytest.raises(ValueError, match=r"verify_litert\(threshold="):
        kd.verify_litert(artifact, student, (x, y))
    check = kd.verify_litert(artifact, student, x, runs=1)
    assert check.agreement is None
    assert "agreement" not in str(check)


@pytest.mark.parametrize("last", ["sigmoid", "linear", "softmax"])
def test_each_value_is_a_decision_where_labels_name_several(tmp_path, last):
    student = keras.Sequential(
        [keras.Input((6,)), layers.Dense(3, activation=last)]
    )
    x = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    right = student.predict(x, verbose=0) > {"sigmoid": 0.5}.get(last, 0)
    y = right.astype(int)
    y[:10, 0] = 1 - y[:10, 0]  # 10 of 60 are wrong
    y[15, 1:] = -1  # and 2 aren't known
    artifact = kd.export_litert(student, tmp_path / "s.tflite")
    if last == "softmax":
        with pytest.raises(ValueError, match="Each value of output"):
            kd.verify_litert(artifact, student, (x, y))
        check = kd.verify_litert(artifact, student, (x, y), threshold=0, runs=1)
    else:
        check = kd.verify_litert(artifact, student, (x, y), runs=1)
    assert check.accuracy == check.keras_accuracy == pytest.approx(48 / 58)
    assert check.agreement == 1


def test_first_scheme_that_fits_is_written(student, data, tmp_path):
    path = tmp_path / "student.tflite"
    sizes = {
        scheme: kd.export_litert(student, path, scheme).size
        for scheme in ("float16", "dynamic_int8", "weight_only_int8")
    }
    found = kd.export_litert(
        student,
        path,
        budget=kd.Budget(flash=sizes["float16"] - 1, accuracy_drop=0.5),
        validation_data=data,
    )
    assert found.quantization.scheme == "weight_only_int8"
    assert found.path == path
    assert path.stat().st_size == found.size == sizes["weight_only_int8"]
    with pytest.raises(RuntimeError, match=r"nearest is dynamic_int4"):
        kd.export_litert(
            student,
            path,
            budget=kd.Budget(flash=1000),
            validation_data=data[0],
        )
    # What was there is there still.
    assert path.stat().st_size == found.size
    # Sizes need no data.
    budget = kd.Budget(flash=sizes["float16"], latency_ms=1000)
    found = kd.export_litert(student, path, budget=budget)
    assert found.quantization.scheme == "float16"
    with pytest.raises(
        ValueError, match=r"agreement=90 %\) with validation_da"
    ):
        kd.export_litert(student, path, budget=kd.Budget(agreement=0.9))


def test_layers_in_float_where_integers_alone_lose_too_much(tmp_path, data):
    keras.utils.set_random_seed(0)
    student = keras.Sequential(
        [
            keras.Input((20,)),
            *[layers.Dense(48, activation="relu") for _ in range(3)],
            layers.Dense(5),
        ]
    )
    kernel, bias = student.layers[0].get_weights()
    kernel[:, 0] *= 300
    student.layers[0].set_weights([kernel, bias])
    quantization = kd.Quantization("int8")
    options = {"calibration_data": data[0], "validation_data": data}
    path = tmp_path / "s.tflite"
    plain = kd.export_litert(
        student, path, quantization, calibration_data=data[0]
    )
    found = kd.export_litert(
        student,
        path,
        quantization,
        budget=kd.Budget(snr_db=plain.snr_db + 3, flash="1MB"),
        **options,
    )
    assert found.quantization.float_layers
    assert found.snr_db > plain.snr_db


def test_static_schemes_are_tried_with_data_only():
    names = [q.scheme for q in schemes_to_try(None, calibrated=False)]
    assert names[0] == "float32"
    assert "int8" not in names
    assert "int8" in [q.scheme for q in schemes_to_try(None, calibrated=True)]
    chosen = kd.Quantization("int8")
    assert schemes_to_try(chosen, calibrated=True) == [chosen]


def test_sizes():
    assert parse_size("256KB") == parse_size("256 KiB") == 256 * 1024
    assert parse_size("256kb") == parse_size("256k") == 256 * 1024
    assert parse_size("1.5MB") == 3 * 2**19
    assert parse_size(7) == 7
    for wrong in ("", "0KB", "-1KB", "1TB", 0, -1, True, 1.5, None):
        with pytest.raises(ValueError, match="A size is"):
            parse_size(wrong)


def test_limits_have_units():
    budget = kd.Budget(flash="1MB", latency_ms=3, accuracy_drop=0.01, snr_db=20)
    assert str(budget) == (
        "Budget(flash=1,048,576 bytes, latency_ms=3 ms, accuracy_drop=1 %, "
        "snr_db=20 dB)"
    )
    costs = Costs(flash=2**20 + 1, latency_ms=1 / 3, snr_db=19.98765)
    text = budget.describe(budget.excesses(costs), costs)
    assert text == (
        "flash=1,048,577 bytes (asked for: 1,048,576 bytes), "
        "accuracy_drop=unknown (asked for: 1 %), "
        "snr_db=19.99 dB (asked for: 20 dB)"
    )


@pytest.mark.parametrize("value", ["3ms", True, [1]])
def test_limits_are_numbers(value):
    for name in ("latency_ms", "accuracy_drop", "agreement", "snr_db"):
        with pytest.raises(TypeError, match=f"{name} is a number"):
            kd.Budget(**{name: value})
        with pytest.raises(ValueError, match=f"{name}=nan"):
            kd.Budget(**{name: float("nan")})


def test_excesses_are_relative_and_unknown_is_too_much():
    budget = kd.Budget(flash=100, arena=50, accuracy_drop=0.01, agreement=0.9)
    costs = Costs(flash=110, arena=None, accuracy_drop=0.02, agreement=0.45)
    excesses = budget.excesses(costs)
    assert excesses == {
        "flash": pytest.approx(0.1),
        "arena": float("inf"),
        "accuracy_drop": pytest.approx(0.1),
        "agreement": pytest.approx(0.5),
    }
    fits = Costs(flash=100, arena=50, accuracy_drop=-0.5, agreement=0.9)
    assert budget.excesses(fits) == {}
    # What is rounded isn't over.
    rounded = {"accuracy_drop": 0.95 - 0.94, "agreement": sum([0.1] * 9)}
    assert rounded["accuracy_drop"] > 0.01
    assert rounded["agreement"] < 0.9
    assert budget.excesses(fits._replace(**rounded)) == {}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "no limit"),
        ({"accuracy_drop": 1.5}, "accuracy_drop is a fraction"),
        ({"agreement": -0.1}, "agreement is a fraction"),
        ({"latency_ms": 0}, "latency_ms=0"),
        ({"flash": "much"}, "A size is"),
    ],
)
def test_budget_that_limits_nothing_sensible(limits, message):
    with pytest.raises(ValueError, match=message):
        kd.Budget(**limits)


def test_boards_have_sources_and_shares():
    for name, board in BOARDS.items():
        assert board.source
        assert 2**16 < board.ram < board.flash < 2**24
        half = kd.Budget.for_board(name)
        assert half.flash == board.flash // 2
        assert half.arena == board.ram // 2
    with pytest.raises(ValueError, match="one of arduino"):
        kd.Budget.for_board("abacus")
    with pytest.raises(ValueError, match="share"):
        kd.Budget.for_board("microbit-v2", share=2)


def test_arena_of_a_microcontroller_and_a_budget_for_it(tmp_path):
    pytest.importorskip("tflite_micro")
    keras.utils.set_random_seed(0)
    student = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    x = np.random.default_rng(0).random((40, 16, 16, 1)).astype("float32")
    path = tmp_path / "s.tflite"
    artifact = kd.export_litert(student, path, "int8", calibration_data=x)
    check = kd.verify_litert(artifact, student, x, micro=True)
    assert 500 < check.micro.arena < 20_000
    assert "arena on tflite-micro" in str(check)
    tight = kd.Budget(arena=check.micro.arena - 1)
    with pytest.raises(RuntimeError, match=r"arena=[\d,]+ bytes \(asked for"):
        kd.verify_litert(artifact, student, x, budget=tight)
    # Floats take four times the memory, and hybrid kernels aren't there.
    found = kd.export_litert(
        student,
        path,
        calibration_data=x,
        budget=kd.Budget(arena=check.micro.arena, snr_db=15),
        validation_data=x,
    )
    assert found.quantization.scheme == "int8"


def test_labels_that_cannot_be_right(artifact, student, data):
    x, y = data
    with pytest.raises(ValueError, match="100 labels for 200 examples"):
        kd.verify_litert(artifact, student, (x, y[:100]))
    partly = np.where(np.arange(200) < 50, y, -1)
    check = kd.verify_litert(artifact, student, (x, partly), runs=1)
    first = kd.verify_litert(artifact, student, (x[:50], y[:50]), runs=1)
    assert check.accuracy == first.accuracy
    targets = np.random.default_rng(0).normal(size=(200, 5))
    check = kd.verify_litert(artifact, student, (x, targets), runs=1)
    assert check.accuracy is None


def test_weights_that_nothing_counts_by_are_refused(artifact, student, data):
    x, y = data
    with pytest.raises(ValueError, match="sample weights behind the labels"):
        kd.verify_litert(artifact, student, (x, y, np.arange(200)))


def test_infinities_on_both_sides_are_no_difference(tmp_path):
    inputs = keras.Input((4,))
    scores = layers.Dense(3, activation="relu")(inputs)
    student = keras.Model(inputs, keras.ops.log(scores))
    artifact = kd.export_litert(student, tmp_path / "s.tflite")
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    assert np.isneginf(student.predict(x, verbose=0)).any()
    check = kd.verify_litert(artifact, student, x, runs=1)
    assert check.max_error < 1e-4
    assert check.agreement == 1


@pytest.mark.parametrize("broken", ["file", "order"])
def test_layers_in_float_that_fail_leave_the_other_files(
    broken, student, data, tmp_path, monkeypatch
):
    def failing(*_):
        raise RuntimeError("A layer can't be quantised.")

    def best(write, folder, reference, budget, schemes, worst_layers):
        def without_floats(path, quantization):
            return (failing if quantization.float_layers else write)(
                path, quantization
            )

        return search.best_that_fits(
            without_floats if broken == "file" else write,
            folder,
            reference,
            budget,
            schemes,
            failing if broken == "order" else worst_layers,
        )

    monkeypatch.setattr(litert, "best_that_fits", best)
    with pytest.raises(RuntimeError, match="nearest is int8: snr_db"):
        kd.export_litert(
            student,
            tmp_path / "s.tflite",
            "int8",
            budget=kd.Budget(snr_db=200),
            calibration_data=data[0],
            validation_data=data,
        )


def test_dict_of_labels_goes_by_the_outputs_names(tmp_path):
    x = keras.Input((4,))
    student = keras.Model(
        x, [layers.Dense(3, name="zz")(x), layers.Dense(3, name="aa")(x)]
    )
    artifact = kd.export_litert(student, tmp_path / "s.tflite")
    inputs = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    first, second = student.predict(inputs, verbose=0)
    y = {"zz": first.argmax(-1), "aa": second.argmax(-1)}
    assert kd.verify_litert(artifact, student, (inputs, y)).accuracy == 1
    with pytest.raises(ValueError, match="named as the student's outputs"):
        kd.verify_litert(artifact, student, (inputs, {"zz": y["zz"]}))


def test_values_that_are_no_numbers_are_refused(student, data, tmp_path):
    x = data[0].copy()
    x[3, 1] = np.nan
    path = tmp_path / "s.tflite"
    with pytest.raises(ValueError, match="example 3 and 0 others"):
        kd.export_litert(student, path, "int8", calibration_data=x)
    artifact = kd.export_litert(student, path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        kd.verify_litert(artifact, student, x)
