"""Every kind of input channel becomes a location with the same images and boxes."""

import itertools
import json
import os
import shutil
import threading

import numpy as np
import pytest
from sagemaker.opt_ml import channel, write_config

from ssd_jax.data.convert import run_convert
from ssd_jax.data.open import open_data
from ssd_jax.data.sources.recordio_file import frame
from ssd_jax.errors import UserError
from ssd_jax.sagemaker.channels import find_channels


@pytest.fixture(scope="module")
def written(shapes, tmp_path_factory):
    """The validation images of `shapes` in the formats of the channels."""
    folder = tmp_path_factory.mktemp("written")
    for name in ("data.rec", "data.manifest"):
        run_convert(str(shapes), str(folder / name), split=("val",))
    run_convert(str(shapes), str(folder / "pair"), split=("val",), format="json")
    return folder


@pytest.fixture
def root(tmp_path):
    (tmp_path / "input/data").mkdir(parents=True)
    return tmp_path


def give(root, channels):
    write_config(root, "inputdataconfig.json", channels)


def assert_same_as_recordio(location, written):
    got, expected = (open_data(place) for place in (location, str(written / "data.rec")))
    assert len(got) == len(expected) == 12
    for index in range(len(got)):
        assert got[index].image == expected[index].image
        np.testing.assert_allclose(got[index].boxes, expected[index].boxes, atol=1e-4)
        np.testing.assert_array_equal(got[index].labels, expected[index].labels)


def test_recordio(root, written):
    for name in ("train", "validation"):
        (root / "input/data" / name).mkdir()
        shutil.copy(written / "data.rec", root / "input/data" / name)
        (root / "input/data" / name / "._data.rec").touch()  # of a copy made by macOS
    give(root, {"train": channel(), "validation": channel()})
    found = find_channels(root)
    assert_same_as_recordio(found.train, written)
    assert (found.test, found.model) == ("", "")


def test_a_manifest_beside_the_records_does_not_win(root, written):
    for name in ("train", "validation"):
        (root / "input/data" / name).mkdir()
        shutil.copy(written / "data.rec", root / "input/data" / name)
    (root / "input/data/train/list.jsonl").touch()
    give(root, dict.fromkeys(("train", "validation"), channel()))
    assert find_channels(root).train == str(root / "input/data/train/data.rec")
    give(root, {"train": {}, "validation": {}})
    with pytest.raises(UserError, match=r"the channel train has .*: data\.rec, list\.jsonl\. Exp"):
        find_channels(root)


def test_a_record_file_may_lie_deeper_and_its_type_have_parameters(root, written):
    places = {name: root / f"input/data/{name}/part/DATA.REC" for name in ("train", "validation")}
    for place in places.values():
        place.parent.mkdir(parents=True)
        shutil.copy(written / "data.rec", place)
    # One host gets all of what is sharded.
    kind = channel("application/x-recordio; version=2", S3DistributionType="ShardedByS3Key")
    give(root, dict.fromkeys(places, kind))
    assert find_channels(root, hosts=1).train == str(places["train"])


def test_images_with_json_files(root, written):
    for name in ("train", "validation"):
        for suffix in ("", "_annotation"):
            source = written / f"pair/val{suffix}"
            shutil.copytree(source, root / "input/data" / f"{name}{suffix}")
    names = [
        f"{name}{suffix}" for name in ("train", "validation") for suffix in ("", "_annotation")
    ]
    give(root, {name: channel("image/jpeg") for name in names})
    assert_same_as_recordio(find_channels(root).train, written)


