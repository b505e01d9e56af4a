"""From pictures and films, wherever they lie, to the files of each format."""

import json
import shutil

import cv2
import numpy as np
import pytest
from data.loopback import WebServer
from full_disk import largest_file
from predict_files.fake import Fake, write_video
from s3_server import serve_s3

from ssd_jax.data.sources.voc import IMAGE_SUFFIXES
from ssd_jax.errors import DataError, UserError
from ssd_jax.evaluation.detection_files import read_detections, read_ground_truth
from ssd_jax.predict_files import inputs
from ssd_jax.predict_files.inputs import VIDEO_SUFFIXES, find_items, read_frames
from ssd_jax.predict_files.run import FORMATS, run_prediction, run_transform


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """1.png and sub/2.jpg of 40 x 20 pixels, and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    for name in ("1.png", "sub/2.jpg"):
        cv2.imwrite(str(folder / name), np.full((20, 40, 3), 200, np.uint8))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "street.avi")


def names(*places):
    return [item.name for item in find_items([str(place) for place in places])]


def test_items_of_a_folder_a_glob_and_a_file(pictures, film):
    assert names(pictures) == ["1.png", "sub/2.jpg"]
    assert names(f"{pictures}/*.png", film) == ["1.png", "street.avi"]
    assert names(f"{pictures}/**/*.jpg") == ["2.jpg"]
    assert names(pictures / "1.png", pictures / "1.png") == ["1.png"]
    assert not set(IMAGE_SUFFIXES) & set(VIDEO_SUFFIXES)


def test_what_macos_adds_to_a_folder_is_passed_over(pictures, tmp_path):
    shutil.copy(pictures / "1.png", tmp_path)
    for name in ("._1.png", "._2.bmp"):
        (tmp_path / name).touch()
    assert names(tmp_path) == names(f"{tmp_path}/*") == names(f"{tmp_path}/*1.png") == ["1.png"]
    assert names(tmp_path / "._1.png") == ["._1.png"]  # it was asked for


def test_pictures_that_are_not_read_are_told(pictures, tmp_path, capsys):
    shutil.copy(pictures / "1.png", tmp_path)
    (tmp_path / "2.bmp").touch()
    assert names(tmp_path) == ["1.png"]
    assert f"1 image left out, such as {tmp_path / '2.bmp'}" in capsys.readouterr().err


def test_a_url_is_an_item(pictures, tmp_path):
    with WebServer() as server:
        server.files["/1.png"] = (pictures / "1.png").read_bytes()
        run_prediction(Fake(), [f"{server.url}/1.png?x=y"], tmp_path, format="jsonl")
    (line,) = (tmp_path / "detections.jsonl").read_text().splitlines()
    assert json.loads(line)["width"] == 40


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["nowhere.jpg"], "no such file or folder"),
        (
            ["ftp://me:secret@host/x.jpg"],
            "^got a URL of ftp://, expected a path, or a URL of s3, gs, http, https",
        ),
        (["*.jpg"], "no images or videos there"),
        (["."], "no images or videos there"),
        (["a/x.jpg", "b/x.png"], "both called x"),
    ],
)
def test_places_without_a_picture_and_names_that_clash(places, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("a/x.jpg", "b/x.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).touch() if len(places) == 2 else None
    with pytest.raises(UserError, match=message):
        find_items(places)


def test_pictures_of_one_name_where_their_results_do_not_clash(pictures, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("1.png", "1.jpg"):
        (folder / name).write_bytes((pictures / "1.png").read_bytes())
    run_transform(Fake(), [str(folder)], str(out))
    assert sorted(path.name for path in out.iterdir()) == ["1.jpg.out", "1.png.out"]
    run_prediction(Fake(), [str(folder)], out, format="jsonl")
    lines = (out / "detections.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == [
        str(folder / name) for name in ("1.jpg", "1.png")
    ]
    for words in ({}, {"format": "jsonl", "draw": True}, {"format": "voc"}, {"format": "coco"}):
        with pytest.raises(UserError, match="both called 1,"):
            run_prediction(Fake(), [str(folder)], out, **words)
    with pytest.raises(UserError, match=r"both called 1\.png,"):
        run_transform(Fake(), [str(folder), str(pictures)], str(out))


def test_frames_of_a_film_in_order_with_their_times(film):
    frames = list(read_frames(find_items([str(film)]), 32, unreadable=pytest.fail))
    assert [frame.number for frame in frames] == list(range(10))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(10) / 5)
    brightness = [frame.canvas[:24].mean() for frame in frames]
    np.testing.assert_allclose(brightness, np.arange(10) * 20, atol=4)
    assert frames[0].extent == (24, 32)
    assert frames[0].size == (48, 64)
    assert frames[0].pixels().shape == (48, 64, 3)


def test_json_and_drawings_of_pictures_and_films(pictures, film, tmp_path):
    run_prediction(Fake(), [str(pictures), str(film)], tmp_path, batch_size=4)
    found = json.loads((tmp_path / "sub/2.json").read_text())
    assert found["image"] == str(pictures / "sub/2.jpg")
    assert (found["width"], found["height"]) == (40, 20)
    assert found["detections"] == [
        {"class": "dog", "score": 0.75, "box_xyxy_px": [0, 0, 20, 20]},
        {"class": "cat", "score": 0.25, "box_xyxy_px": [0, 0, 40, 10]},
    ]
    lines = [json.loads(line) for line in (tmp_path / "street.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["seconds"]) for line in lines] == [(i, i / 5) for i in range(10)]
    assert cv2.imread(str(tmp_path / "1.png")).shape == (320, 640, 3)
    drawn = list(
        read_frames(find_items([str(tmp_path / "street.mp4")]), 32, unreadable=pytest.fail)
    )
    assert [frame.number for frame in drawn] == list(range(10))
    assert drawn[0].frames_per_second == pytest.approx(5)
    everything = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert everything == {"1.json", "1.png", "2.json", "2.png", "street.jsonl", "street.mp4"}


def test_a_video_with_an_impossible_rate_is_drawn_at_the_usual_one(tmp_path):
    file = write_video(tmp_path / "fast.avi")
    header = bytearray(file.read_bytes())
    rate = header.index(b"strh") + 32
    header[rate : rate + 4] = (90_000).to_bytes(4, "little")
    file.write_bytes(header)
    run_prediction(Fake(), [str(file)], tmp_path / "out")
    drawn = find_items([str(tmp_path / "out/fast.mp4")])
    assert next(read_frames(drawn, 32, unreadable=pytest.fail)).frames_per_second == 25


def test_a_video_that_does_not_fit_on_the_disk_is_refused(film, tmp_path):
    """OpenCV says nothing of it."""
    with largest_file(3000), pytest.raises(UserError, match=r"street\.mp4: the video could not"):
        run_prediction(Fake(), [str(film)], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_files_may_leave_out_what_scores_less(pictures, tmp_path):
    run_prediction(Fake(), [str(pictures / "sub")], tmp_path, format="jsonl", min_score=0.75)
    (line,) = (tmp_path / "detections.jsonl").read_text().splitlines()
    assert [each["class"] for each in json.loads(line)["detections"]] == ["dog"]


def test_all_batches_have_one_shape(pictures, film, tmp_path):
    detector = Fake()
    run_prediction(detector, [str(film)], tmp_path, format="jsonl", batch_size=4)
    assert detector.batches == [4, 4, 4]
    run_prediction(detector, [str(pictures)], tmp_path, format="jsonl", batch_size=8)
    assert detector.batches[3:] == [2]


def test_voc_text_counts_pixels_from_one(pictures, tmp_path):
    run_prediction(Fake(), [str(pictures)], tmp_path, format="voc")
    assert (tmp_path / "comp4_det_test_dog.txt").read_text().splitlines() == [
        "1 0.750000 1.00 1.00 20.00 20.00",
        "sub/2 0.750000 1.00 1.00 20.00 20.00",
    ]
    assert len((tmp_path / "comp4_det_test_cat.txt").read_text().splitlines()) == 2


def test_coco_results_with_the_ids_of_the_annotations(pictures, tmp_path, capsys):
    annotations = tmp_path / "instances.json"
    annotations.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 139, "file_name": "1.png", "width": 40, "height": 20},
                    {"id": 285, "file_name": "sub/2.jpg", "width": 40, "height": 20},
                ],
                # Of the two dogs one is used, as in files of Roboflow.
                "categories": [
                    {"id": 17, "name": "cat"},
                    {"id": 18, "name": "dog"},
                    {"id": 19, "name": "dog"},
                ],
                "annotations": [{"category_id": 18}],
            }
        )
    )
    run_prediction(Fake(), [str(pictures)], tmp_path, format="coco", annotations=annotations)
    found = json.loads((tmp_path / "detections.json").read_text())
    assert [(each["image_id"], each["category_id"]) for each in found] == [
        (139, 18), (139, 17), (285, 18), (285, 17)
    ]  # fmt: skip
    assert found[0]["bbox"] == [0, 0, 20, 20]
    assert "--annotations" not in capsys.readouterr().out
    run_prediction(Fake(), [str(pictures)], tmp_path, format="coco")
    assert "category ids: 1 to 2, in the order of the classes. --annotations FILE uses the" in (
        capsys.readouterr().out
    )
    found = json.loads((tmp_path / "detections.json").read_text())
    assert [(each["image_id"], each["category_id"]) for each in found] == [
        (1, 2), (1, 1), ("sub/2", 2), ("sub/2", 1)
    ]  # fmt: skip


def test_annotations_of_other_classes_or_images_are_refused(pictures, tmp_path):
    annotations = tmp_path / "instances.json"
    value = {"images": [], "categories": [{"id": 1, "name": "cat"}]}
    annotations.write_text(json.dumps(value))
    words = {"format": "coco", "annotations": annotations}
    with pytest.raises(UserError, match="no category is called dog"):
        run_prediction(Fake(), [str(pictures)], tmp_path, **words)
    value["categories"] += [{"id": 2, "name": "dog"}, {"id": 3, "name": "dog"}]
    value["annotations"] = [{"category_id": 2}, {"category_id": 3}]
    annotations.write_text(json.dumps(value))
    with pytest.raises(UserError, match="the ids 2, 3 are all called 'dog'"):
        run_prediction(Fake(), [str(pictures)], tmp_path, **words)
    value["categories"].pop()
    annotations.write_text(json.dumps(value))
    value["images"] = [{"id": 1, "file_name": "1.png"}]
    annotations.write_text(json.dumps(value))
    detector = Fake()
    with pytest.raises(
        UserError, match=r"^sub/2\.jpg: the annotations have no image with that file_na"
    ):
        run_prediction(detector, [str(pictures)], tmp_path, **words, batch_size=1)
    assert not detector.batches


@pytest.mark.parametrize(("format", "place"), [("coco", "detections.json"), ("voc", "")])
def test_results_are_read_by_the_evaluation(format, place, shapes, tmp_path):
    class Shapes(Fake):
        classes = ("cross", "ring", "triangle")

    names = (shapes / "ImageSets/Main/val.txt").read_text().split()
    pictures = [str(next((shapes / "JPEGImages").glob(f"{name}.*"))) for name in names]
    run_prediction(Shapes(), pictures, tmp_path, format=format)
    labelled = read_ground_truth(str(shapes), split=("val",))
    found = read_detections(tmp_path / place, labelled)
    assert len(found) == len(pictures) == 12
    for each, (height, width) in zip(found, labelled.image_sizes, strict=True):
        expected = [[1, 1, width / 2, height], [1, 1, width, height / 2]]
        best_first = np.argsort(-each.scores)  # VOC has a file for each class
        np.testing.assert_allclose(each.boxes[best_first], expected, atol=0.01)
        np.testing.assert_array_equal(each.labels[best_first], [1, 0])
        np.testing.assert_allclose(each.scores[best_first], [0.75, 0.25])


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_that_fails_leaves_no_half_file(format, pictures, film, tmp_path):
    class Broken(Fake):
        def predict(self, canvas, extent):
            if len(self.batches) == 1:
                raise RuntimeError("out of memory")
            return super().predict(canvas, extent)

    with pytest.raises(RuntimeError, match="out of memory"):
        run_prediction(Broken(), [str(film)], tmp_path, format=format, draw=True, batch_size=4)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(pictures, tmp_path, capsys):
    (tmp_path / "0.jpg").write_bytes(b"\xff\xd8 cut")
    out = tmp_path / "found"
    with pytest.raises(UserError, match=r"1 of 3 images could not be read.*0\.jpg"):
        run_prediction(Fake(), [str(tmp_path / "0.jpg"), str(pictures)], out, format="jsonl")
    assert len((out / "detections.jsonl").read_text().splitlines()) == 2
    told = capsys.readouterr().err
    assert "0.jpg" in told
    assert "data set" not in told


def test_neither_does_a_film_or_a_file_that_has_gone(pictures, tmp_path, capsys):
    (tmp_path / "0.mp4").write_bytes(b"no film")
    gone = tmp_path / "3.jpg"
    gone.write_bytes(b"")
    frames = []

    def read():
        items = find_items([str(tmp_path), str(pictures)])
        gone.unlink()
        return read_frames(items, 32, unreadable=lambda error: frames.append(str(error)))

    assert [frame.item.name for frame in read()] == ["1.png", "sub/2.jpg"]
    assert "0.mp4: OpenCV cannot read it" in frames[0]
    assert "3.jpg: it cannot be read: No such file" in frames[1]


@pytest.mark.parametrize(
    ("format", "names", "message"),
    [
        ("coco", ("12.png", "012.png"), "would both have the image id 12"),
        ("voc", ("1.png", "2 b.png"), r"2 b\.png: its name has a space, which ends a name"),
    ],
)
def test_names_that_are_no_ids_are_told_before_the_work(format, names, message, pictures, tmp_path):
    for name in names:
        shutil.copy(pictures / "1.png", tmp_path / name)
    detector = Fake()
    with pytest.raises(UserError, match=message):
        run_prediction(detector, [str(tmp_path)], tmp_path / "out", format=format, batch_size=1)
    assert not detector.batches


def test_no_name_leads_out_of_the_folder(pictures, tmp_path, monkeypatch):
    detector = Fake()
    detector.classes = ("cat", "/../../dog")
    with pytest.raises(UserError, match="cannot be part of a file name"):
        run_prediction(detector, [str(pictures)], tmp_path / "a/b", format="voc")
    assert not detector.batches
    keys = ["s3://bucket/pictures/../../evil.jpg"]
    monkeypatch.setattr(inputs, "list_urls", lambda url: keys)
    with pytest.raises(DataError, match=r"'\.\.' is not a valid file name"):
        find_items(["s3://bucket/pictures"])


def test_a_name_may_be_as_long_as_its_result_can_be(pictures, tmp_path):
    name = "x" * 247 + ".jpg"
    shutil.copy(pictures / "sub/2.jpg", tmp_path / name)
    run_transform(Fake(), [str(tmp_path / name)], str(tmp_path))
    assert (tmp_path / f"{name}.out").is_file()


PREDICTION = {"prediction": [[1, 0.75, 0, 0, 0.5, 1], [0, 0.25, 0, 0, 1, 0.5]]}


def test_a_batch_transform_makes_what_is_missing(pictures, tmp_path, capsys):
    run_transform(Fake(), [str(pictures)], str(tmp_path))
    files = [tmp_path / "1.png.out", tmp_path / "sub/2.jpg.out"]
    assert [json.loads(file.read_text()) for file in files] == [PREDICTION, PREDICTION]
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    detector = Fake()
    run_transform(detector, [str(pictures)], str(tmp_path))
    assert detector.batches == [1]
    assert files[0].stat().st_mtime_ns == before
    assert files[1].exists()
    assert "1 of 2 were already done" in capsys.readouterr().out
    run_transform(detector, [str(pictures)], str(tmp_path))
    assert detector.batches == [1]


def test_a_batch_transform_from_bucket_to_bucket(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "bucket"
    for name in ("1.png", "sub/2.jpg"):
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes((pictures / name).read_bytes())
    with serve_s3(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for expected in ([2], []):
            detector = Fake()
            run_transform(detector, ["s3://bucket/in"], "s3://bucket/out")
            assert detector.batches == expected
    assert json.loads((folder / "out/sub/2.jpg.out").read_text()) == PREDICTION


def test_a_batch_transform_takes_no_film(film, tmp_path):
    with pytest.raises(UserError, match="takes images"):
        run_transform(Fake(), [str(film)], str(tmp_path))


def test_nothing_that_lies_beside_a_picture_is_replaced(pictures, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(pictures / "sub", folder)
    with pytest.raises(UserError, match=r"1\.png: the drawing of .*1\.png would overwrite this i"):
        run_prediction(Fake(), [str(pictures / "1.png")], pictures)
    (folder / "2.json").write_text("annotations")
    with pytest.raises(UserError, match=r"2\.json: the detections in .*2\.jpg would overwrite"):
        run_prediction(Fake(), [str(folder)], folder, draw=False)
    assert (folder / "2.json").read_text() == "annotations"
    run_prediction(Fake(), [str(folder)], folder, format="jsonl")
