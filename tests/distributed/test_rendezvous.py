"""Who is there, and what is said of who is not: processes played by threads."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import free_port

from ssd_jax.errors import UserError
from ssd_jax.rendezvous import wait_for_all

HOST = socket.gethostname()
PLACES = [(HOST, 0), (HOST, 1), (HOST, 2)]


def called(port, callers, *, timeout=20):
    """What each of the (process id, count) pairs is told: host and number of all, or the message.

    Which of its host a process is, is made up: its id.
    """

    def call(caller):
        process, count = caller
        try:
            places = wait_for_all(
                f"127.0.0.1:{port}",
                count=count,
                process_id=process,
                timeout=timeout,
                local_id=process,
            )
            return [(place.host, place.local_id) for place in places]
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(callers)) as threads:
        return list(threads.map(call, callers))


def test_all_are_there():
    assert called(free_port(), [(2, 3), (1, 3), (0, 3)]) == [PLACES] * 3


def test_who_is_missing_is_told_to_all_that_came():
    (message,) = set(called(free_port(), [(0, 4), (2, 4)], timeout=1))
    assert message.startswith(f"waited 1 s for 2 of 4 processes. Missing: 1, 3; here: 0 ({HOST}),")


def test_who_waits_long_says_for_whom(monkeypatch, capsys):
    # Far longer than process 2 takes to arrive, also on a busy machine.
    monkeypatch.setattr("ssd_jax.rendezvous.NOTICE_SECONDS", 2.0)
    called(free_port(), [(0, 3), (2, 3)], timeout=3)
    assert capsys.readouterr().err == (
        "process 0 waits for 1 of 3 processes, missing: 1, for at most 3 s\n"
    )
    called(port := free_port(), [(1, 2)], timeout=3)
    assert capsys.readouterr().err.startswith(f"process 1 waits for process 0 at 127.0.0.1:{port},")


def test_without_process_0_its_address_is_told():
    began = time.monotonic()
    (message,) = called(port := free_port(), [(1, 2)], timeout=1)
    assert message.startswith(f"process 1 waited 1 s for process 0 at 127.0.0.1:{port}")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("callers", "told"),
    [
        ([(0, 3), (1, 3), (1, 3)], f"process 1 was started twice, on host {HOST} and on"),
        ([(0, 2), (1, 3)], "started as one of 3 processes, process 0 on host .* as one of 2"),
    ],
)
def test_wrong_flags_are_told_at_once(callers, told):
    began = time.monotonic()
    messages = called(free_port(), callers)
    assert time.monotonic() - began < 5
    assert len(set(messages)) == 1
    with pytest.raises(UserError, match=told):
        raise UserError(messages[0])


def test_who_went_away_or_never_belonged_here_is_not_counted():
    port = free_port()
    ghost = {"process": 1, "count": 3, "place": ["gone", 0, 1, 1]}
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(called, port, [(0, 3)])
        for words in (b"GET / HTTP/1.1\r\n", b"[1]\n", json.dumps(ghost).encode() + b"\n"):
            with knock(port) as line:
                line.sendall(words)
        assert called(port, [(1, 3), (2, 3)]) == [PLACES] * 2
        assert first.result() == [PLACES]


def knock(port):
    """A connection to process 0, as soon as it listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_port_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (message,) = called(port, [(0, 2)])
    assert f"cannot listen on port {port}" in message


@pytest.mark.parametrize(
    "address", ["host", "host:", ":1", "host:http", "host:0", "host:295000", "host:²"]
)
def test_an_address_needs_host_and_port(address):
    with pytest.raises(UserError, match="expected HOST:PORT of process 0"):
        wait_for_all(address, count=2, process_id=1, timeout=1)
