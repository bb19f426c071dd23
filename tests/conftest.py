"""Shared fixtures: a nano model of the real classes, the bundled model, and its exported bundle (made once per run)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import kept_traces
import pytest
from programs import run_program

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # begun in the background of a script: Ctrl-C would reach no program
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow", "tokenizers")
    return ", ".join(f"{name} {version(name)}" for name in names)


# Fixtures that export, compile or load the bundled model: minutes on two cores.
HEAVY_FIXTURES = {
    "bundle",
    "compiled",
    "folded",
    "installed",
    "library",
    "nano_models",
    "native",
    "native_bundle",
    "pico_folder",
    "tiny",
    "with_presence",
}


BUNDLE_FIXTURES = {"bundle", "native_bundle"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m quick`: every test that is not marked slow and needs no heavy fixture, for the daily loop.

    One test with the bundled model's bundle comes first and the others last, so that no worker waits while one exports it."""
    skipped = pytest.mark.skip(reason="before a release: set DIGSEG_TEST_SLOW=1")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
            if os.environ.get("DIGSEG_TEST_SLOW") != "1":
                item.add_marker(skipped)
        if not HEAVY_FIXTURES & set(getattr(item, "fixturenames", ())) and not item.get_closest_marker("slow"):
            item.add_marker("quick")
    asking = [item for item in items if BUNDLE_FIXTURES & set(getattr(item, "fixturenames", ()))]
    last = {id(item) for item in asking[1:]}
    items[:] = asking[:1] + [item for item in items if item not in asking[:1] and id(item) not in last] + asking[1:]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before all fixtures: see `kept_traces`."""
    base = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    folder = (base.parent if base.name.startswith("popen-") else base) / "traces"
    kept_traces.prepare(item.get_closest_marker("traces_anew") is not None, folder)


@pytest.fixture(scope="session")
def nano_preset():
    """Sizes so small that every test of a mechanism is quick; same classes, same code paths as the bundled model."""
    from digseg_engine.model.config import DigsegConfig, Preset, StudentConfig

    student = StudentConfig(width=16, heads=2, head_width=8, detail_width=8, upsample=2)
    return Preset(
        digseg=DigsegConfig(name="nano", image_size=64, pathway_heads=2, student=student),
        unet={
            "in_channels": 8, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2, "norm_num_groups": 4, "cross_attention_dim": 24, "use_linear_projection": True,
        },
        vae={
            "block_out_channels": (8, 8, 16), "down_block_types": ("DownEncoderBlock2D",) * 3, "layers_per_block": 1,
            "up_block_types": ("UpDecoderBlock2D",) * 3, "latent_channels": 4, "norm_num_groups": 4,
            "mid_block_add_attention": False,
        },
        text={
            "vocab_size": 704, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 77, "hidden_act": "gelu", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
    )  # fmt: skip


@pytest.fixture(scope="session")
def raw_tokenizer():
    from digseg_engine.worlds.vocabulary import train_tokenizer

    return train_tokenizer(704)


@pytest.fixture
def nano(nano_preset, raw_tokenizer):
    """A seeded, untrained checkpoint in evaluation mode."""
    from nano_models import build_nano

    return build_nano(nano_preset, raw_tokenizer)


@pytest.fixture
def nano_folder(nano, raw_tokenizer, tmp_path):
    """The nano checkpoint on disk."""
    from digseg_engine.model.pretrained import save_checkpoint

    save_checkpoint(nano, raw_tokenizer.to_str(), tmp_path / "nano")
    return tmp_path / "nano"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this run, filled by whichever worker comes first; the others wait for it."""
    from filelock import FileLock

    base = factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / name
    with FileLock(f"{folder}.lock"):
        if not Path(f"{folder}.made").exists():
            folder.mkdir()
            make(folder)
            Path(f"{folder}.made").touch()
    return folder


