"""The house rules that a machine can hold: import direction, module and function size, names that are taken."""

import ast
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
              "digseg_engine.commands", "digseg_engine.console", "digseg_engine.extras", "digseg_engine.__init__")  # fmt: skip

NEVER = {  # which packages of ours a package never imports, not even inside a function
    "data": ("worlds", "training", "evaluation", "runtime", "commands"),
    "runtime": ("worlds", "training", "commands"),
    "training": ("commands",),
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
        assert not hits(at_load, HEAVY | {"digseg_engine.model", "digseg_engine.training", "digseg_export"})
    if module.startswith("digseg_engine.model"):
        assert not hits(everywhere, {"digseg_engine.training", "digseg_engine.runtime", "digseg_export"})
    if module in ("digseg_engine.errors", "digseg_engine.contract", "digseg_engine.files"):
        assert not hits(everywhere, {"digseg_engine.runtime", "digseg_engine.bundle", "digseg_engine.model"})
    for package, forbidden in NEVER.items():
        if module.startswith(f"digseg_engine.{package}"):
            assert not hits(everywhere, {f"digseg_engine.{name}" for name in forbidden})


@pytest.mark.parametrize("module", MODULES)
def test_sizes_and_headers(module):
    path = MODULES[module]
    text = path.read_text()
    assert len(text.splitlines()) <= 300, f"{path} has {len(text.splitlines())} lines, at most 300"
    tree = ast.parse(text)
    assert text == "" or ast.get_docstring(tree), f"{path} needs a header that says what it is"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            limit = 90 if any("triton.jit" in ast.unparse(d) for d in node.decorator_list) else 60
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= limit, f"{path}:{node.lineno} {node.name} has {length} lines, at most {limit}"


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

    assert sorted(digseg_engine.__all__) == ["DigsegError", "Engine", "Segmentation", "__version__"]


def test_every_package_is_packaged():
    tomllib = pytest.importorskip("tomllib")

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(base).parts)
             for package, base in SOURCES.items() for path in (base / package).rglob("__init__.py")}  # fmt: skip
    assert listed == found


WRITES_ITSELF = {  # module: why its files need no `replacing` of their own
    "digseg_engine.runtime.strips": "fills a file that `replacing` gave",
    "digseg_engine.training.state": "a folder that is renamed when whole",
    "digseg_engine.training.log": "adds a line to the log",
    "digseg_engine.data.batches": "a sparse cache, mapped",
    "digseg_export.external_data": "a folder that is renamed when whole",
    "digseg_export.few_step": "a folder that is renamed when whole",
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
