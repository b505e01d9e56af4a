"""Which pictures a glob in a bucket means."""

import pytest

from ssd_jax.errors import UserError
from ssd_jax.predict_files import inputs
from ssd_jax.predict_files.inputs import find_items


def names(url):
    return [item.name for item in find_items([url])]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b/in/*.jpg", ["a.jpg", "c.jpg"]),
        ("s3://b/in/**/*.jpg", ["a.jpg", "c.jpg", "d.jpg"]),
        ("s3://b/i*/sub/?.jpg", ["d.jpg"]),
        ("s3://b/in/[ab]*", ["a.jpg", "b.png"]),
        ("s3://b/odd[1].jpg", ["odd[1].jpg"]),
        ("s3://b/odd[2]", ["sub/e.jpg"]),
        ("s3://b/odd[2]/", ["sub/e.jpg"]),
    ],
)
def test_a_glob_in_a_bucket(url, expected, monkeypatch):
    keys = ("in/a.jpg", "in/b.png", "in/c.jpg", "in/n.txt", "in/sub/d.jpg", "odd[1].jpg")
    keys = [f"s3://b/{key}" for key in (*keys, "odd[2]/sub/e.jpg")]
    monkeypatch.setattr(
        inputs, "list_urls", lambda prefix: [key for key in keys if key.startswith(f"{prefix}/")]
    )
    assert names(url) == expected
    for nothing in ("s3://b/in/*.bmp", "s3://b/in/*.jpg/"):
        with pytest.raises(UserError, match="no images or videos there"):
            names(nothing)


def test_a_bucket_has_its_whole_name():
    with pytest.raises(UserError, match=r"^s3://b\*/a\.jpg: a wildcard in the name of a bucket"):
        names("s3://b*/a.jpg")
