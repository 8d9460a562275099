"""The commands that need no torch: ``cats-run``, ``cats-build``, ``cats inspect``, ``cats doctor``."""
