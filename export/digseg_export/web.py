"""`digseg-export --target web`: a static folder with the page, the JavaScript module, ONNX Runtime for browsers and a bundle.

The page is that of `digseg serve` with another `api.js`: an engine in a worker in place of HTTP. Any server of static files will
do, and nothing of a visitor's leaves the browser. `onnxruntime-web` is fetched by npm at the version that was tested, and each
file is taken by its SHA-256.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired, run
from typing import Any

from digseg_engine import __version__
from digseg_engine.bundle import MANIFEST, SIGNATURE, Bundle, open_bundle
from digseg_engine.errors import BackendError, MissingPackageError, OutputError, UsageError
from digseg_engine.files import write_bytes, write_json
from digseg_engine.folders import check_target, files_of, listing, writing
from digseg_engine.named import SHIPPED_BUNDLE, find_model
from digseg_engine.runtime.saving import PALETTE
from digseg_engine.serving.page_files import MODULE
from digseg_engine.serving.page_files import page_files as page_parts
from digseg_export.progress import Progress

FORMAT, LISTED = "digseg.web/1", "site.json"
RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
RUNTIME_FILES = {  # of its folder `dist`: WebAssembly, and WebGPU, whose own file is loaded by browsers that have it alone
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
POLICY = (  # WebAssembly is compiled, nothing else is: no inline scripts, no other origin
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'"
)
HEAD = '<meta charset="utf-8">'
INSTEAD = f"--web-runtime node_modules/{RUNTIME}"
PATIENCE = 600.0  # seconds that npm may take
PROMPTS = 100  # asked at once


@dataclass(frozen=True)
class Site:
    """What was written: bytes of all files, and of what a browser without WebGPU loads."""

    folder: Path
    bundle: str
    bytes: int
    loaded: int


MARK = listing("a page of `--target web`", LISTED, FORMAT)


def default_site(bundle: Path) -> Path:
    """`BUNDLE-web`, beside the bundle; of the one that comes with the package in the current folder."""
    name = f"{bundle.resolve().name}-web"
    return Path(name) if bundle == SHIPPED_BUNDLE else bundle.with_name(name)


class SiteBuilder:
    """Everything about a site that can be wrong before there is a bundle, looked at when it is made.

    Raises MissingPackageError without npm, UsageError for an unusable output or runtime.
    """

    def __init__(self, bundle: Path, output: Path | None, runtime: Path | None) -> None:
        self.bundle, self.runtime = find_model(bundle), runtime
        self.output = output or default_site(self.bundle)
        check_target(self.output, MARK)
        if runtime is None:
            find_npm()
        elif not (runtime / "dist").is_dir():
            raise UsageError(f"--web-runtime {runtime} is not {RUNTIME}: it has no folder dist; give the folder that npm "
                             f"installs, node_modules/{RUNTIME}")  # fmt: skip

    def preview(self) -> dict[str, Any]:
        """For --dry-run: what would be written."""
        return {"page": str(self.output), "runtime": f"{RUNTIME} {VERSION}"}

    def run(self, progress: Progress) -> Site:
        """Write the folder. Raises BundleError for a bundle that cannot be read, BackendError for a runtime that is another."""
        bundle = open_bundle(self.bundle)
        progress(f"{RUNTIME} {VERSION}")
        with _runtime(self.runtime) as runtime:
            progress("page")
            return write_site(bundle, runtime, self.output)


def write_site(bundle: Bundle, runtime: dict[str, bytes], output: Path) -> Site:
    """The page of a verified bundle at `output`, whole or not at all. runtime: files of ONNX Runtime by name."""
    name = bundle.folder.resolve().name
    parts: dict[str, bytes] = {**page_files(), **{f"ort/{file}": body for file, body in runtime.items()}}
    with writing(output, MARK) as folder:
        for path, body in parts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / path, body)
        model = folder / "models" / name
        model.mkdir(parents=True)
        for file in bundle.manifest["files"]:
            write_bytes(model / file, bundle.read(file))
        for file in (MANIFEST, SIGNATURE):
            if (bundle.folder / file).is_file():
                shutil.copyfile(bundle.folder / file, model / file)
        sizes = {path: (folder / path).stat().st_size for path in sorted(files_of(folder))}
        weights = sum(size for path, size in sizes.items() if path.startswith("models/"))
        about = {
            "format": FORMAT, "version": __version__, "runtime": {"name": RUNTIME, "version": VERSION, "licence": "MIT"},
            "models": [{"name": name, "sha256": bundle.digest, "bytes": weights}], "palette": PALETTE, "prompts": PROMPTS,
            "files": {path: {"size": size, "sha256": _sha256((folder / path).read_bytes())} for path, size in sizes.items()},
        }  # fmt: skip
        write_json(folder / LISTED, about, sort_keys=True)
    total = sum(sizes.values())
    return Site(output, name, total, total - sum(sizes[path] for path in sizes if re.search(r"asyncify|webgpu", path)))


def page_files() -> dict[str, bytes]:
    """The page of the server with the engine in a worker: every file by its path in the site."""
    parts = {name: path.read_bytes() for name, path in page_parts().items()}
    parts |= {path.name: path.read_bytes() for path in sorted((MODULE / "page").glob("*.js"))}  # api.js among them
    parts |= {
        f"digseg/{path.name}": path.read_bytes() for path in sorted(MODULE.glob("*.js")) if path.name != "node.js"
    }
    html = parts["index.html"].decode("utf-8")
    if html.count(HEAD) != 1:
        raise OutputError(f"the page's index.html has no {HEAD} to put its policy behind; install this package again")
    policy = f'{HEAD}\n  <meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    parts["index.html"] = html.replace(HEAD, policy).encode("utf-8")
    return parts


def find_npm() -> str:
    """The program. Raises MissingPackageError saying how to get it."""
    found = shutil.which("npm")
    if found is None:
        raise MissingPackageError(f"--target web fetches {RUNTIME} {VERSION} with npm, which is not installed; install Node.js "
                                  f"20 or newer, which brings it, or name a folder that has the package: {INSTEAD}")  # fmt: skip
    return found


@contextmanager
def _runtime(folder: Path | None) -> Iterator[dict[str, bytes]]:
    """The runtime's files, each with its hash, out of a folder, or fetched by npm."""
    if folder is not None:
        yield {name: _checked(name, (folder / "dist" / name).read_bytes, f"{folder}/dist") for name in RUNTIME_FILES}
        return
    with tempfile.TemporaryDirectory(prefix="digseg-web-") as room:
        archive = _fetched(Path(room))
        with tarfile.open(archive) as package:
            yield {name: _checked(name, partial(_member, package, f"package/dist/{name}"), archive.name)
                   for name in RUNTIME_FILES}  # fmt: skip


