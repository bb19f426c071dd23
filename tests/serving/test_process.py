"""The command as a process, over real sockets: ends in order, and outlives clients that are slow, silent or gone."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from programs import LIMIT, run_program
from serving_cases import EXAMPLES, ROOT, serving
from serving_fixtures import *  # noqa: F403
from test_served_answers import as_file

from digseg_engine.runtime.rle import decode

AERIAL = EXAMPLES / "aerial.png"
ASK = {"files": as_file(), "data": {"prompts": ["road", "water"]}}


def connected(address):
    parts = urlsplit(address)
    found = socket.create_connection((parts.hostname, parts.port), timeout=LIMIT)
    return found


def head(address, length, kind="application/json"):
    return (f"POST /v1/segment HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {length}\r\n\r\n").encode()  # fmt: skip


def until_closed(connection):
    data = b""
    while block := connection.recv(65536):
        data += block
    return data


def counted(address, name):
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def eventually(holds):
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < LIMIT
        time.sleep(0.02)


def test_masks_over_the_wire_are_pythons(server, engine):
    expected = engine.segment(AERIAL, ["road", "water"])
    answer = httpx.post(f"{server}/v1/segment", **ASK, timeout=LIMIT)
    assert answer.status_code == 200
    for mask, wanted in zip(answer.json()["masks"], expected.masks):
        assert np.array_equal(decode(mask["rle"]), wanted)


def test_sigterm_answers_what_was_asked_and_ends_with_0(bundle):
    """Requests in progress are answered, new ones refused or not connected, and the exit code is 0."""
    with serving(bundle, "--workers", "1") as (address, process):
        answers, asked = [], 6

        def ask():
            with httpx.Client() as client:
                many = {"prompts": [f"road {k}" for k in range(60)], "all_prompts": "true"}
                answers.append(client.post(f"{address}/v1/segment", files=as_file(), data=many, timeout=LIMIT))

        threads = [threading.Thread(target=ask) for _ in range(asked)]
        for thread in threads:
            thread.start()
        eventually(lambda: counted(address, "digseg_queue ") == asked or answers)
        waiting = asked - len(answers)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(LIMIT)
        assert waiting >= 1 and [answer.status_code for answer in answers] == [200] * asked
        assert process.wait(LIMIT) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
        assert process.stderr.read().strip().endswith("digseg: ended")


def test_ctrl_c_ends_it_too(bundle):
    with serving(bundle) as (address, process):
        assert httpx.get(f"{address}/readyz").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0 and "Traceback" not in process.stderr.read()


PATIENCE = """
import digseg_engine.serving.limits as limits
from dataclasses import replace
usual = limits.Limits
limits.Limits = lambda **named: usual(**{"body_seconds": 1.0, "header_seconds": 1.0, **named})
for name in ("body", "bodies", "pixels", "encoding_bytes"):
    setattr(limits.Limits, name, getattr(usual, name))
from digseg_engine.cli import main
main()
"""


@pytest.fixture(scope="module")
def hasty(bundle):
    """A server that waits one second for a head or a body, so that a test need not wait for more."""
    command = [
        sys.executable,
        "-c",
        PATIENCE,
        "serve",
        str(bundle),
        "--port",
        "0",
        "--backend",
        "onnxruntime",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        address = process.stdout.readline().strip().rstrip("/")
        assert address.startswith("http://"), process.communicate()
        yield address
    finally:
        process.kill()
        process.communicate()


def test_a_slow_body_is_told_and_left(hasty):
    with connected(hasty) as connection:
        connection.sendall(head(hasty, 1000) + b"{")
        answer = until_closed(connection)
    assert (
        answer.startswith(b"HTTP/1.1 408 ")
        and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"
    )


@pytest.mark.parametrize("sent", [b"", b"POST /v1/segment HTT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_never_ends_is_left(hasty, sent):
    with connected(hasty) as connection:
        connection.sendall(sent)
        until_closed(connection)  # returns at all
    assert httpx.get(f"{hasty}/healthz").status_code == 200


def test_half_a_head_after_an_answer_is_left_too(hasty):
    with connected(hasty) as connection:
        whole = f"GET /healthz HTTP/1.1\r\nHost: {urlsplit(hasty).netloc}\r\n\r\n".encode()
        connection.sendall(whole)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(whole[:30])
        until_closed(connection)


def test_a_quick_client_is_not_cut_off(hasty):
    """Longer than a head may take, in whole requests."""
    with httpx.Client() as client:
        for _ in range(4):
            assert client.get(f"{hasty}/healthz").status_code == 200
            time.sleep(0.4)


def test_a_client_that_leaves_takes_its_work_along(bundle):
    """Twenty clients ask and go; what had not begun is not done, and the server answers the next one."""
    body = json.dumps({"image": b64encode(AERIAL.read_bytes()).decode(), "all_prompts": True,
                       "prompts": [f"thing {k}" for k in range(80)]}).encode()  # fmt: skip
    with serving(bundle, "--workers", "1") as (address, process):
        for _ in range(20):
            with connected(address) as connection:
                connection.sendall(head(address, len(body)) + body)
        eventually(lambda: counted(address, "digseg_gone_total") >= 18 and counted(address, "digseg_queue ") == 0)
        assert counted(address, "digseg_prompts_total") <= 4 * 80 + 1  # all of them would be 1,600
        for sent in (head(address, 1000) + b"{", head(address, 10**6, "multipart/form-data; boundary=b") + b"--b\r\n"):
            with connected(address) as connection:  # half a body, and gone
                connection.sendall(sent)
        eventually(lambda: counted(address, "digseg_gone_total") >= 20)
        assert httpx.post(f"{address}/v1/segment", **ASK, timeout=LIMIT).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0 and "Traceback" not in process.stderr.read()


def test_a_port_that_is_taken_and_a_bundle_that_is_none(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [sys.executable, "-m", "digseg_engine", "serve", "--port", taken.getsockname()[1]]
        done = run_program(words, cwd=ROOT)
        assert done.returncode == 1 and "cannot listen" in done.stderr and "--port" in done.stderr
    done = run_program([sys.executable, "-m", "digseg_engine", "serve", tmp_path, "--port", "0"], cwd=ROOT)
    assert done.returncode != 0 and len(done.stderr.strip().splitlines()) == 1
