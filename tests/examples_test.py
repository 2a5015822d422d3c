"""The examples know every loss, and those that take hours run in small."""

import importlib
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from support import only_on

import keras_distill as kd

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
BASES = {"DistillationLoss", "FeatureLoss", "LogitLoss"}
LOSSES = {
    name
    for name in set(kd.losses.__all__) - BASES
    if isinstance(getattr(kd.losses, name), type)
    and issubclass(getattr(kd.losses, name), kd.losses.DistillationLoss)
}


def test_compares_every_method():
    text = (EXAMPLES / "compare_methods.py").read_text()
    # Fashion-MNIST has ten classes that exclude each other.
    assert LOSSES - set(re.findall(r"\bl\.(\w+)", text)) == {
        "BinarySoftTargets"
    }


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_has_a_plain_torch_version_of_every_loss(loss):
    assert loss in (EXAMPLES / "benchmark_losses.py").read_text()


@pytest.fixture
def example(monkeypatch):
    """Imports an example."""
    monkeypatch.syspath_prepend(EXAMPLES)
    # Warnings are errors, and writing bytecode into examples/ isn't wanted.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module


@pytest.fixture
def run(example, monkeypatch, capsys, tmp_path):
    """Runs one as its command does, on a few images; returns what it prints."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("test", 20)):
        arrays[f"x_{part}"] = random.integers(
            0, 256, (count, 28, 28), dtype="uint8"
        )
        arrays[f"y_{part}"] = np.arange(count, dtype="uint8") % 10
    data = tmp_path / "mnist.npz"
    np.savez(data, **arrays)

    def command(name, *arguments):
        places = ("--data", str(data), "--output", str(tmp_path))
        monkeypatch.setattr(sys, "argv", [name, "--quick", *places, *arguments])
        example(name).main()
        return capsys.readouterr().out

    return command


@only_on("torch")
def test_runs_on_mnist_make_what_is_missing(run, tmp_path):
    results = tmp_path / "hinton_mnist.json"
    run("hinton_mnist", "--experiments", "main")
    first = results.read_text()
    kinds = [record["run"]["kind"] for record in json.loads(first)]
    assert kinds == ["teacher", "student", "student"]
    printed = run("hinton_mnist", "--experiments", "main", "omitted")
    records = json.loads(results.read_text())
    assert len(records) == 5
    assert results.read_text().startswith(first.removesuffix("\n]\n"))
    table = printed[printed.index("|  | published") :]
    errors = [record["outcome"]["errors"] for record in records]
    assert f"| teacher | 67 | {errors[0]} | 1 |" in table
    assert f"| distilled | 74 | {errors[2]} | 1 |" in table
    assert f"as learned | 4730 | {errors[3]} |" in table
    assert f"as learned | 206 | {errors[4]} |" in table
    assert run("hinton_mnist", "--table") == table

    # With the same teacher, which is asked to label, and not trained again.
    claimed = run("claims")
    taught, *records = json.loads((tmp_path / "claims.json").read_text())
    assert taught["outcome"] == json.loads(first)[0]["outcome"]
    kinds = [record["run"]["kind"] for record in records]
    assert kinds == [*["information"] * 2, "variance", *["rate"] * 2]
    hard, soft, variance = (record["outcome"] for record in records[:3])
    assert f"| 100% | {hard['errors']} | {soft['errors']} |" in claimed
    assert f"| hard | {variance['hard']:.1f} |" in claimed
    assert (tmp_path / "claims.png").read_bytes().startswith(b"\x89PNG")


def test_variance_of_gradients_is_that_of_numpy(example, tmp_path):
    import keras

    claims = example("claims")
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (6, 28, 28)).astype("uint8")
    images = claims.Images(x, np.arange(6))
    said = random.normal(size=(6, 10)).astype("float32")
    inputs = keras.Input((28, 28))
    teacher = keras.Model(
        inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    )
    teacher.set_weights([random.normal(size=(784, 10)) / 1e4, said[0]])
    cache = kd.TeacherCache.write(
        tmp_path, teacher, x, storage="float32", verbose=0
    )
    found = claims.Lab(claims.Mnist(images, images), cache).measure(
        claims.Plan("any", quick=True).run(
            kind="variance",
            seed=0,
            state="first weights",
            examples=6,
            temperatures=[2.0],
        )
    )
    student = claims.network(8, 1000, "student")
    said = teacher.predict(x, verbose=0)
    soft = gradients(student, x, softmax(said / 2), temperature=2)
    hard = gradients(student, x, np.eye(10)[images.y], temperature=1)
    for name, gradient in (("hard", hard), ("2", soft)):
        mean = gradient.mean(0)
        variance = ((gradient - mean) ** 2).sum(-1).mean()
        assert found[name] == pytest.approx(
            variance / (mean**2).sum(), rel=1e-3
        )


def gradients(student, x, targets, temperature):
    """Of T² times the cross-entropy, with regard to all weights, by hand."""
    first, a, second, b, third, c = map(np.float64, student.get_weights())
    inputs = x.reshape(len(x), -1) / 255
    one = np.maximum(inputs @ first + a, 0)
    two = np.maximum(one @ second + b, 0)
    said = softmax((two @ third + c) / temperature)
    error = temperature * (said - targets)
    parts = []
    for below, kernel in ((two, third), (one, second), (inputs, first)):
        parts += [np.einsum("ni,nj->nij", below, error), error]
        error = error @ kernel.T * (below > 0)
    return np.concatenate([part.reshape(len(x), -1) for part in parts], axis=1)


def softmax(logits):
    raised = np.exp(np.float64(logits))
    return raised / raised.sum(-1, keepdims=True)


@only_on("jax")
def test_biases_of_unseen_classes_are_raised(example):
    hinton = example("hinton_mnist")
    said = np.zeros((3, 10), "float32")
    # The 3 lacks 1.05, another 3.05; and a 5 is lost when 3 gets 2.05 more.
    said[:, 5] = (1.05, 3.05, 2.05)
    found = hinton.outcome(said, np.array([3, 3, 5]), hinton.WITHOUT_3)
    curve = found["corrected"]
    assert found["errors"] == curve[0] == 2
    assert [curve[i] for i in (10, 11, 20, 21, 30, 31)] == [2, 1, 1, 2, 2, 1]
    assert found["corrected_unseen"][31] == 0
    assert hinton.best([3, 1, 1, 1, 2]) == 2
    assert "corrected" not in hinton.outcome(said, np.arange(3), range(10))


@only_on("jax")
def test_the_needed_share_lies_between_those_measured(example):
    claims = example("claims")
    shares, errors = np.array([0.01, 0.1, 1.0]), np.array([1000, 500, 100])
    for wanted, share in ((500, 0.1), (300, 0.1 * 10**0.5), (750, 0.1**1.5)):
        assert claims.needed_share(shares, errors, wanted) == pytest.approx(
            share
        )


@only_on("jax")
def test_shifts_are_those_of_the_image(example):
    runs = example("mnist_runs")
    image = np.random.default_rng(0).integers(1, 256, (28, 28))
    padded = np.pad(image, 2)
    every = {
        padded[top : top + 28, left : left + 28].tobytes()
        for top in range(5)
        for left in range(5)
    }
    shifts = {runs.jitter(image, seed).tobytes() for seed in range(300)}
    assert shifts == every


@only_on("jax")
@pytest.mark.parametrize("name", ["hinton_mnist", "claims"])
def test_readme_has_the_tables_of_the_results(example, name):
    module = example(name)
    results = EXAMPLES / "results" / f"{name}.json"
    tables = module.Tables(json.loads(results.read_text()), module.Plan("jax"))
    readme = (EXAMPLES.parent / "README.md").read_text()
    for table in str(tables).split("\n\n"):
        assert table in readme, f"run examples/{name}.py --table"


MEASURED = [path.stem for path in (EXAMPLES / "results").glob("*.json")]
BENCHMARKS = sorted({*MEASURED} - {"claims", "hinton_mnist"})


@only_on("torch")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_readme_has_the_tables_of_the_benchmarks(example, capsys, name):
    module = example(name)
    module.figures.show(module.RESULTS, module.table)
    readme = (EXAMPLES.parent / "README.md").read_text()
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in readme, f"run examples/{name}.py --table"


@only_on("torch")
def test_figures_of_a_backend_are_kept_beside_others(example, tmp_path):
    figures, path = example("figures"), tmp_path / "facts.json"
    path.write_text('{"jax": {"seconds": 1}, "torch": {"seconds": 2}}')
    figures.keep(path, {"seconds": 3})
    kept = json.loads(path.read_text())
    assert kept["jax"] == {"seconds": 1}
    assert kept["torch"]["seconds"] == 3
    assert kept["torch"]["about"]["backend"] == "torch"
    assert figures.quartiles([1, 2, 3, 4, 5], ".1f") == "3.0 (2.0–4.0)"
    assert figures.spread([1, 3]) == "2.00 ± 1.41"
    assert figures.percent([0.5]) == "50.0 %"
    assert figures.percent([0.01, 0.03]) == "2.0 ± 1.4 %"


@only_on("torch")
def test_runs_are_kept_once_for_each_setting(example, tmp_path):
    figures, path = example("figures"), tmp_path / "runs.json"
    for seed, errors in ((0, 5), (1, 6), (0, 7)):
        run = {"settings": {"seed": seed}, "errors": errors}
        figures.append(path, run)
    kept = json.loads(path.read_text())
    assert [run["errors"] for run in kept] == [6, 7]
    assert kept[0]["about"]["backend"] == "torch"


# KerasTuner calls what Python has by its old names.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@only_on("torch")
def test_settings_are_searched_and_compared(example, monkeypatch, tmp_path):
    facts = tmp_path / "facts.json"
    small = ("--trials", "2", "--epochs", "1", "--seeds", "2")
    places = ("--output", str(tmp_path), "--json", str(facts))
    command = ["tune.py", *small, "--examples", "100", *places]
    monkeypatch.setattr(sys, "argv", command)
    example("tune").main()
    found = json.loads(facts.read_text())["torch"]
    assert set(found["found"]) == set(found["defaults"])
    assert len(found["test accuracy, found"]) == 2
    assert len(list(tmp_path.glob("*/trial_*/trial.json"))) == 2
