"""With a part of the installation missing, every command that needs it says so in one line, with the line that helps."""

import sys
from pathlib import Path

import pytest
from programs import run_program

from digseg_engine import extras
from digseg_engine.errors import MissingPackageError

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "skimage",
    "matplotlib",
    "onnx",
    "onnxscript",
    "tensorboard",
)
HIDE = "import sys; sys.modules.update(dict.fromkeys({hidden!r})); from {module} import main; main()"


def bare(module: str, *words: str, hidden=HEAVY, cwd=ROOT):
    """A command where packages are as good as not installed."""
    return run_program([sys.executable, "-c", HIDE.format(hidden=hidden, module=module), *words], cwd=cwd)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["train", "--data", "scenes"], "train"),
        (["distill", "x"], "train"),
        (["eval"], "train"),
        (["scenes"], "train"),
        (["export"], "export"),
    ],
)
def test_one_line_names_the_packages_and_what_to_type(words, extra, tmp_path):
    module = "digseg_export.cli" if words == ["export"] else "digseg_engine.cli"
    done = bare(module, *([] if words == ["export"] else words), cwd=ROOT)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and ": error: " in line and f'pip install -e ".[{extra}]"' in line
    assert ("skimage" if words == ["scenes"] else "torch") in line
    assert not (ROOT / "scenes").exists() and not (ROOT / "runs" / "distilled").exists()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["eval", "-h"], ["help", "distill"], ["--version"]])
def test_help_needs_no_extra(words):
    done = bare("digseg_engine.cli", *words)
    assert done.returncode == 0 and done.stdout and not done.stderr


def test_help_of_the_export_needs_no_extra():
    assert "--precision" in bare("digseg_export.cli", "--help").stdout
    assert bare("digseg_export.cli", "--version").stdout.startswith("digseg-export ")


def test_usage_errors_come_before_heavy_imports():
    for words in (
        ["train", "--data", "mydatta", "--init", "x"],
        ["distill", "x", "--steps", "many"],
        ["eval", "--count", "0"],
    ):
        done = bare(
            "digseg_engine.cli", *words, hidden=("torch.nn",)
        )  # importing torch itself would end in another message
        assert done.returncode == 2 and f"{words[-2] if words[0] != 'train' else '--data'}" in done.stderr, done.stderr


def test_without_a_runtime_segmenting_says_what_to_install(bundle, tmp_path):
    picture = ROOT / "examples" / "aerial.png"
    words = ["segment", str(picture), "-p", "road", "-b", str(bundle), "-o", str(tmp_path / "out")]
    done = bare("digseg_engine.cli", *words, hidden=(*HEAVY, "onnxruntime", "openvino", "tensorrt"))
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1 and '[cpu]"' in done.stderr


def test_the_advice_is_true_for_how_the_project_was_installed(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert extras.install_line("cpu") == 'pip install -e ".[cpu]"'
    monkeypatch.chdir(tmp_path)
    assert extras.install_line("cpu") == f'pip install -e "{ROOT}[cpu]"'
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "digseg_engine" / "extras.py"))
    monkeypatch.setattr(extras, "_installed_from", lambda: f"file://{tmp_path}/digseg.whl")
    assert extras.install_line("cpu") == f'pip install "digseg-engine[cpu] @ file://{tmp_path}/digseg.whl"'


def test_every_extra_exists_and_lists_what_its_commands_import():
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.EXTRAS) <= set(declared)
    for extra, modules in extras.EXTRAS.items():
        text = " ".join(declared[extra] + (declared["train"] if "digseg-engine[train]" in declared[extra] else []))
        for module in modules:
            named = {"skimage": "scikit-image", "OpenSSL": "pyopenssl"}
            assert named.get(module, module.replace("_", "-")) in text, (
                extra,
                module,
            )


def test_a_package_that_is_there_but_broken_is_not_called_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"x needs the package onnxruntime, which is not installed; run: pip"):
        extras.require("x", "cpu")
    assert extras.missing_package(ImportError("libcudart.so.12: cannot open shared object file", name="numpy")) == ""
    assert extras.missing_package(ModuleNotFoundError("No module named 'numpy.gone'", name="numpy.gone")) == ""
