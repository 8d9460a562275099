"""Reading images of every kind and the shared pre-processing."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from bad_images import huge_png, truncated_jpeg
from PIL import Image, ImageDraw
from reference import shared

from cats.core.errors import InputError
from cats.core.image_files import count_scans
from cats.core.images import MIN_SIDE, image_size, normalise, preprocess, read_image, read_mask, resize
from cats.core.metadata import Preprocessing

RNG = np.random.default_rng(5)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


def test_preprocessing_is_bit_equal_to_the_torchvision_transform() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.open(shared("data", "photos", "pjreddie__darknet", "eagle.jpg")).convert("RGB")
    preprocessing = Preprocessing()
    reference = transforms.Compose(
        [
            transforms.Resize((256, 256), transforms.InterpolationMode.BILINEAR),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    result = preprocess(image, preprocessing)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, reference(image).numpy())


def test_preprocessing_takes_arrays_and_any_size() -> None:
    array = noise(90, 130)
    preprocessing = Preprocessing(size=(64, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    result = preprocess(array, preprocessing)
    assert result.shape == (3, 32, 64)
    np.testing.assert_array_equal(result, preprocess(Image.fromarray(array), preprocessing))
    small = resize(array, (64, 32))
    expected = (small.astype(np.float32) / 255 - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.3, 0.4])
    np.testing.assert_array_equal(normalise(small, preprocessing), expected.transpose(2, 0, 1))


def test_sources_give_the_same_image(tmp_path: Path) -> None:
    array = noise(40, 60)
    path = tmp_path / "image.png"
    Image.fromarray(array).save(path)
    for source in (path, str(path), Image.open(path), Image.fromarray(array), array, array[::-1][::-1]):
        np.testing.assert_array_equal(np.asarray(read_image(source)), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (60, 40), "blue")
    ImageDraw.Draw(upright).rectangle((0, 0, 29, 19), fill="red")  # red where the upper left corner belongs
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise(32, 48)).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert read_image(path).size == (48, 32)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("HSV", None)]
)
def test_modes_are_converted(tmp_path: Path, mode: str, suffix: str | None) -> None:
    picture = Image.new("RGB", (64, 48), (200, 30, 30)).convert(mode)
    source: Image.Image | Path = picture
    if suffix is not None:
        source = tmp_path / f"image.{suffix}"
        picture.save(source)
    result = read_image(source)
    assert result.mode == "RGB"
    expected = np.asarray(picture.convert("RGB"), np.int32)
    assert np.abs(np.asarray(result, np.int32) - expected).max() <= 8  # JPEG loses a little


def test_grey_arrays() -> None:
    grey = noise(30, 50, 1)
    for array in (grey, grey[..., 0]):
        np.testing.assert_array_equal(np.asarray(read_image(array)), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_over_white(tmp_path: Path, mode: str) -> None:
    array = np.zeros((32, 32, 4), np.uint8)
    array[:16] = (10, 10, 10, 255)
    image = Image.fromarray(array)
    path = tmp_path / "image.png"
    (image.quantize(8) if mode == "P" else image.convert(mode)).save(path)
    result = np.asarray(read_image(path))
    assert (result[16:] == 255).all()
    assert (result[:16] == 10).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    samples = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    path = tmp_path / "depth.png"
    Image.fromarray(samples).save(path)
    expected = np.rint(samples / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 0], expected)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(path))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((32, 32, 3), np.float32), "dtype float32"),
        (np.zeros((3, 32, 32), np.uint8), "transpose it to"),
        (np.zeros((32, 32, 5), np.uint8), r"shape \(32, 32, 5\)"),
        (np.zeros((0, 32, 3), np.uint8), "at least 16x16"),
        (np.zeros((1, 1, 3), np.uint8), "at least 16x16"),
        (Image.new("F", (32, 32)), "mode F"),
        (Image.new("I", (32, 32)), "mode I"),
        (Image.new("RGB", (MIN_SIDE - 1, 400)), "at least 16x16"),
        (7, "type int"),
    ],
)
def test_refused_images(array: object, text: str) -> None:
    with pytest.raises(InputError, match=text):
        read_image(array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("cut.jpg", truncated_jpeg(), "cut.jpg cannot be decoded: .*truncated"),
        ("text.jpg", b"this is no picture\n" * 20, "text.jpg is not an image"),
        ("empty.png", b"", "empty.png is not an image"),
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n", "drawing.eps is not an image"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=text):
        read_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.jpg: No such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(InputError, match="Is a directory"):
        read_image(tmp_path)


def test_a_huge_image_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(20000))
    script = (
        "import resource, sys\n"
        "from cats.core.images import read_image\n"
        "from cats.core.errors import InputError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_image(sys.argv[1])\n"
        "except InputError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    message, grown = done.stdout.splitlines()
    assert "too large" in message
    assert "huge.png" in message
    assert int(grown) < 50_000  # kB; decoded, the image would take 400 MB


def test_the_limit_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (100, 100)).save(path)
    with pytest.raises(InputError, match=r"100x100.*over the limit"):
        read_image(path, max_pixels=9_999)
    assert read_image(path, max_pixels=10_000).size == (100, 100)


RAMP = np.linspace(0, 65535, 4096).reshape(64, 64).round().astype(np.uint16)


def deep_png(samples: np.ndarray, key: tuple[int, ...] | None = None) -> bytes:
    """A PNG of 16-bit samples, (H, W) grey or (H, W, 3) RGB, with a transparent colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if samples.ndim == 2 else 2, 0, 0, 0)
    more = b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def grey_tiff(data: bytes, *, bits: int = 16, photometric: int = 1, **more: int) -> bytes:
    """A 64 x 64 TIFF of one strip, with more tags by number."""
    entries = {256: 64, 257: 64, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 64, 279: len(data)}
    entries.update({int(name[1:]): value for name, value in more.items()})
    entries[273] = 8 + 2 + len(entries) * 12 + 4
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + data


