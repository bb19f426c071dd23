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


def test_pkg_config_finds_the_installation_wherever_it_lies(installed, native_bundle, environment, tmp_path):
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config here")
    moved = tmp_path / "moved"
    for part in ("lib", "include"):
        shutil.copytree(installed / part, moved / part, symlinks=True)
    (tmp_path / "first.c").write_text(first_program())
    for prefix in (installed, moved):
        search = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
        flags = run("pkg-config", "--cflags", "--libs", "digseg", env=search).split()
        folders = [Path(flag[2:]).resolve() for flag in flags if flag[:2] in ("-I", "-L")]
        assert folders == [(prefix / "include").resolve(), (prefix / "lib").resolve()]
        run("gcc", tmp_path / "first.c", *flags, "-o", tmp_path / "first")
        environment["LD_LIBRARY_PATH"] = str(prefix / "lib")
        assert "2 masks" in run(tmp_path / "first", native_bundle, env=environment)
    assert run("pkg-config", "--modversion", "digseg", env=search).startswith("0.")


def test_the_static_library_brings_no_names_of_other_libraries(installed):
    out = run("nm", "--defined-only", "--extern-only", "--demangle", installed / "lib" / "libdigseg.a")
    names = [line.split(maxsplit=2)[2] for line in out.splitlines() if len(line.split()) > 2]
    assert len(names) > 50 and not [name for name in names if "yyjson" in name]


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


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "JPEG"])
def test_the_examples_read_plain_pictures(installed, native_bundle, environment, tmp_path, mode):
    rgb = Image.fromarray(np.asarray(Image.open(ROOT / "examples" / "cells.png").convert("RGB").resize((40, 31))))
    path = tmp_path / ("p.jpg" if mode == "JPEG" else "p.png")
    (rgb if mode == "JPEG" else rgb.convert(mode)).save(path)
    out = run(installed / "programs" / "segment_cpp", native_bundle, path, "nucleus", env=environment)
    area = Engine.load(native_bundle, backend="onnxruntime").segment(path, ["nucleus"]).areas[0]
    # another JPEG decoder may differ by a grey level
    assert abs(float(re.search(r"nucleus: ([\d.]+) %", out)[1]) - 100 * area) <= (1.0 if mode == "JPEG" else 0.15)


def test_the_examples_refuse_what_is_no_picture(installed, native_bundle, environment, tmp_path):
    (tmp_path / "p.png").write_bytes((ROOT / "examples" / "cells.png").read_bytes()[:500])
    (tmp_path / "q.png").write_text("no picture")
    for name in ("p.png", "q.png", "nothing.png"):
        command = [installed / "programs" / "segment", native_bundle, tmp_path / name, tmp_path / "m", "nucleus"]
        done = run_program(command, env=environment)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and name in done.stderr
    assert not list(tmp_path.glob("m.*"))


def test_the_camera_asks_what_the_command_line_or_the_file_says(installed, native_bundle, environment, tmp_path):
    command = (installed / "programs" / "camera", native_bundle, tmp_path / "v.safetensors", "2")
    first, second = run(*command, "wall", "rust stain", env=environment), run(*command, env=environment)
    assert '"vocabulary": 2' in first and '"vocabulary": 2' in second
    scores = [re.findall(r"scores (.*)", text) for text in (first, second)]
    assert scores[0] == scores[1] and [len(row.split()) for row in scores[0]] == [2, 2]


def test_ask_answers_line_by_line_as_segment_does(installed, native_bundle, environment):
    picture, prompts = ROOT / "examples" / "aerial.png", ["road", "water", "road"]
    command = [installed / "programs" / "ask", native_bundle, picture]
    first, *answers = run(*command, stdin="\n".join(prompts), env=environment).splitlines()
    assert re.fullmatch(r"encoded in [\d.]+ ms, \d+ KiB", first)
    wanted = run(installed / "programs" / "segment_cpp", native_bundle, picture, *prompts, env=environment).splitlines()
    assert [re.sub(r", [\d.]+ ms$", "", line) for line in answers] == wanted


def compiled(tmp_path, *sources, include=()):
    """A small program over single sources of the library."""
    kernels = ROOT / "kernels"
    options = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-I", kernels / "src", "-I", kernels / "include")
    run("g++", *options, "-isystem", kernels / "third_party", *(kernels / source for source in sources),
        "-o", tmp_path / "program", "-ldl")  # fmt: skip
    return tmp_path / "program"


def test_halves_and_bfloats_keep_their_values(tmp_path):
    assert "0 wrong halves, 0 wrong bfloats" in run(compiled(tmp_path, "tests/check_numbers.cpp"))


@pytest.fixture(scope="module")
def json_reader(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    names = ("json", "file", "error", "sha256")
    return compiled(tmp_path_factory.mktemp("json"), "tests/read_json.cpp", *(f"src/{name}.cpp" for name in names))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("01", "leading zero"),
        ("[1.]", "byte 3"),
        ("[1,]", "trailing comma"),
        ('{"a": NaN}', "byte 6"),
        ("1e999", "infinity"),
        (r'"\ud800"', "surrogate"),
        ('"\xff"', "UTF-8"),
        ("", "byte 0"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' stands twice"),
        ("[" * 65 + "]" * 65, "more than 64 deep"),
        ("[" * 3_000_000, "end of data"),
    ],
)
def test_json_is_read_strictly(json_reader, tmp_path, text, words):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    done = run_program([json_reader, tmp_path / "a.json"])
    assert done.returncode == 1 and done.stdout.startswith("the file is not valid JSON: ") and words in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("text", ['{"a": {"a": 1e3}, "b": "\\u00e9\\n"}', "[" * 64 + "]" * 64, " -0.5\n"])
def test_sound_json_is_read(json_reader, tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert run(json_reader, tmp_path / "a.json") == "fine\n"
