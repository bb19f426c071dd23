"""`digseg segment --ray`: real Ray, real actors on this machine, which end at the worst moments; and pictures at addresses."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import run_command
from PIL import Image
from programs import run_program
from test_extras import bare

from digseg_engine.commands.main import dispatch
from digseg_engine.data.storage import files_at
from digseg_engine.errors import DigsegError, InputError
from digseg_engine.extras import lacking
from digseg_engine.runtime import cluster
from digseg_engine.runtime.inputs import FarPicture, find_pictures
from digseg_engine.worlds.scenes import scene

SECONDS = re.compile(r"\([\d.]+ s\)")
HOW = ("-p", "road", "-p", "a red circle", "--backend", "onnxruntime")
needs_ray = pytest.mark.skipif(bool(lacking("ray")), reason="Ray is not installed: pip install -e '.[ray]'")


def paint(folder, names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(scene(number, ("aerial", "objects")[number % 2], 96, "demo").image).save(folder / f"{name}.png")


def results(folder):
    """Contents by name; of a record all but the time it took."""
    found = {}
    for path in folder.iterdir():
        if path.suffix == ".json":
            body = json.loads(path.read_text())
            assert body.pop("seconds")["encode"] > 0
            found[path.name] = body
        else:
            found[path.name] = path.read_bytes()
    return found


def lines(text):
    return sorted(SECONDS.sub("", line).replace("serial", "OUT").replace("shared", "OUT") for line in text.splitlines())


@needs_ray
@pytest.mark.slow
def test_actors_write_bit_for_bit_what_one_process_writes_and_report_the_same(tmp_path, bundle):
    """Also a picture that is none, and a rerun, which touches nothing and does not even start Ray."""
    paint(tmp_path / "in", "abcdef")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 60)
    segment = partial(run_command, "digseg", "segment", "in", *HOW, "-b", str(bundle), cwd=tmp_path)
    alone = segment("-o", "serial")
    done = segment("-o", "shared", "--ray", "local", "--actors", "2", "--actor-cpus", "0.5", "--verbose")
    assert done.returncode == alone.returncode == 2, done.stderr
    assert results(tmp_path / "shared") == results(tmp_path / "serial") and len(results(tmp_path / "shared")) == 30
    assert lines(done.stdout) == lines(alone.stdout)
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert lines("\n".join(errors)) == lines(alone.stderr) and "1 of 7 pictures could not be done" in errors[-1]
    assert "2 actors of 0.5 cores and 0 GPUs" in done.stderr
    (tmp_path / "in" / "broken.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()}
    again = segment("-o", "shared", "--ray", "local", "--skip-existing", env={"PATH": "/nowhere"})
    assert again.returncode == 0 and not again.stdout and "6 pictures skipped" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()}


class Mortal(cluster.Segmenter):
    """Ends where its picture's name says: before anything is done, or when all is written and nothing said, once or always."""

    def segment(self, task):
        if "poison" in str(task.path) or ("early" in str(task.path) and not task.tries):
            os._exit(9)
        got = super().segment(task)
        if "late" in str(task.path) and not task.tries:
            os._exit(9)
        return got


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, pytest.param(True, marks=pytest.mark.long)])
def test_actors_that_end_lose_no_picture_and_do_none_twice(tmp_path, bundle, monkeypatch, capsys, as_json):
    for name, value in (
        cluster.SAID | cluster.LOOPBACK
    ).items():  # read at import; the command imports Ray after setting them
        monkeypatch.setitem(os.environ, name, value)
    import ray

    monkeypatch.setitem(os.environ, "RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setattr(cluster, "Segmenter", Mortal)
    monkeypatch.chdir(tmp_path)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    written = watched(monkeypatch, tmp_path)
    paint(tmp_path / "in", ["poison", "early", "late", "a", "b"])
    words = ["segment", "in", *HOW, "-b", str(bundle), "-o", "out", "--ray", "local", "--actors", "1"]
    code = dispatch([*words, *(["--json"] if as_json else [])])
    said = capsys.readouterr()
    assert code == 1 and "poison.png: the process that worked on it ended, 3 times" in said.err
    assert "1 of 5 pictures could not be done" in said.err and len(said.out.splitlines()) == 4
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"early", "late", "a", "b"}
    assert sorted(written().read_text().split()) == ["a", "b", "early", "late"]
    if as_json:
        rows = {row["picture"]: row for row in map(json.loads, said.out.splitlines())}
        assert all((tmp_path / file).is_file() for row in rows.values() for file in row["saved"])
        assert {len(row["saved"]) for row in rows.values()} == {5}
    from ray._common.usage import usage_lib

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and not usage_lib.usage_stats_enabled()
    assert not list(os.scandir(tmp_path / "out")) or not list((tmp_path / "out").glob(".digseg-*"))


def watched(monkeypatch, room):
    """A log of every picture that was segmented and written, by whichever actor."""
    log = room / "written.log"

    def segment(self, task, usual=cluster.Segmenter.__mro__[1].segment):
        before = cluster.identity(self.work.output / f"{task.stem}.json")
        got = usual(self, task)
        if cluster.identity(self.work.output / f"{task.stem}.json") != before:
            with open(log, "a") as file:
                file.write(f"{task.stem}\n")
        return got

    monkeypatch.setattr(Mortal.__mro__[1], "segment", segment)
    return lambda: log