def test_sixteen_bit_grey_of_every_kind() -> None:
    right = np.rint(RAMP / 257).astype(np.uint8)
    keyed = right.copy()
    keyed[RAMP[3, 7] == RAMP] = 255
    pgm = b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes()
    twelve = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # two samples in three bytes
    pairs = twelve.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    for data, expected in (
        (deep_png(RAMP), right),
        (deep_png(RAMP, (65535,)), right),
        (deep_png(RAMP, (int(RAMP[3, 7]),)), keyed),
        (grey_tiff(RAMP.tobytes()), right),
        (grey_tiff(RAMP.tobytes(), photometric=0), 255 - right),
        (grey_tiff(packed.astype(np.uint8).tobytes(), bits=12), np.rint(twelve * (255 / 4095)).astype(np.uint8)),
        (pgm, right),
    ):
        np.testing.assert_array_equal(np.asarray(read_image(data))[..., 1], expected)


def test_the_transparent_colour_of_sixteen_bit_rgb() -> None:
    samples = np.zeros((32, 32, 3), np.uint16)
    samples[:16] = (1000, 40000, 9000)
    result = np.asarray(read_image(deep_png(samples, (1000, 40000, 9000))))
    assert (result[:16] == 255).all()
    assert (result[16:] == 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_from_the_header_is_that_of_the_image(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    Image.fromarray(noise(40, 60)).save(path, kind, exif=exif)
    assert image_size(path) == read_image(path).size == ((60, 40) if orientation < 5 else (40, 60))


def test_one_lazily_opened_image_in_several_threads(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise(900, 1200)).save(path, quality=95)
    expected = np.asarray(read_image(path))
    for _ in range(5):
        lazy, start = Image.open(path), threading.Barrier(4)
        results: list[object] = []

        def read(lazy: Image.Image = lazy, start: threading.Barrier = start, results: list = results) -> None:
            start.wait()
            results.append(np.asarray(read_image(lazy)))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert all(np.array_equal(result, expected) for result in results)


def test_postscript_never_reaches_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (read_image, image_size, read_mask, lambda file: read_image(Image.open(file))):
        with pytest.raises(InputError, match=r"is not (an image|read)"):
            read(path)
    assert not (tmp_path / "started").exists()


def test_tiles_larger_than_the_image_are_refused() -> None:
    with pytest.raises(InputError, match=r"64x64 in tiles of 3000000 pixels"):
        read_image(grey_tiff(RAMP.tobytes(), t322=3_000_000, t323=3_000_000))


def test_scans_of_a_jpeg_are_bounded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scans = count_scans(data)
    assert 5 < scans < 15
    assert count_scans(data + data) == scans  # what follows the image does not count
    last = data.rindex(b"\xff\xda")
    many = data[:-2] + data[last:-2] * 500 + data[-2:]
    assert count_scans(many) == scans + 500
    assert read_image(data, max_pixels=64 * 64).size == (64, 64)
    for source in (many, Image.open(io.BytesIO(many))):
        with pytest.raises(InputError, match=r"64x64 in \d+ scans"):
            read_image(source, max_pixels=64 * 64)


def test_a_large_file_of_a_small_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(path)
    with open(path, "r+b") as handle:
        handle.truncate(1 << 34)  # a sparse file
    with pytest.raises(InputError, match="over the limit of"):
        read_image(path)


def test_heic_is_read_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "photo.heic"
    named.write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    monkeypatch.setattr("cats.core.image_files.formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(InputError, match=r"pillow-heif is installed: pip install 'cats-toolkit\[heic\]'"):
        read_image(named)
    monkeypatch.undo()
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(named)
    result = read_image(named)
    assert result.size == image_size(named) == (64, 48)
    assert np.abs(np.asarray(result, int) - (200, 30, 30)).max() < 12


def test_a_draft_keeps_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise(800, 1000)).save(path)
    small = read_image(path, at_least=200)
    assert small.size == (250, 200)
    assert read_image(path, at_least=801).size == (1000, 800)
