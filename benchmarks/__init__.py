"""Benchmarks of the toolkit: what runs side by side, how it is measured, and how the results are shown."""
