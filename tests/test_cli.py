"""The command line as a newcomer meets it: how arguments are read, and what is answered."""

import errno
import io
import os
import signal
import sys

import cv2
import pytest
from data.doctor_samples import annotation, thing, voc

from ssd_jax.cli import build_parser, main, parse, program
from ssd_jax.data.open import open_data


def parsed(*arguments):
    return build_parser().parse_args(arguments)


@pytest.mark.parametrize(
    "split", [("--split", "a/b,c"), ("--split", "a/b, c"), ("--split", "a/b", "--split=c")]
)
def test_splits_are_names_with_commas_and_eat_nothing(split):
    options = parsed("convert", "SRC", *split, "DST")
    assert (options.destination, tuple(options.split)) == ("DST", ("a/b", "c"))
    against = [word.replace("--split", "--against-split") for word in split]
    options = parsed("doctor", *against, "SRC")
    assert (options.location, tuple(options.against_split)) == ("SRC", ("a/b", "c"))
    assert tuple(options.split) == ()


def test_classes_are_stripped(shapes, tmp_path):
    classes = "cross, ring ,triangle, square"
    command = ["convert", str(shapes), str(tmp_path / "a.json"), "--split", "val"]
    assert main([*command, "--classes", classes]) == 0
    assert open_data(tmp_path / "a.json").classes == ("cross", "ring", "triangle", "square")


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("serve --help", 0),
        ("sagemaker serve --help", 0),
        ("predict train --help", 0),
        ("train --help", 1),
        ("evaluate --help", 1),
        ("sagemaker train --help", 1),
    ],
)
def test_what_computes_for_long_asks_for_large_pages(command, asked, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("ssd_jax.cli.start_with_huge_pages", lambda: calls.append(1))
    monkeypatch.setattr("sys.argv", ["ssd-jax", *command.split()])
    with pytest.raises(SystemExit):
        program()
    assert len(calls) == asked


@pytest.mark.parametrize(
    ("process", "command"),
    [(1, "--version"), (99, "predict --help"), (99, "export --help"), (99, "convert --help")],
)
def test_sigterm_ends_what_removes_its_unfinished_files(process, command, monkeypatch, capsys):
    """And process 1 of a container, for which the kernel ignores a signal without a handler."""
    monkeypatch.setattr("os.getpid", lambda: process)
    monkeypatch.setattr("sys.argv", ["ssd-jax", *command.split()])
    handlers = {}
    monkeypatch.setattr("signal.signal", handlers.__setitem__)
    with pytest.raises(SystemExit):
        program()
    with pytest.raises(SystemExit) as ended:
        handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert ended.value.code == 143


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --workdir run --out s3://bucket/out",
        "weights import detector.tar.gz --out s3://bucket/run",
        "data shapes s3://bucket/shapes",
        "benchmark --config quick.py --json s3://bucket/speed.json",
    ],
)
def test_a_url_is_no_local_folder_called_s3(command, capsys):
    with pytest.raises(SystemExit):
        parsed(*command.split())
    assert "expected a path on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["inf", "nan", "0", "-1", "much"])
def test_a_memory_is_a_finite_number_above_0(text, capsys):
    with pytest.raises(SystemExit):
        parsed("benchmark", "--config", "quick.py", "--find-batch", f"--memory-gib={text}")
    assert f"--memory-gib: '{text}' is not a finite number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("train --config=a.py --workdir=~/x", ["workdir"]),
        ("predict --model=~/x --out=~/x --annotations=~/x ~/x", ["model", "out", "annotations"]),
        ("export --workdir=~/x --out=~/x", ["workdir", "out"]),
        ("report compare ~/x --out=~/x --json=~/x", ["out", "json"]),
        ("serve --model=~/x --token-file=~/x", ["model", "token_file"]),
        ("sagemaker train --root=~/x", ["root"]),
        ("doctor ~/x --against=~/x --fix=~/x --out=~/x", ["location", "against", "fix", "out"]),
        ("convert ~/x ~/x", ["location", "destination"]),
        ("evaluate --detections=~/x --ground-truth=~/x", ["detections", "ground_truth"]),
        ("data shapes ~/x", ["folder"]),
        ("data prepare voc --out=~/x --archives=~/x", ["out", "archives"]),
        ("weights import ~/x --out=~/x", ["file", "out"]),
        ("benchmark --config=a.py --json=~/x --profile=~/x", ["json", "profile"]),
    ],
)
def test_a_tilde_that_the_shell_left_is_the_home_folder(command, names, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = vars(parse(command.split())[0])
    assert {str(options[name]) for name in names} == {"/home/me/x"}
    for name in {"places", "workdirs"} & options.keys():
        assert [str(each) for each in options[name]] == ["/home/me/x"]


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        (["weights", "import", "nowhere.params", "--out", "out"], "ssd-jax weights import"),
        (["convert", "nowhere", "out"], "ssd-jax convert"),
    ],
)
def test_errors_name_the_whole_verb(arguments, verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"{verb}: error: ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_what_to_do(number, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **words):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("ssd_jax.data.shapes.write_shapes", fail)
    assert main(["data", "shapes", str(tmp_path / "shapes")]) == 2
    told = capsys.readouterr().err
    assert os.strerror(number) in told
    assert "Make room where the command writes" in told


def test_a_name_that_is_not_utf_8_can_be_printed(tmp_path, monkeypatch):
    folder = voc(tmp_path, {"a": annotation(thing())})
    (folder / "JPEGImages" / os.fsdecode(b"caf\xe9.jpg")).touch()
    with io.TextIOWrapper(io.BytesIO(), encoding="utf-8") as told:
        monkeypatch.setattr(sys, "stdout", told)
        assert main(["doctor", str(folder), "--split=all", "--out", str(tmp_path / "out")]) == 0
        assert b"caf\\udce9.jpg: the image has no annotation" in told.buffer.getvalue()


def test_an_unknown_option_is_told_with_the_usage_of_its_verb(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "shapes", "out", "--typo"])
    printed = capsys.readouterr().err
    assert "usage: ssd-jax data shapes" in printed
    assert "ssd-jax data shapes: error: unrecognized arguments: --typo" in printed


