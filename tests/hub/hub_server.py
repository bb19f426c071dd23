"""A hub on loopback: the part of its HTTP that the real client speaks, over real sockets, with faults that can be ordered.

Repositories with commits, branches, private and gated ones; files over `LARGE` are stored apart (LFS) and answered by a redirect
to another host name, as a hub answers them from its object store. Written from what `huggingface_hub` sends and reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_of_the_test"
LARGE = 100_000  # bytes of a file that goes to the object store


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        about = repr(
            [self.branches.get(branch), sorted((name, sha256(body)) for name, body in files.items()), len(self.commits)]
        )
        sha = hashlib.sha1(about.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Hub:
    """What it holds, what it was asked, and what it is to do wrong.

    cut: file -> bytes after which the connection is cut, as often as `times` says. changed: file -> what is sent in its place.
    status: answered to every request. hold: waited for before a connection is cut.
    no_hub: every answer is a page.
    """

    port: int = 0
    repositories: dict[str, Repository] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    borne: list[tuple[str, str]] = field(default_factory=list)  # Host, Authorization
    cut: dict[str, int] = field(default_factory=dict)
    times: int = 10**6
    changed: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)  # instead of what is so, about a revision
    status: int = 0
    ranges: bool = True
    no_hub: bool = False
    hold: threading.Event | None = None
    stop: Callable[[], None] = lambda: None  # nobody listens from then on, and who was connected is so no more
    stopped: bool = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files_asked(self) -> list[str]:
        """Names of the files that were sent, or begun, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    # ---- what every request passes

    def _route(self) -> None:
        if self.hub.stopped:
            self.close_connection = True
            return self.connection.close()
        parts = urlsplit(self.path)
        path, query = unquote(parts.path).strip("/"), parse_qs(parts.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        self.hub.borne.append((self.headers.get("Host", ""), self.headers.get("Authorization", "")))
        if self.hub.no_hub:
            return self._file("page", b"<html>hello</html>", {"Content-Type": "text/html"})
        if self.hub.status:
            return self._json({"error": "ordered by the test"}, self.hub.status)
        words = path.split("/")
        if words[0] == "cdn":
            return self._file(words[-1], self.hub.store[words[1]], {"ETag": f'"{words[1]}"'})
        if words[0] == "lfs":
            self.hub.store[words[1]] = body
            return self._json({})
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        api = words[:2] == ["api", "models"]
        name = "/".join(words[2:4] if api else words[:2])
        repository = self._allowed(name)
        if repository is None:
            return None
        if api:
            return self._api(name, repository, words[4:], query, body)
        return self._resolve(repository, words[3], "/".join(words[4:]))

    do_GET = do_HEAD = do_POST = do_PUT = _route  # noqa: N815

    def _json(self, body: Any, status: int = 200, code: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", str(body.get("error", "")))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _allowed(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        knows = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is not None and (knows or not found.private):
            return found
        if knows:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        return self._json({"error": "Invalid username or password."}, 401, "RepoNotFound")

    # ---- reading

    def _api(
        self, name: str, repository: Repository, words: list[str], query: dict[str, list[str]], body: bytes
    ) -> None:
        revision = words[1] if len(words) > 1 else "main"
        if words[:1] == ["branch"]:
            at = json.loads(body or b"{}").get("startingPoint", "main")
            if revision in repository.branches:
                return self._json({"error": "Reference already exists"}, 409)
            repository.branches[revision] = repository.branches.get(at, at)
            return self._json({})
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return self._json({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        if words[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            return self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "shouldIgnore": False,
                            "uploadMode": "lfs" if file["size"] > LARGE else "regular",
                        }
                        for file in files
                    ]
                }
            )
        if words[:1] == ["commit"]:
            return self._commit(name, repository, revision, body)
        if words[:1] == ["tree"]:
            return self._json([{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                               for path, data in repository.commits[sha].items()])  # fmt: skip
        sized = "blobs" in query
        siblings = [{"rfilename": path, **({"size": len(data), "blobId": hashlib.sha1(data).hexdigest()} if sized else {})}
                    for path, data in repository.commits[sha].items()]  # fmt: skip
        about = {"_id": "1", "id": name, "modelId": name, "sha": sha, "private": repository.private, "gated": repository.gated,
                 "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip
        return self._json({**about, **self.hub.told})

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        if repository.gated:
            return self._json({"error": "Access to this model is restricted."}, 403, "GatedRepo")
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return self._json({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        body = repository.commits[sha].get(path)
        if body is None:
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
        head = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        if len(body) <= LARGE:
            return self._file(path, body, head)
        digest = sha256(body)
        self.hub.store[digest] = body
        self.send_response(302)
        for name, value in {**head, "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(body)), "Content-Length": "0",
                            "Location": f"http://localhost:{self.hub.port}/cdn/{digest}/{quote(path)}"}.items():  # fmt: skip
            self.send_header(name, value)
        return self.end_headers()

    def _file(self, name: str, body: bytes, head: dict[str, str]) -> None:
        body = self.hub.changed.get(name, body)
        begin = 0
        if self.headers.get("Range") and self.hub.ranges:
            begin = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            head = {**head, "Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
        self.send_response(206 if begin else 200)
        for key, value in {**head, "Content-Length": str(len(body) - begin), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body)
        if name in self.hub.cut and self.hub.times > 0 and self.hub.cut[name] > begin:
            end, self.hub.times = self.hub.cut[name], self.hub.times - 1
        self.wfile.write(body[begin:end])
        self.wfile.flush()
        if end < len(body):
            if self.hub.hold is not None:
                self.hub.hold.wait(60)
            self.close_connection = True
            self.connection.close()

    # ---- writing

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._json({"error": "Invalid username or password."}, 401)
        return False

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._may_write():
            return None
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if asked.get("organization") == "others":
            return self._json(
                {"error": 'You don\'t have the rights to create a model under the namespace "others"'}, 403
            )
        if name in self.hub.repositories:
            return self._json(
                {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}, 409
            )
        found = self.hub.repositories[name] = Repository(
            bool(asked.get("private") or asked.get("visibility") == "private")
        )
        found.commit({".gitattributes": b"*.data filter=lfs\n"}, message="initial commit")
        return self._json({"url": f"{self.hub.address}/{name}"})

    def _batch(self, asked: dict[str, Any]) -> None:
        if self._may_write():
            href = f"{self.hub.address}/lfs"
            self._json({"transfer": "basic", "objects": [
                {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": f"{href}/{one['oid']}", "header": {}}}}
                for one in asked["objects"]]})  # fmt: skip

    def _commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        if not self._may_write():
            return None
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(repository.files(branch))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.store[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, branch, lines[0]["value"]["summary"])
        return self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{sha}", "commitOid": sha, "success": True})


@contextmanager
def hub_running(hub: Hub | None = None) -> Iterator[Hub]:
    """A hub that listens; a stopped one's port is taken again when it is given one."""
    hub = hub or Hub()
    handler = type("Bound", (Answers,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", hub.port), handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()

    def stop() -> None:
        hub.stopped = True
        server.shutdown()
        server.server_close()
        thread.join()

    hub.stop = stop
    try:
        yield hub
    finally:
        if hub.hold is not None:
            hub.hold.set()
        stop()
