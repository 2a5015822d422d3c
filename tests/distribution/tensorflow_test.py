"""TensorFlow: replicas train the student that one device trains."""

import pytest
from distribution.launch import assert_equal, found, launched
from distribution.scenarios import run_on_one
from support import only_on

pytestmark = only_on("tensorflow")
MIRRORED = ["everything", "relations", "relations_per_replica", "texts"]


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirrored")
    launched("mirrored", folder, [*MIRRORED, "refusals"], timeout=400)
    return folder


@pytest.mark.parametrize("name", MIRRORED)
def test_two_replicas_do_what_one_device_does(mirrored, name):
    assert_equal(found(mirrored, name, 0), run_on_one(name))
