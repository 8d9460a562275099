"""What a shared library exports, read from the file itself: ELF (Linux), Mach-O (macOS), PE (Windows), 64 bits each."""

from __future__ import annotations

import struct
from pathlib import Path

MACHINES = {
    ("elf", 62): "x86_64", ("elf", 183): "aarch64",
    ("macho", 0x01000007): "x86_64", ("macho", 0x0100000C): "aarch64",
    ("pe", 0x8664): "x86_64", ("pe", 0xAA64): "aarch64",
}  # fmt: skip


def exported_names(library: Path) -> tuple[str, str, list[str]]:
    """Form (``elf``, ``macho``, ``pe``), processor and exported names in order, those of C without their underscore."""
    data = library.read_bytes()
    if data[:4] == b"\x7fELF":
        form, machine, names = "elf", _numbers("<H", data, 18)[0], _elf(data)
    elif data[:4] == b"\xcf\xfa\xed\xfe":
        form, machine, names = "macho", _numbers("<I", data, 4)[0], _macho(data)
    else:
        header = _numbers("<I", data, 0x3C)[0]
        assert data[header : header + 4] == b"PE\0\0", f"{library} is no library of Linux, macOS or Windows"
        form, machine, names = "pe", _numbers("<H", data, header + 4)[0], _pe(data, header)
    return form, MACHINES[form, machine], sorted(names)


def _numbers(layout: str, data: bytes, at: int) -> tuple[int, ...]:
    return struct.unpack_from(layout, data, at)


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _elf(data: bytes) -> list[str]:
    (sections,) = _numbers("<Q", data, 0x28)
    size, count = _numbers("<HH", data, 0x3A)
    starts = [sections + i * size for i in range(count)]
    (table,) = [start for start in starts if _numbers("<I", data, start + 4)[0] == 11]  # SHT_DYNSYM
    offset, length, strings = _numbers("<QQI", data, table + 0x18)
    (names,) = _numbers("<Q", data, starts[strings] + 0x18)
    found = []
    for at in range(offset, offset + length, 24):
        name, info, _, section = _numbers("<IBBH", data, at)
        if section and info >> 4 in (1, 2):  # defined here, global or weak
            found.append(_text(data, names + name))
    return found


def _macho(data: bytes) -> list[str]:
    """Names of the export trie: the symbol table also lists what the linker keeps for itself."""
    at = 32
    for _ in range(_numbers("<I", data, 16)[0]):
        command, size = _numbers("<II", data, at)
        if command in (0x22, 0x80000022, 0x80000033):  # LC_DYLD_INFO, LC_DYLD_INFO_ONLY, LC_DYLD_EXPORTS_TRIE
            start = _numbers("<I", data, at + (8 if command == 0x80000033 else 40))[0]
            if start:
                return [name.removeprefix("_") for name in _trie(data, start, 0, "")]
        at += size
    return []


def _trie(data: bytes, start: int, offset: int, begun: str) -> list[str]:
    """Names below a node: what it says of its own name, if any, then its children, each by the rest of its name."""
    length, at = _leb128(data, start + offset)
    found, at = [begun] if length else [], at + length
    children, at = data[at], at + 1
    for _ in range(children):
        rest = _text(data, at)
        child, at = _leb128(data, at + len(rest) + 1)
        found += _trie(data, start, child, begun + rest)
    return found


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def _pe(data: bytes, header: int) -> list[str]:
    count, optional = _numbers("<H", data, header + 6)[0], _numbers("<H", data, header + 20)[0]
    sections = header + 24 + optional

    def place(address: int) -> int:
        """Where in the file an address of the loaded library lies."""
        for start in range(sections, sections + 40 * count, 40):
            size, first, _, raw = _numbers("<IIII", data, start + 8)
            if first <= address < first + size:
                return address - first + raw
        raise AssertionError(f"no section has the address {address:#x}")

    table = place(_numbers("<I", data, header + 24 + 112)[0])
    names, addresses = _numbers("<I", data, table + 24)[0], place(_numbers("<I", data, table + 32)[0])
    return [_text(data, place(_numbers("<I", data, addresses + 4 * i)[0])) for i in range(names)]
