"""Functions, PyTorch modules and classifiers as teachers."""

import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import images, only_on

import keras_distill as kd

as_teacher = kd.teachers.as_teacher
NumpyTeacher = kd.teachers.NumpyTeacher
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
SCALE = np.arange(4.0)


def scaled(x):
    return np.exp(x * SCALE)


class Callable:
    def __call__(self, x):
        return x


def test_a_function():
    labeller = as_teacher(scaled)
    output, features = labeller.label(X)
    np.testing.assert_array_equal(output, scaled(X))
    assert (features, labeller.runtime) == ({}, "numpy")
    assert labeller.probabilities is None
    with pytest.raises(ValueError, match="hidden layers"):
        as_teacher(scaled, layers=("conv",))


def test_a_function_has_a_fingerprint_if_all_it_uses_is_seen():
    def make(scale, power=2):
        def inner(x):
            return [helper(v) ** power for v in x]

        def helper(v):
            return v * scale

        return inner

    def sha(function):
        return as_teacher(function).fingerprint["sha256"]

    assert sha(make(1)) == sha(make(1))
    assert len({sha(make(1)), sha(make(2)), sha(make(1, 3)), sha(scaled)}) == 4
    with pytest.raises(ValueError, match="uses a Callable"):
        as_teacher(make(Callable()))
    with pytest.raises(ValueError, match="uses a Callable"):
        as_teacher(Callable())
    assert NumpyTeacher(Callable(), "v1").fingerprint == {
        "kind": "function",
        "name": "Callable",
        "version": "v1",
    }


def test_what_a_function_uses_from_its_module_counts(monkeypatch):
    first = as_teacher(scaled).fingerprint
    monkeypatch.setitem(globals(), "SCALE", SCALE + 1)
    assert as_teacher(scaled).fingerprint != first


@only_on("torch")
def test_a_functions_fingerprint_is_the_same_in_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nimport keras_distill as kd\n"
        "W = np.ones(3)\n"
        "def f(x):\n    return [np.sum(W * v) for v in x if v in {1, 'a'}]\n"
        "print(kd.teachers.as_teacher(f).fingerprint)"
    )
    printed = {
        subprocess.run(
            [sys.executable, str(script)],
            env={
                **os.environ,
                "KERAS_BACKEND": "numpy",
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": ".",
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("wrong", [3, None, keras.layers.Dense(2), Callable])
def test_what_is_no_teacher(wrong):
    with pytest.raises(TypeError, match=r"\.onnx or \.tflite"):
        as_teacher(wrong)


def test_paths_that_are_no_teacher(tmp_path):
    with pytest.raises(ValueError, match="folder of a SavedModel"):
        as_teacher(tmp_path / "teacher.h5")
    with pytest.raises(FileNotFoundError, match="no teacher at"):
        as_teacher(str(tmp_path / "teacher.onnx"))
    with pytest.raises(ValueError, match="Only a Keras model"):
        as_teacher(scaled, runtime="onnxruntime")


def module():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        torch.nn.ReLU(inplace=True),
        torch.nn.BatchNorm1d(8),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 3),
    )


# On TensorFlow, PyTorch would be imported after it, which can abort.
not_after_tensorflow = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow" and "torch" not in sys.modules,
    reason="PyTorch must be imported before TensorFlow.",
)


