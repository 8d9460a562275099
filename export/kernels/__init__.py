"""``cats::Correlation`` on NVIDIA GPUs: Triton kernels, and nodes with which TensorRT runs them."""
