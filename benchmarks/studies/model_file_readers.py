"""Seeds and readers of the files that models come in, for :mod:`cats.benchmarks.studies.fuzz_readers`.

Libraries are imported where they are used: a process that fuzzes photos needs no PyTorch.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cats.assets import asset
from cats.core.errors import ModelFileError

Seeds = Callable[[], list[tuple[str, bytes]]]
Read = Callable[[Path], object]

_PLAN = b"vtrt"  # an engine, as far as its sidecar can tell
_LOADED = 64  # one of so many checkpoints is compared with a model too, which takes a second
_NAMES = ("module.proj.0.weight", "decoder.pos_embed_x", "decoder.blocks.0.mlp.fc1.weight", "x_normal")
_SHAPES = ((32, 64), (1, 2, 1, 8, 48), (384, 96), (8,))


def checkpoint_seeds() -> list[tuple[str, bytes]]:
    """Pickles of checkpoints (their archives are made when they are read, with checksums that fit), files of the format
    before PyTorch 1.6, and safetensors."""
    import torch

    from cats.tensor_files import write_safetensors

    state = {name: torch.ones(shape) for name, shape in zip(_NAMES, _SHAPES, strict=True)}
    config = {"backbone": "resnet50", "hyperpixels": [0, 1], "image_size": 128, "feature_size": 8, "depth": 1}
    documents: list[Any] = [
        {"format": 1, "config": config, "state_dict": state, "metrics": {"pck": 0.5}, "training": {"seed": 1}},
        {"state_dict": state, "best_loss": np.float64(0.5), "scheduler": collections.Counter([70]), "epoch": 3},
        {"model": collections.OrderedDict(state), "args": argparse.Namespace(hyperpixel="[0, 1]", out=Path("runs/1"))},
    ]
    seeds = []
    for document in documents:
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(document, buffer, _use_new_zipfile_serialization=new)
            if new:
                with zipfile.ZipFile(buffer) as archive:
                    seeds.append((".pkl", archive.read("archive/data.pkl")))
            seeds.append((".pth", buffer.getvalue()))
    small = Path("seed.safetensors")
    write_safetensors(small, {"x_normal": torch.ones(8)}, {"format": 1, "config": config})
    seeds.append((".safetensors", small.read_bytes()))
    small.unlink()
    return seeds


def read_checkpoint(path: Path) -> None:
    """Read all that it holds; of some, make a model."""
    from cats.checkpoints import load_checkpoint
    from cats.tensor_files import open_tensor_file

    data = path.read_bytes()
    if path.suffix == ".pkl":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            for key in range(12):  # as large as the seeds' pickles say
                archive.writestr(f"archive/data/{key}", bytes(4 * math.prod(_SHAPES[key % len(_SHAPES)])))
    if zlib.crc32(data) % _LOADED == 0:
        load_checkpoint(path)
    open_tensor_file(path).load_all()


def arguments_seeds() -> list[tuple[str, bytes]]:
    """``args.pkl`` in all protocols."""
    values = {"hyperpixel": "[0, 8]", "num_heads": 6, "lr": 3e-5, "freeze": False, "milestones": [70, 80], "x": None}
    space = argparse.Namespace(**values, out=Path("a/b"), betas=(0.9, np.float64(0.999)), counts={1: "a"})
    return [(".pkl", pickle.dumps(space, protocol)) for protocol in range(6)]


def read_arguments(path: Path) -> object:
    """Read it."""
    from cats import tensor_files

    return tensor_files.read_arguments(path)


def onnx_seeds() -> list[tuple[str, bytes]]:
    """The graph of the shipped model without its weights, and a model whose weights lie in another file."""
    import onnx

    model = onnx.load(asset("cats-tiny.onnx"))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 64:
            tensor.raw_data = tensor.raw_data[:64]
    bare = model.SerializeToString()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="seed.data")
    tensor.external_data.add(key="offset", value="0")
    del model.graph.node[4:], model.graph.initializer[3:]
    return [(".onnx", bare), (".onnx", model.SerializeToString())]


def read_onnx(path: Path) -> None:
    """Everything that is read without a library."""
    from cats.core.external_data import whole_model
    from cats.core.metadata import read_onnx_metadata
    from cats.runtime.commands.inspect import inspect

    (path.parent / "seed.data").write_bytes(bytes(1 << 16))
    whole_model(path)
    inspect(path)
    read_onnx_metadata(path)


def metadata_seeds() -> list[tuple[str, bytes]]:
    """Metadata documents, with an engine's part and with a fitted confidence."""
    from cats.core.metadata import read_onnx_metadata

    metadata = read_onnx_metadata(asset("cats-tiny.onnx"))
    mapping = {"confidence": [0, 0.5, 1], "probability": [0.1, 0.6, 0.9]}
    engine = {
        "sha256": hashlib.sha256(_PLAN).hexdigest(),
        "flavour": "tensorrt-rtx",
        "version": "1.7",
        "source": "m.onnx",
        "profiles": [],
    }
    parts: list[dict[str, Any]] = [{}, {"calibration": {"confidence": {"mapping": mapping}}}, {"engine": engine}]
    return [(".plan.json", metadata.with_(**part).to_json().encode()) for part in parts]