def test_an_augmented_manifest(root, written):
    for name in ("train", "validation"):
        folder = root / "input/data" / name
        folder.mkdir()
        for path in written.glob("data*"):
            if path.is_dir() or path.suffix == ".manifest":
                (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    give(root, dict.fromkeys(("train", "validation"), channel("application/x-image")))
    assert_same_as_recordio(find_channels(root).validation, written)


def test_the_attribute_of_a_manifest_with_several(root, written):
    annotation = {"image_size": [{"width": 9, "height": 9, "depth": 3}], "annotations": []}
    boxes = [{"class_id": 0, "left": 1, "top": 1, "width": 5, "height": 5}]
    first, second = annotation, annotation | {"annotations": boxes}
    record = {"source-ref": "a.jpg", "first": first, "second": second}
    for name in ("train", "validation"):
        (root / "input/data" / name).mkdir()
        (root / "input/data" / name / "a.jpg").touch()
        (root / "input/data" / name / "data.manifest").write_text(json.dumps(record))
    give(root, {"train": {}, "validation": {}})
    with pytest.raises(UserError, match=r"first, second have .*AttributeNames in inputdataconfig"):
        open_data(find_channels(root).train)
    kind = channel(AttributeNames=["source-ref", "second"])
    give(root, dict.fromkeys(("train", "validation"), kind))
    assert open_data(find_channels(root).train).object_counts.tolist() == [1]
    give(root, {"train": channel(AttributeNames="second"), "validation": {}})
    with pytest.raises(UserError, match=r"train, AttributeNames: got 'second'\. Expected the"):
        find_channels(root)


def stream(root, name, content):
    """A pipe, and the thread that writes into it."""
    pipe = root / "input/data" / f"{name}_0"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    return writer


def pairs_of(written):
    """(image, annotation) of each image, as an augmented manifest streams them."""
    source = open_data(str(written / "data.rec"))
    pairs = []
    for index in range(len(source)):
        example = source[index]
        height, width = example.size
        boxes = (example.boxes * [width, height, width, height]).tolist()
        annotation = {
            "file": "where it was.jpg",  # of an annotation that was written for the image channels
            "image_size": [{"width": width, "height": height, "depth": 3}],
            "annotations": [
                # Ground Truth writes ids as text.
                {"class_id": str(label), "left": x, "top": y, "width": X - x, "height": Y - y}
                for label, (x, y, X, Y) in zip(example.labels.tolist(), boxes, strict=True)
            ],
        }
        pairs.append((frame(example.image), frame(json.dumps(annotation).encode())))
    return pairs


def test_pipes_of_records_and_of_an_augmented_manifest(root, written):
    pairs = b"".join(itertools.chain(*pairs_of(written)))
    content = {"train": (written / "data.rec").read_bytes(), "validation": pairs}
    rest = root / "pipe/.validation/rest.jpg"  # of a job that was killed
    rest.parent.mkdir(parents=True)
    rest.touch()
    writers = [stream(root, name, data) for name, data in content.items()]
    pipe = channel(mode="Pipe")
    give(root, {"train": pipe, "validation": pipe | {"RecordWrapperType": "RecordIO"}})
    found = find_channels(root)
    for writer in writers:
        writer.join()
    assert_same_as_recordio(found.train, written)
    assert_same_as_recordio(found.validation, written)
    (root / "checkpoints/checkpoints/4").mkdir(parents=True)
    assert find_channels(root) == found  # the streams are read once by a run
    assert {path.name for path in (root / "pipe").iterdir()} == {"train.rec", "validation"}


def test_without_a_run_to_go_on_with_a_stream_is_read_anew(root, written):
    pipe, pairs = root / "input/data/train_0", pairs_of(written)
    give(root, {"train": channel(mode="Pipe"), "validation": channel(mode="Pipe")})
    (root / "input/data/validation_0").write_bytes((written / "data.rec").read_bytes())
    for content, images in ((pairs, 12), (pairs[:5], 5)):
        pipe.write_bytes(b"".join(itertools.chain(*content)))
        assert len(open_data(find_channels(root).train)) == images
    pipe.write_bytes((written / "data.rec").read_bytes())
    assert find_channels(root).train == str(root / "pipe/train.rec")
    assert not (root / "pipe/train").exists()


ORDER = r"expected images .JPEG or PNG., each followed by its annotation.*AttributeNames"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda pairs: [each for pair in pairs for each in pair[::-1]], f"record 0: .*{ORDER}"),
        (lambda pairs: [image for image, _ in pairs], f"record 1: the JSON cannot.*{ORDER}"),
        (lambda pairs: [text for _, text in pairs], f"record 0: got a JSON text; {ORDER}"),
        (
            lambda pairs: [*pairs[0], pairs[1][1], pairs[1][1]],
            f"record 2: got a record that begins with .*{ORDER}",
        ),
        (lambda pairs: [*pairs[0], pairs[1][0]], f"record 3: the stream ends here; {ORDER}"),
        (lambda pairs: [b"no records at all"], "train_0, byte 0: .* expected RecordIO"),
        (lambda pairs: [pairs[0][0][:-8]], "train_0, byte 0: .* is cut off at byte"),
        (lambda pairs: [], "train_0: the stream is empty"),
    ],
)
def test_a_stream_that_cannot_be_used_leaves_nothing(content, message, root, written):
    (root / "input/data/train_0").write_bytes(b"".join(content(pairs_of(written))))
    give(root, {"train": channel(mode="Pipe"), "validation": channel(mode="Pipe")})
    with pytest.raises(UserError, match=message) as error:
        find_channels(root)
    assert str(root / "input/data/train_0") in str(error.value)
    assert str(root / "pipe") not in str(error.value)
    assert not list((root / "pipe").iterdir())


