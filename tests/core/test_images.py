"""Reading images of every kind and the shared pre-processing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_images import huge_png, truncated_jpeg
from PIL import Image, ImageDraw
from reference import shared

from cats.core.errors import InputError
from cats.core.images import MIN_SIDE, normalise, preprocess, read_image, resize
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