def read_metadata(path: Path) -> None:
    """As a document, and as the sidecar of an engine."""
    from cats.core.json_text import read_json
    from cats.core.metadata import Metadata
    from cats.runtime.tensorrt.sidecar import read_sidecar

    plan = path.with_suffix("")
    plan.write_bytes(_PLAN)
    Metadata.from_dict(read_json(path, error=ModelFileError), path)
    try:
        read_sidecar(plan)
    finally:
        plan.unlink()


def features_seeds() -> list[tuple[str, bytes]]:
    """Features of two images."""
    images = [
        {"key": key, "size": [48, 40], "weights_sha256": "0" * 64, "source": source}
        for key, source in (("image", None), ("b", "b.jpg"))
    ]
    head = np.frombuffer(json.dumps({"format": 1, "images": images}).encode(), np.uint8)
    arrays = {f"{n}/features_0": np.ones((4, 9), np.float32) for n in range(2)}
    seeds = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, cats=head, **arrays)  # type: ignore[arg-type]  # numpy takes any name
        seeds.append((".npz", buffer.getvalue()))
    return seeds


def read_features(path: Path) -> object:
    """Read them; of archives whose checksums no longer fit, what stands before them."""
    from cats.runtime.features import load_features

    return load_features(path)


def ranges_seeds() -> list[tuple[str, bytes]]:
    """Ranges of two tensors, one of them with its channels, and with factors of a balance."""
    from cats.calibration.distribution import TensorRange
    from cats.calibration.ranges import Ranges

    values = np.linspace(-2, 3, 60, dtype=np.float32).reshape(3, 20)
    tensors = {"/a/Relu_output_0": TensorRange.of(values, axis=0), "b": TensorRange.of(values)}
    small = Path("seed.ranges.json")
    seeds = []
    for balance in ({}, {"decoder.norm": np.array([0.5, 2.0], np.float32)}):
        Ranges("0" * 64, tensors, 4, ("photos",), balance).save(small)
        seeds.append((".json", small.read_bytes()))
    small.unlink()
    return seeds


def read_ranges(path: Path) -> None:
    """Read them, merge them with themselves, and choose limits; of some by every method, which takes longer."""
    from cats.calibration.distribution import METHODS
    from cats.calibration.ranges import Ranges

    ranges = Ranges.load(path)
    methods = METHODS if zlib.crc32(path.read_bytes()) % _LOADED == 0 else METHODS[:1]
    for tensor in ranges.merge(ranges).tensors.values():
        for method in methods:
            tensor.limits(method)


MODEL_READERS: dict[str, tuple[Seeds, Read]] = {
    "checkpoint": (checkpoint_seeds, read_checkpoint),
    "arguments": (arguments_seeds, read_arguments),
    "onnx": (onnx_seeds, read_onnx),
    "metadata": (metadata_seeds, read_metadata),
    "features": (features_seeds, read_features),
    "ranges": (ranges_seeds, read_ranges),
}
"""Name -> seeds and reader."""