def test_the_doctor_judges_by_a_config(shapes, tmp_path, capsys):
    (tmp_path / "config.py").write_text(
        "from ssd_jax.config import default_config\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.steps = 1\n"
        "    config.data.label_width = 6\n"
        "    config.anchors.scales = (0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96)\n"
        "    return config\n"
    )
    command = ["doctor", str(shapes), "--split", "train"]
    assert main(command) == 0
    assert "SSD182" not in capsys.readouterr().out
    command += ["--config", str(tmp_path / "config.py")]
    assert main(command) == 3
    printed = capsys.readouterr().out
    assert "SSD182 warning" in printed
    assert "SSD183 error" in printed
    assert main([*command, "--label-width", "1000"]) == 0


@pytest.mark.parametrize("smaller", [("2", "1"), ("4", "0")])
def test_shapes_are_not_mixed_with_another_set(tmp_path, capsys, smaller):
    def draw(train, val):
        return main(["data", "shapes", str(tmp_path), "--train", train, "--val", val])

    assert draw("3", "1") == 0
    assert draw("3", "1") == 0  # as `make quickstart` does
    assert draw(*smaller) == 2
    assert "contains another data set" in capsys.readouterr().err


def test_shapes_have_the_size_that_is_asked_for(tmp_path, capsys):
    few = ["data", "shapes", str(tmp_path), "--train", "1", "--val", "0"]
    assert main([*few, "--image-size", "48"]) == 0
    image = cv2.imread(tmp_path / "JPEGImages/000000.jpg")
    assert 40 <= max(image.shape[:2]) <= 48
    with pytest.raises(SystemExit, match="2"):
        main([*few, "--image-size", "4"])
    assert "--image-size: '4' is below 32 pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "abc"], "--port: 'abc' is not a whole number"),
        (["--port", "70000"], "--port: '70000' is not a port, expected 0 to 65535"),
        (["--batches", "1;4"], "--batches: '1;4' is not a list of batch sizes such as 1,4"),
        (["--queue", "-1"], "--queue: '-1' is not at least 1"),
        (["--max-megapixels", "999"], "--max-megapixels: '999' is more than 128"),
    ],
)
def test_a_wrong_value_is_told_in_words(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--model", "model", *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("buffered", [True, False])
def test_nothing_is_told_where_nobody_reads(buffered, tmp_path, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with io.TextIOWrapper(open(write, "wb", -1 if buffered else 0), write_through=True) as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        words = ["data", "shapes", str(tmp_path / "shapes"), "--train", "1", "--val", "1"]
        assert main(words) == 128 + 13
    assert "Broken pipe" not in capfd.readouterr().err


def test_a_mistyped_option_is_not_taken_for_a_setting(capsys):
    assert main(["train", "--config", "c.py", "--dryrun", "--config.seed", "-1"]) == 2
    assert "--dryrun: there is no such option. The nearest is --dry-run" in capsys.readouterr().err
    assert main(["train", "--config", "c.py", "--batch-size=3"]) == 2
    assert "--batch-size: there is no such option. The nearest is --config.batch_size. " in (
        capsys.readouterr().err
    )
    assert main(["train", "--config", "c.py", "--xyzzy"]) == 2
    assert "nearest" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["evaluate", "--workdir"], ["report", "compare"]])
def test_a_folder_of_a_run_that_is_none_is_told(verb, tmp_path, capsys):
    assert main([*verb, str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert main([*verb, str(tmp_path)]) == 2
    assert "has no config.json. Give the folder of a run" in capsys.readouterr().err
