"""Pictures: every ordinary format is read as a person sees it; everything else is one clear error."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from digseg_engine.errors import InputError
from digseg_engine.images import as_rgb, fit, fitted_size, read_image, unfit

RED, BLUE = (200, 30, 40), (20, 60, 220)


@pytest.fixture
def picture():
    """Red left half, blue right half, 24 rows x 40 columns."""
    array = np.zeros((24, 40, 3), np.uint8)
    array[:, :20], array[:, 20:] = RED, BLUE
    return array


def close(a, b, tolerance=2):
    assert a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats(picture, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    close(read_image(path), picture, 0)


def test_palette_grey_and_jpeg(picture, tmp_path):
    Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    close(read_image(tmp_path / "p.png"), picture, 8)
    Image.fromarray(picture).convert("L").save(tmp_path / "l.png")
    grey = read_image(tmp_path / "l.png")
    assert grey.shape == picture.shape and np.array_equal(grey[..., 0], grey[..., 2])
    Image.fromarray(picture).save(tmp_path / "j.jpg", quality=97)
    close(read_image(tmp_path / "j.jpg")[:, 2:16], picture[:, 2:16], 8)


def test_cmyk(picture, tmp_path):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "c.jpg", quality=97)
    close(read_image(tmp_path / "c.jpg")[:, 2:16], picture[:, 2:16], 12)


def test_alpha_is_composited_over_white(picture, tmp_path):
    alpha = np.full((24, 40, 1), 255, np.uint8)
    alpha[:12], alpha[12:18] = 0, 128
    Image.fromarray(np.concatenate([picture, alpha], 2)).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png")
    assert (got[:12] == 255).all() and np.array_equal(got[18:], picture[18:])
    close(got[12:18, :20], np.broadcast_to(np.array([228, 143, 148], np.uint8), (6, 20, 3)))
    Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "t.png", transparency=0)
    assert (read_image(tmp_path / "t.png") == 255).any()


def test_sixteen_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "d.png")
    got = read_image(tmp_path / "d.png")
    close(got[..., 1], (ramp / 257 + 0.5).astype(np.uint8), 1)
    assert got.min() == 0 and got.max() == 255


def test_sixteen_bit_colour(tmp_path):
    header = struct.pack(">IIBBBBB", 16, 8, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 51400, 7710, 10280) * 16

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    (tmp_path / "rgb16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    close(read_image(tmp_path / "rgb16.png")[0, 0], np.array(RED, np.uint8))


def test_exif_rotation_is_applied(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "r.png", exif=exif)
    close(read_image(tmp_path / "r.png"), np.rot90(picture, -1), 0)


def broken_files(folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    files = {
        "cut.png": (data[: len(data) // 2], "damaged or cut short"),
        "empty.png": (b"", "empty"),
        "notes.png": (b"just some text", "not a picture"),
        "vector.svg": (b"<svg></svg>", "not a picture"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    return {name: word for name, (_, word) in files.items()}


def test_broken_files_are_named(tmp_path):
    for name, word in broken_files(tmp_path).items():
        with pytest.raises(InputError, match=word) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not found"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="not a file"):
        read_image(tmp_path)


def test_too_small_and_too_large_pictures_are_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(InputError, match=r"1x1 pixels; expected at least 8x8"):
        read_image(tmp_path / "dot.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="81 million pixels"):
        read_image(tmp_path / "bomb.png")


def test_arrays_and_pillow_pictures(picture):
    assert as_rgb(picture) is picture
    close(as_rgb(Image.fromarray(picture).convert("RGBA")), picture, 0)
    for wrong in (picture.astype(np.float32), picture[..., :2], picture[0], 7, None):
        with pytest.raises(InputError, match="uint8 array"):
            as_rgb(wrong)


def test_fit_keeps_proportions_and_pads_to_the_stride(picture):
    canvas = fit(picture, longer=80, stride=16)
    assert canvas.pixels.shape == (1, 3, 48, 80) and canvas.content == (48, 80) and canvas.original == (24, 40)
    tall = fit(np.ascontiguousarray(picture.transpose(1, 0, 2)[:, :13]), longer=64, stride=16)
    assert tall.pixels.shape == (1, 3, 64, 32) and tall.content == (64, 21)
    assert np.array_equal(tall.pixels[0, :, :, 21], tall.pixels[0, :, :, 20])
    red = canvas.pixels[0, :, 5, 5]
    assert np.allclose(red, np.array(RED) / 127.5 - 1, atol=1e-6) and canvas.pixels.dtype == np.float32
    assert fitted_size(1000, 3, 100) == (100, 1)


def test_unfit_puts_masks_back_where_they_were(picture):
    canvas = fit(picture, longer=80, stride=32)  # 48 x 80 content on 64 x 96
    assert canvas.pixels.shape[-2:] == (64, 96)
    logits = np.full((2, 32, 48), -5, np.float32)
    logits[0, :24, :20] = 5  # the red half of the content, at half resolution
    logits[1, 24:] = 5  # padding only
    full = unfit(logits, canvas)
    assert full.shape == (2, 24, 40)
    assert np.array_equal(full[0] > 0, np.broadcast_to(np.arange(40) < 20, (24, 40)))
    assert not (full[1] > 0).any()