def test_a_record_whose_label_is_as_long_as_a_brace_is_no_json(root):
    record = frame((123).to_bytes(4, "little") + bytes(600))
    for name in ("train", "validation"):
        (root / f"input/data/{name}_0").write_bytes(record)
    give(root, dict.fromkeys(("train", "validation"), channel(mode="Pipe")))
    assert find_channels(root).train == str(root / "pipe/train.rec")


def test_a_model_and_a_shared_folder(root, written):
    for name in ("train", "validation", "model", "checkpoints"):
        (root / "input/data" / name).mkdir()
        if name in ("train", "validation"):
            shutil.copy(written / "data.rec", root / "input/data" / name)
    (root / "input/data/model/model.tar.gz").touch()
    model = channel("application/x-sagemaker-model")
    give(root, {"train": channel(), "validation": channel(), "model": model, "checkpoints": {}})
    found = find_channels(root)
    assert found.model == str(root / "input/data/model/model.tar.gz")
    assert found.checkpoints == str(root / "input/data/checkpoints")


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"train": channel()}, "'validation' is a required property"),
        ({"train": 1, "validation": {}}, "the channel train is 1"),
        ({"train": {}, "validation": {}, "valid": {}}, r"not allowed \('valid' was unexpected\)"),
        ({"train": channel("text/csv"), "validation": {}}, "'text/csv' is not one of"),
        ({"train": channel(5), "validation": {}}, "ContentType: '5' is not one of"),
        (
            {"train": {}, "validation": {}, "test_annotation": {}},
            "the channel test_annotation has no channel test. Expected both or none",
        ),
        (
            {"train": channel("image/png"), "validation": {}},
            "'train_annotation' is a required property",
        ),
        ({"train": channel(), "validation": {}}, "the channel train has 0 files"),
        (
            {name: channel("image/png", mode="Pipe") for name in ("train", "train_annotation")}
            | {"validation": {}},
            "train and train_annotation are in Pipe mode",
        ),
        ({"train": channel(mode="Pipe"), "validation": {}}, "no such pipe"),
        (
            {"train": channel(mode="PIPE"), "validation": {}},
            r"TrainingInputMode: 'PIPE' is not one of \['File', 'FastFile', 'Pipe'\]",
        ),
        (
            {"train": channel(S3DistributionType="ShardedByS3Key"), "validation": {}},
            "ShardedByS3Key on 2 hosts",
        ),
    ],
)
def test_channels_that_cannot_be_used(channels, message, root):
    (root / "input/data/train").mkdir()
    give(root, channels)
    with pytest.raises(UserError, match=message):
        find_channels(root, hosts=2)


def test_a_config_that_is_not_there_is_named(root):
    with pytest.raises(
        UserError, match=r"inputdataconfig\.json: there is no such file\. .*example"
    ):
        find_channels(root)


def test_a_config_that_is_no_json_is_named(root):
    (root / "input/config").mkdir()
    (root / "input/config/inputdataconfig.json").write_text("{")
    with pytest.raises(UserError, match=r"inputdataconfig\.json cannot be read as JSON"):
        find_channels(root)
