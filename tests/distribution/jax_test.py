"""JAX: a mesh of devices, or two processes, train what one device trains."""

import os

import pytest
from distribution.launch import assert_equal, found, launched
from support import only_on

pytestmark = only_on("jax")
MESH = [
    "everything_accumulated",
    "placed",
    "agreed",
    "split_teacher",
    "relations",
    "relations_per_replica",
]
PROCESSES = ["everything_accumulated", "split_teacher", "agreed"]
FLAGS = os.environ.get("XLA_FLAGS", "")
TWO_DEVICES = f"{FLAGS} --xla_force_host_platform_device_count=2"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    launched("mesh", folder, MESH, timeout=400, XLA_FLAGS=TWO_DEVICES)
    return folder


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    names = [*PROCESSES, "apart"]
    launched("processes", folder, names, size=2, timeout=400)
    return folder


@pytest.mark.parametrize("name", MESH)
def test_two_devices_do_what_one_does(mesh, name):
    assert_equal(found(mesh, name, 0), found(mesh, name, "one"))


@pytest.mark.parametrize("name", PROCESSES)
def test_two_processes_do_what_one_does(mesh, processes, name):
    for rank in (0, 1):
        assert_equal(found(processes, name, rank), found(mesh, name, "one"))


def test_backups_that_one_process_sees_are_refused(processes):
    assert found(processes, "apart", 1)["refused"] == [1]
