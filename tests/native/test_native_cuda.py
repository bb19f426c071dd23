"""The CUDA sources: their CPU forms agree with the library's resizing; they compile where nvcc is, and run where a GPU is."""

import shutil
from pathlib import Path

import pytest
from native_fixtures import slow
from programs import run_program

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


def run(*command):
    return run_program(command)


def test_the_cpu_forms_agree_with_the_library(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    built = run("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-I", KERNELS / "cuda",
                KERNELS / "cuda" / "check_on_cpu.cpp", KERNELS / "src" / "resample.cpp", "-o", tmp_path / "check")  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = run(tmp_path / "check")
    assert done.returncode == 0, done.stdout


@slow
@pytest.mark.slow
def test_compiles_for_every_architecture_and_runs_where_there_is_a_gpu(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc here")
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (75, 80, 86, 87, 89, 90, 100, 120)]
    sources = [KERNELS / "cuda" / name for name in ("digseg_cuda.cu", "check_gpu.cu")]
    built = run("nvcc", "-std=c++17", *codes, *sources, "-o", tmp_path / "check")
    assert built.returncode == 0, built.stderr
    done = run(tmp_path / "check")
    if done.returncode == 77:
        pytest.skip("compiled; no GPU to run on")
    assert done.returncode == 0, done.stdout