@not_after_tensorflow
def test_a_module_of_pytorch():
    net = module()
    net[2].eval()
    modes = [part.training for part in net.modules()]
    buffers = [b.clone() for b in net.buffers()]
    labeller = as_teacher(net, layers=("0", "1"))
    output, features = labeller.label(X)
    assert [part.training for part in net.modules()] == modes
    for before, after in zip(buffers, net.buffers(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not any(part._forward_hooks for part in net.modules())
    w, b, v, c = (
        p.detach().double().numpy()
        for p in (net[0].weight, net[0].bias, net[4].weight, net[4].bias)
    )
    hidden = X @ w.T + b
    np.testing.assert_allclose(features["0"], hidden, atol=1e-6)
    np.testing.assert_allclose(features["1"], np.maximum(hidden, 0), atol=1e-6)
    normal = np.maximum(hidden, 0) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(output, normal @ v.T + c, atol=1e-6)
    assert labeller.runtime == "torch"


@not_after_tensorflow
def test_fingerprints_and_dtypes_of_pytorch():
    import torch

    net = module()
    first = as_teacher(net).fingerprint
    assert first == as_teacher(module()).fingerprint
    with torch.no_grad():
        net[2].running_mean[0] += 1
    assert as_teacher(net).fingerprint != first
    output, _ = as_teacher(module().bfloat16()).label(X.astype("float64"))
    assert output.dtype == "float32"


@not_after_tensorflow
def test_structures_of_pytorch():
    import torch

    class Net(torch.nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "parts": (a, b), "none": None}

    for inputs in ([X, 2 * X], {"b": 2 * X, "a": X}):
        output, _ = as_teacher(Net()).label(inputs)
        assert sorted(output) == ["parts", "sum"]
        np.testing.assert_array_equal(output["sum"], 3 * X)


@not_after_tensorflow
def test_mistakes_with_layers_of_pytorch():
    net = module()
    with pytest.raises(ValueError, match="no submodule '9'"):
        as_teacher(net, layers=("9",))
    import torch

    twice = torch.nn.Sequential(net[0], torch.nn.Linear(8, 4), net[0])
    with pytest.raises(ValueError, match="more than once"):
        as_teacher(twice, layers=("0",)).label(X)


@only_on("jax")
def test_no_other_package_is_imported():
    script = (
        "import sys, numpy as np, keras\n"
        "before = set(sys.modules)\n"
        "import keras_distill as kd\n"
        "kd.teachers.as_teacher(np.abs)\n"
        "heavy = {'torch', 'sklearn', 'onnxruntime', 'tensorflow'}\n"
        "assert not heavy & (set(sys.modules) - before)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def digits():
    x, _ = images(90)
    return x, (x.mean((1, 2, 3)) > 0).astype(int) + (x[:, 0, 0, 0] > 0)


@only_on("jax")
def test_classifiers_with_probabilities():
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = digits()
    flat = x.reshape(90, -1)
    tiny = np.finfo("float32").tiny
    for classifier in (
        LogisticRegression(),
        RandomForestClassifier(5, random_state=0),
        make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
    ):
        labeller = as_teacher(classifier.fit(flat, y))
        output, features = labeller.label(x)
        expected = np.log(np.maximum(classifier.predict_proba(flat), tiny))
        np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-9)
        assert (features, labeller.probabilities) == ({}, False)
        copy = pickle.loads(pickle.dumps(classifier))
        assert as_teacher(copy).fingerprint == labeller.fingerprint


@only_on("jax")
def test_classifiers_without_probabilities():
    from sklearn.linear_model import Perceptron
    from sklearn.svm import LinearSVC

    x, y = digits()
    flat = x.reshape(90, -1)
    three = LinearSVC().fit(flat, y)
    expected = three.decision_function(flat)
    np.testing.assert_array_equal(as_teacher(three).label(x)[0], expected)
    two = Perceptron().fit(flat, y > 0)
    two.classes_ = two.classes_.astype(int)
    output, _ = as_teacher(two).label(x)
    scores = two.decision_function(flat)
    np.testing.assert_array_equal(output, np.stack([0 * scores, scores], 1))


@only_on("jax")
def test_classifiers_that_are_no_teacher():
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.neighbors import NearestCentroid
    from sklearn.tree import DecisionTreeClassifier

    x, y = digits()
    flat = x.reshape(90, -1)
    with pytest.raises(ValueError, match=r"classes_=\[1, 2, 3\]"):
        as_teacher(LogisticRegression().fit(flat, y + 1))
    with pytest.raises(ValueError, match="isn't fitted"):
        as_teacher(LogisticRegression())
    with pytest.raises(TypeError, match="several outputs"):
        as_teacher(DecisionTreeClassifier().fit(flat, np.stack([y, y], 1)))
    with pytest.raises(TypeError, match="a fitted classifier"):
        as_teacher(LinearRegression().fit(flat, y))
    assert as_teacher(NearestCentroid().fit(flat, y)).label(x)[0].shape == (
        90,
        3,
    )


@only_on("jax")
def test_columns_of_a_classifier_are_classes():
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    x, y = digits()
    flat = x.reshape(90, -1)
    pairs = SVC(decision_function_shape="ovo").fit(flat, y)
    with pytest.raises(ValueError, match="decision_function_shape='ovr'"):
        as_teacher(pairs)
    tree = DecisionTreeClassifier(max_depth=1)
    several = OneVsRestClassifier(tree).fit(
        flat, np.stack([y != 0, y != 1, y != 2], -1).astype(int)
    )
    with pytest.raises(TypeError, match="don't sum to 1"):
        as_teacher(several).label(x)
