"""What a C or C++ developer does: compile the header, link the library, run the examples."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from native_fixtures import *  # noqa: F403
from PIL import Image
from programs import run_program

from digseg_engine import Engine

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "kernels" / "include" / "digseg" / "digseg.h"
FIND = """cmake_minimum_required(VERSION 3.18)
project(app LANGUAGES C CXX)
find_package(digseg 0.1 REQUIRED)
add_executable(app main.c)
target_link_libraries(app PRIVATE digseg::digseg)
add_executable(app_static main.c)
set_target_properties(app_static PROPERTIES LINKER_LANGUAGE CXX)
target_link_libraries(app_static PRIVATE digseg::digseg_static)
"""


def run(*command, **options):
    done = run_program(command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def first_program() -> str:
    """The program at the top of digseg.h."""
    lines = HEADER.read_text().split("(example begins)")[1].split("(example ends)")[0].splitlines()[1:-1]
    return "\n".join(re.sub(r"^ \*\s?", "", line).removeprefix("  ") for line in lines).strip() + "\n"


def test_headers_compile_as_strict_c99_and_cpp17(installed, tmp_path):
    include = installed / "include"
    (tmp_path / "a.c").write_text(
        "#include <digseg/digseg.h>\nint digseg_is_here(void) { return DIGSEG_API_VERSION; }\n"
    )
    (tmp_path / "a.cpp").write_text("#include <digseg/digseg.hpp>\n")
    strict = ("-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", include)
    run("gcc", "-std=c99", *strict, tmp_path / "a.c")
    run("g++", "-std=c++17", *strict, tmp_path / "a.cpp")


def test_only_digseg_names_are_exported(installed):
    out = run("nm", "-D", "--defined-only", installed / "lib" / "libdigseg.so")
    names = {line.split()[-1] for line in out.splitlines() if line.split()[-2] != "A"}
    declared = set(re.findall(r"DIGSEG_API [^;(]*?(digseg_\w+)\(", HEADER.read_text()))
    assert names == declared and len(names) >= 15


def test_needs_nothing_but_the_cpp_runtime(installed):
    needed = re.findall(r"NEEDED.*?\[(.*?)\]|NEEDED\s+(\S+)", run("objdump", "-p", installed / "lib" / "libdigseg.so"))
    allowed = ("libstdc++", "libm.", "libgcc_s", "libc.", "libdl.", "libpthread", "ld-linux")
    assert [a or b for a, b in needed if not (a or b).startswith(allowed)] == []


def test_the_program_in_the_header_runs(installed, native_bundle, environment, tmp_path):
    (tmp_path / "first.c").write_text(first_program())
    assert len(first_program().splitlines()) == 20
    run("gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", installed / "include", tmp_path / "first.c",
        "-L", installed / "lib", "-ldigseg", "-o", tmp_path / "first")  # fmt: skip
    out = run(tmp_path / "first", native_bundle, env=environment)
    assert re.fullmatch(r"2 masks of 64 x 64, scores [01]\.\d\d [01]\.\d\d\n", out)
    failed = subprocess.run(
        [str(tmp_path / "first"), "nowhere"], capture_output=True, text=True, env=environment, check=False
    )
    assert failed.returncode == 1 and failed.stderr.startswith("bundle nowhere not found; expected")


def test_find_package_gives_shared_and_static(installed, native_bundle, environment, tmp_path):
    (tmp_path / "main.c").write_text(first_program())
    (tmp_path / "CMakeLists.txt").write_text(FIND)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path / "b")
    shared, alone = (run(tmp_path / "b" / name, native_bundle, env=environment) for name in ("app", "app_static"))
    assert shared == alone and "2 masks" in shared


def test_pkg_config_file_names_the_installation(installed, native_bundle, environment, tmp_path):
    text = (installed / "lib" / "pkgconfig" / "digseg.pc").read_text()
    assert "Libs: -L${libdir} -ldigseg" in text and "Version: 0." in text
    if shutil.which("pkg-config"):
        path = {**os.environ, "PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
        flags = run(
            "pkg-config", f"--define-variable=prefix={installed}", "--cflags", "--libs", "digseg", env=path
        ).split()
        (tmp_path / "first.c").write_text(first_program())
        run("gcc", tmp_path / "first.c", *flags, "-o", tmp_path / "first")
        assert "2 masks" in run(tmp_path / "first", native_bundle, env=environment)


def test_segment_c_on_a_png_gives_the_python_masks(installed, native_bundle, environment, tmp_path):
    prompts = ["road", "building", "trees"]
    picture = ROOT / "examples" / "aerial.png"
    out = run(installed / "programs" / "segment", native_bundle, picture, tmp_path / "m", *prompts, env=environment)
    wanted = Engine.load(native_bundle, backend="onnxruntime").segment(picture, prompts)
    assert len(out.splitlines()) == 4 and "onnxruntime" in out
    for k, mask in enumerate(wanted.masks):
        got = np.asarray(Image.open(tmp_path / f"m.{k}.png")) > 127
        union = (got | mask).sum()
        assert union == 0 or (got & mask).sum() / union >= 0.999


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_the_examples_read_every_plain_png(installed, native_bundle, environment, tmp_path, mode):
    rgb = np.asarray(Image.open(ROOT / "examples" / "cells.png").convert("RGB").resize((40, 31)))
    Image.fromarray(rgb).convert(mode).save(tmp_path / "p.png")
    out = run(installed / "programs" / "segment_cpp", native_bundle, tmp_path / "p.png", "nucleus", env=environment)
    area = Engine.load(native_bundle, backend="onnxruntime").segment(tmp_path / "p.png", ["nucleus"]).areas[0]
    assert abs(float(re.search(r"nucleus: ([\d.]+) %", out)[1]) - 100 * area) <= 0.15


def test_camera_sketch_runs_on_a_fixed_vocabulary(installed, native_bundle, environment, tmp_path):
    command = (installed / "programs" / "camera", native_bundle, tmp_path / "v.safetensors", "2")
    first, second = (run(*command, env=environment) for _ in range(2))
    assert (tmp_path / "v.safetensors").is_file() and '"vocabulary": 3' in second
    scores = [re.findall(r"scores (.*)", text) for text in (first, second)]
    assert scores[0] == scores[1] and len(scores[0]) == 2
