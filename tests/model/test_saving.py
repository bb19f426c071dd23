"""A checkpoint on disk: whole or not at all, its files with the umask's mode, its tensors the same whatever their layout."""

import os
import stat

import pytest
import torch

from digseg_engine.errors import OutputError, UsageError
from digseg_engine.model.pretrained import check_target, load_checkpoint, save_checkpoint

MODULES = ("vae", "text_encoder", "reference", "student")


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def halves(checkpoint):
    return {name: tensor.half() for part in MODULES for name, tensor in getattr(checkpoint, part).state_dict().items()}


def test_tensors_of_any_layout_are_saved_as_they_are_read(nano, raw_tokenizer, tmp_path):
    before = {name: tensor.clone() for name, tensor in halves(nano).items()}
    for part in MODULES:
        module = getattr(nano, part).to(memory_format=torch.channels_last)
        for weight in module.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.t().contiguous().t()
        assert not all(weight.is_contiguous() for weight in module.parameters()), part
    save_checkpoint(nano, raw_tokenizer.to_str(), tmp_path / "saved")
    after = halves(load_checkpoint(tmp_path / "saved"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_and_folders_have_the_mode_that_the_umask_gives(nano, raw_tokenizer, tmp_path, umask, file, folder):
    old = os.umask(umask)
    try:
        save_checkpoint(nano, raw_tokenizer.to_str(), tmp_path / "saved")
    finally:
        os.umask(old)
    for path in (tmp_path / "saved", *(tmp_path / "saved").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_whatever_ends_the_writing_no_half_checkpoint_is_left(nano, raw_tokenizer, tmp_path, there, failure):
    folder = tmp_path / "saved"
    if there:
        save_checkpoint(nano, raw_tokenizer.to_str(), folder)
    before = everything(tmp_path)

    def fails(room):
        assert (room / "student" / "model.safetensors").is_file()
        raise failure

    with pytest.raises(
        KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OutputError, match=""
    ) as caught:
        save_checkpoint(nano, raw_tokenizer.to_str(), folder, fails)
    assert everything(tmp_path) == before and folder.exists() == there
    if isinstance(failure, OSError):
        assert f"cannot write {folder}: No space left on device; what was there is as before" in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_disk_that_takes_no_more_is_one_line(nano, raw_tokenizer, tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*saved: .*free the place or choose another$"):
            save_checkpoint(nano, raw_tokenizer.to_str(), tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


def test_an_older_checkpoint_is_replaced_whole(nano, raw_tokenizer, tmp_path):
    folder = tmp_path / "saved"
    assert not check_target(folder)
    save_checkpoint(nano, raw_tokenizer.to_str(), folder, lambda room: (room / "training").mkdir())
    (folder / "quality.json").write_text("{}")  # measured with the older weights
    assert check_target(folder)
    save_checkpoint(nano, raw_tokenizer.to_str(), folder)
    assert not (folder / "quality.json").exists() and not (folder / "training").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("files", "words"), [(["thesis.txt"], "it has no digseg.json"), (["digseg.json", "thesis.txt"], "holds thesis.txt")]
)
def test_what_is_not_ours_is_refused_and_stays(nano, raw_tokenizer, tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=words):
        save_checkpoint(nano, raw_tokenizer.to_str(), tmp_path)
    assert everything(tmp_path) == dict.fromkeys(files, b"mine")
