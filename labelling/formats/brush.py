"""Label Studio's packing of brush masks, ``rle``: runs of bits as in the JavaScript library rle-pack.

A header of 32 bits (number of values), 5 bits (bits of a value, less one) and four times 4 bits (bits of a length, less
one), then packets: one bit (1: one value repeated, 0: values one by one), two bits (which length), the length less one,
the value or values. Values are RGBA bytes of the photo row by row; the mask is where alpha is not 0.
"""

from __future__ import annotations

import numpy as np

from cats.core.errors import InputError
from cats.core.geometry import Size
from cats.labelling.annotations import Mask

_LENGTHS = (3, 4, 8, 16)
_LITERAL, _REPEAT = 0, 1


def pack(mask: Mask) -> list[int]:
    """A mask as the list of bytes that Label Studio stores."""
    line = mask.to_array().ravel()
    ends = np.append(np.flatnonzero(np.diff(line)) + 1, line.size)
    starts = np.append(0, ends[:-1])
    bits = [f"{4 * line.size:032b}", f"{8 - 1:05b}", *(f"{length - 1:04b}" for length in _LENGTHS)]
    for inside, count in zip(line[starts].tolist(), (4 * (ends - starts)).tolist(), strict=True):
        while count:  # all four channels are alike, so that runs of pixels are runs of bytes
            run = min(count, 1 << _LENGTHS[3])
            which = next(index for index, length in enumerate(_LENGTHS) if run <= 1 << length)
            bits.append(f"{_REPEAT}{which:02b}{run - 1:0{_LENGTHS[which]}b}{255 * inside:08b}")
            count -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def unpack(packed: list[int], size: Size) -> Mask:
    """The mask of a photo of ``size`` (width, height).

    Raises:
        InputError: cut off, or not of this photo.
    """
    stream = _Bits(packed)
    count, word = stream.take(32), stream.take(5) + 1
    lengths = [stream.take(4) + 1 for _ in range(4)]
    if count != 4 * size[0] * size[1] or word != 8:
        raise InputError(f"a brush mask of {count} values, not of the {size[0]}x{size[1]} pixels of its photo")
    values = np.zeros(count, np.uint8)
    place = 0
    while place < count:
        kind = stream.take(1)
        run = stream.take(lengths[stream.take(2)]) + 1
        end = min(place + run, count)
        if kind == _REPEAT:
            values[place:end] = stream.take(word)
        else:
            values[place:end] = [stream.take(word) for _ in range(end - place)]
        place = end
    return Mask.from_array(values.reshape(size[1], size[0], 4)[..., 3] > 0)


class _Bits:
    """Numbers out of a list of bytes, the highest bit first."""

    def __init__(self, packed: list[int]) -> None:
        self.data = bytes(packed)
        self.place = 0

    def take(self, bits: int) -> int:
        """The next number of so many bits."""
        end = self.place + bits
        if end > 8 * len(self.data):
            raise InputError("a brush mask that is cut off")
        first, last = self.place // 8, (end + 7) // 8
        number = int.from_bytes(self.data[first:last], "big") >> (8 * last - end)
        self.place = end
        return number & ((1 << bits) - 1)
