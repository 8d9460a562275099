"""Label files: each format in a module with ``read`` and ``write``."""
