"""A server in a process of its own, as its clients meet it."""

import http.client
import io
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image
from running import painted_server, picture

MIDDLE = [1.0, 0.125, 0.25, 0.5, 0.75, 1.0]
LARGEST = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = {"bytes": LARGEST, "pixels": 250_000, "pictures": 3}
    folder = tmp_path_factory.mktemp("server")
    with painted_server(folder, seconds=0.002, limits=limits) as running:
        yield running.wait_until_healthy()


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory):
    limits = {"queue": 3, "answer_seconds": 1.5, "header_seconds": 0.5, "body_seconds": 0.5}
    folder = tmp_path_factory.mktemp("slow")
    with painted_server(folder, seconds=0.6, batches=[1], limits=limits) as running:
        yield running.wait_until_healthy()


FORM = "multipart/form-data; boundary=x"


def form(*files, end=b"--x--\r\n"):
    head = b'--x\r\nContent-Disposition: form-data; name="p"; filename="p.png"\r\n\r\n'
    return b"".join(head + data + b"\r\n" for data in files) + end


def redness(answer):
    assert answer.status_code == 200, answer.text
    (whole, middle) = answer.json()["prediction"]
    assert (whole[0], whole[2:], middle) == (0.0, [0.0, 0.0, 1.0, 1.0], MIDDLE)
    return whole[1]


def at_once(call, arguments):
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(call, arguments))


@pytest.mark.parametrize("kind", [".png", ".jpg"])
@pytest.mark.parametrize(
    "content_type",
    [
        "image/jpeg",
        "image/png",
        "application/x-image",
        "IMAGE/PNG; q=1",
        "application/octet-stream",
    ],
)
def test_a_picture_is_what_its_bytes_say(server, kind, content_type):
    answer = server.post(picture(255, kind=kind), content_type)
    assert redness(answer) == pytest.approx(1, abs=0.01)
    assert answer.headers["content-type"] == "application/json"


def test_unknown_headers_change_nothing(server):
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "a", "Accept": "text/html", "Cookie": "b=c"}
    assert redness(server.post(picture(51), **headers)) == pytest.approx(0.2)


def test_boxes_in_pixels_are_those_of_the_picture_as_a_viewer_shows_it(server):
    upright, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (200, 100), "red").save(upright, "JPEG", exif=exif)
    answer = server.post(upright.getvalue(), Accept="application/json; annotation=1").json()
    assert answer["image_size"] == [{"width": 100, "height": 200, "depth": 3}]
    assert answer["annotations"][1] == {
        "class_id": 1, "score": 0.125, "left": 25, "top": 100, "width": 50, "height": 100,
    }  # fmt: skip


