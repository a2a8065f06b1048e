"""What people call a picture, and what is not one: modes, orientation, frames, arrays, limits, messages."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from rapidetr.core.clock import StageClock
from rapidetr.core.errors import ImageError
from rapidetr.pixels.decode import Encoded, ImageLimits, decode, load_picture, read


def photo(height: int = 24, width: int = 36) -> np.ndarray:
    """Smooth RGB, different in every direction, so that a turn or a swap shows even after JPEG."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 200 * (x > width / 2) * (y < height / 3)], axis=2).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG", "MPO", "AVIF"])
def test_formats(format: str, tmp_path: Path) -> None:
    options = {"lossless": True} if format == "WEBP" else {"quality": 95}
    image = Image.fromarray(photo())
    path = tmp_path / "picture.bin"  # the name does not matter
    path.write_bytes(encoded(image.quantize(200) if format == "GIF" else image, format, **options))
    for source in (path, str(path), path.read_bytes()):
        picture = load_picture(source)
        assert picture.pixels.shape == (24, 36, 3)
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.flags.c_contiguous
        assert picture.source == (None if isinstance(source, bytes) else str(path))
        exact = format in ("PNG", "BMP", "TIFF", "PPM", "WEBP")
        # lossy formats and a palette of 200 colors change values, worst at the sharp edge; a swap changes the mean by 40
        assert np.abs(picture.pixels.astype(int) - photo()).mean() <= (0 if exact else 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(orientation: int, format: str) -> None:
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape[0] == (24 if orientation < 5 else 36)
    assert np.array_equal(load_picture(data).pixels, expected)
    assert np.array_equal(load_picture(Image.open(io.BytesIO(data))).pixels, expected)


def mode_images() -> dict[str, Image.Image]:
    image = Image.fromarray(photo())
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.arange(24 * 36, dtype=np.uint8).reshape(24, 36)))
    lab = PIL.ImageCms.buildTransform(PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB"), "RGB", "LAB")
    modes = {mode: image.convert(mode) for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "RGB")}
    return modes | {"LA": alpha.convert("LA"), "RGBA": alpha, "LAB": PIL.ImageCms.applyTransform(image, lab)}


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGB", "LA", "RGBA", "LAB"])
def test_modes_become_rgb_as_pillow_converts_them(mode: str) -> None:
    image = mode_images()[mode]
    assert image.mode == mode
    assert np.array_equal(load_picture(image).pixels, np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_not_blended() -> None:
    image = Image.new("RGBA", (4, 3), (200, 100, 50, 0))
    assert (load_picture(encoded(image, "PNG")).pixels == [200, 100, 50]).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255, 7])])
def test_a_palette_with_transparency_keeps_its_colors(transparency: int | bytes) -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 4, "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    pixels = load_picture(encoded(image, "PNG", transparency=transparency)).pixels
    assert pixels[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]