def _fetched(room: Path) -> Path:
    """The package's archive, by `npm pack`, which runs nothing of it. Raises BackendError with npm's own reason."""
    command = [find_npm(), "pack", f"{RUNTIME}@{VERSION}", "--ignore-scripts", "--prefer-offline", "--silent"]
    instead = f"or install it where there is a network and name its folder: {INSTEAD}"
    try:
        done = run(command, cwd=room, capture_output=True, text=True, timeout=PATIENCE, check=False)
        said = done.stderr.strip() or done.stdout.strip()
    except (OSError, TimeoutExpired) as error:
        raise BackendError(f"npm could not fetch {RUNTIME} {VERSION}: {error}; try again, {instead}") from error
    found = sorted(room.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        lines = [line for line in said.splitlines() if line.strip()]
        why = f": {lines[0].strip()[:200]}" if lines else ""
        raise BackendError(f"npm could not fetch {RUNTIME} {VERSION}{why}; is there a network? Try again, {instead}")
    return found[0]


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise OSError(f"{name} is no file")
    return file.read()


def _checked(name: str, read: Callable[[], bytes], where: str) -> bytes:
    try:
        body = read()
    except (OSError, KeyError) as error:
        raise BackendError(f"{where} holds no {name}; expected {RUNTIME} {VERSION}; install that version") from error
    if _sha256(body) != RUNTIME_FILES[name]:
        raise BackendError(f"{where}: {name} is not that of {RUNTIME} {VERSION} (SHA-256 {_sha256(body)[:12]}..., expected "
                           f"{RUNTIME_FILES[name][:12]}...); install that version")  # fmt: skip
    return body


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
