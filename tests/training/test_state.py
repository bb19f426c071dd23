"""Saved states: whatever ends a save, the one before stays; what cannot be read is refused; reading runs no program."""

import ast
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from small_stage import SETTINGS, Line, failing_at, fit, line_loss

import digseg_engine
from digseg_engine.errors import OutputError, TrainingError
from digseg_engine.training import state as states
from digseg_engine.training.interruption import TrainingInterruptedError
from digseg_engine.training.loop import train_stage


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


@pytest.fixture
def whole(tmp_path):
    """The weights of a run that nobody interrupted."""
    return fit(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, optimizer, capsys):
    whole = fit(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", failing_at(7, Killed), optimizer=optimizer)
    capsys.readouterr()
    assert torch.equal(fit(tmp_path / "cut", resume=True, optimizer=optimizer), whole)
    assert "line: going on at step 5 of 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("writer", "nth"), [("_save_tensors", 1), ("_save_tensors", 3), ("_save_random", 1), ("settle", 1)]
)
def test_a_kill_inside_a_save_loses_the_steps_since_the_save_before_and_no_more(
    tmp_path, monkeypatch, whole, writer, nth, capsys
):
    first, really, calls = tmp_path / "cut" / "state" / "step-00000005", getattr(states, writer), []

    def dying(*arguments):
        calls.extend([1] if first.is_dir() else [])  # the first save is left in peace
        if len(calls) == nth:
            raise Killed
        return really(*arguments)

    monkeypatch.setattr(states, writer, dying)
    with pytest.raises(Killed):
        fit(tmp_path / "cut")
    monkeypatch.undo()
    assert states.complete_states(first.parent) == [first]
    capsys.readouterr()
    assert torch.equal(fit(tmp_path / "cut", resume=True), whole)
    assert "going on at step 5 of 12" in capsys.readouterr().out


def test_a_kill_after_the_last_save_leaves_no_state_for_good(tmp_path, monkeypatch, whole):
    """There is no later save that would remove it: going on does."""

    def dying(folder):
        if len(states.complete_states(folder)) > states.KEPT:
            raise Killed

    monkeypatch.setattr(states, "remove_older", dying)
    with pytest.raises(Killed):
        fit(tmp_path / "cut")
    monkeypatch.undo()
    assert len(states.complete_states(tmp_path / "cut" / "state")) == states.KEPT + 1
    assert torch.equal(fit(tmp_path / "cut", resume=True), whole)
    assert len(states.complete_states(tmp_path / "cut" / "state")) == states.KEPT


def test_the_last_two_states_are_kept(tmp_path):
    fit(tmp_path, save_every=3)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-00000009", "step-00000012"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_of_a_state_have_the_mode_that_the_umask_gives(tmp_path, umask, mode):
    old = os.umask(umask)
    try:
        fit(tmp_path)
    finally:
        os.umask(old)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_a_state_is_saved_by_time_too(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, failing_at(4, Killed), save_minutes=0.0)
    assert states.step_of(states.newest_state(tmp_path / "state")) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, whole, number):
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterruptedError, match=r"saved after step 8 of 12; continue with .*--resume") as caught:
        fit(tmp_path / "cut", failing_at(7, lambda: os.kill(os.getpid(), number)))
    assert caught.value.exit_code == 128 + number and signal.getsignal(number) is before
    assert torch.equal(fit(tmp_path / "cut", resume=True), whole)


def test_a_second_signal_ends_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, failing_at(7, twice))


@pytest.mark.parametrize(
    ("file", "body", "words"),
    [
        ("model.safetensors", b"cut", "model.safetensors has 3 bytes, expected"),
        ("state.json", b"{", "Expecting property name"),
        ("state.json", b'{"format": "digseg.state/9"}', "format 'digseg.state/9'"),
        ("state.json", b"[]", "cannot be read"),
        ("average.safetensors", None, "average.safetensors"),
    ],
)
def test_a_damaged_state_is_refused_and_the_older_one_named(tmp_path, file, body, words):
    with pytest.raises(Killed):
        fit(tmp_path, failing_at(11, Killed))
    place = tmp_path / "state" / "step-00000010" / file
    place.unlink() if body is None else place.write_bytes(body)
    with pytest.raises(TrainingError, match="delete it to go on from step-00000005") as caught:
        fit(tmp_path, resume=True)
    assert words in str(caught.value)


def test_a_state_of_the_first_releases_is_refused(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "optimizer.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(TrainingError, match=r"holds no state of this release.*optimizer.bin"):
        fit(tmp_path, resume=True)


def test_planted_pickles_run_nothing(tmp_path):
    """The files that torch and accelerate would load by themselves are planted in a good state; one call would be enough."""
    flag = tmp_path / "ran"
    program = f"cposix\nsystem\n(S'touch {flag}'\ntR.".encode()
    with pytest.raises(Killed):
        fit(tmp_path / "run", failing_at(7, Killed))
    state = tmp_path / "run" / "state" / "step-00000005"
    for name in (
        "optimizer.bin",
        "scheduler.bin",
        "random_states_0.pkl",
        "custom_checkpoint_0.pkl",
        "optimizer.safetensors",
    ):
        kept = (state / name).read_bytes() if (state / name).is_file() else None
        (state / name).write_bytes(program)
        if kept is not None:
            sizes = json.loads((state / "state.json").read_text())
            sizes["files"][name] = len(program)
            (state / "state.json").write_text(json.dumps(sizes))
    with pytest.raises(TrainingError, match="cannot be read"):
        fit(tmp_path / "run", resume=True)
    assert not flag.exists()


def test_no_module_of_the_project_reads_pickles():
    """Not by name: `torch.load`, `pickle`, `load_state` and `save_state` of accelerate, numpy's `allow_pickle`."""
    package = Path(digseg_engine.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cPickle", "dill", "joblib", "shelve"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                forbidden = ("torch.load", "torch.save", "accelerator.load_state", "accelerator.save_state")
                assert called not in forbidden, f"{path}:{node.lineno}"
                allowed = [key for key in node.keywords if key.arg == "allow_pickle"]
                assert all(ast.unparse(key.value) == "False" for key in allowed), f"{path}:{node.lineno}"


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    def breaking(model, number):
        if number == 9:
            with torch.no_grad():
                model.layer.bias[1] = float("inf")
        return model(torch.ones(1, 3))[:, 0].sum() ** 2, {"x": 0.0}

    with pytest.raises(TrainingError, match="not finite after step 10"):
        fit(tmp_path, breaking)
    assert [path.name for path in states.complete_states(tmp_path / "state")] == ["step-00000005"]


def test_the_advice_after_a_loss_that_is_not_finite_is_followed_to_the_letter(tmp_path, capsys):
    def exploding(model, number):
        value, parts = line_loss(model, number)
        return value * float("nan" if number == 7 else 1), parts

    with pytest.raises(TrainingError, match=r"loss is nan.*--resume --override --set line\.learning_rate=0\.025$"):
        fit(tmp_path, exploding)
    with pytest.raises(TrainingError, match="learning_rate differ"):
        fit(tmp_path, resume=True, learning_rate=0.025)
    capsys.readouterr()
    fit(tmp_path, resume=True, override=True, learning_rate=0.025)
    assert "going on at step 5 of 12" in capsys.readouterr().out
    assert json.loads((tmp_path / "config-until-5.json").read_text())["learning_rate"] == 0.05
    assert json.loads((tmp_path / "config.json").read_text())["learning_rate"] == 0.025


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*state.*go on with --resume"):
        train_stage("line", Line(), line_loss, SETTINGS, tmp_path, resume=False)
