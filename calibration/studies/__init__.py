"""Studies of a quantized model: sensitivity, mixed-precision search, divergence, confidence."""
