"""Ask Triton where points of a.jpg lie in b.jpg: python triton_client.py HOST:PORT MODEL_points A B "x,y;x,y".

Needs tritonclient[http]; the repository is one of `cats triton`. The first axis of each tensor counts pairs.
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

host, model, a, b, points = sys.argv[1:6]
values = np.array([[[float(value) for value in point.split(",")] for point in points.split(";")]], np.float32)
inputs = []
for name, value, kind in (
    ("image_a", np.array([[Path(a).read_bytes()]], np.object_), "BYTES"),
    ("image_b", np.array([[Path(b).read_bytes()]], np.object_), "BYTES"),
    ("points_a", values, "FP32"),
):
    inputs.append(triton.InferInput(name, value.shape, kind))
    inputs[-1].set_data_from_numpy(value)
answer = triton.InferenceServerClient(host).infer(model, inputs)
for start, end, sure in zip(values[0], answer.as_numpy("points_b")[0], answer.as_numpy("confidence")[0], strict=True):
    print(start.tolist(), "->", end.tolist(), "confidence", float(sure))