def test_of_many_requests_each_gets_its_own_answer(server):
    levels = list(range(0, 256, 5))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda red: redness(server.post(picture(red))), levels))
    np.testing.assert_allclose(found, np.array(levels) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "why"),
    [
        (b"", "image/jpeg", 400, "0 bytes"),
        (b"GIF89a and so on", "image/jpeg", 400, "expected a whole JPEG or PNG"),
        (picture()[:60], "image/png", 400, "ends early"),
        (picture(kind=".jpg")[:300], "image/jpeg", 400, "expected a whole JPEG or PNG"),
        (
            picture(size=(1000, 251)),
            "image/png",
            400,
            "251 x 1000 pixels, expected at most 250",
        ),
        (b"\0" * (LARGEST + 1), "image/jpeg", 413, "200,001 bytes or more, expected 200,000 at"),
        (picture(), "text/html", 415, "got 'text/html', expected image/jpeg"),
        (picture(), "application/x-www-form-urlencoded", 415, "-H 'Content-Type: image/jpeg'"),
        (picture(), "multipart/form-data", 400, "boundary"),
        (b"junk", "multipart/form-data; boundary=x", 400, "multipart"),
        (b"--x--", "multipart/form-data; boundary=x", 400, "got no part"),
        (form(picture(), picture(), end=b""), FORM, 400, "ends before its closing boundary"),
        (form(picture(), picture())[:-40], FORM, 400, "ends before its closing boundary"),
        # It is not read to its end, which is none.
        (form(*[b""] * 5, end=b"--x junk"), FORM, 400, "more than 3 images, expected 3 at most"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(server, body, content_type, status, why):
    answer = server.post(body, content_type)
    assert answer.status_code == status, answer.text
    assert why in answer.json()["error"]


def test_a_body_of_unknown_length_is_cut_off(server):
    def chunks():
        for _ in range(30):
            yield b"\0" * 10_000

    answer = server.client.post(
        "/invocations", content=chunks(), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 413


def test_a_client_that_is_refused_hears_why_though_it_closes_the_connection(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Content-Type": "text/plain", "Connection": "close"}
    connection.request("POST", "/invocations", b"\0" * 8_000_000, headers)
    answer = connection.getresponse()
    assert (answer.status, b"text/plain" in answer.read()) == (415, True)
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/invocations", 405), ("PUT", "/ping", 405), ("GET", "/nowhere", 404)],
)
def test_what_is_not_there(server, method, path, status):
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]


def several(server, *files, **headers):
    parts = [("pictures", (name, data)) for name, data in files]
    return server.client.post("/invocations", files=parts, headers=headers)


def test_several_pictures_in_one_request(server):
    answer = several(server, ("a", picture(51)), ("b", b"no picture"), ("c", picture(102)))
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert (first["name"], second["name"], third["name"]) == ("a", "b", "c")
    assert {each["field"] for each in (first, second, third)} == {"pictures"}
    assert first["prediction"][0][1] == pytest.approx(0.2)
    assert "b: 10 bytes" in second["error"]
    assert third["prediction"][0][1] == pytest.approx(0.4)
    pixels = several(server, ("a", picture()), Accept="application/json;annotation=1").json()
    assert pixels["results"][0]["image_size"] == [{"width": 40, "height": 30, "depth": 3}]


def test_too_many_pictures_or_parts_that_are_none(server):
    answer = several(server, *[("a", picture())] * 4)
    assert (answer.status_code, "more than 3 images, expected 3" in answer.text) == (400, True)
    fields = {"name": (None, "value")}
    answer = server.client.post("/invocations", files=fields)
    assert (answer.status_code, "got no file, but 'name', expected" in answer.text) == (400, True)
    parts = [(name, (None, "value")) for name in ("f", "f", "x" * 60, "y" * 60)]
    answer = server.client.post("/invocations", files=parts)
    expected = f"got no file, but 'f', '{'x' * 60}', '{'y' * 60}', expected files"
    assert (answer.status_code, expected in answer.text) == (400, True)
    many = {f"name{number}": (None, "value") for number in range(33)}
    answer = server.client.post("/invocations", files=many)
    assert (answer.status_code, "more than 32 parts" in answer.text) == (400, True)


def test_a_field_beside_the_pictures_is_left_out(server):
    parts = {"note": (None, "value"), "one": ("a.png", picture()), "two": ("b.png", picture())}
    answer = server.client.post("/invocations", files=parts)
    assert answer.status_code == 200
    found = [(each["name"], each["field"]) for each in answer.json()["results"]]
    assert found == [("a.png", "one"), ("b.png", "two")]


def test_metadata_and_parameters(server):
    told = server.client.get("/metadata").json()
    assert (told["classes"], told["engine"], told["model"]) == (
        ["red", "middle"], "painted", {"step": 7},
    )  # fmt: skip
    assert told["why"] == server.wait_for("listening")["why"] == "it needs no network"
    schema = server.client.get("/openapi.json").json()["components"]["schemas"]["Metadata"]
    assert "why" in schema["required"]
    assert told["limits"]["bytes"] == LARGEST
    assert set(told["batch_seconds"]) == {"1", "2", "4"}
    assert server.client.get("/execution-parameters").json() == {
        "MaxConcurrentTransforms": 8,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": 1,
    }


def sample(server, line):
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(each.split()[-1]) for each in lines if each.startswith(line))


def test_metrics_and_the_log_tell_what_happened(server):
    good = 'ssd_jax_requests_total{path="/invocations",status="200"}'
    decoded = 'ssd_jax_stage_seconds_count{stage="decode"}'
    before = sample(server, good), sample(server, decoded)
    body = picture(7)
    assert server.post(body).status_code == 200
    server.client.get("/a?token=secret")
    after = sample(server, good), sample(server, decoded)
    assert after == (before[0] + 1, before[1] + 1)
    assert sample(server, 'ssd_jax_requests_total{path="other",status="404"}') >= 1
    assert sample(server, "process_resident_memory_bytes") > 1e6
    told = server.wait_for("request", bytes=len(body), path="/invocations", status=200)
    assert (told["method"], told["pictures"], told["batch"]) == ("POST", 1, 1)
    assert 0 < told["predict_seconds"] + told["decode_seconds"] < told["seconds"] + 0.001
    assert "reason" in server.wait_for("request", path="/a", status=404)


def test_an_engine_that_fails_once_is_not_the_end(server):
    answer = server.post(picture(0, blue=255))
    assert (answer.status_code, "the engine failed" in answer.text) == (500, True)
    assert "out of memory" in server.wait_for("failure")["error"]
    assert redness(server.post(picture(51))) == pytest.approx(0.2)


def test_more_than_can_be_answered_in_time(slow_server):
    answers = at_once(slow_server.post, [picture()] * 5)
    by_status = sorted(answers, key=lambda answer: answer.status_code)
    # One is computed in 0.6 s, so two within 1.5 s, and three are let in.
    assert [each.status_code for each in by_status] == [200, 200, 503, 503, 504]
    assert by_status[2].headers["retry-after"] == "2"
    assert "3 images are waiting" in by_status[2].json()["error"]
    assert "within 1.5 seconds" in by_status[4].json()["error"]
    redness(slow_server.post(picture()))


PART_OF_A_BODY = (
    b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
    b"Content-Length: 100\r\n\r\nabc"
)


@pytest.mark.parametrize("requests_before", [0, 1])
@pytest.mark.parametrize(
    ("sent", "answered"), [(b"GET /ping HT", b""), (PART_OF_A_BODY, b"HTTP/1.1 408")]
)
def test_slow_clients_are_given_up(slow_server, requests_before, sent, answered):
    with socket.create_connection(("127.0.0.1", slow_server.port), timeout=10) as client:
        for _ in range(requests_before):
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        client.sendall(sent)
        received = b""
        while more := client.recv(4096):
            received += more
        assert 0.3 < time.monotonic() - start < 3
    assert received[: len(b"HTTP/1.1 408")] == answered


def test_sigterm_waits_for_what_was_accepted(tmp_path):
    with painted_server(tmp_path, seconds=0.3, batches=[1]) as server:
        server.wait_until_healthy()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(server.post, picture(red)) for red in (0, 51, 102, 255)]
            while sample(server, "ssd_jax_pictures_in_progress ") < 4:
                time.sleep(0.01)
            assert server.stop() == 0
            answers = [each.result() for each in asked]
            # Or a client would send its next request to a connection that is about to close.
            assert {answer.headers["connection"] for answer in answers} == {"close"}
            found = [redness(answer) for answer in answers]
        np.testing.assert_allclose(found, [0, 0.2, 0.4, 1], rtol=1e-6)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_the_largest_picture_that_is_allowed(server):
    noise = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    body = cv2.imencode(".png", noise)[1].tobytes()
    assert len(body) < LARGEST
    assert server.post(body).status_code == 200
