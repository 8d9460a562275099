"""The deployment graph: what the model computes, reduced for inference, as torch modules."""
