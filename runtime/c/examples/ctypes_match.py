"""libcats from Python with ctypes, as any language with a foreign function interface would use it.

    python ctypes_match.py libcats.so cats.onnx a.jpg b.jpg x y

Prints where the point (x, y) of a lies in b. The toolkit reads the pictures, upright and of any kind.
"""

import ctypes
import sys

from PIL import Image

from cats.core.images import read_image

CATS_RGB = 1


class CatsImage(ctypes.Structure):
    """``cats_image`` of cats.h."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("stride", ctypes.c_int64),
        ("format", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


def main(library: str, model: str, a: str, b: str, x: str, y: str) -> None:
    """Match two pictures and print one point."""
    cats = ctypes.CDLL(library)
    cats.cats_last_error.restype = ctypes.c_char_p
    cats.cats_transfer.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def check(status: int) -> None:
        if status:
            raise SystemExit(cats.cats_last_error().decode())

    def view(picture: Image.Image) -> CatsImage:
        data = picture.tobytes()
        image = CatsImage(ctypes.sizeof(CatsImage), None, *picture.size, 0, CATS_RGB, 0)
        image.kept = ctypes.create_string_buffer(data, len(data))  # type: ignore[attr-defined]
        image.data = ctypes.addressof(image.kept)  # type: ignore[attr-defined]
        return image

    matcher, context = ctypes.c_void_p(), ctypes.c_void_p()
    check(cats.cats_open(model.encode(), None, ctypes.byref(matcher)))
    check(cats.cats_context_create(matcher, ctypes.byref(context)))
    images = [view(read_image(path)) for path in (a, b)]
    check(cats.cats_match(context, ctypes.byref(images[0]), ctypes.byref(images[1])))
    point, place = (ctypes.c_double * 2)(float(x), float(y)), (ctypes.c_double * 2)()
    check(cats.cats_transfer(context, 0, point, 1, place))
    print(f"{place[0]:.3f} {place[1]:.3f}")
    cats.cats_context_destroy(context)
    cats.cats_close(matcher)


if __name__ == "__main__":
    main(*sys.argv[1:])
