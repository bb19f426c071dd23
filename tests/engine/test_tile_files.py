"""Files of a picture in tiles: all or nothing, in places of every kind, and what their JSON says."""

import json

import numpy as np
import pytest
from test_tiles import Brightness, asker, picture, run

from digseg_engine.errors import InputError, OutputError, UsageError
from digseg_engine.runtime.labels import Rules
from digseg_engine.runtime.large import open_windows
from digseg_engine.runtime.record import About
from digseg_engine.runtime.strips import NpyFile
from digseg_engine.runtime.tiles import Tiling, segment_tiles


class Stopped(Brightness):
    """Raises at the call after the `last` one."""

    def __init__(self, error, last):
        super().__init__()
        self.error, self.last = error, last

    def decode(self, encoding, keys, values, token_mask):
        if self.calls == self.last:
            raise self.error
        return super().decode(encoding, keys, values, token_mask)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("damaged")])
def test_nothing_is_left_of_tiles_that_were_not_finished(tmp_path, error):
    for _ in range(2):  # into a fresh folder, and beside an earlier result, which stays as it is
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(type(error)):
            run(picture(300, 300), tmp_path, Stopped(error, 12))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        run(picture(300, 300), tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def full(self, *_):
        written.append(self.path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(NpyFile, "write", full)
    with pytest.raises(OutputError, match=r"t\.\w+\.npy: No space left on device") as caught:
        run(picture(300, 300), tmp_path)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "x" / "t.labels.npy").mkdir(parents=True)
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "t.json").write_text('{"version": "5.5", "shapes": []}')  # an annotation of another tool
    for folder in ("taken", "x", "y"):
        with pytest.raises(OutputError, match=folder) as caught:
            run(picture(80, 80), tmp_path / folder)
        assert "\n" not in str(caught.value)
    assert "shapes" in (tmp_path / "y" / "t.json").read_text() and len(list((tmp_path / "y").iterdir())) == 1
    assert (tmp_path / "x" / "t.labels.npy").is_dir() and len(list((tmp_path / "x").iterdir())) == 1


def test_the_threshold_moves_the_masks_of_tiles(tmp_path):
    rgb = picture(100, 140)
    about = About("m", "d", "b", 64, Rules(threshold=0.6))
    result = segment_tiles(open_windows(rgb), asker(2), ("a", "b"), Tiling(64, 0.25), tmp_path, "t",
                           ("overlay", "labels", "masks"), about)  # fmt: skip
    usual = run(rgb, tmp_path / "usual", prompts=2)
    assert (np.asarray(result.areas) < np.asarray(usual.areas)).all() and result.areas[0] > 0
    assert np.load(result.files[3]).any(0).sum() == (result.label_map > 0).sum()
    body = json.loads(result.files[1].read_text())
    assert (body["threshold"], body["label_rule"], body["model"]) == (0.6, "strongest", {"name": "m", "sha256": "d"})
    assert body["files"] == {"labels": "t.labels.npy", "overview": "t.overview.png", "masks": "t.masks.npy"}


def test_masks_of_an_earlier_run_go_when_a_new_one_has_none(tmp_path):
    run(picture(80, 80), tmp_path)
    run(picture(80, 80), tmp_path, masks=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.labels.npy", "t.overview.png"]


@pytest.mark.parametrize("kinds", [("masks",), ("labels",), ("overlay", "masks"), ("json",)])
def test_only_what_is_asked_for_is_written_and_the_figures_are_the_same(tmp_path, kinds):
    rgb = picture(100, 140)
    usual = run(rgb, tmp_path / "usual", prompts=2)
    for _ in range(2):  # a second run replaces the first
        some = segment_tiles(open_windows(rgb), asker(2), ("p0", "p1"), Tiling(64, 0.25), tmp_path / "some", "t", kinds)
    ours = {"masks": "t.masks.npy", "labels": "t.labels.npy", "overlay": "t.overview.png", "json": "t.json"}
    expected = {ours[kind] for kind in (*kinds, "json")}
    assert {path.name for path in (tmp_path / "some").iterdir()} == expected == {path.name for path in some.files}
    assert some.areas == usual.areas and some.scores == usual.scores
    for name in expected - {"t.json"}:
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "usual" / name).read_bytes()
    if "labels" not in kinds:
        with pytest.raises(UsageError, match="no label map was written"):
            _ = some.label_map


def test_a_run_that_was_killed_before_its_json_is_simply_run_again(tmp_path):
    """An array of ours is known by the length of its head, which any reader takes; one of somebody else's stays."""
    run(picture(300, 300), tmp_path, masks=False)
    (tmp_path / "t.json").unlink()
    labels = tmp_path / "t.labels.npy"
    whole = np.load(labels, mmap_mode="r")
    assert whole.shape == (300, 300) and whole.offset == labels.stat().st_size - whole.nbytes == 1088
    run(picture(300, 300), tmp_path, masks=False)
    again = np.load(labels)
    assert (tmp_path / "t.json").is_file()
    (tmp_path / "t.json").unlink()
    np.save(labels, again)
    with pytest.raises(OutputError, match="was not written by this program"):
        run(picture(300, 300), tmp_path, masks=False)
    assert labels.stat().st_size == 128 + again.nbytes
