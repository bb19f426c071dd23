"""Tiles: every pixel once, seams blended, memory that follows the tile, the same answer from every kind of file."""

import io
import itertools
import json

import numpy as np
import pytest
from nano_models import AsItIs
from PIL import Image

from digseg_engine import Engine
from digseg_engine.errors import InputError, UsageError
from digseg_engine.images import read_image
from digseg_engine.runtime import large, tiles
from digseg_engine.runtime.blending import Ring, positions, ramp
from digseg_engine.runtime.chunks import ChunkedRunner
from digseg_engine.runtime.labels import box
from digseg_engine.runtime.large import open_windows
from digseg_engine.runtime.presence import Asker, Gate
from digseg_engine.runtime.tiles import Tiling, segment_tiles

PROMPTS = ["red circle", "water", "a tree"]


class Brightness(AsItIs):
    """A made-up model: logit k of a 2 x 2 cell is the red value of the cell minus a threshold, plus an offset that is
    another one in every tile, so that seams show."""

    name, detail = "brightness", "brightness"

    def __init__(self, offset=0.0):
        self.offset, self.calls = offset, 0

    def decode(self, encoding, keys, values, token_mask):
        self.calls += 1
        image = encoding
        red = image[:, :1].reshape(len(image), 1, image.shape[2] // 2, 2, image.shape[3] // 2, 2).mean((3, 5))
        thresholds = np.linspace(-0.6, 0.6, len(keys), dtype=np.float32)[None, :, None, None]
        return (red - thresholds + self.offset * (self.calls % 2)).astype(np.float32)


def picture(height, width):
    """A smooth field with all values, and noise of a cell's size."""
    y, x = np.mgrid[0:height, 0:width]
    field = np.sin(x / 37) + np.cos(y / 23) + 0.3 * np.sin((x + y) / 5)
    rgb = np.repeat((127.5 + 55 * field)[..., None], 3, 2)
    return rgb.clip(0, 255).astype(np.uint8)


def run(rgb, folder, backend=None, tile=64, overlap=0.25, prompts=3, masks=True, **options):
    names = tuple(f"p{k}" for k in range(prompts))
    kinds = ("overlay", "labels", "masks") if masks else ("overlay", "labels")
    return segment_tiles(
        open_windows(rgb), asker(prompts, backend), names, Tiling(tile, overlap, **options), folder, "t", kinds
    )


def asker(prompts, backend=None, gate=Gate(None, 2)):  # noqa: B008
    """So many prompts of the made-up model."""
    keys = np.zeros((prompts, 1), np.float32)
    return Asker(ChunkedRunner(backend or Brightness()), (keys, keys, np.ones((prompts, 8), np.bool_)), gate, 16)


class SeenInSome(Brightness):
    """Presence says that only bright tiles have the prompt, which is everywhere in them."""

    def presence(self, encoding, keys, values, token_mask):
        return np.where(encoding.mean((1, 2, 3))[:, None] > 0, 1.0, -1.0) * np.ones((1, len(keys)), np.float32)

    def decode(self, encoding, keys, values, token_mask):
        return np.full((len(encoding), len(keys), encoding.shape[2] // 2, encoding.shape[3] // 2), 6.0, np.float32)


def test_a_tile_without_a_thing_does_not_cut_it_off_in_its_neighbour(tmp_path):
    rgb = np.zeros((64, 96, 3), np.uint8)
    rgb[:, 33:] = 255  # of the left tile (0 to 64) a little less than half, of the right one (32 to 96) almost all
    done = segment_tiles(
        open_windows(rgb), asker(1, SeenInSome(), Gate(0.0, 2)), ("p0",), Tiling(64, 0.5), tmp_path, "t"
    )
    row = np.asarray(done.label_map)[32] > 0
    assert not row[:40].any() and row[48:].all()  # they vote alike at 48, and what one sees there stands
    assert done.answers[0].there and done.answers[0].presence == pytest.approx(1 / (1 + np.exp(-1.0)))


def whole(rgb, prompts=3):
    """Label map of the made-up model on the whole picture at once."""
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    pixels = padded.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    keys = np.zeros((prompts, 1), np.float32)
    logits = Brightness().decode(pixels, keys, keys, keys > 0)[0]
    size = (padded.shape[1], padded.shape[0])
    full = np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in logits])
    full = full[:, :height, :width]
    return full > 0, np.where((full > 0).any(0), full.argmax(0) + 1, 0)


@pytest.mark.parametrize("shape", [(64, 64), (65, 300), (301, 64), (257, 203), (40, 30), (500, 33)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_where_tiles_agree_the_result_is_that_of_the_whole_picture(tmp_path, shape, overlap, monkeypatch):
    monkeypatch.setattr(tiles, "COLUMNS", 96)
    rgb = picture(*shape)
    result = run(rgb, tmp_path, overlap=overlap)
    masks, labels = whole(rgb)
    assert result.label_map.shape == shape and result.shape == shape
    assert (result.label_map == labels).mean() > 0.999
    found = np.load(result.files[3], mmap_mode="r")
    assert found.dtype == np.bool_ and (found == masks).mean() > 0.999
    assert np.allclose(result.areas, found.mean((1, 2)), atol=1e-6)
    body = json.loads(result.files[1].read_text())
    assert body["tiles"] == {"count": result.tiles, "side": 64, "overlap": overlap}
    assert [mask["prompt"] for mask in body["masks"]] == ["p0", "p1", "p2"]
    for mask, wanted in zip(found, body["masks"]):
        assert wanted["box"] == box(mask) and wanted["pixels"] == mask.sum()


def edges(labels):
    """Share of label changes at every column border, [W - 1]."""
    return (labels[:, 1:] != labels[:, :-1]).mean(0)


def test_no_seam_is_left_where_tiles_disagree(tmp_path):
    rgb = picture(256, 1024)
    seams = [64 * i - 1 for i in range(1, 16)]
    cut = edges(run(rgb, tmp_path / "cut", Brightness(0.3), overlap=0).label_map)
    blended_result = run(rgb, tmp_path / "blended", Brightness(0.3), overlap=0.5)
    blended = edges(blended_result.label_map)
    elsewhere = np.median(np.delete(cut, seams))
    assert cut[seams].mean() > 3 * elsewhere  # the test sees seams where there are some
    ends = sorted({p * 2 + d for p in positions(512, 32, 16) for d in (0, 64)} - {0, 1024})
    at_ends = blended[np.array(ends) - 1]
    assert at_ends.mean() < 1.3 * blended.mean()


def test_tiles_can_be_worked_at_another_size(tmp_path):
    rgb = picture(300, 200)
    small = run(rgb, tmp_path, tile=128, size=32)  # one logit covers 8 x 8 pixels
    assert small.label_map.shape == (300, 200)
    assert (small.label_map == whole(rgb)[1]).mean() > 0.85


def test_positions_cover_and_stay_close():
    for length in range(1, 400, 7):
        for tile, step in ((32, 24), (32, 32), (32, 16), (31, 23)):
            found = positions(length, tile, step)
            assert found[0] == 0 and found[-1] == max(0, length - tile)
            assert all(0 < b - a <= step for a, b in itertools.pairwise(found))


def test_ramps_are_positive_and_symmetric():
    for tile, overlap in ((32, 8), (32, 16), (7, 3), (32, 0)):
        weights = ramp(tile, overlap)
        assert weights.min() > 0 and weights.max() <= 1 and np.array_equal(weights, weights[::-1])


def test_the_ring_blends_and_forgets():
    ring = Ring(6, 10, 2)
    one = np.ones((4, 5), np.float32)
    ring.add(3, 1, np.stack([one, 2 * one]), one)
    ring.add(3, 3, np.stack([5 * one, 8 * one]), 3 * one)
    mean = ring.mean(range(3, 7), 1, 8)
    assert mean.shape == (2, 4, 7) and np.allclose(mean[0, 0], [1, 1, 4, 4, 4, 5, 5])
    ring.clear(range(9, 13))
    ring.add(9, 0, np.stack([one, one]), one)
    assert np.allclose(ring.mean(range(9, 13), 0, 5), 1)
    ring.close()


@pytest.fixture
def files(tmp_path):
    rgb = picture(150, 210)
    np.save(tmp_path / "a.npy", rgb)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(rgb).save(tmp_path / "deflated.tif", compression="tiff_deflate")
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    return rgb


def test_every_file_gives_the_same(files, tmp_path):
    want = run(files, tmp_path / "want").label_map
    kinds = {
        "a.npy": large.RawFile,
        "a.tif": large.RawFile,
        "deflated.tif": large.SegmentedTiff,
        "a.png": large.InMemory,
    }
    for name, kind in kinds.items():
        assert isinstance(open_windows(tmp_path / name), kind)
        assert np.array_equal(run(tmp_path / name, tmp_path / name.replace(".", "-")).label_map, want), name


def test_windows_past_the_border_repeat_it(files, tmp_path):
    for windows in (open_windows(tmp_path / "a.npy"), open_windows(files)):
        got = windows.read(100, 180, 64, 64)
        assert np.array_equal(got[:50, :30], files[100:, 180:]) and (got[50:] == got[49]).all()


def test_files_that_cannot_be_streamed_say_what_to_do(tmp_path, monkeypatch, files):
    np.save(tmp_path / "grey.npy", np.zeros((50, 50), np.uint8))
    with pytest.raises(InputError, match=r"holds uint8 \[50, 50\]; expected uint8 \[H, W, 3\]"):
        open_windows(tmp_path / "grey.npy")
    (tmp_path / "broken.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"NumPy array|cut short"):
        open_windows(tmp_path / "broken.npy")
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", "10_000")
    with pytest.raises(InputError, match=r"must be decoded whole; save it as an RGB TIFF in tiles"):
        open_windows(tmp_path / "a.png")
    open_windows(tmp_path / "a.tif").close()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"tile": 40}, "multiple of 16"), ({"overlap": 0.7}, "0 to 0.5"), ({"tile": 96, "size": 64}, "whole ratio"),
     ({"tile": 16}, "from 32")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        run(picture(100, 100), tmp_path, **options)


@pytest.mark.slow
def test_memory_follows_the_tile_not_the_picture(tmp_path, monkeypatch):
    """Peak of Python's and NumPy's allocations for 16 times the pixels; strips and overview made small for the test."""
    import tracemalloc

    monkeypatch.setattr(tiles, "COLUMNS", 128)
    monkeypatch.setattr("digseg_engine.runtime.strips.OVERVIEW", 128)
    peaks = []
    for side in (512, 2048):
        np.save(tmp_path / f"{side}.npy", picture(side, side))
        tracemalloc.start()
        run(tmp_path / f"{side}.npy", tmp_path / str(side), tile=128)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


def test_the_engine_in_tiles(nano_models, tmp_path):
    rgb = picture(130, 200)
    with Engine.load(nano_models.fp32, "onnxruntime") as engine:
        result = engine.segment_tiles(rgb, PROMPTS, tmp_path, "sky", tile=64)
        assert result.label_map.shape == (130, 200) and result.prompts == tuple(PROMPTS) and result.tiles == 3 * 4
        assert {path.name for path in result.files} == {"sky.labels.npy", "sky.json", "sky.overview.png"}
        assert Image.open(tmp_path / "sky.overview.png").size == (200, 130)
        one = engine.segment(rgb[:64, :64], PROMPTS, labels="strongest")  # the rule of tiles
        single = engine.segment_tiles(rgb[:64, :64], PROMPTS, tmp_path, "one", tile=64, masks=True)
        assert np.array_equal(np.load(single.files[3]), one.masks)
        assert np.array_equal(single.label_map, one.label_map) and np.allclose(single.scores, one.scores, atol=1e-5)
        with pytest.raises(UsageError, match="overlap"):
            engine.segment_tiles(rgb, PROMPTS, tmp_path, "bad", overlap=2)


LAYOUTS = {
    "tiles": {"tile": (64, 48)},
    "deflated tiles": {"tile": (64, 48), "compression": "zlib"},
    "deflated strips": {"rowsperstrip": 17, "compression": "zlib", "predictor": True},
    "strips": {"rowsperstrip": 31},
}


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiffs_are_read_in_pieces_as_they_are_decoded_whole(layout, orientation, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(3)
    tags = [] if orientation is None else [(274, "H", 1, orientation, True)]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(0, 255, (150, 211, 3), dtype=np.uint8), photometric="rgb", extratags=tags,
                     **LAYOUTS[layout])  # fmt: skip
    want = read_image(path)
    windows = open_windows(path)
    assert not isinstance(windows, large.InMemory) and windows.shape == want.shape[:2]
    for top, left in ((0, 0), (37, 90), (100, 20), (130, 140)):
        got = windows.read(top, left, 64, 80)
        inside = want[top : top + 64, left : left + 80]
        assert np.array_equal(got[: inside.shape[0], : inside.shape[1]], inside)
        assert (got[inside.shape[0] :, : inside.shape[1]] == inside[-1]).all()
    windows.close()


def encoded(pixels, compression):
    """A strip or tile as a file holds it, from Pillow's encoders."""
    body = io.BytesIO()
    if compression == "jpeg":
        Image.fromarray(pixels).save(body, "JPEG", quality=90)
        return body.getvalue()
    Image.fromarray(pixels).save(body, "TIFF", compression="tiff_lzw", tiffinfo={278: len(pixels)})
    with Image.open(body) as image:
        (place,), (size,) = image.tag_v2[273], image.tag_v2[279]
    return body.getvalue()[place : place + size]


def compressed_tiff(path, pixels, compression, tile, orientation):
    """A TIFF in LZW- or JPEG-compressed tiles or strips; JPEG with colours of half the resolution."""
    tifffile = pytest.importorskip("tifffile")
    down, across = tile
    strips = across == pixels.shape[1]  # the last one ends with the picture, tiles are whole
    below = 0 if strips else -len(pixels) % down
    padded = np.pad(pixels, ((0, below), (0, -pixels.shape[1] % across), (0, 0)), mode="edge")
    starts = [(y, x) for y in range(0, len(padded), down) for x in range(0, padded.shape[1], across)]
    pieces = [encoded(padded[y : y + down, x : x + across], compression) for y, x in starts]
    layout = {"rowsperstrip": down} if strips else {"tile": tile}
    colours = {"photometric": "ycbcr"} if compression == "jpeg" else {"photometric": "rgb"}
    tifffile.imwrite(path, iter(pieces), shape=pixels.shape, dtype=np.uint8, compression="zlib", **colours, **layout,
                     extratags=[(274, "H", 1, orientation, True)])  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:  # the pieces are not what it was told
        file.pages[0].tags["Compression"].overwrite({"lzw": 5, "jpeg": 7}[compression])
        if compression == "jpeg":
            file.pages[0].tags["YCbCrSubSampling"].overwrite((2, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tile", [(32, 48), (32, 210)], ids=["tiles", "strips"])
@pytest.mark.parametrize("compression", ["lzw", "jpeg"])
def test_lzw_and_jpeg_tiffs_are_read_in_pieces_without_another_package(
    compression, tile, orientation, tmp_path, monkeypatch
):
    path, rgb = tmp_path / "a.tif", np.asarray(Image.fromarray(picture(30, 42)).resize((210, 150)))
    compressed_tiff(path, rgb, compression, tile, orientation)
    want = read_image(path)
    shown = [rgb, rgb[:, ::-1], rgb[::-1, ::-1], rgb[::-1], rgb.swapaxes(0, 1), rgb[::-1].swapaxes(0, 1),
             rgb[::-1, ::-1].swapaxes(0, 1), rgb[:, ::-1].swapaxes(0, 1)][orientation - 1]  # fmt: skip
    assert np.abs(want.astype(int) - shown).mean() < (20 if compression == "jpeg" else 1e-9)
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", "5000")  # nothing is decoded whole
    windows = open_windows(path)
    assert windows.shape == want.shape[:2] and np.array_equal(windows.read(0, 0, *windows.shape), want)
    assert np.array_equal(windows.read(41, 23, 60, 70), want[41:101, 23:93])
    windows.close()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "YCbCr"])
def test_tiffs_of_pillow_are_read_as_pillow_reads_them(mode, compression, tmp_path):
    pytest.importorskip("tifffile")
    image = Image.fromarray(picture(100, 120)).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression, tiffinfo={278: 24})
    windows = open_windows(tmp_path / "a.tif")
    assert np.array_equal(windows.read(0, 0, 100, 120), read_image(tmp_path / "a.tif"))
    windows.close()


def test_what_neither_pillow_nor_tifffile_can_decode_is_decoded_whole_or_says_what_to_install(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    path, rgb = tmp_path / "a.tif", picture(100, 120)
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(32, 32), compression="zlib")
    monkeypatch.setattr(tifffile.TiffPage, "decode", property(lambda page: lambda *a, **k: 1 / 0))
    assert isinstance(open_windows(path), large.SegmentedTiff)
    monkeypatch.setattr(large, "segment_by_pillow", lambda *arguments: 1 / 0)
    whole_picture = open_windows(path)
    assert isinstance(whole_picture, large.InMemory) and np.array_equal(whole_picture.rgb, rgb)
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", "5000")
    with pytest.raises(
        InputError, match=r"DEFLATE, which neither Pillow nor tifffile alone reads in pieces; pip install imagecodecs"
    ):
        open_windows(path)


def test_a_picture_file_larger_than_the_limit_is_streamed(tmp_path, monkeypatch, files):
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", "5000")
    for name in ("a.npy", "a.tif"):
        windows = open_windows(tmp_path / name)
        assert np.array_equal(windows.read(0, 0, 150, 210), files), name
        windows.close()
