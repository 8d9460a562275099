"""One question a script; each writes its record into ``benchmarks/results``."""
