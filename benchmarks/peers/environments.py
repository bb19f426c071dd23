"""The peers' environments, one for every library: `python -m benchmarks.peers.environments [NAME ...]`.

Each is a virtual environment of its own under `$DIGSEG_PEERS` (default: `digseg-peers` in the user's cache), with the versions of
`constraints.txt` where that names one. Nothing of them is a dependency of the project, and nothing of the project is installed
in them. Ultralytics is AGPL-3.0: it is run in its own processes to be measured, and no code of it is here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPORT = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime")
STAND_IN = "0.0.0"  # its version
MADE = "made.json"  # written last: an environment without it is made again
ASK_VERSIONS = (
    "import json\nfrom importlib.metadata import distributions\n"
    "print(json.dumps({d.metadata['Name']: d.version for d in distributions() if d.metadata['Name']}))"
)


@dataclass(frozen=True)
class Environment:
    """alone: packages taken without what they ask for. stand_in: with the metadata of a torchvision, see `put_stand_in`."""

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    stand_in: bool = False


ENVIRONMENTS = {
    "transformers": Environment((*EXPORT, "transformers")),
    "diffusers": Environment((*EXPORT, "diffusers", "transformers")),
    "ultralytics": Environment(
        (*EXPORT, "pyyaml", "pillow", "requests", "psutil", "matplotlib", "opencv-python-headless"),
        alone=("ultralytics==8.4.190",), stand_in=True,
    ),
}  # fmt: skip


def home() -> Path:
    """Where environments and exported peers lie."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DIGSEG_PEERS") or cache / "digseg-peers").absolute()


def python_of(name: str) -> Path:
    """The interpreter of an environment."""
    return home() / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make(name: str) -> dict[str, str]:
    """Make an environment where it is not there yet; versions of what is in it. Raises CalledProcessError when pip fails."""
    wanted, folder = ENVIRONMENTS[name], home() / name
    made = folder / MADE
    if made.is_file():
        return dict(json.loads(made.read_text(encoding="utf-8")))
    print(f"making {folder}", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    install = [str(python_of(name)), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), *wanted.packages], check=True)
    if wanted.alone:
        subprocess.run([*install, "--no-deps", *wanted.alone], check=True)
    if wanted.stand_in:
        put_stand_in(python_of(name))
    said = subprocess.run([str(python_of(name)), "-c", ASK_VERSIONS], check=True, capture_output=True, text=True)
    made.write_text(said.stdout, encoding="utf-8")
    return dict(json.loads(said.stdout))


def put_stand_in(python: Path) -> None:
    """Metadata of a torchvision that is not there: Ultralytics asks for its version when it is imported, and for its operators
    in non-maximum suppression alone, which is not measured here. No build for a CPU fits this PyTorch."""
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    place = packages / f"torchvision-{STAND_IN}.dist-info"
    place.mkdir(exist_ok=True)
    said = (
        f"Metadata-Version: 2.1\nName: torchvision\nVersion: {STAND_IN}\nSummary: metadata alone, see digseg-engine\n"
    )
    (place / "METADATA").write_text(said, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(ENVIRONMENTS)} (default: all)")
    options = parser.parse_args()
    for name in options.names or ENVIRONMENTS:
        if name not in ENVIRONMENTS:
            parser.error(f"no environment {name!r}; expected some of {', '.join(ENVIRONMENTS)}")
        print(python_of(name) if make(name) else "")


if __name__ == "__main__":
    main()
