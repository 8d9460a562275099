"""TensorRT engines: building, sidecars, the two flavours of the library, plugins."""
