"""``cats c-sdk``: a folder to put into a C or C++ project: sources, CMake files, examples, licence and a model."""

from __future__ import annotations

import shutil
from collections import Counter
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated

import typer

import cats
from cats.assets import find_model
from cats.core.console import execute, new_app, note
from cats.core.errors import InputError
from cats.core.folders import replaced_folder
from cats.core.metadata import read_onnx_metadata
from cats.core.outputs import make_folder
from cats.runtime.c import ROOT

app = new_app()

FOLDERS = ("include", "src", "cmake", "examples")
FILES = ("CMakeLists.txt", "README.md")
LICENCES = ("LICENSE", "NOTICE")
SHIPPED = "cats-tiny.onnx"
CARD = "cats-tiny.md"

EXAMPLES = """
Examples:

- `cats c-sdk third_party/cats` with the model that the toolkit ships

- `cats c-sdk third_party/cats --model cats.onnx --model other.onnx`

Then `add_subdirectory(third_party/cats)` and `target_link_libraries(app cats::cats)`. To try it on its own:

- `cmake -S third_party/cats -B build -DCATS_BUILD_EXAMPLES=ON && cmake --build build`

- `export CATS_ORT_LIBRARY=$(python -m cats.runtime.c --onnxruntime)` or the folder of a release archive of ONNX Runtime

- `build/examples/cats-match third_party/cats/model/cats-tiny.onnx a.jpg b.jpg`
"""


def write_sdk(folder: str | Path, models: tuple[Path, ...] = ()) -> list[Path]:
    """Write the vendorable folder.

    Args:
        folder: is made; must not exist, or be empty.
        models: ONNX files of ``cats-export`` to put into ``model/``; none takes the shipped one and its card.

    Returns:
        The models as written.

    Raises:
        InputError: the folder is not empty or cannot be written, or two models have one name.
        ModelFileError: a model is not one of this toolkit.
    """
    target = Path(folder)
    target = target if target.name else target.resolve()
    for model in models:
        read_onnx_metadata(model)
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise InputError(f"two models are called {twice[0]}: rename one, they share the folder model/")
    chosen = models or _shipped()
    make_folder(target.parent)
    with replaced_folder(target, None) as draft:
        _fill(draft, chosen)
    return [target / "model" / model.name for model in chosen if model.suffix != ".md"]


def _shipped() -> tuple[Path, ...]:
    assets = Path(str(resources.files("cats.assets")))
    return tuple(file for file in (assets / SHIPPED, assets / CARD) if file.is_file())


def _licences() -> list[Path]:
    """Licence files of this installation."""
    try:
        files = [file for file in metadata.files("cats-toolkit") or () if file.name in LICENCES]
    except metadata.PackageNotFoundError:  # a clone
        return [file for file in (Path(cats.__file__).parents[1] / name for name in LICENCES) if file.is_file()]
    return [Path(str(file.locate())) for file in files]


def _fill(draft: Path, models: tuple[Path, ...]) -> None:
    for name in FOLDERS:
        shutil.copytree(ROOT / name, draft / name, ignore=shutil.ignore_patterns("__pycache__", "*.o", "*.so"))
    for name in FILES:
        shutil.copyfile(ROOT / name, draft / name)
    for licence in _licences():
        shutil.copyfile(licence, draft / licence.name)
    if models:
        (draft / "model").mkdir()
    for model in models:
        shutil.copyfile(model, draft / "model" / model.name)


@app.command(epilog=EXAMPLES)
def main_command(
    folder: Annotated[Path, typer.Argument(help="Folder to write: new or empty.", metavar="DIR", show_default=False)],
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="ONNX file of cats-export; repeatable. Default: cats-tiny.", metavar="FILE", show_default=False
        ),
    ] = None,
) -> None:
    """Write the C library as a folder for other projects: sources, CMake, examples, model."""
    models = write_sdk(folder, tuple(find_model(name) for name in model or ()))
    note(f"{folder}: sources, header, CMake files and examples; {', '.join(map(str, models)) or 'no model'}")


def main() -> None:
    """Entry point of ``python -m cats.runtime.c.sdk``."""
    execute(app)


if __name__ == "__main__":
    main()
