"""What the verb refuses, before anything is read or computed."""

import pytest

from ssd_jax.cli import main


@pytest.mark.parametrize("words", [["--draw"], ["--min-score", "0.5"]])
def test_what_a_batch_transform_does_not_do(words, tmp_path, capsys):
    transform = ["predict", "--workdir", "run", "1.jpg", "--format", "transform"]
    assert main([*transform, "--out", str(tmp_path), *words]) == 2
    assert f"{words[0]}: --format transform" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (
            [".", "--format", "coco", "--annotations", "x.json"],
            "--annotations x.json: no such file",
        ),
    ],
)
def test_what_is_not_there_is_told_before_the_detector_is_opened(words, message, tmp_path, capsys):
    assert main(["predict", "--workdir", str(tmp_path), "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--score", "50"], ["--min-score", "-1"], ["--score", "abc"]])
def test_a_score_is_from_0_to_1(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--workdir", "run", "1.jpg", "--out", "out", *words])
    assert (
        f"argument {words[0]}: {words[1]!r} is not a number from 0 to 1" in capsys.readouterr().err
    )