@pytest.fixture(scope="session")
def nano_models(nano_preset, raw_tokenizer, tmp_path_factory):
    """The nano checkpoint with its fp32 and fp16 bundles, exported once. DIGSEG_TEST_NANO names a folder of ready ones."""
    from nano_models import NanoModels, make_nano_models

    if ready := os.environ.get("DIGSEG_TEST_NANO"):
        folder = Path(ready)
    else:
        folder = made_once(
            tmp_path_factory, "nano-models", lambda room: make_nano_models(room, nano_preset, raw_tokenizer)
        )
    return NanoModels(*(folder / name for name in ("nano", "fp32", "fp16")))


@pytest.fixture(scope="session")
def with_presence(nano_preset, raw_tokenizer, tmp_path_factory):
    """A small checkpoint with a presence readout, and its bundle, exported once. DIGSEG_TEST_PRESENCE names a folder of ready
    ones."""
    from nano_models import PresenceModels, make_presence_models

    if ready := os.environ.get("DIGSEG_TEST_PRESENCE"):
        folder = Path(ready)
    else:
        folder = made_once(
            tmp_path_factory, "with-presence", lambda room: make_presence_models(room, nano_preset, raw_tokenizer)
        )
    return PresenceModels(folder / "checkpoint", folder / "bundle")


@pytest.fixture(scope="session")
def folded(with_presence, tmp_path_factory):
    """A vocabulary of the checkpoint with a readout folded, exported once. DIGSEG_TEST_FOLDED names a folder of ready ones."""
    from nano_models import FoldedModels, make_folded_models

    if ready := os.environ.get("DIGSEG_TEST_FOLDED"):
        folder = Path(ready)
    else:
        folder = made_once(tmp_path_factory, "folded", lambda room: make_folded_models(room, with_presence))
    names = (*(f"{prompt}!" for prompt in with_presence.prompts[:-1]), with_presence.prompts[-1])
    return FoldedModels(folder / "full", folder / "labels", with_presence.bundle, names)


@pytest.fixture(scope="session")
def pico_folder(nano_preset, raw_tokenizer, tmp_path_factory):
    """A checkpoint on disk that is exported in seconds."""
    from nano_models import build_nano, pico_preset

    from digseg_engine.model.pretrained import save_checkpoint

    folder = tmp_path_factory.mktemp("pico") / "pico"
    save_checkpoint(build_nano(pico_preset(nano_preset), raw_tokenizer), raw_tokenizer.to_str(), folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """No test reads or leaves backend verdicts in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIGSEG_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def usual_backends(request, monkeypatch):
    """`auto` chooses among the backends that tests know the speed of; OpenVINO, which compiles for seconds, is there for the
    tests that ask for `with_openvino`."""
    if "with_openvino" not in request.fixturenames:
        from digseg_engine.runtime.backends import openvino_backend

        monkeypatch.setattr(openvino_backend, "VARIANTS", {})


@pytest.fixture
def with_openvino():
    """A mark: this test wants OpenVINO among the backends."""


@pytest.fixture(scope="session")
def tiny():
    """The bundled checkpoint."""
    from digseg_engine.model.pretrained import load_checkpoint

    return load_checkpoint()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """The bundled model exported by scripts/demo.sh (`digseg-export --precision fp16`); shared by all workers of a run.

    DIGSEG_TEST_BUNDLE names one exported before, for the daily loop: an export takes minutes."""
    if ready := os.environ.get("DIGSEG_TEST_BUNDLE"):
        return Path(ready)

    def demo(room: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = run_command("bash", str(ROOT / "scripts" / "demo.sh"), str(room), cwd=room,
                           env={"DIGSEG_SKIP_INSTALL": "1", "PATH": path})  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (room / "demo.log").write_text(done.stdout)

    return made_once(tmp_path_factory, "exported", demo) / "digseg-tiny-fp16"


def run_command(*command: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands as a user does, from another directory."""
    environment = {**os.environ, "COLUMNS": "160", **(env or {})}
    program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
    return run_program([program, *command[1:]], cwd=cwd, env=environment)
