"""The house rules that a machine can hold: import direction, module and function size, names that are taken."""

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"digseg_engine": ROOT, "digseg_export": ROOT / "export", "digseg_triton": ROOT / "triton_kernels"}
MODULES = {
    ".".join(path.relative_to(base).with_suffix("").parts): path
    for package, base in SOURCES.items()
    for path in sorted((base / package).rglob("*.py"))
}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "skimage", "matplotlib", "onnx", "onnxscript"}
TORCH_FREE = ("digseg_engine.contract", "digseg_engine.errors", "digseg_engine.files", "digseg_engine.bundle",
              "digseg_engine.images", "digseg_engine.text", "digseg_engine.runtime", "digseg_engine.cli",
              "digseg_engine.commands", "digseg_engine.console", "digseg_engine.model.folder",
              "digseg_engine.extras", "digseg_engine.hub", "digseg_engine.sharing", "digseg_engine.__init__")  # fmt: skip

NEVER = {  # which packages of ours a package never imports, not even inside a function
    "data": ("worlds", "training", "evaluation", "runtime", "commands"),
    "runtime": ("worlds", "training", "commands"),
    "training": ("commands",),
    "hub": ("runtime", "sharing", "serving", "model", "data", "worlds", "training", "evaluation", "commands"),
    "sharing": ("serving", "model", "data", "worlds", "training", "evaluation", "commands"),
    "worlds": ("training", "evaluation", "runtime", "commands"),
    "evaluation": ("training", "commands"),
    "training.objectives": ("training.recipes", "evaluation", "commands"),
    "model": ("data", "worlds", "training", "evaluation", "runtime", "commands"),
}


def imports(path: Path, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = list(tree.body) if top_level_only else list(ast.walk(tree))
    nodes += [inner for node in nodes if isinstance(node, (ast.If, ast.Try)) for inner in ast.walk(node)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                continue  # within its own package
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def hits(found: set[str], prefixes: tuple[str, ...] | set[str]) -> set[str]:
    return {name for name in found for prefix in prefixes if name == prefix or name.startswith(prefix + ".")}


@pytest.mark.parametrize("module", MODULES)
def test_import_direction(module):
    path = MODULES[module]
    everywhere, at_load = imports(path, False), imports(path, True)
    if module.startswith("digseg_triton"):
        assert not hits(everywhere, {"digseg_engine", "digseg_export"})
    if module.startswith("digseg_engine") and module != "digseg_engine.cli":
        assert not hits(everywhere, {"digseg_export"})
    if module.startswith(TORCH_FREE):
        light = {name for name in at_load if name.startswith("digseg_engine.model.folder")}
        assert not hits(at_load - light, HEAVY | {"digseg_engine.model", "digseg_engine.training", "digseg_export"})
    if module.startswith("digseg_engine.model"):
        assert not hits(everywhere, {"digseg_engine.training", "digseg_engine.runtime", "digseg_export"})
    if module in ("digseg_engine.errors", "digseg_engine.contract", "digseg_engine.files"):
        assert not hits(everywhere, {"digseg_engine.runtime", "digseg_engine.bundle", "digseg_engine.model"})
    for package, forbidden in NEVER.items():
        if module.startswith(f"digseg_engine.{package}"):
            assert not hits(everywhere, {f"digseg_engine.{name}" for name in forbidden})


@pytest.mark.parametrize("module", MODULES)
def test_headers(module):
    text = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(text)), f"{MODULES[module]} needs a header that says what it is"


LINES_OF_A_MODULE = 400  # where one idea is no longer likely; one that is longer for a reason may be
LINES_OF_A_FUNCTION = 80


def long_parts(text: str) -> list[str]:
    """What of a module is longer than advised: the module, and each of its functions (a kernel is one straight line)."""
    lines = len(text.splitlines())
    found = [f"the module has {lines} lines"] if lines > LINES_OF_A_MODULE else []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > LINES_OF_A_FUNCTION and not any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            found.append(f"{node.name} has {length} lines")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_sizes_are_advice(module):
    """Warns and never fails: a split that cuts an idea in two is worse than a long module."""
    for found in long_parts(MODULES[module].read_text()):
        warnings.warn(f"{module}: {found}; can a reader still see it as one idea?", stacklevel=1)


def test_what_is_long_is_found():
    assert long_parts("x = 1\n" * LINES_OF_A_MODULE) == long_parts("def f():\n" + "    x = 1\n" * 79) == []
    assert long_parts("x = 1\n" * (LINES_OF_A_MODULE + 1)) == ["the module has 401 lines"]
    assert long_parts("def f():\n" + "    x = 1\n" * LINES_OF_A_FUNCTION) == ["f has 81 lines"]


def test_no_assert_where_a_user_would_meet_it():
    for module, path in MODULES.items():
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)], module


