"""Stands in for Triton's ONNX Runtime backend where only the Python backend is: the same models, run by onnxruntime."""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [folder for folder in os.environ.get("CATS_TRITON_PATH", "").split(os.pathsep) if folder]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402


class TritonPythonModel:
    """What Triton looks for in this file."""

    @staticmethod
    def auto_complete_config(config):
        """The configuration is complete."""
        return config

    def initialize(self, args):
        """Load the model of the repository."""
        folder = Path(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        self.session = onnxruntime.InferenceSession(folder / config["default_model_filename"])
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]

    def execute(self, requests):
        """Run the requests of a dynamic batch in one run."""
        feeds = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        whole = {name: np.concatenate([item[name] for item in feeds]) for name in self.inputs}
        found = dict(zip(self.outputs, self.session.run(self.outputs, whole), strict=True))
        responses, at = [], 0
        for item in feeds:
            count = len(item[self.inputs[0]])
            tensors = [triton.Tensor(name, value[at : at + count]) for name, value in found.items()]
            responses.append(triton.InferenceResponse(tensors))
            at += count
        return responses
