"""TFDS: any prepared detection data set, without TensorFlow."""

import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.tfds import open_tfds
from ssd_jax.errors import DataError, UserError

PICTURES = [np.full((50, 100, 3), value, np.uint8) for value in (0, 200)]
JPEGS = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in PICTURES]


def prepare(folder, *, name="animals", file_format="array_record", box=(0.02, 0.01, 1.0, 0.5)):
    """A data set of two images, the second without objects; returns the prepared folder."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "things": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "is_difficult": np.bool_,
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "pose": tfds.features.ClassLabel(num_classes=3),
                }
            ),
        }
    )
    thing = {"bbox": tfds.features.BBox(*box), "is_difficult": True, "label": "dog", "pose": 2}

    class Animals(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, things in enumerate(([thing], [])):
                path = folder / f"{index}.jpg"
                path.write_bytes(JPEGS[index])
                name = f"00000{index}.jpg"
                yield index, {"image": str(path), "image/filename": name, "things": things}

    Animals.name = name
    builder = Animals(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


def test_any_sequence_of_boxes_and_labels(prepared):
    source = open_tfds(prepared, "train")
    assert (source.classes, len(source)) == (("cat", "dog"), 2)
    by_name = {name: source[index] for index, name in enumerate(source.names)}
    thing = by_name["000000"]
    np.testing.assert_allclose(thing.boxes, [(0.01, 0.02, 0.5, 1)], rtol=1e-6)
    assert (thing.labels.tolist(), thing.difficult.tolist(), thing.size) == ([1], [True], None)
    assert thing.image == JPEGS[0]
    assert len(by_name["000001"].boxes) == 0
    assert any(".array_record" in file for file in source.files)


def test_a_prepared_folder_is_known_by_its_content(prepared):
    assert len(open_data(prepared, split=("train[:1]", "train[1:]"))) == 2
    with pytest.raises(UserError, match="needs a split, got none"):
        open_data(prepared)


def test_parts_and_class_lists(prepared):
    assert len(open_tfds(prepared, "train[:1]")) == 1
    assert open_tfds(prepared, "train", classes=("dog", "cat")).annotations.labels.tolist() == [0]
    left = open_tfds(prepared, "train", classes=("cat",), problems=Problems("skip"))
    assert left.problems.counts == {"SSD134": 1}
    with pytest.raises(DataError, match=r"SSD134 tfds:.*000000\.jpg, object 1.*'dog'"):
        open_tfds(prepared, "train", classes=("cat",))


def test_boxes_of_voc_become_edges(tmp_path):
    source = open_tfds(prepare(tmp_path, name="voc"), "train")
    example = source[source.names.index("000000")]
    np.testing.assert_allclose(example.boxes, [(0, 0, 0.5, 1)], atol=1e-7)
    assert example.size == (50, 100)


def test_what_cannot_be_opened_is_told(prepared, tmp_path):
    with pytest.raises(UserError, match=r"no split 'test': expected one of train"):
        open_tfds(prepared, "test")
    with pytest.raises(UserError, match=r"tfds:voc/2007 is not prepared in .*TFDS_DATA_DIR"):
        open_tfds("voc/2007", "train", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"tfds:voc/1900 cannot be opened .*Correct"):
        open_tfds("voc/1900", "train", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"tfds:nothing_like_it cannot be opened"):
        open_tfds("nothing_like_it", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:70] + bytes([content[70] ^ 255]) + content[71:],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
    ],
    ids=["changed", "cut off", "empty"],
)
def test_damaged_records_are_one_error(damage, prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "damaged")
    (file,) = folder.glob("*.array_record*")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"(?s)tfds:.*(it cannot be read|are damaged)"):
        open_tfds(folder, "train")


@pytest.mark.parametrize("content", ["", "null", "[" * 10**5])
def test_a_damaged_description_is_one_error(content, prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "damaged")
    (folder / "features.json").write_text(content)
    with pytest.raises(UserError, match="cannot be opened"):
        open_tfds(folder, "train")


def test_tensorflow_is_not_needed(prepared):
    script = (
        "import sys\n"
        "from ssd_jax.data.sources.tfds import open_tfds\n"
        f"assert len(open_tfds({str(prepared)!r}, 'train')[0].image)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
