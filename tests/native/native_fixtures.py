"""Fixtures of these tests: the C library, built and installed once per run with CMake and a C++ compiler.

They are skipped only where there is no compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from programs import run_program

__all__ = ["environment", "installed", "library", "native", "native_bundle", "slow"]
KERNELS = Path(__file__).resolve().parents[2] / "kernels"

slow = pytest.mark.long


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return run_program(command, **options)


def succeed(*command: object, **options) -> str:
    done = run(*command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Prefix of an installation made by cmake --install; DIGSEG_NATIVE_PREFIX names one that exists already."""
    if given := os.environ.get("DIGSEG_NATIVE_PREFIX"):
        return Path(given)
    missing = [name for name in ("cmake", "g++", "gcc") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here")
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    room = (base.parent if base.name.startswith("popen-") else base) / "native"
    with FileLock(str(room) + ".lock"):
        if not (room / "done").is_file():
            # -O1 without warnings-for-speed flags: quick to build, and the tests measure no time
            succeed("cmake", "-S", KERNELS, "-B", room / "build", "-DCMAKE_BUILD_TYPE=Release",
                    "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DCMAKE_C_FLAGS_RELEASE=-O1", "-DDIGSEG_CUDA=OFF",
                    "-DDIGSEG_STRESS=ON", "-DCMAKE_INSTALL_LIBDIR=lib")  # fmt: skip
            succeed("cmake", "--build", room / "build", "--parallel", "2")
            succeed("cmake", "--install", room / "build", "--prefix", room / "prefix")
            programs = room / "prefix" / "programs"
            programs.mkdir(exist_ok=True)
            tests = (room / "build" / "tests" / name for name in ("stress", "replay"))
            for path in (*(room / "build" / "examples").iterdir(), *tests):
                if path.is_file() and os.access(path, os.X_OK) and path.suffix == "":
                    shutil.copy2(path, programs)
            (room / "done").touch()
    return room / "prefix"


@pytest.fixture(scope="session")
def library(installed):
    from native_library import Library

    return Library(installed / "lib" / "libdigseg.so")


@pytest.fixture(scope="session")
def native_bundle(request):
    """The exported bundled model; DIGSEG_TEST_BUNDLE names another one."""
    given = os.environ.get("DIGSEG_TEST_BUNDLE")
    return Path(given) if given else request.getfixturevalue("bundle")


@pytest.fixture(scope="session")
def native(library, native_bundle):
    from native_library import NativeEngine

    with NativeEngine(library, native_bundle) as engine:
        yield engine


@pytest.fixture
def environment(installed):
    """For programs linked with the installed library: where it and ONNX Runtime are."""
    from native_library import onnxruntime_library

    return {**os.environ, "LD_LIBRARY_PATH": str(installed / "lib"), "DIGSEG_ONNXRUNTIME": str(onnxruntime_library())}
