"""Evaluation of anything that matches: PCK, flow error, parity, the paper's figures, ``cats-eval``."""