@pytest.mark.parametrize("transparency", [3, 200])
def test_gray_with_transparency_stays_as_it_is(transparency: int) -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    pixels = load_picture(encoded(Image.fromarray(gray), "PNG", transparency=transparency)).pixels
    assert np.array_equal(pixels, np.repeat(gray[:, :, None], 3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(format: str) -> None:
    deep = np.array([[0, 1, 128, 129, 257, 385, 386, 32768, 65406, 65407, 65535]], np.uint16)
    picture = load_picture(encoded(Image.fromarray(deep), format))
    assert picture.pixels[0, :, 0].tolist() == [round(v / 257) for v in deep[0].tolist()]
    assert (picture.pixels == picture.pixels[:, :, :1]).all()


def test_integer_and_float_gray() -> None:
    wide = Image.fromarray(np.array([[0, 257, 65535]], np.int32))
    assert load_picture(wide).pixels[0, :, 0].tolist() == [0, 1, 255]
    with pytest.raises(ImageError, match=r"^PIL image has values -1\.\.70000; expected 16 bits, 0\.\.65535; scale it$"):
        load_picture(Image.fromarray(np.array([[-1, 70000]], np.int32)))
    unit = load_picture(Image.fromarray(np.array([[0.0, 0.25, 1.0]], np.float32)))
    assert unit.pixels.dtype == np.float32
    assert unit.pixels[0, 1].tolist() == [0.25] * 3
    with pytest.raises(ImageError, match=r"^PIL image has values 0\.\.254; expected uint8 0\.\.255, or float in 0\.\.1$"):
        load_picture(Image.fromarray(np.array([[0.0, 254.0]], np.float32)))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(format: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert (load_picture(data).pixels == [250, 0, 0]).all()


def test_arrays() -> None:
    rgb = photo()
    assert np.shares_memory(load_picture(rgb).pixels, rgb)  # nothing is copied that need not be
    assert np.array_equal(load_picture(rgb[:, ::-1]).pixels, rgb[:, ::-1])
    assert load_picture(rgb[:, ::-1]).pixels.flags.c_contiguous
    assert np.array_equal(load_picture(np.dstack([rgb, rgb[:, :, 0]])).pixels, rgb)
    for gray in (rgb[:, :, 0], rgb[:, :, :1]):
        assert np.array_equal(load_picture(gray).pixels, np.repeat(rgb[:, :, :1], 3, axis=2))
    unit = rgb.astype(np.float64) / 255
    assert load_picture(unit).pixels.dtype == np.float32
    assert np.array_equal(load_picture(unit).pixels, unit.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_are_channels_first(dtype: torch.dtype) -> None:
    tensor = (torch.from_numpy(photo()).permute(2, 0, 1) / 255).to(dtype).requires_grad_()
    picture = load_picture(tensor)
    assert picture.pixels.dtype == np.float32
    assert picture.pixels.flags.c_contiguous
    assert np.array_equal(picture.pixels, tensor.detach().float().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), "array has shape [3, 20, 30]; expected [height, width, 3]; "
         "it looks like channels first: use array.transpose(1, 2, 0)"),
        (np.zeros((2, 20, 30, 3), np.uint8), "array has shape [2, 20, 30, 3]; expected [height, width, 3]"),
        (np.zeros((0, 20, 3), np.uint8), "array has shape [0, 20, 3]; expected [height, width, 3]"),
        (np.zeros((20, 30, 3), np.int64), "array is int64; expected uint8 0..255, or float in 0..1"),
        (np.zeros((20, 30, 3), bool), "array is bool; expected uint8 0..255, or float in 0..1"),
        (np.full((2, 2, 3), 255.0), "array has values 255..255; expected uint8 0..255, or float in 0..1"),
        (np.full((2, 2, 3), -0.5), "array has values -0.5..-0.5; expected uint8 0..255, or float in 0..1"),
        (np.full((2, 2, 3), np.nan), "array has values nan..nan; expected uint8 0..255, or float in 0..1"),
        (np.float32([[[0.5, 0.5, np.inf]]]), "array has values 0.5..inf; expected uint8 0..255, or float in 0..1"),
        (torch.zeros(1, 3, 4, 4), "tensor has shape [1, 3, 4, 4]; expected [3, height, width]; pass a batch as a list of pictures"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "tensor is torch.uint8; expected float in 0..1; divide by 255"),
        (torch.full((3, 2, 2), 2.0), "tensor has values 2..2; expected uint8 0..255, or float in 0..1"),
        (Image.new("RGB", (0, 5)), "PIL image is 5x0; expected at least one pixel"),
        (7, "got int; expected a path, an address, bytes, a PIL image, an RGB array or a tensor [3, height, width]"),
        (None, "got NoneType; expected a path, an address, bytes, a PIL image, an RGB array or a tensor [3, height, width]"),
        (b"", "image bytes is empty (0 bytes); copy or download it again"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_told_in_one_line(source: Any, message: str) -> None:
    with pytest.raises(ImageError) as problem:
        load_picture(source)
    assert str(problem.value) == message


def test_damaged_files_name_themselves(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(photo(200, 300)), "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        ImageError, match=r"cut\.jpg is damaged or cut off \(image file is truncated .*\); copy or export it again$"
    ) as problem:
        load_picture(path)
    assert "\n" not in str(problem.value)
    path.write_text("<html>not found</html>")
    with pytest.raises(
        ImageError, match=r"cut\.jpg is not a picture of a known format \(it begins with b'<html>no'\); expected JPEG, PNG, "
    ):
        load_picture(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"cut\.jpg is empty \(0 bytes\); copy or download it again$"):
        load_picture(path)
    path.write_bytes(data[:3])
    with pytest.raises(ImageError, match=r"cut\.jpg is damaged or cut off \("):
        load_picture(path)


def test_formats_that_start_other_programs_are_not_tried() -> None:
    with pytest.raises(ImageError, match=r"^image bytes is not a picture of a known format"):
        load_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    with pytest.raises(ImageError, match=r"^image bytes is not a picture of a known format"):
        load_picture(b"%PDF-1.7\n")


def png_of(height: int, width: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    message = "image bytes is 50000x40000, more than ImageLimits.max_pixels=179000000; make it smaller, or raise the limit if you trust it"
    with pytest.raises(ImageError) as problem:
        load_picture(png_of(50_000, 40_000))
    assert str(problem.value) == message


def test_the_limit_on_pixels_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit is global, warns at one value and raises at twice that; a limit of ours above it must work."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.fromarray(photo()), "PNG")
    assert load_picture(data).pixels.shape == (24, 36, 3)
    assert load_picture(data, ImageLimits(max_pixels=24 * 36)).pixels.shape == (24, 36, 3)
    for source in (data, Image.fromarray(photo())):
        with pytest.raises(ImageError, match=r"is 24x36, more than ImageLimits.max_pixels=863; "):
            load_picture(source, ImageLimits(max_pixels=24 * 36 - 1))
    assert PIL.Image.MAX_IMAGE_PIXELS == 100
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow warns and goes on
def test_metadata_that_cannot_be_read_do_not_hurt_the_picture() -> None:
    data = encoded(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40)
    assert load_picture(data).pixels.shape == (24, 36, 3)


def test_stages_are_timed_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(photo()), "PNG"))
    clock = StageClock(iter(range(10)).__next__)
    load_picture(path, clock=clock)
    assert clock.seconds == {"read": 1, "decode": 1}
    once = read(path)
    assert isinstance(once, Encoded)
    assert np.array_equal(decode(once).pixels, photo())


def test_decoding_does_not_need_torch() -> None:
    modules = ", ".join(f"rapidetr.pixels.{m}" for m in ("decode", "prepare", "select", "tiles"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
