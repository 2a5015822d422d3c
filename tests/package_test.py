"""The package's shape: what it exports, imports and costs to import."""

import ast
import doctest
import importlib
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys
import types

import keras
import pytest
from support import only_on

import keras_distill as kd

PACKAGE = pathlib.Path(kd.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "keras_distill.")
)
# Who may import whom inside the package; every module may import itself.
ALLOWED = {
    "average_heads": {"features"},
    "cache": {"cache"},
    "cache.*": {
        "cache",
        "distribution.batches",
        "features",
        "losses.sparse",
        "teachers",
    },
    "backends": set(),
    "features": {"backends"},
    "batch_means": set(),
    "labels": {"batch_means", "masks"},
    "masks": set(),
    "losses.base": {"labels", "masks"},
    "losses.feature_loss": {"losses.base"},
    "losses": {"losses"},
    "losses.*": {"losses.base", "losses.feature_loss", "masks"},
    "metrics": {"metrics"},
    "metrics.*": {"labels", "losses.base", "masks", "metrics"},
    "fidelity": {
        "checks",
        "comparison",
        "features",
        "heads",
        "losses.base",
        "masks",
        "metrics",
    },
    "heads": {"fake_quantization", "features"},
    "hard_labels": {"labels", "losses.base"},
    "classifier_reuse": {"features", "losses.feature_loss"},
    "comparison": {"features", "heads", "losses.base", "losses.feature_loss"},
    "defaults": {
        "comparison",
        "hard_labels",
        "heads",
        "losses.base",
        "losses.soft_targets",
    },
    "distiller": {
        "backends",
        "checks",
        "comparison",
        "defaults",
        "distribution",
        "features",
        "fidelity",
        "local_devices",
        "losses.base",
        "masks",
        "metrics.fidelity_metric",
        "whole_files",
    },
    "distribution": {"distribution", "local_devices"},
    "distribution.*": {
        "backends",
        "batch_means",
        "cache.transfer_set",
        "call_arguments",
        "distribution",
        "features",
        "losses.base",
    },
    "checks": {"defaults", "features", "losses.base"},
    "cli": {"cli"},
    "cli.*": {
        "cache",
        "cli",
        "data",
        "defaults",
        "distiller",
        "distribution",
        "export",
        "features",
        "heads",
        "losses",
        "reports",
        "shrinking",
    },
    "data": {"data"},
    "data.*": {"data", "distribution", "features"},
    "export": {"export"},
    "export.*": {"export", "model_graphs"},
    "export.decisions": {"heads"},
    "export.trained_ranges": {
        "export",
        "fake_quantization",
        "model_graphs",
        "predictions",
    },
    "export.verify": {"export", "model_graphs", "predictions"},
    "export.worker": {"export.processes"},
    "fake_quantization": set(),
    "call_arguments": set(),
    "whole_files": {"call_arguments"},
    "model_graphs": set(),
    "local_devices": set(),
    "predictions": {"local_devices"},
    "layer_stages": {"fake_quantization"},
    "reports": {"reports"},
    "reports.*": {
        "cache.fingerprints",
        "distiller",
        "export",
        "features",
        "heads",
        "losses.base",
        "predictions",
        "reports",
        "teachers",
    },
    "shrinking": {"shrinking"},
    "shrinking.*": {"export.schemes", "features", "model_graphs", "shrinking"},
    "teachers": {"teachers"},
    "teachers.*": {"backends", "export", "features", "heads", "teachers"},
    "output_names": set(),
    "rounding_copy": {
        "fake_quantization",
        "layer_stages",
        "model_graphs",
        "output_names",
    },
    "quantization_aware": {
        "export.examples",
        "export.schemes",
        "export.signature",
        "fake_quantization",
        "model_graphs",
        "predictions",
        "rounding_copy",
    },
}


def imports(path):
    """Modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_design(module):
    name = module.removeprefix("keras_distill.")
    parent = name.split(".")[0]
    allowed = ALLOWED.get(name, ALLOWED.get(f"{parent}.*"))
    assert allowed is not None, f"say in ALLOWED what {name} may import"
    path = PACKAGE / (name.replace(".", "/") + ".py")
    if not path.exists():
        path = path.with_suffix("") / "__init__.py"
    for imported in imports(path):
        assert not imported.startswith("keras.src")
        if not imported.startswith("keras_distill"):
            continue
        inside = imported.removeprefix("keras_distill").removeprefix(".")
        assert inside, f"{name} imports the package's front"
        assert any(
            inside == other or inside.startswith(f"{other}.")
            for other in allowed
        ), f"{name} may not import {inside}"


@pytest.mark.parametrize(
    "module",
    [
        kd,
        kd.cache,
        kd.data,
        kd.distribution,
        kd.losses,
        kd.metrics,
        kd.export,
        kd.reports,
        kd.shrinking,
        kd.teachers,
    ],
)
def test_all_is_sorted_and_exact(module):
    assert module.__all__ == sorted(module.__all__)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (name in module.__all__ or not isinstance(value, types.ModuleType))
    }
    assert public == set(module.__all__)
    assert dir(module) == module.__all__


# Packages whose examples take long elsewhere than on PyTorch, where nothing is
# compiled; other tests show that they do the same on each backend.
ONCE = {"cli", "data", "export", "losses", "metrics", "shrinking"}


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    package = module.split(".")[1]
    if keras.backend.backend() != "torch" and package in ONCE:
        pytest.skip("These run on PyTorch.")
    results = doctest.testmod(
        importlib.import_module(module),
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )
    assert results.failed == 0


@only_on("torch")
def test_readme_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_public_objects_are_documented():
    for module in (
        kd,
        kd.cache,
        kd.data,
        kd.distribution,
        kd.losses,
        kd.metrics,
        kd.export,
        kd.reports,
        kd.shrinking,
        kd.teachers,
    ):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
    for public in (kd.Distiller, kd.HardLabels, kd.TransferBatch):
        assert "Example:" in public.__doc__
    assert "Example:" in kd.export_litert.__doc__


@only_on("torch")
def test_importing_brings_no_framework_but_the_backends():
    script = (
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import keras_distill\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    brought = {name.split(".")[0] for name in printed.split()}
    assert "keras_distill" in brought
    heavy = {"tensorflow", "jax", "torch", "ai_edge_litert", "sklearn"}
    heavy |= {"jinja2", "matplotlib", "scipy", "PIL", "pyarrow", "shtab"}
    assert not brought & heavy


def test_the_changelog_knows_this_version():
    version = re.search(
        r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M
    )[1]
    changes = (ROOT / ".github" / "CHANGELOG.md").read_text()
    assert f"## {version}" in changes


@pytest.mark.skipif(
    not (shutil.which("git") and (ROOT / ".git").exists()),
    reason="Only git knows which files belong here: no git, or no clone.",
)
def test_nothing_else_lies_at_the_top():
    # Whoever owns the folder.
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)
    tops = {name.split("/")[0] for name in listed.splitlines()}
    assert {name for name in tops if not name.startswith(".")} == {
        "LICENSE",
        "README.md",
        "examples",
        "keras_distill",
        "pyproject.toml",
        "tests",
    }
