"""A small model and its exported forms, made once."""

import pytest
from tiny_models import tiny_model

from cats.export.forms import build_form
from cats.export.storage import inline_functions


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def forms(model):
    """Kind -> ONNX model, of all forms; with ``pair-inline`` too."""
    built = {}
    for form in ("pair", "split", "end-to-end"):
        built |= build_form(model, form)
    built["pair-inline"] = inline_functions(built["pair"])
    return built
