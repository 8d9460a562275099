"""Do broken files ever do more than be refused? Mutated inputs for every reader of files that somebody else made.

Each input must be read or refused with an error of :mod:`cats.core.errors`, within 10 s of CPU time and 1 GB of memory.
Readers run in processes of their own, so that one that dies is found, and the input that it died of is kept. To add a
reader, add it to :data:`READERS`.

Usage: python -m cats.benchmarks.studies.fuzz_readers [--count 20000] [--reader photo] [--output NAME.json]
"""

from __future__ import annotations

import io
import json
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from cats.assets import asset
from cats.benchmarks.record import describe_run, write_record
from cats.benchmarks.studies.label_file_readers import LABEL_READERS
from cats.benchmarks.studies.model_file_readers import MODEL_READERS
from cats.core.console import execute, new_app, note, stdout, table
from cats.core.errors import CatsError, InputError, VerificationError
from cats.core.images import image_size, quiet_pillow, read_image, read_mask
from cats.core.json_text import read_json
from cats.core.process import child_environment
from cats.core.tables import read_pairs, read_points

app = new_app()

SECONDS, MEGABYTES = 10.0, 1000
_NUMBERS = (0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 16, 1 << 24)
_WORDS = (
    *(b"0", b"-1", b"1e400", b"9" * 400, b"NaN", b"Infinity", b'"', b"\\ud800"),
    *(b"\0", b"[" * 200, b"{}", b",", b"\n"),
)


@dataclass(frozen=True)
class Reader:
    """What is fuzzed.

    Attributes:
        seeds: makes (suffix of the file, content) of some valid inputs.
        read: reads a file.
    """

    seeds: Callable[[], list[tuple[str, bytes]]]
    read: Callable[[Path], object]


