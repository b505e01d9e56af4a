"""`ssd-jax evaluate --detections`: the evaluator on its own."""

import json
import shutil

import numpy as np
import pytest

from ssd_jax.cli import main
from ssd_jax.data.open import open_data
from ssd_jax.errors import UserError
from ssd_jax.evaluation.detection_files import read_detections, read_ground_truth
from ssd_jax.visualize.boxes import save_png

CLASSES = ["cross", "ring", "triangle"]


@pytest.fixture(scope="module")
def source(shapes):
    return open_data(shapes, split=("val",), classes=CLASSES)


@pytest.fixture(scope="module")
def labelled(shapes):
    return read_ground_truth(str(shapes), split=["val"], classes=CLASSES)


@pytest.fixture
def devkit(labelled, source, tmp_path):
    """The ground truth itself as result files of the devkit, all with their own score."""
    folder = tmp_path / "results"
    folder.mkdir()
    lines = {name: [] for name in CLASSES}
    for image_id, truth in zip(source.names, labelled.ground_truths, strict=True):
        for number, (box, label) in enumerate(zip(truth.boxes, truth.labels, strict=True)):
            corners = " ".join(f"{corner:.6f}" for corner in box)
            lines[CLASSES[label]].append(f"{image_id} {1 - number / 100} {corners}\n")
    for name, of_class in lines.items():
        (folder / f"comp4_det_test_{name}.txt").write_text("".join(of_class))
    return folder


COCO = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "height": 100, "width": 200},
        {"id": 3, "file_name": "train/a.jpg", "height": 300, "width": 200},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 44, "name": "cat"}],
    "annotations": [
        {"image_id": 7, "category_id": 18, "bbox": [0.1, 0.2, 50.3, 40.4], "area": 900},
        {"image_id": 7, "category_id": 44, "bbox": [9, 9, 9, 9], "area": 81, "iscrowd": 1},
        {"image_id": 3, "category_id": 44, "bbox": [5, 6, 100, 200], "area": 20000, "ignore": 1},
    ],
}


@pytest.fixture
def instances(tmp_path):
    """A COCO file without its images."""
    return written(tmp_path / "instances.json", COCO)


def written(path, value):
    path.write_text(json.dumps(value))
    return path


def result(image_id, category_id, bbox, score=0.5):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


# ---- the verb ----


