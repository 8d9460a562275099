"""Training: configurations, starts, objectives, the loop, ``cats-train``."""
