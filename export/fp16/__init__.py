"""Float16 typed into an exported model: which values, how weights are rounded, what it computes on a CPU."""
