"""Options that the commands of this room share, spelt and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cats.core.console import note
from cats.core.errors import InputError
from cats.core.hub import hub_source
from cats.core.images import MAX_PIXELS
from cats.core.metadata import trust_warning
from cats.runtime.backends import BACKENDS
from cats.runtime.backends.ort_providers import PROVIDERS, choose_provider
from cats.runtime.backends.ort_session import import_onnxruntime
from cats.runtime.hardware import physical_cores, usable_cpus
from cats.runtime.matcher import Matcher
from cats.runtime.result import confidence_mapping

OUTPUTS, SELECTION, MANY, ENGINE = "Outputs", "Which matches", "Many pairs", "How it runs"


def path_option(*names: str, help: str, panel: str, metavar: str = "FILE") -> Any:
    """An option that takes a path or a name and has no default."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False, readable=False)


def number_option(*names: str, help: str, panel: str, default: bool | str = True, **limits: Any) -> Any:
    """An option that takes a number within limits."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default, **limits)


Model = Annotated[
    Path,
    typer.Argument(
        help="ONNX file of cats-export, .plan of cats-build, a shipped model: cats-tiny, or hf://user/repo.",
        metavar="MODEL",
        readable=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one line a pair.", rich_help_panel=OUTPUTS)]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.", rich_help_panel=OUTPUTS)]
Count = Annotated[
    int, number_option(help="Points that the picture shows: sure ones, spread over the object.", panel=SELECTION, min=1)
]
MinConfidence = Annotated[
    float,
    number_option(help="Leave out matches of less confidence (not a probability).", panel=SELECTION, min=0, max=1),
]
MinProbability = Annotated[
    float,
    number_option(
        help="Points less likely to be right are left out; of models that know how likely, such as cats-tiny.",
        panel=SELECTION,
        min=0,
        max=1,
    ),
]
Calibrated = Annotated[
    bool | None,
    typer.Option(
        "--calibrated/--raw-confidence",
        help="Give confidences as the probabilities that cats fit-confidence fitted; or the model's confidences alone. "
        "By default these, with pictures coloured by probability where the model has them.",
        rich_help_panel=SELECTION,
        show_default=False,
    ),
]
Backend = Annotated[
    str | None, path_option(help=f"{', '.join(BACKENDS)}. Default: by the file.", panel=ENGINE, metavar="NAME")
]
Provider = Annotated[
    str | None,
    path_option(
        help=f"ONNX Runtime's provider: {', '.join(PROVIDERS)}. Default: cuda where it can run, else cpu.",
        panel=ENGINE,
        metavar="NAME",
    ),
]
Device = Annotated[
    str | None,
    path_option(help="Index of the GPU, default 0; of openvino a name: CPU (default), GPU.", panel=ENGINE, metavar="N"),
]
Precision = Annotated[
    str | None,
    path_option(help="With openvino: fp32 (default), bf16 or bf16-aggregator.", panel=ENGINE, metavar="NAME"),
]
Hint = Annotated[
    str | None, path_option(help="With openvino: latency (default) or throughput.", panel=ENGINE, metavar="NAME")
]
Threads = Annotated[int | None, number_option(help="CPU threads.", panel=ENGINE, default="one per core", min=1)]
Cache = Annotated[
    Path | None,
    path_option(
        help="Folder for the engines that ONNX Runtime's TensorRT providers build.", panel=ENGINE, metavar="DIR"
    ),
]
MaxMegapixels = Annotated[
    float, number_option(help="Refuse larger images before decoding.", panel=ENGINE, default="89", min=0.001)
]
MAX_MEGAPIXELS = MAX_PIXELS / 1e6


def open_matcher(
    model: Path, backend: str | None, max_megapixels: float, *, device: str | None = None, **options: Any
) -> Matcher:
    """A matcher with the settings that were given on the command line; the others stay the backend's defaults."""
    return Matcher(model, **engine_options(backend, max_megapixels, device=device, **options))


def engine_options(
    backend: str | None, max_megapixels: float, *, device: str | None = None, **options: Any
) -> dict[str, Any]:
    """Arguments of :class:`Matcher` for what was given on the command line; prepares Pillow for larger images."""
    max_pixels = round(max_megapixels * 1e6)
    if max_pixels > MAX_PIXELS:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, of this process
    given = {"backend": backend, "device": _device(device, backend), **options}
    return {"max_pixels": max_pixels, **{name: value for name, value in given.items() if value is not None}}


def check_probabilities(matcher: Matcher, min_probability: float) -> None:
    """Refuse ``--min-probability`` before anything is matched.

    Raises:
        InputError: the model says no probabilities.
    """
    if min_probability > 0:
        try:
            confidence_mapping(matcher.metadata.calibration)
        except InputError as error:
            raise InputError(
                f"--min-probability {min_probability:g}: {error}; --min-confidence is for any model"
            ) from error


def note_model(matcher: Matcher, model: Path) -> None:
    """Say on stderr what a model runs on, and warn of one that is not verified or that runs better otherwise."""
    note(f"{hub_source(matcher.path) or model}: {matcher.backend.describe()}")
    for warning in (trust_warning(matcher.metadata, model), matcher.backend.advice):
        if warning:
            note(warning)


def cpu_streams(backend: str, provider: str | None, device: str | None) -> int:
    """One stream per core for what runs on the CPU, else one."""
    if backend == "openvino":
        on_cpu = (device or "CPU").upper() == "CPU"
    elif backend == "onnxruntime":
        on_cpu = choose_provider(import_onnxruntime(), provider)[0] == PROVIDERS["cpu"]
    else:
        on_cpu = False
    return min(physical_cores(), usable_cpus()) if on_cpu else 1


def _device(text: str | None, backend: str | None) -> str | int | None:
    """A GPU's index, or for OpenVINO the name of a device."""
    if text is None or backend == "openvino":
        return text
    if not text.isdecimal():
        meant = "; --provider cuda is what runs a model on one" if text.startswith("cuda") else ""
        raise InputError(f"--device {text}: give the index of a GPU{meant} (names are for --backend openvino)")
    return int(text)
