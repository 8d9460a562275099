"""What every room may use: errors, files, images, geometry, metadata, PCK. No torch, timm or onnx."""
