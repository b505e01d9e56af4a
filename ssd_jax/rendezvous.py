"""Waits over plain TCP until all processes are there, before JAX's own runtime is started.

That runtime ends the process from C++ if another one does not come in time, without saying which.
Process 0 keeps the list at the coordinator's address and sends the outcome to all.
"""

import json
import math
import os
import select
import socket
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from ssd_jax.errors import NotTogether, UserError, some_of
from ssd_jax.hardware import cores

# Seconds for a connection to be made, and then for the other end to say which process it is.
ANSWER_SECONDS = 5.0
# Who waits longer says for whom.
NOTICE_SECONDS = 10.0
MESSAGE_BYTES = 1 << 20
LARGEST_PORT = 65535


class Place(NamedTuple):
    """The host of a process, the index of the process on that host, from 0, and the CPU cores.

    `cores` are those that the process may use, `host_cores` those that its host has.
    """

    host: str
    local_id: int
    cores: int
    host_cores: int

    def __str__(self) -> str:
        return self.host


def wait_for_all(
    address: str, *, count: int, process_id: int, timeout: int, local_id: int = 0
) -> list[Place]:
    """Waits until all `count` processes are there; returns their places in the order of the ids.

    `address` is "HOST:PORT", where process 0 listens until then. `timeout` is in seconds.

    Raises:
      UserError: the same on every process that came; says which are missing or started wrongly.
    """
    host, port = _split(address)
    deadline = time.monotonic() + timeout
    place = Place(socket.gethostname(), local_id, cores(), os.cpu_count())
    if process_id == 0:
        return _gather(port, place, count=count, deadline=deadline, timeout=timeout)
    hello = {"process": process_id, "count": count, "place": place}
    notice = time.monotonic() + NOTICE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if time.monotonic() > notice:
            notice = math.inf
            _say(f"process {process_id} waits for process 0 at {address}", timeout)
        try:
            with socket.create_connection((host, port), timeout=min(left, ANSWER_SECONDS)) as line:
                _send(line, hello)
                line.settimeout(timeout + ANSWER_SECONDS)  # process 0 may have come later
                answer = _receive(line)
        except (OSError, ValueError):  # not there yet, restarted, or somebody else's port
            time.sleep(0.2)
            continue
        if answer["problem"]:
            raise NotTogether(*answer["problem"])
        return [Place(*each) for each in answer["places"]]
    raise NotTogether(
        f"process {process_id} waited {timeout} s for process 0 at {address}, which did not answer",
        "Check that it is started, that this is the address of its host, and that this host can "
        "reach that port.",
    )


def _gather(port: int, own: Place, *, count: int, deadline: float, timeout: int) -> list[Place]:
    places = {0: own}
    lines: dict[socket.socket, int | None] = {}
    problem, notice = None, time.monotonic() + NOTICE_SECONDS
    with _listen(port) as listener:
        while len(places) < count and not problem:
            left = min(deadline, notice) - time.monotonic()
            ready, _, _ = select.select([listener, *lines], [], [], max(0, left))
            if not ready and time.monotonic() < deadline:
                notice = math.inf
                away = count - len(places)
                _say(f"process 0 waits for {away} of {count} processes, missing: "
                     f"{_absent(places, count)}", timeout)  # fmt: skip
            elif not ready:
                problem = _missing(places, count, timeout)
            for line in ready:
                if line is listener:
                    lines[listener.accept()[0]] = None
                elif lines[line] is None:
                    problem = problem or _enter(line, lines, places, count)
                else:  # it has disconnected again
                    del places[lines.pop(line)]
                    line.close()
    found = [places[process] for process in sorted(places)]
    for line in lines:
        with line:
            try:
                _send(line, {"problem": problem, "places": found})
            except OSError:
                continue
    if problem:
        raise NotTogether(*problem)
    return found


def _enter(
    line: socket.socket,
    lines: dict[socket.socket, int | None],
    places: dict[int, Place],
    count: int,
) -> tuple[str, str] | None:
    """Puts the process at the other end on the list, or returns what is wrong, and what to do."""
    try:
        line.settimeout(ANSWER_SECONDS)
        hello = _receive(line)
        process, place, its_count = hello["process"], Place(*hello["place"]), hello["count"]
    except (OSError, ValueError, KeyError, TypeError):  # not a process of this run
        del lines[line]
        line.close()
        return None
    if its_count != count:
        return (
            f"process {process} on host {place} was started as one of {its_count} processes, "
            f"process 0 on host {places[0]} as one of {count}",
            "Give all of them the same --num-processes.",
        )
    if process in places:
        return (
            f"process {process} was started twice, on host {places[process]} and on host {place}",
            "Give each process its own --process-id.",
        )
    lines[line] = process
    places[process] = place
    return None


def _absent(places: Mapping[int, Place], count: int) -> str:
    return some_of([str(process) for process in range(count) if process not in places])


def _say(what: str, timeout: int) -> None:
    print(f"{what}, for at most {timeout} s", file=sys.stderr, flush=True)


def _missing(places: Mapping[int, Place], count: int, timeout: int) -> tuple[str, str]:
    here = [f"{process} ({places[process]})" for process in sorted(places)]
    return (
        f"waited {timeout} s for {count - len(places)} of {count} processes. Missing: "
        f"{_absent(places, count)}; here: {some_of(here)}",
        f"Check that they are started and that their hosts can reach {places[0]}, or wait longer "
        "with --start-timeout.",
    )


def _listen(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=1024,
        )
    except OSError as error:
        raise NotTogether(
            f"process 0 cannot listen on port {port} ({error.strerror}). Another run may use it",
            "Give another port in --coordinator.",
        ) from error


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 1 <= int(port) <= LARGEST_PORT):
        raise UserError(
            f"--coordinator: got {address!r}, expected HOST:PORT of process 0, with a port from 1 "
            f"to {LARGEST_PORT}."
        )
    return host.strip("[]"), int(port)


def _send(line: socket.socket, message: Mapping) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _receive(line: socket.socket) -> dict:
    with line.makefile("rb") as lines:
        text = lines.readline(MESSAGE_BYTES)
    if not text.endswith(b"\n"):
        raise ValueError("the other end hung up in the middle")
    return json.loads(text)