def photo_seeds() -> list[tuple[str, bytes]]:
    """A photo of 48 x 40 pixels in all formats and modes that Pillow writes here."""
    photo = read_image(asset("astronaut.jpg")).resize((48, 40))
    deep = Image.fromarray((np.arange(48 * 40, dtype=np.uint16) * 34).reshape(40, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", photo, {"exif": exif}),
        ("JPEG", photo, {"progressive": True}),
        ("JPEG", photo.convert("CMYK"), {}),
        ("MPO", photo, {"save_all": True, "append_images": [photo]}),
        ("PNG", photo, {"exif": exif}),
        ("PNG", photo.convert("RGBA"), {}),
        ("PNG", photo.convert("P"), {"transparency": 3}),
        ("PNG", photo.convert("1"), {}),
        ("PNG", deep, {}),
        ("GIF", photo, {"save_all": True, "append_images": [photo.rotate(90)]}),
        ("WEBP", photo, {}),
        ("WEBP", photo.convert("RGBA"), {"lossless": True}),
        ("AVIF", photo, {}),
        ("HEIF", photo, {}),
        ("JPEG2000", photo, {}),
        ("BMP", photo, {}),
        ("TGA", photo, {"compression": "tga_rle"}),
        ("QOI", photo, {}),
        ("PPM", photo, {}),
        ("PPM", deep, {}),
        *(("TIFF", photo, {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        ("TIFF", deep, {}),
        ("TIFF", photo.convert("1"), {"compression": "group4"}),
    ]
    result = []
    for kind, image, options in kinds:
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind, **options)
        except (KeyError, OSError, ValueError):  # not written by this Pillow
            continue
        result.append((".png" if kind == "PNG" else ".img", buffer.getvalue()))
    return result


def read_photo(path: Path) -> None:
    """Read it in all ways."""
    refused = None
    for read in (image_size, read_mask, read_image):
        try:
            read(path)
        except CatsError as error:
            refused = error
    if refused is not None:
        raise refused


def table_seeds() -> list[tuple[str, bytes]]:
    """Tables of pairs as they are given to ``cats-run --pairs`` and to data sets."""
    return [
        (".csv", b"a,b\nx.jpg,y.jpg\n"),
        (".csv", b'a,b,points\nx.jpg,y.jpg,"1,2;3,4"\nz.jpg,y.jpg,"1,2,3,4;5,6,7,8"\n'),
        (".csv", "\ufeffa, b, points_a, points_b, category\r\nü.jpg, y.jpg, p.csv, q.json, cat\r\n".encode()),
    ]


def read_table(path: Path) -> None:
    """Read it and the points in its rows."""
    for row in read_pairs(path, keep_bad=True):
        try:
            row.read_points("points", "points_a")
            row.read_points("points_b")
        except InputError:
            continue


def points_seeds() -> list[tuple[str, bytes]]:
    """Points in all forms."""
    match = {"a": [1, 2], "b": [3.5, 4], "confidence": 0.5}
    return [
        (".csv", b"x,y\n1,2\n3.5,-4e1\n"),
        (".csv", b"1,2,3,4\n5,6,7,8\n"),
        (".json", b"[[1, 2], [3.5, -4e1]]"),
        (".json", json.dumps({"a": "x", "matches": [match, match]}).encode()),
    ]


READERS: dict[str, Reader] = {
    "photo": Reader(photo_seeds, read_photo),
    "table": Reader(table_seeds, read_table),
    "points": Reader(points_seeds, read_points),
    **{name: Reader(*parts) for name, parts in {**MODEL_READERS, **LABEL_READERS}.items()},
}
"""Name -> reader."""


def mutate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to eight random changes: bytes, numbers of both byte orders, words, cuts, repetitions, parts of others."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        size = len(result)
        # Headers are where most can go wrong.
        at = chance.randrange(min(size, chance.choice((32, 256, size or 1))) + 1)
        kind = chance.randrange(9)
        if kind == 0 and at < size:
            result[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < size:
            result[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            width, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
            number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            result[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 3:
            result[at:at] = chance.choice(_WORDS)
        elif kind == 4:
            del result[at : at + chance.choice((1, 2, 4, 16, 256))]
        elif kind == 5:
            part = result[at : at + chance.choice((1, 4, 16, 256))]
            result[at:at] = part * chance.choice((1, 2, 64))
        elif kind == 6:
            del result[chance.randrange(size + 1) :]
        elif kind == 7:
            other = chance.choice(others)
            place = chance.randrange(len(other) + 1)
            result[at : at + chance.choice((0, 16))] = other[place : place + chance.choice((4, 64, 1024))]
        elif numbers := list(re.finditer(rb"\d+", bytes(result[:4096]))):
            found = chance.choice(numbers)
            result[found.start() : found.end()] = str(chance.choice((*_NUMBERS, 10**30))).encode()
        if len(result) > 1 << 20:
            del result[1 << 20 :]
    return bytes(result)


def with_checksums(png: bytes) -> bytes:
    """A damaged PNG whose chunks have the checksums of what they now hold, so that decoding goes on."""
    result, at = bytearray(png), 8
    while at + 12 <= len(result):
        (length,) = struct.unpack(">I", result[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(result):
            break
        result[end : end + 4] = struct.pack(">I", zlib.crc32(result[at + 4 : end]))
        at = end + 4
    return bytes(result)


def fuzz_here(name: str, start: int, count: int, folder: Path) -> None:
    """In this process: inputs ``start`` .. ``count``; one JSON line for each thing found, and a last one with figures.

    The input at hand lies in ``folder``; input ``k`` depends on the reader's name and ``k`` alone.
    """
    warnings.simplefilter("ignore")
    quiet_pillow()
    reader = READERS[name]
    seeds = reader.seeds()
    contents = [content for _, content in seeds]
    refused, slowest = 0, 0.0
    for index in range(start, count):
        chance = random.Random(f"{name} {index}")
        suffix, seed = chance.choice(seeds)
        data = mutate(seed, contents, chance)
        if suffix == ".png" and chance.random() < 0.7:
            data = with_checksums(data)
        path = folder / f"{index}{suffix}"
        path.write_bytes(data)
        begin = time.process_time()
        found = None
        try:
            reader.read(path)
        except CatsError as error:
            refused += 1
            if isinstance(error, VerificationError) or "\n" in str(error):
                found = f"an error of more than one line: {error!r}"
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        seconds = time.process_time() - begin
        slowest = max(slowest, seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        if seconds > SECONDS:
            found = found or f"{seconds:.1f} s"
        if peak > MEGABYTES:
            found = found or f"{peak} MB"
        if found is not None:
            sys.stdout.write(json.dumps({"index": index, "found": found[:300], "file": path.name}) + "\n")
            sys.stdout.flush()
        else:
            path.unlink()
        if peak > MEGABYTES:
            break  # what comes later would be blamed for it
    figures = {"next": index + 1, "refused": refused, "slowest_s": round(slowest, 2), "peak_mb": peak}
    sys.stdout.write(json.dumps(figures) + "\n")


def fuzz(name: str, count: int, folder: Path, part: int = 2000) -> dict[str, Any]:
    """Fuzz one reader in processes of ``part`` inputs each.

    Returns:
        ``inputs``, ``refused``, ``slowest_s``, ``peak_mb`` and ``found``: what was neither read nor refused.
    """
    result: dict[str, Any] = {"inputs": count, "refused": 0, "slowest_s": 0.0, "peak_mb": 0, "found": []}
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    at = 0
    while at < count:
        command = [sys.executable, "-m", "cats.benchmarks.studies.fuzz_readers", "--reader", name]
        command += ["--count", str(min(at + part, count)), "--child", str(at), "--keep", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        result["found"] += [line for line in lines if "found" in line]
        figures = lines[-1] if lines and "next" in lines[-1] else None
        if figures is None:  # the process died
            left = sorted(int(path.stem) for path in place.iterdir() if path.stem.isdigit() and int(path.stem) >= at)
            index = left[-1] if left else at
            reason = f"the process ended with status {done.returncode}: {done.stderr[-200:]}"
            result["found"].append({"index": index, "found": reason})
            at = index + 1
            continue
        at = figures["next"]
        result["refused"] += figures["refused"]
        for key in ("slowest_s", "peak_mb"):
            result[key] = max(result[key], figures[key])
        note(f"{name}: {at} of {count}, {len(result['found'])} found")
    return result


def record(output: Path, results: dict[str, Any]) -> None:
    """Write results; those of other readers that a record holds already stay, with their date and machine."""
    described = describe_run("fuzz_readers", ("pillow", "torch", "numpy"))
    kept = read_json(output)["readers"] if output.exists() else {}
    where = {name: described.pop(name) for name in ("date", "machine")}
    fresh = {name: {**where, **result} for name, result in results.items()}
    limits = {"seconds": SECONDS, "megabytes": MEGABYTES}
    write_record(output, {**described, "limits": limits, "readers": {**kept, **fresh}})


@app.command()
def main_command(
    count: Annotated[int, typer.Option(help="Inputs of each reader.", min=1)] = 20_000,
    reader: Annotated[list[str] | None, typer.Option(help=f"{', '.join(READERS)}; repeatable. Default: all.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder that keeps what was found.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the record.", show_default=False)] = None,
    child: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Fuzz the readers; exit status 1 where something was neither read nor refused."""
    names = reader or list(READERS)
    if unknown := set(names) - set(READERS):
        raise InputError(f"no reader {', '.join(sorted(unknown))}: choose {', '.join(READERS)}")
    if child is not None:
        assert keep is not None  # the parent gives it
        return fuzz_here(names[0], child, count, keep)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            results[name] = fuzz(name, count, keep or Path(folder))
            if output is not None:
                record(output, results)
    columns = ["reader", "inputs", "refused", "found", "slowest s", "peak MB"]
    rows = [
        [name, *(str(part) for part in (r["inputs"], r["refused"], len(r["found"]), r["slowest_s"], r["peak_mb"]))]
        for name, r in results.items()
    ]
    stdout.print(table("mutated inputs", columns, rows))
    if any(found["found"] for found in results.values()):
        raise VerificationError("some inputs were neither read nor refused within the limits; see the record")
    return None


if __name__ == "__main__":
    execute(app)
