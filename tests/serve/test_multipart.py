"""Which parts of a multipart body are files, however they say so."""

import base64

import pytest
from starlette.exceptions import HTTPException

from ssd_jax.serve.multipart import MOST_FIELDS, Sent, split_multipart
from ssd_jax.serve.pictures import Limits
from ssd_jax.serve.telemetry import log_to_stdout

TYPE = "multipart/form-data; boundary=x"


def body(*parts, before=""):
    """Of parts as (headers, data)."""
    text = "".join(f"--x\r\n{headers}\r\n\r\n{data}\r\n" for headers, data in parts)
    return f"{before}{text}--x--\r\n".encode()


def split(*args, **words):
    return split_multipart(body(*args, **words), TYPE, Limits())


def named(words):
    return f"Content-Disposition: form-data{words}"


@pytest.mark.parametrize(
    ("headers", "name", "field"),
    [
        (named('; name="one"; filename="a b.png"'), "a b.png", "one"),
        (named('; name="one"; filename="ü.png"'), "ü.png", "one"),
        (named('; name="one"; filename=""'), "", "one"),
        (named("; name=one; filename*=utf-8''%c3%bc.png"), "ü.png", "one"),
        (named("; name=one; FileName*=ISO-8859-1'de'%fc.png"), "ü.png", "one"),
        (named("; name=one; filename*=utf-8''%ff; filename=a"), "a", "one"),
        (named("; name=one") + "\r\nContent-Type: image/png", "one", "one"),
        (named('; filename="a.png"'), "a.png", ""),
        ("Content-Type: IMAGE/jpeg", "", ""),
    ],
)
def test_a_file_says_so_in_one_of_several_ways(headers, name, field):
    note = (named('; name="note"'), "value")
    assert split(note, (headers, "data"), note) == [Sent(name, field, b"data")]


def test_parts_that_are_no_files_are_told():
    with pytest.raises(HTTPException, match="got no file, but 'note', expected files"):
        split((named("; name=note") + "\r\nContent-Type: text/plain", "value"))
    with pytest.raises(HTTPException, match="got no file, but '', expected files"):
        split((named("; filename*=punycode''x"), "value"))
    with pytest.raises(HTTPException, match=f"more than {MOST_FIELDS} parts that are not files"):
        split(*[("Content-Type: text/plain", "value")] * (MOST_FIELDS + 1))


@pytest.mark.parametrize("before", ["", "\r\n", "This is a message\r\nin parts, not --x.\r\n"])
def test_a_preamble_is_skipped(before):
    (sent,) = split((named("; name=one; filename=a"), "data"), before=before)
    assert sent.data == b"data"


def test_data_may_be_encoded():
    for encoding, data in (
        ("base64", base64.b64encode(b"\xff=").decode()),
        ("quoted-printable", "=FF=3D"),
    ):
        headers = named("; name=one; filename=a") + f"\r\nContent-Transfer-Encoding: {encoding}"
        (sent,) = split((headers, data))
        assert sent.data == b"\xff="
    with pytest.raises(HTTPException, match="the multipart body cannot be read"):
        split((named("; filename=a") + "\r\nContent-Transfer-Encoding: BASE64", "abc"))


def test_what_cannot_be_read_is_in_the_answer_and_not_in_the_log(caplog):
    log_to_stdout()
    with pytest.raises(HTTPException, match="cannot be read"):
        split_multipart(b"--x\r\nContent-Disposition form-data\r\n\r\n", TYPE, Limits())
    assert caplog.text == ""


def test_a_body_that_is_cut_off_is_told():
    whole = body((named("; name=one; filename=a"), "data"))
    for length in (len(whole) - 4, len(whole) - 10, 12):
        with pytest.raises(HTTPException, match="ends before its closing boundary"):
            split_multipart(whole[:length], TYPE, Limits())
