"""ONNX Runtime for one kind of GPU, small enough to be carried.

    python -m cats.benchmarks.gpu.slim_ort onnxruntime_gpu-*.whl FOLDER

The provider's library holds machine code for six generations of GPUs, most of it for language models. What is not for
compute capability 9.0, and of that the attention, mixture-of-experts and 4-bit kernels, is taken out; the library keeps
its size and layout, with zeros in the gaps. A model that did need such a kernel would fail with "no kernel image is
available": narrow NOT_NEEDED then. Needs the package zstandard.
"""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import zstandard

CAPABILITY = 90
NOT_NEEDED = re.compile(
    rb"flash|fmha|Moe|_moe|moe_|attention_kernel|fpA_intB|mamba|fp4|Fp4|[Gg]rouped|GroupProblem|DqMma|cutlass|kernel_mha"
)
LEFT_OUT = ("onnxruntime/transformers/", "onnxruntime/tools/", "onnxruntime/datasets/")
MAGIC, HEADER = 0xBA55ED50, struct.Struct("<IHHQ")


def containers(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of what each container of machine code in a library (ELF) holds; its header is before that."""
    offset, entry, count, names = struct.unpack_from("<Q", data, 40) + struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQ", data, offset + i * entry) for i in range(count)]
    for name, _, _, _, start, size in sections:
        begin = sections[names][4] + name
        if data[begin : data.index(b"\0", begin)] != b".nv_fatbin":
            continue
        at = start
        while at + HEADER.size <= start + size:
            magic, _, header, length = HEADER.unpack_from(data, at)
            if magic == MAGIC:
                yield at + header, at + header + length
            at += header + length + -length % 8 if magic == MAGIC else 8


def images(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Begin, end, compute capability and content of each image (an ELF of NVIDIA's) of a container."""
    while begin < end:
        kind, _, head, padded, packed = struct.unpack_from("<HHIQI", data, begin)
        capability, plain = struct.unpack_from("<I", data, begin + 28)[0], struct.unpack_from("<Q", data, begin + 56)[0]
        body = data[begin + head : begin + head + (packed or padded)]
        if packed:
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=plain)
        if kind == 2:
            yield begin, begin + head + padded, capability, body
        begin += head + padded


def needed(capability: int, body: bytes) -> bool:
    """Whether an image stays."""
    if capability != CAPABILITY:
        return False
    kernels = set(re.findall(rb"\.text\.([A-Za-z0-9_$.]+)", body))
    return not kernels or 2 * sum(bool(NOT_NEEDED.search(k)) for k in kernels) <= len(kernels)


def slim(data: bytes) -> bytes:
    """The library with what is needed at the front of each container, and zeros behind it."""
    result, before, after = bytearray(data), 0, 0
    for begin, end in containers(data):
        kept = [data[a:b] for a, b, capability, body in images(data, begin, end) if needed(capability, body)]
        length = sum(map(len, kept))
        result[begin:end] = b"".join(kept) + bytes(end - begin - length)
        struct.pack_into("<Q", result, begin - 8, length)  # the last field of the header
        before, after = before + end - begin, after + length
    print(f"machine code: {before / 2**20:.1f} MiB, kept {after / 2**20:.1f} MiB", flush=True)
    if not after:
        raise SystemExit("nothing was kept: this wheel has no code for compute capability 9.0")
    return bytes(result)


def main() -> None:
    wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            if item.is_dir() or item.filename.startswith(LEFT_OUT):
                continue
            data = archive.read(item)
            if item.filename.endswith("libonnxruntime_providers_cuda.so"):
                data = slim(data)
            target = folder / item.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


if __name__ == "__main__":
    main()
