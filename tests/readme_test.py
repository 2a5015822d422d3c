"""The README's table of methods is that of the losses."""

import inspect

import methods_table
import pytest

import keras_distill as kd
from keras_distill.losses.catalogue import (
    NORMALIZE,
    acronym_of,
    paper_of,
)


def test_table_is_that_of_the_losses():
    _, written, _ = methods_table.split(methods_table.README.read_text())
    assert written == methods_table.table(), "run python tests/methods_table.py"


def test_table_has_each_method():
    methods = {method.name for method in kd.losses.methods()}
    assert {"SoftTargets", "Hint", "ActivationBoundary"} <= methods
    assert "LogitLoss" not in methods
    lines = methods_table.table().splitlines()
    for method in methods:
        (line,) = [x for x in lines if x.startswith(f"| `{method}`")]
        assert "20" in line.split(" | ")[1]


def test_knows_which_losses_relate_examples_by_normalizing_alone():
    relating = [m for m in kd.losses.methods() if m.loss.relates_examples]
    assert set(NORMALIZE) == {
        method.name
        for method in relating
        if "BatchNormalization("
        in inspect.getsource(inspect.getmodule(method.loss))
    }


def made(text):
    """A loss whose docstring is this."""
    return type("Made", (kd.losses.LogitLoss,), {"__doc__": text})


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ('Zhao et al., "A, b: C?", CVPR 2022.', "Zhao et al. 2022"),
        ('Heo, Lee and Choi, "Title", 2015.', "Heo, Lee and Choi 2015"),
        ('Li, "T", ICLR 2019. For 2020, see there.', "Li 2019"),
        ('Yang, "Title in\n    two lines",\n    ECCV 2022.', "Yang 2022"),
    ],
)
def test_reads_references(reference, expected):
    loss = made(f"Line.\n\nReference:\n    {reference}")
    assert paper_of(loss) == expected


def test_says_which_reference_it_cannot_read():
    with pytest.raises(ValueError, match="Made: its Reference"):
        paper_of(made("Line.\n\nReference:\n    See there."))
    with pytest.raises(ValueError, match="Made: it has no Reference"):
        paper_of(made("Line."))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Something (DKD).", "DKD"),
        ("Something (Tf-KD_reg).", "Tf-KD_reg"),
        ("Something (knowledge distillation, KD).", "KD"),
        ("Something.", ""),
    ],
)
def test_reads_acronyms(line, expected):
    assert acronym_of(made(line)) == expected


def test_says_which_acronym_it_cannot_read():
    with pytest.raises(ValueError, match="Made: the first line"):
        acronym_of(made("Something (for a test) and more."))
