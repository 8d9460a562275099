"""A small model and its exported forms, made once."""

import onnx
import pytest
from made_once import made_once
from tiny_models import tiny_model

from cats.export.forms import FORMS, build_form
from cats.export.storage import inline_functions


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def forms(model, tmp_path_factory):
    """Kind -> ONNX model, of all forms; with ``pair-inline`` too."""

    def build(folder):
        for form in FORMS:
            for kind, built in build_form(model, form).items():
                onnx.save(built, folder / f"{kind}.onnx")

    files = made_once(tmp_path_factory, "exported-forms", build)
    built = {kind: onnx.load(files / f"{kind}.onnx") for kinds in FORMS.values() for kind in kinds}
    built["pair-inline"] = inline_functions(built["pair"])
    return built
