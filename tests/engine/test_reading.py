"""Files as cameras, scanners and satellites write them: read as well as they can be, or one error that names them; and what
is doubtful about them is said."""

import struct
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, features

from digseg_engine.data.turning import shown_shape, turned
from digseg_engine.errors import InputError, UsageError
from digseg_engine.images import as_picture, read_image, read_picture

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
BROKEN = {
    "resolution as raw bytes": (0x011A, 7, 4, b"72/1"),
    "resolution as text": (0x011A, 2, 3, b"72\0\0"),
    "pointer as text": (0x8769, 2, 3, b"ab\0\0"),
    "unit as text": (0x0128, 2, 3, b"ab\0\0"),
}


def exif(*entries):
    """EXIF bytes of (tag, type, count, value of 4 bytes), little endian."""
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return body + b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + b"\0\0\0\0"


@pytest.mark.parametrize("entry", BROKEN.values(), ids=BROKEN)
def test_a_photo_with_a_broken_exif_entry_is_read_and_turned(entry, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif(TURNED, entry), quality=95)
    Image.fromarray(PIXELS).save(tmp_path / "plain.jpg", quality=95)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), np.rot90(read_image(tmp_path / "plain.jpg"), -1))


def test_metadata_that_cannot_be_read_at_all_cost_nothing(tmp_path, monkeypatch):
    def broken(self):
        raise struct.error("unpack requires a buffer of 4 bytes")

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert np.array_equal(read_image(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_orientation_is_that_of_pillow(orientation, suffix, tmp_path):
    from PIL import ImageOps

    tags = Image.Exif()
    tags[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).save(path, exif=tags)
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(image)))


def odd_tiffs(folder):
    tifffile = pytest.importorskip("tifffile")
    grey = PIXELS[..., 0]
    write = tifffile.imwrite
    write(folder / "bands.tif", np.dstack([PIXELS, grey]), photometric="minisblack", planarconfig="contig")
    write(folder / "float-colour.tif", PIXELS.astype(np.float32) / 255, photometric="rgb")
    write(folder / "float-255.tif", grey.astype(np.float32), photometric="minisblack")
    write(folder / "negative.tif", grey.astype(np.int16) - 100, photometric="minisblack")
    return {"bands.tif": r"4 band\(s\) of 8 bits", "float-colour.tif": "32 bits, float",
            "float-255.tif": "expected 0..1", "negative.tif": "expected 0..65535"}  # fmt: skip


def test_odd_tiffs_are_named_with_the_true_reason(tmp_path):
    for name, reason in odd_tiffs(tmp_path).items():
        with pytest.raises(InputError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_what_is_doubtful_is_said(tmp_path):
    grey = PIXELS[..., 0].astype(np.uint16)
    Image.fromarray(grey * 16).save(tmp_path / "camera.png")
    picture = read_picture(tmp_path / "camera.png")
    assert "nearly black" in picture.notes[0] and "12-bit" in picture.notes[0] and "by 16" in picture.notes[0]
    Image.fromarray(grey * 257).save(tmp_path / "full.png")
    assert read_picture(tmp_path / "full.png").notes == ()
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "int.tif")
    picture = read_picture(tmp_path / "int.tif")
    assert np.array_equal(picture.pixels[..., 0], grey) and "taken as 8-bit" in picture.notes[0]
    first, second = Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second, second])
    picture = read_picture(tmp_path / "pages.tif")
    assert picture.notes == ("the first of 3 pages was read",) and np.array_equal(picture.pixels, PIXELS)


