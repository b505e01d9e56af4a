"""Web servers whose answers are not what they said."""

import io
import itertools

import pytest
import requests
from loopback import WebServer

from ssd_jax.data import remote, storage
from ssd_jax.data.storage import read_bytes, stage
from ssd_jax.errors import DataError


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "PAUSE", 0.001)
    with WebServer() as server:
        server.files["/big.rec"] = bytes(1_000_000)
        yield server


def test_a_stream_that_does_not_end_is_given_up(web, monkeypatch):
    sent = []

    def endless(*_):
        return 0, (sent.append(1) or bytes(300_000) for _ in itertools.count())

    monkeypatch.setattr(remote.WebServer, "read", endless)
    with pytest.raises(DataError, match="1200000 of 1000000 bytes"):
        read_bytes(f"{web.url}/big.rec")
    assert len(sent) == 4 * storage.ATTEMPTS


def test_a_part_that_begins_too_late_is_no_part(web, tmp_path, monkeypatch):
    monkeypatch.setattr(
        remote.WebServer, "read", lambda *_: (400_000, (bytes(600_000) for _ in range(1)))
    )
    with pytest.raises(DataError, match="the server left out bytes 0 to 400,000"):
        stage(f"{web.url}/big.rec")
    assert not list((tmp_path / "cache").rglob("big.rec"))


def test_the_body_of_a_redirect_is_not_read():
    response = requests.Response()
    response.status_code, response.headers["location"] = 302, "/b"
    response.raw = io.BytesIO(b"endless")
    assert remote._without_body_of_redirect(response) is None
    assert response.content == b""
