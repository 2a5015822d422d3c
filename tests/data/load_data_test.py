"""Data from files, folders and public data sets."""

import json
import struct
import zlib

import keras
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from support import only_on

import keras_distill as kd

# Reading doesn't depend on the backend.
pytestmark = only_on("torch")
SIZE = (5, 4)


def picture(number, size=SIZE):
    """Pixels that tell pictures apart, and rows from columns."""
    return (np.arange(np.prod(size) * 3) * 3 + number).reshape(*size, 3) % 256


def save_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.utils.save_img(path, pixels, data_format="channels_last", scale=False)


@pytest.fixture
def folder(tmp_path):
    """Five images, of frogs and cars."""
    for number in range(5):
        name = ("frog", "car")[number % 2]
        save_picture(
            tmp_path / "images" / name / f"{number}.png", picture(number)
        )
    (tmp_path / "images" / "read.me").write_text("no class")
    return tmp_path / "images"


def test_arrays_with_labels(tmp_path):
    x, y = np.arange(12.0).reshape(4, 3), np.arange(4)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    data = kd.load_data(tmp_path / "data.npz")
    np.testing.assert_array_equal(data.inputs, x)
    np.testing.assert_array_equal(data.labels, y)
    assert len(data) == 4
    scaled = kd.load_data(tmp_path / "data.npz", scale=0.5)
    assert scaled.inputs.dtype == "float32"
    np.testing.assert_array_equal(scaled.inputs, x / 2)


def test_one_value_is_no_row_of_labels(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2)), y=1)
    with pytest.raises(ValueError, match="one value as 'y'"):
        kd.load_data(tmp_path / "data.npz")


def test_inputs_by_name_and_words_as_labels(tmp_path):
    a, b = np.zeros((3, 2)), np.ones((3, 4))
    words = np.array(["truck", "car", "truck"])
    np.savez(tmp_path / "data.npz", a=a, b=b, kind=words)
    data = kd.load_data(tmp_path / "data.npz", label="kind")
    assert {name: x.shape for name, x in data.inputs.items()} == {
        "a": (3, 2),
        "b": (3, 4),
    }
    assert data.labels.tolist() == [1, 0, 1]
    assert data.class_names == ("car", "truck")
    assert kd.load_data(tmp_path / "data.npz", label="a").labels is not None


@pytest.mark.parametrize(
    ("split", "size"), [(None, 4), ("train", 4), ("test", 2)]
)
def test_splits(tmp_path, split, size):
    parts = {"train": 4, "test": 2}
    np.savez(
        tmp_path / "data.npz",
        **{f"x_{name}": np.zeros((n, 2)) for name, n in parts.items()},
        **{f"y_{name}": np.zeros(n) for name, n in parts.items()},
    )
    data = kd.load_data(tmp_path / "data.npz", split)
    assert data.inputs.shape == (size, 2)
    assert len(data.labels) == size


def test_arrays_stay_on_disk(tmp_path):
    x = np.arange(20.0).reshape(10, 2)
    np.save(tmp_path / "x.npy", x)
    data = kd.load_data(tmp_path / "x.npy")
    assert isinstance(data.inputs, np.memmap)
    some = data.take(np.array([7, 2]))
    assert not isinstance(some.inputs, np.ndarray)  # not yet read
    np.testing.assert_array_equal(np.asarray(some.inputs), x[[7, 2]])
    np.testing.assert_array_equal(some.inputs[np.array([1])], x[[2]])
    assert data.labels is None


def test_a_folder_of_images(folder):
    data = kd.load_data(folder)
    assert data.class_names == ("car", "frog")
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.inputs.shape == (5, *SIZE, 3)
    x, y = data.arrays()
    for row, number in enumerate((1, 3, 0, 2, 4)):
        np.testing.assert_array_equal(x[row], picture(number))
        np.testing.assert_array_equal(data.inputs[row], picture(number))
    (batch, labels) = data.batches(2, shuffle=True, seed=3)[0]
    order = np.random.default_rng([3, 0]).permutation(5)[:2]
    np.testing.assert_array_equal(batch, x[order])
    np.testing.assert_array_equal(labels, y[order])


def test_no_file_of_a_folder_is_left_out(folder):
    with pytest.raises(ValueError, match=r"images/car'.* pass '.*images'"):
        kd.load_data(folder.parent)
    (folder / "car" / "7.tif").touch()
    with pytest.raises(ValueError, match=r"7.tif'. Convert it"):
        kd.load_data(folder)
    save_picture(folder / "8.png", picture(8))
    with pytest.raises(ValueError, match=r"8.png', which is of no class"):
        kd.load_data(folder)


def test_images_are_brought_to_a_size_where_asked(folder):
    save_picture(folder / "car" / "9.png", picture(9, (7, 7)))
    with pytest.raises(ValueError, match=r"9.png' of 7x7 and .* of 5x4"):
        kd.load_data(folder)
    data = kd.load_data(folder, size=(6, 3), channels=1)
    assert data.arrays()[0].shape == (6, 6, 3, 1)


