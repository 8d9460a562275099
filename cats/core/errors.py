"""The exception family of the toolkit.

Everything that a user can cause or repair is a :class:`CatsError`: its message names the offending thing and
the fix, and its ``exit_code`` is what a command returns. Anything else that escapes is a bug.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class CatsError(Exception):
    """Base of all errors that a user can act on. Commands print the message and exit with ``exit_code``."""

    exit_code = 2


class InputError(CatsError):
    """A file, image, point, option or folder given by the user is missing, unreadable or out of range."""


class CheckpointError(CatsError):
    """A PyTorch checkpoint cannot be read, or its keys do not fit the model."""


class ModelFileError(CatsError):
    """An ONNX file, engine or metadata document is not one that this version of the toolkit can use."""


class BackendError(CatsError):
    """A backend, provider, device or library is not available here, or refused the work."""


class VerificationError(CatsError):
    """Work was completed and then measured, and the measurement is past its tolerance."""

    exit_code = 1


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say which extra of the toolkit brings it.

    Args:
        module: import name, for example ``"onnxruntime"``.
        extra: extra of the ``cats-toolkit`` distribution that installs it.
        purpose: what needs it, as the end of the sentence "... is needed to".

    Raises:
        BackendError: the module is not installed, or one of its own libraries does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != top:
            raise BackendError(f"{module} is installed but its dependency {error.name} is not: {error}") from error
        raise BackendError(
            f"{module} is needed to {purpose} and is not installed: pip install 'cats-toolkit[{extra}]'"
        ) from error
    except (ImportError, OSError) as error:
        raise BackendError(f"{module} is installed but does not load ({error}); reinstall it to {purpose}") from error
