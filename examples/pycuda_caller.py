"""Match images that PyCUDA has on the GPU: python examples/pycuda_caller.py engine.plan; needs an NVIDIA GPU."""

import sys

import pycuda.autoprimaryctx  # noqa: F401  # the primary context, which the backend uses too
import pycuda.driver as cuda
import pycuda.gpuarray as gpuarray

from cats.assets import asset
from cats.core.images import preprocess, read_image
from cats.runtime import Matcher

matcher = Matcher(sys.argv[1])
stream = cuda.Stream()  # PyCUDA's arrays name no stream: the matcher waits for this one
a, b = (
    gpuarray.to_gpu_async(preprocess(read_image(asset(name)), matcher.metadata.preprocessing), stream=stream)
    for name in ("astronaut.jpg", "grace_hopper.jpg")
)
match = matcher.match(a, b, stream=stream.handle)  # results stay on the GPU; nothing is copied or waited for
print(match.flow_on_host().shape)