def test_modules_are_not_named_after_what_they_import():
    names = {module.rsplit(".", 1)[-1] for module in MODULES}
    assert not names & {"onnx", "onnxruntime", "tensorrt", "torch", "triton", "tokenizers", "diffusers", "safetensors"}


def test_folders_never_shadow_other_peoples_packages():
    for folder in ("kernels", "triton_kernels", "export"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_the_public_names_are_the_promised_ones():
    import digseg_engine
    from digseg_engine import errors

    ours = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert sorted(digseg_engine.__all__) == sorted(
        ["Encoding", "Engine", "Quality", "Segmentation", "__version__", "register_backend", *ours]
    )
    assert all(
        getattr(digseg_engine, name) is not None and name in dir(digseg_engine) for name in digseg_engine.__all__
    )
    with pytest.raises(AttributeError, match="no attribute 'Engines'"):
        _ = digseg_engine.Engines


def test_importing_the_package_imports_nothing_heavy():
    """`import digseg_engine` is what every command and every program pays."""
    listed = "import sys, digseg_engine; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"numpy", "PIL", "tokenizers", "torch", "onnxruntime"} & set(done.stdout.split())


def test_every_package_is_packaged():
    tomllib = pytest.importorskip("tomllib")

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(base).parts)
             for package, base in SOURCES.items() for path in (base / package).rglob("__init__.py")}  # fmt: skip
    assert listed == found


WRITES_ITSELF = {  # module: why its files need no `replacing` of their own
    "digseg_engine.runtime.peak": "a switch of the system's, no file",
    "digseg_engine.runtime.strips": "fills a file that `replacing` gave",
    "digseg_engine.hub.client": "a part that the next try goes on with, renamed when its hash is right",
    "digseg_engine.training.state": "a folder that is renamed when whole",
    "digseg_engine.training.log": "adds a line to the log",
    "digseg_engine.data.batches": "a sparse cache, mapped",
    "digseg_export.external_data": "a folder that is renamed when whole",
    "digseg_export.kept_stages": "parts that count by their hashes, which are written last",
    "digseg_export.few_step_folder": "a folder that is renamed when whole",
    "digseg_export.parallel_trace": "writes to the null device",
}


def writes(tree: ast.AST) -> list[int]:
    """Lines that open a file for writing, or write one, outside of a `with replacing(...)`."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)
              and any("replacing(" in ast.unparse(item.context_expr) for item in node.items)]  # fmt: skip
    safe = {id(inner) for block in blocks for inner in ast.walk(block)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in safe:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        opens = name == "open" and any(set(mode) & set("wax") and set(mode) <= set("wax+bt") for mode in modes)
        texts = isinstance(node.func, ast.Attribute) and name in ("write_text", "write_bytes")
        draws = name == "savefig" or (name == "save" and {"format", "optimize"} & {word.arg for word in node.keywords})
        if opens or draws or (texts and ast.unparse(node.func.value) != "files"):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_files_are_written_by_the_one_atomic_writer(module):
    found = writes(ast.parse(MODULES[module].read_text()))
    assert bool(found) == (module in WRITES_ITSELF), f"{module} writes a file by itself at lines {found}"
