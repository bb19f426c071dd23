"""The saved state of a stage: tensors as safetensors, everything else as JSON, so that reading it can run no program.

    STAGE/state/step-00000500/          complete: written as `writing-...`, flushed, renamed; the last two are kept
        state.json                      format, step, the optimizer's counters, names and sizes of the files, and the fingerprint
                                        of the weights that do not train, which stand in no file
        model, average, optimizer       weights, averaged weights, moments (.safetensors), of those that train
        random-0                        random states of every process (.safetensors)
        best                            the averaged weights of the best validation so far, if there was one (.safetensors)

Rates, decays and the schedule are no state: they follow from the step and the settings of the command that goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from digseg_engine.console import note
from digseg_engine.crash_points import reached
from digseg_engine.errors import OutputError, TrainingError
from digseg_engine.files import flush, replacing
from digseg_engine.folders import settle
from digseg_engine.training.sharding import divided, gathered, like
from digseg_engine.words import counted

FORMAT = "digseg.state/1"
KEPT = 2
COUNTER = "step"  # of an optimizer's state, a number; everything else there is of its weight's shape
TENSORS, BEST = ("model", "average", "optimizer"), "best"
COMPLETE, PARTIAL = re.compile(r"step-(\d{8})"), re.compile(r"writing-\d{8}")
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, SafetensorError)


def save_state(
    accelerator: Accelerator, folder: Path, step: int, model: nn.Module, average: nn.Module, optimizer: Any,
    validation: Mapping[str, Any] | None = None, best: Path | None = None, frozen: str | None = None,
) -> None:  # fmt: skip
    """Write the state after `step` steps under `folder`; an older one goes only when this one is complete.

    validation: what its record must go on with (plain JSON); best: the file of the best weights, if there is one;
    frozen: see `fingerprint`. Called by every process. Raises TrainingError for weights that are not finite, OutputError
    for a full disk.
    """
    final, partial = folder / f"step-{step:08d}", folder / f"writing-{step:08d}"
    main = accelerator.is_main_process
    moments, counters = _split(optimizer.state_dict()["state"])
    how = divided(model)
    tensors = [gathered(each, main) for each in (trained(model), trained(average), moments)]
    if main:
        _refuse_broken_weights(tensors[0], step)
        _remove(folder, PARTIAL)
        _guarded(partial, lambda: partial.mkdir(parents=True))
        reached("state begun")
    accelerator.wait_for_everyone()
    _guarded(partial, lambda: _save_random(partial / f"random-{accelerator.process_index}.safetensors"))
    accelerator.wait_for_everyone()
    if main:
        if best is not None:
            _guarded(partial, lambda: link(best, partial / f"{BEST}.safetensors"))
        _guarded(partial, lambda: _fill(partial, final, step, accelerator, tensors, counters, how, validation, frozen))
        remove_older(folder)
    accelerator.wait_for_everyone()


def complete_states(folder: Path) -> list[Path]:
    """The complete states under `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if COMPLETE.fullmatch(path.name) and path.is_dir())


def remove_older(folder: Path) -> None:
    """Keep the KEPT newest states: after every save, and when a run goes on that was killed before it came to it."""
    for old in complete_states(folder)[:-KEPT]:
        shutil.rmtree(old)
        reached("older state removed")


def newest_state(folder: Path) -> Path | None:
    """The state to go on from; None where no save was ever completed.

    Raises TrainingError for a folder that holds something else, such as the pickled states of the first releases.
    """
    found = complete_states(folder)
    if found:
        return found[-1]
    foreign = [path.name for path in folder.iterdir() if not PARTIAL.fullmatch(path.name)] if folder.is_dir() else []
    if foreign:
        raise TrainingError(f"{folder} holds no state of this release; expected folders such as step-00000500, got "
                            f"{sorted(foreign)[0]}; finish the run with the release that began it, or start anew")  # fmt: skip
    return None


def step_of(state: Path | None) -> int:
    return 0 if state is None else int(state.name.removeprefix("step-"))


def load_state(
    accelerator: Accelerator,
    state: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: Any,
    frozen: str | None = None,
) -> int:
    """Put everything back as it was saved; returns the step to go on with. Raises TrainingError for a damaged state, and for one
    whose weights that do not train had another fingerprint than `frozen`."""
    try:
        body = json.loads((state / "state.json").read_text())
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}, expected {FORMAT!r}")
        for name, size in body["files"].items():
            if (state / name).stat().st_size != size:
                raise ValueError(f"{name} has {(state / name).stat().st_size} bytes, expected {size}")
        if body.get("frozen", frozen) != frozen:
            raise ValueError("it was trained on other weights than the run begins with now")
        put_trained(model, load_file(state / "model.safetensors"))
        put_trained(average, load_file(state / "average.safetensors"))
        moments = load_file(state / "optimizer.safetensors")
        optimizer.load_state_dict(_optimizer_state(optimizer, moments, body["optimizer"]))
        if accelerator.scaler is not None and body["scaler"]:
            accelerator.scaler.load_state_dict(body["scaler"])
        saved = sum(name.startswith("random-") for name in body["files"])
        if accelerator.process_index < saved:
            _load_random(state / f"random-{accelerator.process_index}.safetensors")
        if saved != accelerator.num_processes and accelerator.is_main_process:
            before, now = (counted(number, "process", "processes") for number in (saved, accelerator.num_processes))
            note("digseg", f"note: the state is of {before}, the run goes on in {now}: with as many pictures a step, but "
                           "not to the same bits")  # fmt: skip
        if body.get("divided", False) != divided(model) and accelerator.is_main_process:
            note("digseg", "note: the run goes on with its weights divided among the processes, or whole again, as they were not "
                           "before: the same training, but not to the same bits")  # fmt: skip
        return int(body["step"])
    except READ_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        older = [path.name for path in complete_states(state.parent) if path.name < state.name]
        way = f"delete it to go on from {older[-1]}" if older else "restore it, or start a new folder"
        raise TrainingError(f"state {state} cannot be read: {reason}; {way}") from error


def stored_validation(state: Path) -> dict[str, Any]:
    """What `save_state` was given as `validation`; empty for a state of a run without. Call it after `load_state`."""
    stored: dict[str, Any] = json.loads((state / "state.json").read_text()).get("validation") or {}
    return stored


def trained(model: nn.Module) -> dict[str, Tensor]:
    """A module's tensors without the weights that do not train."""
    fixed = _fixed(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in fixed}


def put_trained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the module what `trained` was, all of it. Raises RuntimeError for tensors that lack, or that it does not have."""
    held = model.state_dict()
    missing, unexpected = model.load_state_dict(
        {name: like(each, held.get(name)) for name, each in tensors.items()}, strict=False
    )
    if wrong := [*(set(missing) - _fixed(model)), *unexpected]:
        raise RuntimeError(f"{sorted(wrong)[0]} {'lacks' if wrong[0] in missing else 'is no weight of this stage'}")


def fingerprint(model: nn.Module) -> str | None:
    """SHA-256 over the weights that do not train, in the order of their names; None where all do."""
    fixed = sorted(_fixed(model))
    digest, weights = hashlib.sha256(), dict(model.named_parameters())
    for name in fixed:
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if fixed else None


def _fixed(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors from any device as a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        save_file(_plain(tensors), temporary, metadata)


def link(source: Path, target: Path) -> None:
    """`target` as another name of the file `source`, which takes no space; a copy where the file system has no such names."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def discard_states(folder: Path) -> None:
    """Remove the states of a run that begins anew."""
    _remove(folder, COMPLETE)
    _remove(folder, PARTIAL)


def _fill(
    partial: Path, final: Path, step: int, accelerator: Accelerator, tensors: Sequence[Mapping[str, Tensor]],
    counters: Mapping[str, Any], how: bool, validation: Mapping[str, Any] | None, frozen: str | None,
) -> None:  # fmt: skip
    for name, part in zip(TENSORS, tensors):
        _save_tensors(partial / f"{name}.safetensors", part)
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
    body = {"format": FORMAT, "step": step, "optimizer": counters, "scaler": scaler, "files": files, "divided": how}
    if validation is not None:
        body["validation"] = dict(validation)
    if frozen is not None:
        body["frozen"] = frozen
    (partial / "state.json").write_text(json.dumps(body, indent=2) + "\n")
    reached("state filled")
    settle(partial)
    reached("state flushed")
    if final.exists():  # saved by the run before a resume from an older state
        shutil.rmtree(final)
    partial.rename(final)
    reached("state renamed")
    if os.name == "posix":
        flush(final.parent)


def _split(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """An optimizer's state as tensors named "weight.name", and its plain numbers per weight."""
    tensors, numbers = {}, {}
    for weight, values in state.items():
        tensors.update({f"{weight}.{name}": value for name, value in values.items() if isinstance(value, Tensor)})
        numbers[str(weight)] = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    return tensors, numbers


def _optimizer_state(
    optimizer: Any, tensors: Mapping[str, Tensor], numbers: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the optimizer reads: the stored moments under its own present settings."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Any]] = {int(weight): dict(values) for weight, values in numbers.items()}
    for key, tensor in tensors.items():
        weight, _, name = key.partition(".")
        state[int(weight)][name] = tensor if name == COUNTER else like(tensor, weights[int(weight)])
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _save_random(path: Path) -> None:
    version, numbers, gauss = random.getstate()
    words: Any = np.random.get_state()
    plain = {
        "python": json.dumps([version, list(numbers), gauss]),
        "numpy": json.dumps([words[0], [int(word) for word in words[1]], *words[2:]]),
    }
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    _save_tensors(path, tensors, plain)


def _load_random(path: Path) -> None:
    with safe_open(path, "pt") as file:
        plain = file.metadata()
        torch.set_rng_state(file.get_tensor("torch"))
        if "cuda" in file.keys() and torch.cuda.is_available():  # noqa: SIM118 - it is no mapping
            torch.cuda.set_rng_state(file.get_tensor("cuda"))
    version, numbers, gauss = json.loads(plain["python"])
    random.setstate((version, tuple(numbers), gauss))
    kind, words, *more = json.loads(plain["numpy"])
    np.random.set_state((kind, np.array(words, np.uint32), *more))


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    save_file(_plain(tensors), path, metadata)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own as safetensors wants it; copied only where they have not."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        storage = held.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != held.numel() * held.element_size()
        seen.add(storage.data_ptr())
        plain[name] = held.clone() if shared else held
    return plain


def _refuse_broken_weights(weights: Mapping[str, Tensor], step: int) -> None:
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise TrainingError(f"weights {name} are not finite after step {step}: this state is not saved")


def _remove(folder: Path, names: re.Pattern[str]) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if names.fullmatch(path.name):
            shutil.rmtree(path)


def _guarded(path: Path, work: Any) -> None:
    try:
        work()
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; the state saved before "
                          "stays; free the place and go on with --resume") from error  # fmt: skip
