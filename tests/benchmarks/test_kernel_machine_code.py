"""The correlation kernels as machine code: on tensor cores, with what a multiprocessor has of registers."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from cats.benchmarks.studies.kernel_machine_code import assemble
from cats.core.errors import BackendError
from cats.export.kernels.compiled import compile_kernels


@pytest.mark.parametrize(("capability", "instruction"), [(80, "HMMA"), (90, "HGMMA")])
def test_the_float16_product_is_on_the_tensor_cores(capability: int, instruction: str) -> None:
    scores, filtered = compile_kernels((40, 112, 192), 256, half=True, capability=capability)
    try:
        found = [assemble(kernel, capability) for kernel in (scores, filtered)]
    except BackendError as error:
        if "has no" in str(error):
            pytest.skip(str(error))
        raise
    assert set(found[0]["tensor_core_instructions"]) == {instruction}
    assert not found[1]["tensor_core_instructions"]
    for kernel in found:
        assert kernel["spill_bytes"] == 0
        assert kernel["registers"] * kernel["threads"] <= 65536
