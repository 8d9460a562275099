"""The two TensorRT libraries: finding them, and what differs between them."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from cats.core.errors import BackendError, InputError


@dataclass(frozen=True)
class Flavour:
    """One TensorRT library.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``, as users and sidecars call it; also the extra that installs it.
        module: import name.
        targets: whether engines can be built for other compute capabilities than the present GPU's.
        single: compute capabilities that it runs on, as NVIDIA documents them.
        onwards: it runs on this one and all later ones.
    """

    name: str
    module: str
    targets: bool
    single: tuple[tuple[int, int], ...] = ()
    onwards: tuple[int, int] = (8, 0)

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether engines of this library run on a GPU."""
        return capability in self.single or capability >= self.onwards

    def gpus(self) -> str:
        """Compute capabilities that it runs on, in words."""
        return ", ".join(f"{major}.{minor}" for major, minor in (*self.single, self.onwards)) + " or later"


FLAVOURS = {
    "tensorrt": Flavour("tensorrt", "tensorrt", targets=False),
    "tensorrt-rtx": Flavour(
        "tensorrt-rtx", "tensorrt_rtx", targets=True, single=((8, 0), (8, 6), (8, 9)), onwards=(12, 0)
    ),  # an H200, 9.0, is refused
}


def find_flavour(name: str | None = None) -> tuple[Flavour, ModuleType]:
    """The flavour asked for, or the first installed one, with its imported library.

    Raises:
        InputError: unknown name.
        BackendError: not installed, or its libraries do not load.
    """
    if name is not None and name not in FLAVOURS:
        raise InputError(f"unknown TensorRT flavour {name!r}; known: {', '.join(FLAVOURS)}")
    wanted = [FLAVOURS[name]] if name else [f for f in FLAVOURS.values() if importlib.util.find_spec(f.module)]
    if not wanted:
        raise BackendError("no TensorRT is installed: pip install 'cats-toolkit[tensorrt-rtx]' (or [tensorrt])")
    flavour = wanted[0]
    try:
        return flavour, importlib.import_module(flavour.module)
    except ModuleNotFoundError as error:
        raise BackendError(f"{flavour.name} is not installed: pip install 'cats-toolkit[{flavour.name}]'") from error
    except (ImportError, OSError) as error:
        raise BackendError(f"{flavour.name} is installed but does not load: {error}") from error
