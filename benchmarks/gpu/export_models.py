"""In the background, on the CPU: the files that the other steps wait for, in the order in which they are waited for."""

from __future__ import annotations

import time

from cats.benchmarks.gpu.kit import MODELS, load, record
from cats.export.export import export_onnx


def main() -> None:
    MODELS.mkdir(parents=True, exist_ok=True)
    for name, precision in (("resnet101", "fp16"), ("resnet101", "fp32"), ("cats-tiny", "fp16"), ("cats-tiny", "fp32")):
        target = MODELS / f"{name}.{precision}.onnx"
        if target.is_file():
            continue
        start = time.perf_counter()
        try:
            part = target.with_suffix(".part.onnx")
            export_onnx(load(name), part, fp16=precision == "fp16", verified=False)
            part.rename(target)
            record(
                f"{name} {precision}", mb=round(target.stat().st_size / 1e6, 1), s=round(time.perf_counter() - start, 1)
            )
        except BaseException as error:
            record(f"{name} {precision}", failed=f"{type(error).__name__}: {error}"[:800])


if __name__ == "__main__":
    main()
