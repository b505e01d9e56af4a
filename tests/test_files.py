import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.errors import first_line
from ssd_jax.files import files_below, json_line, to_json, whole_file, write_json, write_text


def test_a_file_is_there_when_it_is_whole_and_not_before(tmp_path):
    path = tmp_path / "new" / f"{'n' * 250}.json"
    with whole_file(path) as part:
        part.write_text("new")
        assert not path.exists()
        assert part.suffix == ".json"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError("\n gone\nfor ever"), "gone"), (ValueError(), "ValueError"), (KeyError("a"), "'a'")],
)
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line


def test_what_fails_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def fail():
        with whole_file(path) as part:
            part.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_several_may_write_the_same_file_at_the_same_time(tmp_path):
    path = tmp_path / "a"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_replaces_the_file_in_one_piece(tmp_path):
    path = tmp_path / "folder" / "numbers.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": np.arange(2), "c": float("-inf"), "d": (True, "é")})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "b": [0, 1],
        "c": None,
        "d": [True, "é"],
    }
    with pytest.raises(TypeError):
        write_json(path, {"not": object()})
    assert "b" in json.loads(path.read_text(encoding="utf-8"))
    assert [each.name for each in path.parent.iterdir()] == ["numbers.json"]


def test_names_that_are_not_utf_8_are_written_as_escapes(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")
    write_json(tmp_path / "a.json", name)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '"caf\\udce9 é.jpg"\n' == json_line(name)
    assert json.loads(text) == name
    write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9 é.jpg"


def test_files_below_a_folder_each_once_and_real_folders_first(tmp_path):
    folder, other = tmp_path / ".given", tmp_path / "other"
    for path in (
        folder / "z/1",
        folder / "2",
        folder / ".hidden/3",
        folder / "z/._1",
        other / "d/4",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for link, target in (("a", "z"), ("z/top", ""), ("z/up", ".."), ("l", "../other"),
                         ("k", "../other/d"), ("file", "2"), ("gone", "nowhere")):  # fmt: skip
        (folder / link).symlink_to(folder / target)
    found = [path.relative_to(folder).as_posix() for path in sorted(files_below(folder))]
    assert found == ["2", "file", "gone", "k/4", "z/1"]


def test_to_json_keeps_full_precision():
    assert to_json(np.float64(1 / 3)) == 1 / 3
    assert to_json({1: jnp.ones((2,))}) == {"1": [1.0, 1.0]}