def test_the_ground_truth_as_its_own_detections_is_perfect(devkit, shapes, tmp_path, capsys):
    (devkit / "._comp4_det_test_cross.txt").write_bytes(b"")  # of macOS
    command = ["evaluate", "--detections", str(devkit), "--ground-truth", str(shapes)]
    assert main([*command, "--split", "val", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-1] == "mAP@.5 (VOC07 11-point) = 1.000"
    results = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert results["metrics"]["map_voc12"] == pytest.approx(1.0)
    assert results["metrics"]["map_coco"] == results["coco"]["AP"] == pytest.approx(1.0)
    assert results["coco"]["APl"] is None
    assert "96" in results["coco"]["undefined"]["APl"]
    assert results["errors"]["total"]["correct"] == results["errors"]["total"]["objects"] > 0
    assert results["classes"] == CLASSES
    for name in ("precision_recall", "errors", "sizes"):
        assert (tmp_path / f"out/{name}.png").stat().st_size > 10_000


def test_coco_results_on_a_coco_file(instances, tmp_path, capsys):
    found = [result(a["image_id"], a["category_id"], a["bbox"]) for a in COCO["annotations"]]
    detections = written(tmp_path / "results.json", found)
    command = ["evaluate", "--detections", str(detections), "--ground-truth", str(instances)]
    assert main([*command, "--metric", "coco", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-1] == "AP@[.5:.95] (COCO) = 1.000"
    # By the areas in the file, not those of the boxes; and `ignore` means nothing to COCO.
    numbers = json.loads((tmp_path / "out/evaluation.json").read_text())["coco"]
    assert (numbers["APs"], numbers["APm"], numbers["APl"]) == (1.0, None, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detections", "x.json"], "--ground-truth is missing"),
        (["--workdir", "x", "--ground-truth", "y"], "--ground-truth cannot be used with --workdir"),
        (["--detections", "x", "--step", "1"], "--step cannot be used with --detections"),
        (["--detections", "x", "--config.seed=1"], "--config cannot be used with --detections"),
        (
            ["--detections", "x", "--groundtruth", "y"],
            "The nearest is --ground-truth. S",
        ),
        (["--detections", "x", "--process-id", "0"], "--process-id cannot be used with --detecti"),
        (["--workdir", "x", "--split", "all"], "got all, expected one of train, val"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, message, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    out = ["--out", str(tmp_path / "out")]
    assert main(["evaluate", "--detections", "nowhere", "--ground-truth", "nowhere", *out]) == 2
    assert "out: expected a folder to write to" in capsys.readouterr().err


def test_what_cannot_be_written_is_printed_at_least(devkit, shapes, tmp_path, capsys):
    (tmp_path / "out/evaluation.json").mkdir(parents=True)
    command = ["evaluate", "--detections", str(devkit), "--ground-truth", str(shapes)]
    assert main([*command, "--split", "val", "--out", str(tmp_path / "out")]) == 2
    assert "(VOC07 11-point) = 1.000" in capsys.readouterr().out


# ---- ground truth ----


def test_a_coco_file_is_read_as_it_is(instances):
    labelled = read_ground_truth(str(instances))
    assert labelled.classes == ("dog", "cat")
    assert labelled.image_sizes.tolist() == [[300, 200], [100, 200]]  # by id
    second = labelled.ground_truths[1]
    np.testing.assert_allclose(second.boxes, [[1.1, 1.2, 50.4, 40.6], [10, 10, 18, 18]])
    assert second.labels.tolist() == [0, 1]
    assert second.difficult.tolist() == [False, True]
    assert labelled.coco[1].area.tolist() == [900, 81]
    assert labelled.coco[1].crowd.tolist() == [False, True]
    # pycocotools does not know `ignore`; the VOC metric takes it for `difficult`.
    assert labelled.ground_truths[0].difficult.tolist() == [True]
    assert labelled.coco[0].crowd.tolist() == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"annotations": [{"image_id": 9, "category_id": 18, "bbox": [0, 0, 1, 1]}]},
            "which no image",
        ),
        ({"annotations": [COCO["annotations"][0] | {"category_id": 9}]}, "that the file lists"),
        ({"annotations": [COCO["annotations"][0] | {"bbox": [0, 0, 1, "a"]}]}, "four numbers"),
        ({"annotations": [{"image_id": 7, "category_id": 18, "bbox": [0, 0, 1]}]}, "four numbers"),
        (
            {"annotations": [COCO["annotations"][0] | {"area": True}]},
            "'area' is not valid, expected a number of pixels",
        ),
        ({"images": [COCO["images"][0]] * 2}, "already has a record"),
        ({"categories": []}, "'categories' is empty"),
        (
            {"annotations": [{"image_id": 7, "category_id": 18, "bbox": [0.1, 0.2, 0.5, 0.4]}]},
            "all 1 boxes .* expected pixels",
        ),
        (
            {"categories": [*COCO["categories"], {"id": 44, "name": "bird"}]},
            r"categories\[2\]: .*expected a unique id and a name",
        ),
    ],
)
def test_a_damaged_coco_file_is_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_ground_truth(str(written(tmp_path / "instances.json", COCO | change)))


def test_images_of_a_coco_file_may_have_one_name(tmp_path):
    images = [each | {"file_name": "a.jpg"} for each in COCO["images"]]
    path = written(tmp_path / "instances.json", COCO | {"images": images})
    assert len(read_ground_truth(str(path)).ground_truths) == 2


def test_areas_that_a_coco_file_does_not_have_are_those_of_the_boxes(tmp_path):
    annotations = [{"image_id": 7, "category_id": 18, "bbox": [0.1, 0.2, 32, 32]}]
    path = written(tmp_path / "instances.json", COCO | {"annotations": annotations})
    assert [each.area.tolist() for each in read_ground_truth(str(path)).coco] == [[], [1024]]


