import pytest

from ssd_jax.literals import read_names, shell_path, write_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat,dog", ("cat", "dog")),
        (" cat, dog ,", ("cat", "dog")),
        ("[cat,dog]", ("cat", "dog")),
        ("('cat', 'dog')", ("cat", "dog")),
        ('"traffic light, red","dog"', ("traffic light, red", "dog")),
        ("'traffic light, red'", ("traffic light, red",)),
        ("1,2", ("1", "2")),
        ("007", ("007",)),
        ("None", ("None",)),
        ("'cat", ("'cat",)),
        ("True,False", ("True", "False")),
        ("", ()),
    ],
)
def test_names_are_separated_by_commas_and_may_have_quotes(text, names):
    assert read_names(text) == names


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("cat", "traffic light"), "cat,traffic light"),
        (("VOC2007/trainval", "VOC2012/trainval"), "VOC2007/trainval,VOC2012/trainval"),
        (("1", "2"), "1,2"),
        ((), ""),
        (("(cat)",), "('(cat)',)"),
        (("traffic light, red", "dog"), "('traffic light, red', 'dog')"),
        (("'cat'", ""), """("'cat'", '')"""),
        (("a\\,", " dog"), r"('a\\,', ' dog')"),
    ],
)
def test_written_names_are_read_again(names, text):
    assert write_names(names) == text
    assert read_names(text) == names


@pytest.mark.parametrize(
    ("path", "argument"),
    [("runs/a", "runs/a"), ("my runs", "'my runs'"), ("-a", "./-a"), ("- a", "'./- a'")],
)
def test_a_path_is_no_option(path, argument):
    assert shell_path(path) == argument
