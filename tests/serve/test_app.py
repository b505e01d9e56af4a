"""Who is let in, and when: what needs no server process."""

import asyncio
import zlib

import httpx
import numpy as np
import pytest
from painted import PaintedEngine
from running import picture
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ssd_jax.answers import normalised, pixels
from ssd_jax.errors import DataError
from ssd_jax.serve import app, telemetry
from ssd_jax.serve.app import Service
from ssd_jax.serve.pictures import Limits, Memory, decode, media_type
from ssd_jax.types import Detections

FOUND = Detections(
    boxes=np.array([[0.1, 0.25, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]], np.float32),
    scores=np.array([0.75, 0.5], np.float32),
    labels=np.array([3, 0], np.int32),
    valid=np.array([True, False]),
)


def asked(service, path, *, method="GET", **options):
    """The answer of a service whose engine was not started."""

    async def ask():
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def test_the_normalised_form():
    (row,) = normalised(FOUND)["prediction"]
    assert row == [3.0, 0.75, *np.float32([0.1, 0.25, 0.5, 1.0]).tolist()]
    assert all(isinstance(number, float) for number in row)


def test_the_pixel_form():
    assert pixels(FOUND, (20, 99)) == {
        "image_size": [{"width": 99, "height": 20, "depth": 3}],
        "annotations": [
            {"class_id": 3, "score": 0.75, "left": 10, "top": 5, "width": 40, "height": 15}
        ],
    }


def test_a_second_server_of_a_process_tells_its_lines_once(capsys, monkeypatch):
    monkeypatch.setattr(telemetry._LOG, "handlers", [])
    for _ in range(2):
        telemetry.log_to_stdout()
    telemetry.log("listening")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_it_is_not_healthy_before_it_is_warm():
    service = Service(PaintedEngine(), batches=[1])
    for answer in (
        asked(service, "/ping"),
        asked(service, "/invocations", method="POST", content=picture()),
    ):
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "is being compiled" in answer.json()["error"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wröng"}, 401),
        ({"Authorization": "Basic key"}, 401),
        ({"Authorization": "Bearer key"}, 200),
        ({"Authorization": "bearer  key"}, 200),
    ],
)
def test_a_token(given, status):
    service = Service(PaintedEngine(), batches=[1], token="key")
    headers = {name: value.encode() for name, value in given.items()}
    for path in ("/metadata", "/metrics"):
        assert asked(service, path, headers=headers).status_code == status
    # Before the body is read, and before anything else is told.
    answer = asked(service, "/invocations", method="POST", headers=headers, content=b"junk")
    assert answer.status_code == (401 if status == 401 else 503)
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    assert asked(service, "/ping").status_code == 503
    assert asked(service, "/").status_code == 200
    secured = asked(service, "/openapi.json").json()["paths"]["/invocations"]["post"]["security"]
    assert secured == [{"token": []}]


def request(**headers):
    listed = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return Request({"type": "http", "headers": listed})


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("application/json;annotation=1", True),
        ('text/html, Application/JSON; q=0.5; Annotation="1"', True),
        ("application/json; annotation=10", False),
        ('application/json; annotation="1', False),
        ('application/json; note="a, b;annotation=1"', False),
        ("annotation=1", False),
    ],
)
def test_who_accepts_an_annotation_gets_pixels(accept, wanted):
    assert app._wants_pixels(request(accept=accept)) == wanted


def test_a_packed_body_is_refused_by_its_header():
    assert media_type(request(content_encoding="Identity")) == "application/octet-stream"
    with pytest.raises(
        HTTPException, match=r"Content-Encoding: got 'gzip', .* Send its own"
    ) as told:
        media_type(request(content_encoding="gzip", content_type="image/jpeg"))
    assert (told.value.status_code, told.value.headers) == (415, {"Accept-Encoding": "identity"})


@pytest.mark.parametrize("batches", [(1, 4), (1, 2, 4, 8, 16)])
@pytest.mark.parametrize("megabytes", [20, 200])
def test_a_batch_transform_is_not_asked_for_more_than_sagemaker_sends(batches, megabytes):
    limits = Limits(bytes=megabytes * 2**20)
    service = Service(PaintedEngine(), batches=batches, limits=limits)
    told = asked(service, "/execution-parameters").json()
    assert told["MaxPayloadInMB"] == min(megabytes, 100)
    assert 1 <= told["MaxConcurrentTransforms"] <= 100 // told["MaxPayloadInMB"]


def test_there_is_memory_for_a_request_of_the_allowed_size():
    service = Service(PaintedEngine(), batches=[1], limits=Limits(bytes=2**22, memory=2**20))
    assert asked(service, "/metadata").json()["limits"]["memory"] == 2**22
    with service._memory.share() as take:
        take(2**22)


def test_a_fault_of_the_server_itself():
    engine = PaintedEngine()
    engine.meta = {"step": object()}  # no JSON
    answer = asked(Service(engine, batches=[1]), "/metadata")
    assert (answer.status_code, "see its log" in answer.json()["error"]) == (500, True)


def test_the_pages_can_load_nothing_from_elsewhere():
    service = Service(PaintedEngine(), batches=[1])
    for path in ("/", "/docs"):
        page = asked(service, path)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http" not in page.text


def test_memory_is_given_back():
    memory = Memory(10)
    with memory.share() as take:
        take(4)
        take(4)
        with pytest.raises(HTTPException, match="503"), memory.share() as other:
            other(3)
    with memory.share() as take:
        take(10)


def test_pixels_are_counted_before_they_take_memory():
    for side in (9_000, 30_000):  # claimed by a header, with no pixel behind it
        claim = bytearray(picture(size=(3, 3)))
        claim[16:24] = side.to_bytes(4, "big") * 2
        claim[29:33] = zlib.crc32(claim[12:29]).to_bytes(4, "big")
        with pytest.raises(DataError, match="pixels, expected at most 67,108,864"):
            decode(bytes(claim), "it", canvas=64, limits=Limits())
    with pytest.raises(DataError, match="40 x 30 pixels, expected at most 1,199"):
        decode(picture(size=(30, 40)), "it", canvas=64, limits=Limits(pixels=1199))
    decoded = decode(picture(size=(30, 40)), "it", canvas=64, limits=Limits(pixels=1200))
    assert decoded.size == (30, 40)


def test_what_training_reads_is_read():
    """Pillow, for one, refuses long texts in a PNG, which drawing programs write."""
    text = b"note\0\0" + zlib.compress(bytes(2**21))
    chunk = b"zTXt" + text
    chunk = len(text).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    png = picture(size=(30, 40))
    decoded = decode(png[:33] + chunk + png[33:], "it", canvas=64, limits=Limits())
    assert decoded.size == (30, 40)


def test_an_engine_that_cannot_be_warmed_up_stops_the_server():
    class Broken(PaintedEngine):
        def predict(self, canvas, extent):
            raise RuntimeError("no such instruction")

    stopped = []
    service = Service(Broken(), batches=[1], on_failure=lambda: stopped.append(True))

    async def live():
        arrived, done = asyncio.Queue(), []
        arrived.put_nowait({"type": "lifespan.startup"})

        async def send(message):
            done.append(message["type"])
            if message["type"] == "lifespan.startup.complete":
                while not stopped:
                    await asyncio.sleep(0.001)
                arrived.put_nowait({"type": "lifespan.shutdown"})

        await service.app({"type": "lifespan", "state": {}}, arrived.get, send)
        return done

    assert asyncio.run(live())[-1] == "lifespan.shutdown.complete"
    assert str(service.failure) == "no such instruction"