def test_sizes_that_the_format_does_not_have_are_those_of_the_images(tmp_path):
    from ssd_jax.data.sources.base import Problems, source_of_objects
    from ssd_jax.evaluation.detection_files import _of_source

    save_png(tmp_path / "a.png", np.zeros((40, 80, 3), np.uint8))
    source = source_of_objects(
        names=["a"],
        sizes=np.zeros((1, 2), np.int32),
        object_counts=np.array([1]),
        written=np.array([[0.25, 0.5, 0.5, 1.0]]),
        boxes=np.array([[0.25, 0.5, 0.5, 1.0]]),
        labels=np.array([0]),
        difficult=np.array([False]),
        classes=["x"],
        read_image=lambda _: (tmp_path / "a.png").read_bytes(),
        locate=str,
        problems=Problems(),
        locate_object=lambda *_: "",
        label_text=str,
    )
    labelled = _of_source(source)
    assert labelled.image_sizes.tolist() == [[40, 80]]
    assert labelled.ground_truths[0].boxes.tolist() == [[21, 21, 40, 40]]


def test_classes_have_the_order_in_which_they_are_given(shapes):
    given = CLASSES[::-1]
    labelled = read_ground_truth(str(shapes), split=["val"], classes=given)
    assert labelled.classes == tuple(given)


# ---- detections ----