def test_no_number_is_said_or_refused(tmp_path):
    values = np.full((16, 16), 0.5, np.float32)
    values[0, :8] = np.nan
    values[1, 0] = np.inf
    Image.fromarray(values).save(tmp_path / "holes.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_picture(tmp_path / "holes.tif")
    assert picture.notes == ("3.5 % of the values are no finite numbers and are taken as 0",)
    assert (picture.pixels[0, :8] == 0).all() and (picture.pixels[1, 1:] == 128).all()
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(tmp_path / "nothing.tif")
    with pytest.raises(InputError, match=r"nothing.tif holds no finite number"):
        read_image(tmp_path / "nothing.tif")


def test_premultiplied_alpha_is_read():
    alpha = np.full((16, 16, 2), (100, 128), np.uint8)
    picture = Image.merge("LA", [Image.fromarray(alpha[..., 0].copy()), Image.fromarray(alpha[..., 1].copy())])
    assert np.array_equal(
        as_picture(picture.convert("La")).pixels, as_picture(picture.convert("La").convert("LA")).pixels
    )


def test_the_limit_is_ours_and_can_be_raised(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (15000, 14000)).save(path)  # more than Pillow's own guard lets through
    with pytest.raises(InputError, match=r"15000x14000 = 210 million pixels.*DIGSEG_MAX_PIXELS.*--tile") as caught:
        read_image(path)
    assert "damaged" not in str(caught.value)
    Image.new("L", (100, 100)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match=r"at most 0\.009 million"):
        read_image(tmp_path / "small.png", max_pixels=9000)
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", "9e3")
    with pytest.raises(InputError, match=r"at most 0\.009 million"):
        read_image(tmp_path / "small.png")
    assert read_image(tmp_path / "small.png", max_pixels=10_000).shape == (100, 100, 3)
    for wrong in ("many", "-3", "0"):
        monkeypatch.setenv("DIGSEG_MAX_PIXELS", wrong)
        with pytest.raises(UsageError, match="DIGSEG_MAX_PIXELS"):
            read_image(tmp_path / "small.png")


def test_more_pixels_than_pillow_allows_are_read_where_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # its guard, small for the test
    Image.new("RGB", (100, 100), "red").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (100, 100, 3)


def test_reading_leaves_the_warnings_of_other_threads_alone(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    before = list(warnings.filters)
    seen = []
    monkeypatch.setattr(warnings, "catch_warnings", lambda *a, **k: seen.append(threading.get_ident()))
    read_image(tmp_path / "a.png")
    assert not seen and warnings.filters == before


def test_readers_errors_of_every_kind_become_ours(tmp_path, monkeypatch):
    from PIL import PngImagePlugin

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    kinds = (RecursionError, MemoryError, KeyError, OverflowError, AttributeError, ZeroDivisionError, struct.error)
    for kind in kinds:

        def fail(self, *_, kind=kind):
            raise kind("from the reader")

        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
        with pytest.raises(InputError, match=r"a\.png") as caught:
            read_image(tmp_path / "a.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be decoded"):
        read_image(tmp_path / ("n" * 300 + ".png"))


def test_avif_is_read_and_heic_says_what_to_install(tmp_path, monkeypatch):
    import sys

    from PIL import features

    if features.check("avif"):
        Image.fromarray(PIXELS).save(tmp_path / "a.avif", quality=95)
        assert read_image(tmp_path / "a.avif").shape == PIXELS.shape
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"a\.heic is a HEIF or HEIC picture; .*pip install pillow-heif"):
        read_image(tmp_path / "a.heic")
    (tmp_path / "film.png").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 100)
    with pytest.raises(InputError, match="not a picture"):
        read_image(tmp_path / "film.png")


QUARTERS = np.kron([[[255, 255, 255], [200, 0, 0]], [[0, 160, 0], [0, 0, 0]]], np.ones((24, 32, 1))).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_heic_and_avif_are_turned_upright_once_and_so_is_their_size(suffix, orientation, tmp_path):
    """Both keep the turn in the file's own boxes (irot, imir), which their decoders apply or hand on as EXIF."""
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    tags = Image.Exif()
    tags[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(QUARTERS).save(path, exif=tags.tobytes(), quality=95)
    got, want = read_image(path), turned(QUARTERS, orientation)
    assert got.shape == want.shape == (*shown_shape(path), 3)
    assert np.abs(got.astype(int) - want).mean() < 4