def test_without_ray_one_line_names_the_extra(tmp_path, bundle):
    paint(tmp_path / "in", "a")
    words = [
        "segment",
        str(tmp_path / "in"),
        "-p",
        "road",
        "-b",
        str(bundle),
        "-o",
        str(tmp_path / "out"),
        "--ray",
        "local",
    ]
    done = bare("digseg_engine.cli", *words, hidden=("ray",))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "--ray needs the package ray" in line and '[ray]"' in line


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_one_line(tmp_path, bundle):
    paint(tmp_path / "in", "a")
    done = run_command("digseg", "segment", "in", *HOW, "-b", str(bundle), "--ray", "127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1 and "no Ray cluster answers at 127.0.0.1:1" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture
def site(tmp_path):
    """A server on loopback with the folder in/, and its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pictures_at_addresses_are_those_of_a_folder(tmp_path, bundle, site):
    pytest.importorskip("aiohttp", reason="fsspec's own client for http is not installed")
    paint(tmp_path / "in", "ab")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    segment = partial(run_command, "digseg", "segment", *HOW, "-b", str(bundle), cwd=tmp_path)
    assert segment("in", "-o", "serial").returncode == 0
    done = segment(f"{site}/in/", f"{site}/in/gone.png", "-o", "far")
    assert done.returncode == 2 and "left out 1 .txt" in done.stderr, done.stderr
    assert f"{site}/in/gone.png" in done.stderr and "1 of 3 pictures could not be done" in done.stderr
    near, far = results(tmp_path / "serial"), results(tmp_path / "far")
    for name in ("a.json", "b.json"):
        assert far[name].pop("picture") == f"{site}/in/{name[0]}.png" and near[name].pop("picture")
    assert far == near
    done = segment(f"{site}/in/", "-o", "tiles", "--tile", "64")
    assert done.returncode == 2 and "--tile reads pictures piece by piece from this machine's disks" in done.stderr


@pytest.fixture
def store():
    """An object store on loopback, moto's, and the environment that leads to it."""
    program = shutil.which("moto_server")
    if program is None or find_spec("s3fs") is None:
        pytest.skip("no object store here: pip install s3fs 'moto[s3,server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
           "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    server.terminate()
    server.wait()


@needs_ray
@pytest.mark.slow
def test_actors_read_from_an_object_store(tmp_path, bundle, store):
    paint(tmp_path / "in", "ab")
    fill = "import fsspec; files = fsspec.filesystem('s3'); files.mkdir('room'); files.put('in/', 'room/in/', recursive=True)"
    for _ in range(60):  # until it listens
        if run_program([sys.executable, "-c", fill], cwd=tmp_path, env={**os.environ, **store}).returncode == 0:
            break
        time.sleep(0.5)
    segment = partial(run_command, "digseg", "segment", *HOW, "-b", str(bundle), cwd=tmp_path, env=store)
    assert segment("in", "-o", "serial").returncode == 0
    done = segment("s3://room/in", "s3://room/gone.png", "-o", "far", "--ray", "local", "--actors", "1")
    assert done.returncode == 2 and "s3://room/gone.png: file not found" in done.stderr, done.stderr
    near, far = results(tmp_path / "serial"), results(tmp_path / "far")
    assert [far[f"{name}.json"].pop("picture") for name in "ab"] == ["s3://room/in/a.png", "s3://room/in/b.png"]
    assert [near[f"{name}.json"].pop("picture") for name in "ab"] == ["in/a.png", "in/b.png"] and far == near


def test_folders_and_patterns_at_addresses():
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    files = fsspec.filesystem("memory")
    for name in ("a.png", "b.JPG", "c.txt", ".d.png", "deep/e.png"):
        files.pipe(f"/room/{name}", b"x" * 8)
    assert files_at("memory://room") == ["memory:///room/.d.png", "memory:///room/a.png", "memory:///room/b.JPG",
                                         "memory:///room/c.txt"]  # fmt: skip
    found = find_pictures(["memory://room", "memory://room/deep/e.png", "memory://room/*.JPG"])
    assert [path.name for path in found.paths] == ["a.png", "b.JPG", "e.png"] and found.paths[0].stem == "a"
    assert found.notes == ["left out 1 hidden, 1 .txt"]
    assert [path.name for path in find_pictures(["memory://room"], recursive=True).paths][-1] == "e.png"
    with pytest.raises(InputError, match=r"memory://room/\*\.webp holds no picture"):
        find_pictures(["memory://room/*.webp"])
    with pytest.raises(DigsegError, match=r"nosuch:// is no kind of address"):
        FarPicture("nosuch://a/b.png").open()


def test_names_of_far_pictures():
    far = FarPicture("s3://bucket/some%20folder/my picture.tar.png?versionId=7")
    assert (far.name, far.stem, far.suffix, far.parent.name) == (
        "my picture.tar.png",
        "my picture.tar",
        ".png",
        "some folder",
    )
    assert str(far).endswith("versionId=7") and np.ndim(far.exists()) == 0
