"""What the command line accepts and refuses, shapes in trtexec's spelling, targets and their scripts: no model needed."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import run_command

from digseg_engine.errors import InputError, UsageError
from digseg_engine.runtime.profile import Profile, Range, make_profile, parse_shapes
from digseg_export.plan_builder import BuildOptions
from digseg_export.request import Request
from digseg_export.targets import TARGETS, build_script, find_target, memory_budget

FULL = "image_encoder.image:1x3x256x320,mask_decoder.text_keys:5x3x4x16x16"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp7"}, "unknown precision 'fp7'"),
        ({"format": "engine"}, "unknown format 'engine'; expected one of onnx, tensorrt, tensorrt-rtx, all"),
        ({"target": "jetson-nano"}, "unknown target 'jetson-nano'; expected one of jetson-orin"),
        ({"target": "jetson-orin", "precision": "fp8"}, "its tensor cores have no fp8"),
        ({"precision": "fp32", "calibration": Path("x")}, "--calibration does not apply: fp32 measures nothing"),
        ({"precision": "int8", "auto_islands": True}, "--auto-islands does not apply: int8 has no float32 islands"),
        ({"precision": "bf16", "islands": "kinds"}, "--islands does not apply: ranges are measured for fp16 only"),
        ({"islands": "none"}, "unknown --islands 'none'"),
        ({"workspace": 512}, "--workspace does not apply: it is for building an engine; add --format all or --target"),
        ({"builder_level": 0}, "--builder-optimization-level does not apply"),
        ({"timing_cache": Path("t"), "target": "desktop"}, "--timing-cache does not apply: no engine is built"),
        ({"target": "desktop", "format": "all"}, "--target does not apply"),
        ({"format": "tensorrt-rtx", "timing_cache": Path("t")}, "TensorRT-RTX times no kernels when it builds"),
        ({"format": "tensorrt-rtx", "builder_level": 5}, "TensorRT-RTX times no kernels when it builds"),
        ({"compute_capability": "89"}, "--compute-capability does not apply: it names the GPUs of a TensorRT-RTX plan"),
        ({"engines": Path("e"), "format": "all"}, "--engines does not apply"),
        (
            {"bundle": Path("b")},
            "--bundle does not apply: a ready bundle is signed, its engines are built or its page or repository is written; add",
        ),
        ({"bundle": Path("b"), "target": "desktop"}, "--target does not apply: a ready bundle has no script added"),
        ({"site": Path("s")}, "--site does not apply: it is the folder of a page; add --target web"),
        ({"target": "desktop", "web_runtime": Path("r")}, "--web-runtime does not apply: it is what a page runs on"),
        (
            {"triton_device": "gpu"},
            "--triton-device does not apply: it is of a repository for Triton Inference Server; add",
        ),
        ({"triton_backend": "python"}, "--triton-backend does not apply: it is of a repository"),
        ({"triton_instances": 1}, "--triton-instances does not apply: it is of a repository"),
        (
            {"triton_repository": Path("t"), "bundle": Path("b"), "format": "tensorrt"},
            "--triton-repository does not apply: the engines of a ready bundle are built by themselves",
        ),
        ({"triton_repository": Path("t"), "layout": "diffusers"}, "--triton-repository does not apply"),
        ({"target": "web", "layout": "diffusers"}, "--format or --target does not apply"),
        ({"target": "web", "workspace": 512}, "--workspace does not apply: it is for building an engine"),
        ({"target": "desktop", "builder_level": 9}, "--builder-optimization-level is 9; expected 0 to 5"),
        ({"target": "desktop", "workspace": 0}, "--workspace is 0; expected 1 or more MiB"),
        ({"workspace": 0}, "--workspace does not apply"),
        ({"target": ""}, "unknown target ''"),
        ({"imgsz": ""}, "--imgsz is ''; expected pixels"),
        ({"min_shapes": ""}, "--minShapes: unknown input ''"),
        ({"batch": 0, "opt_shapes": FULL}, "--batch and --min/opt/maxShapes both set shapes"),
        ({"imgsz": "big"}, "--imgsz is 'big'; expected pixels such as 512, or HEIGHTxWIDTH"),
        ({"batch": 0}, "--batch is 0"),
        ({"imgsz": "64", "opt_shapes": FULL}, "--imgsz and --min/opt/maxShapes both set shapes"),
        (
            {"opt_shapes": "image:1x3x64x64"},
            "--optShapes: unknown input 'image'; expected one of text_encoder.token_ids",
        ),
        ({"max_shapes": "image_encoder.image:1x3x64"}, "expected 4 sizes Bx3xHxW"),
        ({"min_shapes": "image_encoder.image:1x4x64x64"}, "has 4 where the model has 3"),
        ({"opt_shapes": "mask_decoder.token_mask:5x16,presence.text_keys:4x3x4x16x16"}, "K is given as 5 and 4"),
        ({"opt_shapes": "mask_decoder.encoding:1x40x16x20"}, "mask_decoder.encoding follows from image_encoder.image"),
        ({"opt_shapes": "segmenter.image:1x3x64x64"}, "unknown input 'segmenter.image'; expected one of"),
        ({"atol": -1.0}, "--atol is -1.0"),
        ({"min_iou": 1.5}, "--min-iou is 1.5"),
    ],
)
def test_what_does_not_apply_is_refused_with_the_reason(options, words):
    with pytest.raises(UsageError) as caught:
        Request(**options).check()
    assert words in str(caught.value)


def test_what_applies_is_accepted():
    for options in ({}, {"precision": "int8", "calibration": Path("x")}, {"precision": "bf16", "auto_islands": True},
                    {"islands": "kinds"}, {"target": "jetson-orin", "workspace": 512, "builder_level": 0},
                    {"format": "all", "timing_cache": Path("t")}, {"opt_shapes": FULL},
                    {"format": "tensorrt-rtx", "compute_capability": "75", "engines": Path("e"), "workspace": 64},
                    {"format": "tensorrt", "bundle": Path("b")},
                    {"imgsz": "64x96", "batch": 2}):  # fmt: skip
        Request(**options).check()
    limits = Request(atol=0.5, rtol=0.1, min_iou=0.9).limits()
    assert (limits.absolute, limits.relative, limits.iou) == (0.5, 0.1, 0.9)
    assert Request(precision="int8").limits().absolute is None


@pytest.mark.parametrize("level", range(6))
def test_every_builder_level_is_the_one_that_was_asked_for(level):
    built = Request(format="all", builder_level=level, workspace=1).build_options()
    assert (built.level, built.workspace_mib) == (level, 1)
    assert Request(format="all").build_options() == BuildOptions()
    assert memory_budget(TARGETS["desktop"], 100, 1, level).builder_level == level


def test_shapes_in_trtexecs_spelling_become_one_range_per_axis():
    assert parse_shapes(FULL, "--optShapes") == {"B": 1, "H": 256, "W": 320, "K": 5, "L": 16}
    ends = {"min_shapes": "image_encoder.image:1x3x64x64", "max_shapes": "image_encoder.image:4x3x512x512"}
    request = Request(opt_shapes=FULL, **ends)
    profile = request.profile(128, 16)
    assert profile.ranges["H"] == Range(64, 256, 512) and profile.ranges["B"] == Range(1, 1, 4)
    assert profile.ranges["K"] == Range(5, 5, 5) and profile.ranges["K"].static
    sizes = {"S": 3, "heads": 4, "d": 16, "M": 40, "s": 16}
    assert profile.shape(("B", 3, "H", "W"), "max", sizes) == (4, 3, 512, 512)
    assert profile.shape(("K", "S", "heads", "d", "L"), "opt", sizes) == (5, 3, 4, 16, 16)
    assert profile.shape(("B", "M", "H/s", "W/s"), "opt", sizes) == (1, 40, 16, 20)
    fixed = Request(imgsz="64x96", prompts=7).profile(128, 16)
    assert fixed.ranges == {"B": Range(1, 1, 1), "K": Range(7, 7, 7), "L": Range(8, 16, 77), "H": Range(64, 64, 64),
                            "W": Range(96, 96, 96)}  # fmt: skip
    assert Request().profile(128, 16) is None
    assert Profile.from_json(json.loads(json.dumps(fixed.to_json()))) == fixed
    assert Profile.from_json(dict.fromkeys("BKLHW", "dynamic")) is None


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (({"H": 64}, {"H": 32}, {"H": 128}), "expected min <= opt <= max"),
        (({"H": 72}, {"H": 72}, {"H": 72}), "multiple of the model's stride 16"),
        (({"H": 16}, {"H": 16}, {"H": 16}), "expected 32 to 8192"),
        (({"L": 78}, {"L": 78}, {"L": 78}), "expected 2 to 77"),
    ],
)
def test_impossible_profiles_are_refused(sizes, words):
    with pytest.raises(UsageError, match=words):
        make_profile(*sizes, 128, 16)


def test_a_request_outside_the_profile_names_the_axis_and_what_is_allowed():
    profile = make_profile({}, {}, {}, 128, 16)
    profile.check({"B": 1, "K": 16, "L": 77, "H": 128, "W": 128})
    with pytest.raises(InputError, match=r"17 prompts \(K\) are outside the profile .*: 1 to 16 allowed"):
        profile.check({"K": 17})
    with pytest.raises(InputError, match=r"2 pictures \(B\) .*: exactly 1 allowed"):
        profile.check({"B": 2})


@pytest.mark.parametrize("name", TARGETS)
def test_the_on_device_script_is_a_script_with_a_memory_budget(name, tmp_path):
    target = find_target(name, "fp16")
    budget = memory_budget(target, 100, None, None)
    assert 256 <= budget.workspace_mib <= 4096 and budget.free_mib == budget.workspace_mib + 300 + 1024
    assert (
        memory_budget(target, 100, 300, 1).workspace_mib == 300
        and memory_budget(target, 100, 300, 1).builder_level == 1
    )
    text = build_script(target, budget, make_profile({}, {}, {}, 128, 16), "fp16")
    (tmp_path / "build.sh").write_text(text)
    subprocess.run(["bash", "-n", str(tmp_path / "build.sh")], check=True)
    assert "not run by us yet" in text and f"--workspace {budget.workspace_mib}" in text and "K 1..16" in text


def test_the_script_stops_when_memory_is_short(tmp_path):
    budget = memory_budget(find_target("jetson-orin-nano", "int8"), 10**7, None, None)  # more than any machine has free
    (tmp_path / "build.sh").write_text(build_script(TARGETS["jetson-orin-nano"], budget, None, "int8"))
    done = subprocess.run(["bash", str(tmp_path / "build.sh")], capture_output=True, text=True)
    assert done.returncode == 1 and "MiB free" in done.stderr and "--workspace" in done.stderr


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_written_and_writes_nothing(nano_folder, tmp_path):
    command = (
        "digseg-export",
        str(nano_folder),
        "--precision",
        "int8",
        "--imgsz",
        "64",
        "--target",
        "jetson-orin",
        "--dry-run",
    )
    (tmp_path / "empty").mkdir()
    done = run_command(*command, "--json", cwd=tmp_path / "empty")
    preview = json.loads(done.stdout)
    assert done.returncode == 0 and preview["model"] == "nano" and preview["precision"] == "int8"
    assert preview["output"] == "nano-int8" and "build-jetson-orin.sh" in preview["files"]
    assert (
        preview["shapes"]["max"] == {"B": 1, "K": 16, "L": 77, "H": 64, "W": 64}
        and preview["limits"]["iou"] == Request(precision="int8").limits().iou
    )
    assert "nothing was written" in run_command(*command, cwd=tmp_path / "empty").stdout
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_engine_cannot_be_asked_for_where_tensorrt_is_missing(tmp_path):
    pytest.importorskip("onnx")
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        done = run_command("digseg-export", "--format", "tensorrt", cwd=tmp_path)
        assert done.returncode == 1 and "TensorRT cannot run here" in done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--imgsz", "500"), "expected a multiple of the model's stride"), (("-o", "extension"), "is not ours"),
     (("-o", "."), "the working directory"), (("--layout", "diffusers", "-o", "extension"), "missing or not ours")],
)  # fmt: skip
def test_a_dry_run_refuses_what_the_export_refuses(tmp_path, monkeypatch, capsys, options, words):
    pytest.importorskip("onnx")
    from digseg_engine.commands.main import run_command as run
    from digseg_export.cli import COMMAND

    monkeypatch.chdir(tmp_path)
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text('{"manifest_version": 3}')
    (tmp_path / "extension" / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match=words):
        run(COMMAND, COMMAND.name, [*options, "--dry-run"])
    assert [p.name for p in tmp_path.iterdir()] == ["extension"] and capsys.readouterr().out == ""


def test_every_run_exports_to_a_name_of_its_own():
    pytest.importorskip("onnx")
    from digseg_export.preflight import default_output

    assert default_output(None, "fp16") == Path("digseg-tiny-fp16")
    assert default_output(Path("runs/b200/checkpoint"), "int8") == Path("b200-int8")
    assert default_output(Path("runs/mine"), "fp16") == Path("mine-fp16")


def test_progress_in_a_pipe_is_one_line_for_every_step(capsys):
    from digseg_export.progress import StepTimer, shown

    with shown(quiet=False) as progress:
        timer = StepTimer(progress)
        timer.start("verify")
        timer.detail("objects")
        timer.detail("crops")
        timer.start("check graphs")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["verify", "check graphs"] and " s] " in lines[0]
    with shown(quiet=True) as progress:
        progress("verify")
    assert capsys.readouterr().err == ""
