"""What the server refuses before it works: bodies, queues, hosts, origins, tokens; and what it keeps, for how long."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
from programs import LIMIT
from serving_cases import EXAMPLES, client_of
from serving_fixtures import *  # noqa: F403
from test_served_answers import as_file, told

from digseg_engine.serving.limits import Limits
from digseg_engine.serving.shelf import Shelf

AERIAL = EXAMPLES / "aerial.png"


class Place:
    """What an encoding says of its size."""

    def __init__(self, nbytes):
        self.nbytes, self.picture = nbytes, self
        self.pixels = type("Pixels", (), {"nbytes": 0})


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(encodings=2), [False, True, True]),
        (Limits(encoding_bytes=250), [False, True, True]),
        (Limits(encoding_bytes=100), [False, False, True]),
        (Limits(encoding_seconds=25), [False, True, True]),
        (Limits(), [True, True, True]),
    ],
)
def test_the_shelf_is_bounded(limits, kept):
    now = [0.0]
    shelf, names = Shelf(limits, lambda: now[0]), []
    for _ in range(3):
        names.append(shelf.put(Place(100), "m"))
        now[0] += 10
    for name, stays in zip(names, kept):
        if stays:
            assert shelf.get(name).model == "m"
        else:
            with pytest.raises(Exception, match="no encoding"):
                shelf.get(name)
    assert shelf.nbytes == 100 * sum(kept) == 100 * len(shelf)
    now[0] += limits.encoding_seconds
    shelf.sweep()
    assert len(shelf) == sum(kept)  # asked about just so long ago
    now[0] += 1
    shelf.sweep()
    assert len(shelf) == shelf.nbytes == 0


def test_the_shelf_keeps_what_is_asked_about():
    shelf = Shelf(Limits(encodings=2), lambda: 0.0)
    first, second = shelf.put(Place(1), "m"), shelf.put(Place(1), "m")
    shelf.get(first)
    shelf.put(Place(1), "m")
    assert shelf.get(first)
    with pytest.raises(Exception, match="no encoding"):
        shelf.get(second)
    with pytest.raises(Exception, match="101 bytes, at most 100"):
        Shelf(Limits(encoding_bytes=100)).put(Place(101), "m")


def test_bodies_that_are_too_long(engine):
    with client_of({"tiny": engine}, Limits(body=50_000)) as client:
        told(client.post("/v1/segment", files=as_file(), data={"prompts": "road"}), 413, "too_large")

        def chunks():  # says no length ahead
            for _ in range(100):
                yield b"x" * 1000

        answer = client.post("/v1/segment", content=chunks(), headers={"content-type": "application/json"})
        told(answer, 413, "too_large")
        assert client.guard.held == 0
    with client_of({"tiny": engine}, Limits(bodies=50_000)) as client:
        told(client.post("/v1/segment", files=as_file(), data={"prompts": "road"}), 429, "busy")
        assert client.guard.held == 0 and client.get("/readyz").status_code == 200


def test_a_full_queue_says_so_and_empties(engine, monkeypatch):
    """One works, one waits, the third is told to come again."""
    go, begun = threading.Event(), threading.Semaphore(0)
    segment = engine.segment

    def slow(*arguments, **named):
        begun.release()
        assert go.wait(60)
        return segment(*arguments, **named)

    answers = []
    with client_of({"tiny": engine}, Limits(workers=1, queue=1)) as client, ExitStack() as stack:
        monkeypatch.setattr(engine, "segment", slow)
        stack.callback(go.set)

        def ask():
            answers.append(client.post("/v1/segment", files=as_file(), data={"prompts": "road"}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert begun.acquire(timeout=LIMIT)
        threads[1].start()
        while client.service.work.taken < 2:
            pass
        refused = client.post("/v1/segment", files=as_file(), data={"prompts": "road"})
        told(refused, 429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        told(client.get("/readyz"), 503, "busy")
        assert client.get("/healthz").status_code == 200
        assert "digseg_queue 2.0" in client.get("/metrics").text
        go.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200]
        while client.service.work.taken:
            pass
        assert client.get("/readyz").status_code == 200


def test_a_failing_model_is_a_500_that_tells_nothing(engine, monkeypatch):
    def fails(*arguments, **named):
        raise RuntimeError("secret path /root")

    with client_of({"tiny": engine}) as client:
        monkeypatch.setattr(engine, "segment", fails)
        answer = client.post("/v1/segment", files=as_file(), data={"prompts": "road"})
        assert "secret" not in told(answer, 500, "failed")
        assert client.service.work.taken == 0


def test_the_token(engine):
    with client_of({"tiny": engine}, token="s3cret") as client:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "s3cret"},
            {"authorization": "Basic s3cret"},
        ):
            for path in ("/v1/models", "/metrics"):
                answer = client.get(path, headers=headers)
                told(answer, 401, "no_token")
                assert answer.headers["www-authenticate"] == "Bearer"
            told(client.post("/v1/segment", files=as_file(), headers=headers), 401, "no_token")
        right = {"authorization": "Bearer s3cret"}
        assert (
            client.get("/v1/models", headers=right).status_code
            == client.get("/metrics", headers=right).status_code
            == 200
        )
        assert client.post("/v1/encode", files=as_file(), headers=right).status_code == 200
        assert {client.get(path).status_code for path in ("/", "/healthz", "/readyz", "/main.js")} == {200}


def test_hosts_and_origins(engine):
    ask = {"files": as_file(), "data": {"prompts": "road"}}
    with client_of({"tiny": engine}) as client:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "[::1", ""):
            told(
                client.post("/v1/segment", **ask, headers={"host": host}), 403, "refused"
            )  # a name that was made to lead here
        for host in ("127.0.0.1:8765", "[::1]:8765", "localhost"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200
        for origin in ("https://evil.example", "null", "http://localhost:9999", "http://[", "localhost"):
            told(client.post("/v1/segment", **ask, headers={"origin": origin}), 403, "refused")
        assert client.post("/v1/segment", **ask, headers={"origin": "http://localhost"}).status_code == 200
        assert "access-control-allow-origin" not in client.get("/v1/models").headers
    with client_of({"tiny": engine}, origins=("https://app.example",), token="t") as client:
        asked = {"origin": "https://app.example", "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization"}  # fmt: skip
        assert (
            client.options("/v1/segment", headers=asked).headers["access-control-allow-origin"] == "https://app.example"
        )
        allowed = {"origin": "https://app.example", "authorization": "Bearer t"}
        answer = client.post("/v1/segment", **ask, headers=allowed)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
        told(client.post("/v1/segment", **ask, headers={**allowed, "origin": "https://evil.example"}), 403, "refused")
    with client_of({"tiny": engine}, hosts=None) as client:
        assert client.get("/v1/models", headers={"host": "anything.example"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/main.js", "/style.css", "/v1/models", "/v1/nothing", "/healthz", "/openapi.json"]
)
def test_headers_of_every_answer(client, path):
    headers = client.get(path).headers
    rules = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert (
        rules["default-src"] == rules["frame-ancestors"] == "'none'"
        and rules["script-src"] == rules["style-src"] == "'self'"
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_the_server_that_ends_takes_no_new_work(engine):
    with client_of({"tiny": engine}) as client:
        client.guard.ending = True
        told(client.post("/v1/segment", files=as_file(), data={"prompts": "road"}), 503, "ending")
        told(client.get("/readyz"), 503, "ending")
        assert client.get("/healthz").status_code == 200


def test_what_is_counted(engine):
    with client_of({"tiny": engine}) as client:
        client.post("/v1/segment", files=as_file(), data={"prompts": ["road", "water"]})
        client.post("/v1/segment", json={})
        client.get("/v1/encodings/secret-name/picture")
        text = client.get("/metrics").text
    for line in ('digseg_requests_total{method="POST",path="/v1/segment",status="200"} 1.0', "digseg_prompts_total 2.0",
                 'digseg_requests_total{method="POST",path="/v1/segment",status="422"} 1.0', "digseg_pictures_total 1.0",
                 'digseg_requests_total{method="GET",path="/v1/encodings/{identifier}/picture",status="404"} 1.0',
                 'digseg_request_seconds_count{path="/v1/segment"} 2.0'):  # fmt: skip
        assert line in text, line
    assert "secret-name" not in text


def test_limits_are_those_of_the_command(monkeypatch):
    from digseg_engine.commands.main import command_named
    from digseg_engine.commands.parser import parse
    from digseg_engine.serving import server

    seen = []
    monkeypatch.setattr(server, "serve", lambda listening: seen.append(listening) or 0)
    monkeypatch.setenv("DIGSEG_TOKEN", "of the environment")
    command = command_named("serve")

    def run(*words):
        values = parse(command, "digseg serve", list(words))
        values.pop("traceback")
        command.run(**values)
        return seen[-1]

    assert run().limits == Limits() and run().token == "of the environment" and run("--no-token").token is None
    for option in command.options:  # what help says of the limits is what they are
        shown = {"workers": Limits.workers, "queue": Limits.queue, "max_mib": Limits.body >> 20, "max_size": Limits.size,
                 "max_megapixels": Limits.pixels // 10**6, "max_prompts": Limits.prompts, "keep": Limits.encodings,
                 "keep_mib": Limits.encoding_bytes >> 20, "keep_seconds": int(Limits.encoding_seconds)}  # fmt: skip
        if option.name in shown:
            assert option.shown == str(shown[option.name]), option.name
    words = ("--max-mib 1 --max-megapixels 0.5 --max-prompts 3 --queue 0 --workers 1 --max-size 64 --keep 2 --keep-mib 3 "
             "--keep-seconds 4 a b --cors https://x.example")  # fmt: skip
    given = run(*words.split())
    assert given.limits == replace(Limits(), body=2**20, pixels=500_000, prompts=3, queue=0, workers=1, size=64, encodings=2,
                                   encoding_bytes=3 * 2**20, encoding_seconds=4.0)  # fmt: skip
    assert [str(path) for path in given.bundles] == ["a", "b"] and given.origins == ("https://x.example",)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"host": "0.0.0.0"}, "--no-token"),
        ({"origins": ("*",)}, "one origin"),
        ({"origins": ("https://x.example/path",)}, "one"),
    ],
)
def test_what_would_let_anybody_in_is_refused(named, says):
    from digseg_engine.errors import UsageError
    from digseg_engine.serving.server import Listening

    with pytest.raises(UsageError, match=says):
        Listening(**named).check()
    Listening(host="0.0.0.0", token="t").check()
    Listening(host="0.0.0.0", no_token=True).check()
