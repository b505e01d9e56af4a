"""Any source as a data set of TFDS: nothing is lost, and TFDS reads it without TensorFlow."""

import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest

from ssd_jax.data import tfds_writer
from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Annotations, Problems, Source
from ssd_jax.data.sources.tfds import open_tfds
from ssd_jax.data.tfds_writer import write_tfds
from ssd_jax.errors import DataError, UserError

CLASSES = ("zebra", "never seen", "cat & <dog>", "ähre")
NAMES = ("b", "VOC2007/ü 1", "a.2", "0")
THIRD = (0.1, 1 / 3, 2 / 3, 0.9)


def encoded(suffix, value=0):
    return cv2.imencode(suffix, np.full((5, 10, 3), value, np.uint8))[1].tobytes()


IMAGES = (encoded(".jpg"), encoded(".png"), encoded(".jpg", 200), encoded(".png", 200))


def source_of(images=IMAGES, *, box=(0, 0, 1, 1), problems=None, read_image=None):
    """Two objects on the first image, one on the third, none on the others."""
    count = len(images)
    boxes = np.array([THIRD, box, THIRD], np.float32)
    offsets = np.array([0, 2, 2, *[3] * (count - 2)])
    labels, difficult = np.array([3, 0, 2], np.int32), np.array([False, True, False])
    names = NAMES if count == len(NAMES) else tuple(map(str, range(count)))
    sizes = np.full((count, 2), (5, 10), np.int32)
    return Source(
        Annotations(names, sizes, offsets, boxes, labels, difficult),
        CLASSES,
        read_image=read_image or images.__getitem__,
        locate=lambda index: f"image {index}",
        problems=problems or Problems(),
    )


def written(source, folder, name="train"):
    write_tfds(folder, source, name)
    return open_tfds(folder / name / "1.0.0", name)


def missing(index):
    if index in (0, 3):
        raise DataError("SSD111", f"image {index}", "it is gone", "Put it back")
    return IMAGES[index]


@pytest.mark.parametrize("images_of_a_shard", [1000, 3])
def test_nothing_is_lost(tmp_path, monkeypatch, images_of_a_shard):
    monkeypatch.setattr(tfds_writer, "IMAGES_OF_A_SHARD", images_of_a_shard)
    source = source_of()
    back = written(source, tmp_path)
    assert back.classes == CLASSES
    assert back.names == ("b", "VOC2007_ü 1", "a.2", "0")
    assert tuple(back[index].image for index in range(4)) == IMAGES
    for column in ("offsets", "boxes", "labels", "difficult"):
        expected = getattr(source.annotations, column)
        np.testing.assert_array_equal(getattr(back.annotations, column), expected)


def test_other_splits_and_the_way_back_to_the_same(tmp_path, capsys):
    first = written(source_of(), tmp_path, "test")
    again = written(first, tmp_path, "again")
    assert again.fingerprint == first.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "test"]
    assert len(open_data(tmp_path / "test", split=("test[:3]",))) == 3
    assert capsys.readouterr() == ("", "")


def test_tfds_reads_it_without_tensorflow(tmp_path):
    script = (
        "import sys\n"
        "import tensorflow_datasets as tfds\n"
        f"builder = tfds.builder_from_directory({str(tmp_path / 'val/1.0.0')!r})\n"
        "assert builder.info.full_name == 'val/1.0.0'\n"
        "data = builder.as_data_source('val')\n"
        "assert [image['image'].shape for image in data] == 4 * [(5, 10, 3)]\n"
        "box, _ = data[0]['objects']['bbox']\n"
        f"assert abs(box - {[THIRD[i] for i in (1, 0, 3, 2)]}).max() < 1e-7\n"
        f"assert len(tfds.data_source('val', data_dir={str(tmp_path)!r}, split='val')) == 4\n"
        "assert 'tensorflow' not in sys.modules"
    )
    written(source_of(), tmp_path, "val")
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("images_of_a_shard", [1000, 1])
def test_what_cannot_be_read_is_refused_or_left_out(tmp_path, monkeypatch, images_of_a_shard):
    monkeypatch.setattr(tfds_writer, "IMAGES_OF_A_SHARD", images_of_a_shard)
    with pytest.raises(DataError, match="SSD111 image 0"):
        written(source_of(read_image=missing), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    source = source_of(read_image=missing, problems=Problems("skip"))
    back = written(source, tmp_path)
    assert (back.object_counts.tolist(), back.annotations.labels.tolist()) == ([0, 1], [2])
    assert source.problems.counts == {"SSD111": 2}


def test_what_is_no_image_or_no_box_is_a_problem(tmp_path):
    gif = source_of((b"GIF89a",) * 3, problems=Problems("skip"))
    with pytest.raises(UserError, match="nothing to write: every image was left out, 3 SSD112"):
        written(gif, tmp_path)
    with pytest.raises(DataError, match="SSD133 image 0, object 2"):
        written(source_of(box=(0.5, 0, 0.5, 1)), tmp_path)
    thin = source_of(box=(0.5, 0, 0.5, 1), problems=Problems("skip"))
    assert written(thin, tmp_path).object_counts.tolist() == [1, 0, 1, 0]


def test_an_image_is_not_written_without_its_objects(tmp_path):
    thin = source_of(problems=Problems("skip"))
    thin.annotations.boxes[:2] = (0.5, 0, 0.5, 1)
    assert written(thin, tmp_path).object_counts.tolist() == [0, 1, 0]
    assert thin.problems.counts == {"SSD133": 2, "SSD136": 1}


@pytest.mark.parametrize("name", ["voc", "2007", "train[:9%]", "a/b", ""])
def test_names_that_tfds_does_not_take(tmp_path, name):
    with pytest.raises(UserError, match="expected a letter, then letters, digits"):
        write_tfds(tmp_path, source_of(), name)


def test_images_do_not_stay_in_memory(tmp_path):
    count, size = 80, 500_000
    source = source_of((b"",) * count, read_image=lambda index: IMAGES[0] + bytes(size))
    tracemalloc.start()
    write_tfds(tmp_path, source, "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * size / 2


def test_progress_is_shown_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    write_tfds(tmp_path, source_of(), "train")
    assert "4/4" in capsys.readouterr().err