def test_the_boxes_of_both_formats_are_the_same_pixels(labelled, source, devkit, tmp_path):
    from_text = read_detections(devkit, labelled)
    found = [
        result(name, CLASSES[label], [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1], score)
        for name, each in zip(source.names, from_text, strict=True)
        for (x0, y0, x1, y1), score, label in zip(*map(np.ndarray.tolist, each), strict=True)
    ]
    from_json = read_detections(written(tmp_path / "results.json", found), labelled)
    for a, b in zip(from_text, from_json, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_images_and_classes_go_by_name_or_number(labelled, source, tmp_path):
    name = source.names[1]
    assert name.isdecimal()
    found = [result(name, "ring", [1, 2, 3, 4]), result(int(name), 2, [1, 2, 3, 4])]
    images = read_detections(written(tmp_path / "results.json", found), labelled)
    assert [len(each.labels) for each in images] == [0, 2] + [0] * (len(source) - 2)
    assert images[1].labels.tolist() == [1, 1]
    assert images[1].boxes.tolist() == [[2, 3, 4, 6]] * 2


def test_images_of_a_coco_file_go_by_id_or_file(instances, tmp_path):
    labelled = read_ground_truth(str(instances))
    found = [result(image, 44, [0, 0, 9, 9]) for image in (3, "3", "train/a.jpg", "train/a", "a")]
    images = read_detections(written(tmp_path / "results.json", found), labelled)
    assert [len(each.labels) for each in images] == [5, 0]


def test_the_detections_of_an_image_keep_their_order(instances, tmp_path):
    labelled = read_ground_truth(str(instances))
    found = [result(image, 44, [x, 0, 9, 9]) for x in range(200) for image in (7, 3)]
    for image in read_detections(written(tmp_path / "results.json", found), labelled):
        assert image.boxes[:, 0].tolist() == list(range(1, 201))


def test_no_detection_at_all_is_possible(labelled, tmp_path):
    images = read_detections(written(tmp_path / "results.json", []), labelled)
    assert sum(len(each.labels) for each in images) == 0


def test_the_longest_class_name_at_the_end_of_a_file_counts(tmp_path):
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "hot_dog"}]
    annotations = [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    changed = COCO | {"categories": categories, "annotations": annotations}
    labelled = read_ground_truth(str(written(tmp_path / "instances.json", changed)))
    (tmp_path / "comp4_det_test_dog.txt").write_text("7 0.5 1 1 9 9\n")
    (tmp_path / "comp4_det_test_hot_dog.txt").write_text("7 0.25 1 1 9 9\n")
    found = read_detections(tmp_path, labelled)[1]
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"annotations": []}, "expected a list of detections"),
        ([{"image_id": 7}], r"detection 0: .* expected image_id, category_id, bbox"),
        ([result(7, 18, [0, 0, 1])], "detection 0: "),
        ([result(7, 18, [0, 0, 1, 1] * 2)], "detection 0: "),
        ([result(7, 18, [0, 0, 1, 10**400])], "detection 0: "),
        ([result(7, 18, "1234")], "detection 0: "),
        ([result(7, 18, [[0], [0], [1], [1]])], "detection 0: "),
        ([result(7, 18, [0, 0, 1, 1], score=[0.5])], "detection 0: "),
        ([result("9" * 5000, 18, [0, 0, 1, 1])], "which is not in the ground truth"),
        ([result(7, 18, [0, 0, 1, float("nan")])], "not finite"),
        ([result(7, 18, [3, 3, 0, 0]), result(7, 18, [9, 9, 2, -1])], r"detection 1: .*negative"),
        (
            [result(7, 18, [0.1, 0.2, 0.9, 0.7])] * 2,
            "all 2 boxes .* expected pixels. Multiply",
        ),
        ([result(1.5, 18, [0, 0, 1, 1])], r"the image 1\.5, which .*expected one of 3, 7\. Give"),
        ([result([7], 18, [0, 0, 1, 1])], r"the image \[7\], which is not in the ground truth"),
        (
            [result(7, True, [0, 0, 1, 1])],
            r"category True, which .* one of 18, 44\. Give",
        ),
        ([result(8, 18, [0, 0, 1, 1])], "the image 8, which is not in the ground truth"),
        ([result(7, 19, [0, 0, 1, 1])], "the category 19, which is not in the ground truth"),
    ],
)
def test_wrong_results_are_refused(value, message, instances, tmp_path):
    path = written(tmp_path / "results.json", value)
    with pytest.raises(UserError, match=message):
        read_detections(path, read_ground_truth(str(instances)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("comp4_det_test_ring.txt", "000000 0.5 1 1 9", ":1: got '000000 0.5 1 1 9', expected"),
        (
            "comp4_det_test_ring.txt",
            "nowhere 0.5 1 1 9 9",
            r"image 'nowhere', which is not in the ground truth; expected one of 0000\d\d, 0000",
        ),
        (
            "comp4_det_test_ring.txt",
            "\n000000 0.5 5 1 4 9",
            ":2: got '000000 0.5 5 1 4 9', expected",
        ),
        (
            "comp4_det_test_lamp.txt",
            "",
            "end with a class of the ground truth.* in order with --classes",
        ),
        ("comp3_det_test_ring.txt", "", "got 2 files for class ring"),
        ("comp4_det_test_ring.txt", None, "got 0 files for class ring"),
    ],
)
def test_wrong_devkit_files_are_refused(name, content, message, devkit, labelled):
    if content is None:
        (devkit / name).unlink()
    else:
        (devkit / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_detections(devkit, labelled)


def test_ids_that_names_of_files_contradict_are_doubted(tmp_path, capsys):
    names = {1: "1.jpg", 2: "10.jpg", 3: "3.jpg", 10: "x.jpg"}
    images = [COCO["images"][0] | {"id": i, "file_name": name} for i, name in names.items()]
    changed = COCO | {"images": images, "annotations": []}
    labelled = read_ground_truth(str(written(tmp_path / "instances.json", changed)))
    for ids, doubted in (([1, 3], False), ([1, 2], False), ([1, 10], True), ([10, "x"], True)):
        found = [result(image, 18, [0, 0, 9, 9]) for image in ids]
        read_detections(written(tmp_path / "results.json", found), labelled)
        told = "the id 10 is not that of the file called 10" in capsys.readouterr().err
        assert told == doubted, ids


def test_ids_of_classes_that_were_only_found_are_doubted(shapes, tmp_path, capsys):
    folder = shutil.copytree(shapes, tmp_path / "listed")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    first = (folder / "ImageSets/Main/val.txt").read_text().split()[0]
    path = written(tmp_path / "results.json", [result(first, 2, [0, 0, 9, 9])])
    for root, classes in ((shapes, CLASSES), (folder, ())):
        read_detections(path, read_ground_truth(str(root), split=["val"], classes=classes))
        assert not capsys.readouterr().err
    for place in (f"{shapes}@val", f"{shapes}@val + {shapes}@train"):
        read_detections(path, read_ground_truth(place))
        assert "found in the ground truth: 1 cross, 2 ring, 3 triangle." in capsys.readouterr().err
    labelled = read_ground_truth(str(shapes), split=["val"])
    read_detections(written(path, [result(first, "ring", [0, 0, 9, 9])]), labelled)
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match=r"the category 4, .* in order with --classes"):
        read_detections(written(path, [result(first, 4, [0, 0, 9, 9])]), labelled)


def test_another_file_is_refused(labelled, tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        read_detections(tmp_path / "results.pkl", labelled)
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(UserError, match=r"results\.json: the JSON cannot be read"):
        read_detections(tmp_path / "results.json", labelled)
    (tmp_path / "results.pkl").touch()
    with pytest.raises(UserError, match="neither a folder nor a JSON file"):
        read_detections(tmp_path / "results.pkl", labelled)