def test_an_image_that_is_none(folder):
    whole = (folder / "car" / "1.png").read_bytes()
    (folder / "car" / "1.png").write_bytes(whole[: len(whole) - 30])
    data = kd.load_data(folder)  # its header is there
    with pytest.raises(ValueError, match=r"can't be read.*1.png"):
        data.arrays()
    (folder / "car" / "1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"can't be read.*1.png"):
        kd.load_data(folder)


def test_an_image_too_large_to_open(folder):
    """Its header says so; Pillow takes it for an attack."""
    size = struct.pack(">II", 40_000, 40_000)
    header = b"IHDR" + size + bytes([8, 0, 0, 0, 0])
    (folder / "car" / "1.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    with pytest.raises(ValueError, match=r"1.png', DecompressionBombError"):
        kd.load_data(folder)


def test_images_of_more_than_a_byte_a_pixel(folder):
    deep = np.full(SIZE, 40000, "uint16")
    Image.fromarray(deep).save(folder / "car" / "1.png")
    with pytest.raises(ValueError, match=r"1.png'.*more than 8 bits.*I;16"):
        kd.load_data(folder, channels=1)


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_of_images(tmp_path, folder):
    files = sorted(folder.rglob("*.png"))
    data = kd.load_data(
        write_parquet(
            tmp_path / "data.parquet",
            image=[{"bytes": f.read_bytes(), "path": f.name} for f in files],
            label=["car", "car", "frog", "frog", "frog"],
        )
    )
    x, y = kd.load_data(folder).arrays()
    np.testing.assert_array_equal(data.arrays()[0], x)
    np.testing.assert_array_equal(data.labels, y)
    assert data.class_names == ("car", "frog")


def test_parquet_of_numbers(tmp_path):
    path = write_parquet(
        tmp_path / "data.parquet",
        a=[1, 2, 3],
        b=[0.5, 1.5, 2.5],
        kind=[0, 1, 1],
    )
    data = kd.load_data(path, label="kind")
    assert data.inputs.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5]]
    assert data.labels.tolist() == [0, 1, 1]
    lists = write_parquet(tmp_path / "lists.parquet", x=[[1, 2], [3, 4]])
    assert kd.load_data(lists).inputs.tolist() == [[1, 2], [3, 4]]


def test_parquet_of_other_writers(tmp_path):
    rows = pyarrow.array([[1, 2], [3, 4]], pyarrow.large_list(pyarrow.int64()))
    parquet.write_table(pyarrow.table({"x": rows}), tmp_path / "large.parquet")
    large = kd.load_data(tmp_path / "large.parquet")
    assert large.inputs.tolist() == [[1, 2], [3, 4]]
    # As pandas writes a table whose rows have numbers of their own.
    columns = {"a": [1, 2], "b": [3, 4], "__index_level_0__": [7, 5]}
    facts = json.dumps({"index_columns": ["__index_level_0__"]})
    table = pyarrow.table(columns).replace_schema_metadata({"pandas": facts})
    parquet.write_table(table, tmp_path / "frame.parquet")
    found = kd.load_data(tmp_path / "frame.parquet")
    assert found.inputs.tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"x": [1, None]}, {}, "with 1 empty ones"),
        ({"x": ["a", "b"], "z": [1, 2]}, {}, "with columns x"),
        ({"x": [[1], [1, 2]]}, {}, "Examples have one shape"),
        ({"x": [1.0]}, {"label": "kind"}, "no such column of labels"),
        ({"x": [1.0]}, {"size": (2, 2)}, "numbers can't"),
        ({"x": [1.0]}, {"split": "test"}, "take no split"),
        (
            {"x": [{"bytes": b"", "path": "a"}, {"bytes": None, "path": "b"}]},
            {},
            "row 1 of .* without any bytes",
        ),
    ],
)
def test_tables_that_hold_no_examples(tmp_path, columns, options, expected):
    path = write_parquet(tmp_path / "data.parquet", **columns)
    with pytest.raises(ValueError, match=expected):
        kd.load_data(path, **options)


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"PAR1 and noise")
    with pytest.raises(ValueError, match="Examples come in a parquet file"):
        kd.load_data(tmp_path / "data.parquet")


def test_a_share_is_drawn_once():
    data = kd.data.Examples(np.arange(10), np.arange(10))
    held, rest = data.split(0.3, seed=1)
    assert (len(held), len(rest)) == (3, 7)
    both = np.concatenate([held.inputs, rest.inputs])
    assert sorted(both) == list(range(10))
    np.testing.assert_array_equal(held.labels, held.inputs)
    np.testing.assert_array_equal(
        data.split(0.3, seed=1)[0].inputs, held.inputs
    )
    assert data.split(0.3, seed=2)[0].inputs.tolist() != held.inputs.tolist()


def test_batches_have_all_examples_in_each_epoch():
    data = kd.data.Examples(np.arange(10), np.arange(10))
    batches = data.batches(4, shuffle=True, numbered=True)
    assert len(batches) == 3
    orders = []
    for _ in range(2):
        found = [batches[i] for i in range(3)]
        orders.append(np.concatenate([y for _, y in found]).tolist())
        for batch, y in found:
            np.testing.assert_array_equal(batch.sample_ids, y)
        batches.on_epoch_end()
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))


def test_a_public_data_set(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    x = np.arange(6 * 4, dtype="uint8").reshape(6, 2, 2, 1)

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(2, 2, 1)),
                "label": tfds.features.ClassLabel(names=["car", "frog"]),
            }
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {"train": self.some(0, 4), "test": self.some(4, 6)}

        def some(self, start, stop):
            for i in range(start, stop):
                yield i, {"image": x[i], "label": i % 2}

        _generate_examples = some

    TinyImages(data_dir=tmp_path).download_and_prepare()
    data = kd.load_data("tfds:tiny_images", "test", data_dir=tmp_path)
    np.testing.assert_array_equal(data.inputs, x[4:])
    assert data.labels.tolist() == [0, 1]
    assert data.class_names == ("car", "frog")
    with pytest.raises(ValueError, match="tfds:nowhere"):
        kd.load_data("tfds:nowhere", data_dir=tmp_path)
