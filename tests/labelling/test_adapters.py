"""The labeller inside CVAT (its SDK's types and driver) and Label Studio (its HTTP contract)."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from labels import DUCK, SIZES, full_annotations, make_photos
from other_tools import run_elsewhere

from cats.core.errors import InputError
from cats.labelling.adapters import label_studio
from cats.labelling.adapters.single import PhotoLabeller
from cats.labelling.annotations import Annotation, Annotations
from cats.labelling.formats import write_annotations
from cats.labelling.formats.label_studio import label_config, parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References, and a photo that is not one."""
    made = tmp_path_factory.mktemp("adapters")
    make_photos(made)
    annotations = full_annotations(made)
    first = replace(annotations.photos[0], annotations=annotations.photos[0].annotations[:1])
    write_annotations(Annotations((DUCK,), (first,)), made / "refs.json")
    return made


@pytest.fixture(scope="module")
def labeller(folder: Path) -> PhotoLabeller:
    return PhotoLabeller(folder / "refs.json", min_probability=0, looks=1)


def test_a_file_and_an_image_of_it_are_labelled_alike(labeller: PhotoLabeller, folder: Path) -> None:
    from PIL import Image

    with Image.open(folder / "a.png") as image:
        found, other = labeller.label_image(image), labeller.label(folder / "a.png")
    assert found.category == "duck"
    np.testing.assert_allclose(found.points, other.points, equal_nan=True)
    assert labeller.label(folder / "none.png").error is not None


def test_references_are_checked(folder: Path) -> None:
    empty = Annotations((DUCK,), ())
    write_annotations(empty, folder / "empty.json")
    with pytest.raises(InputError, match="no photo in it has labels"):
        PhotoLabeller(folder / "empty.json")


# In the environment of the SDK: the function's labels and shapes pass its own checks, and the driver annotates with
# them. The toolkit is taken from the clone; what it needs to run is not installed there, so the labeller is a stand-in.
CVAT = """
import json, sys, types
sys.path.insert(0, sys.argv[1])
import numpy as np
from PIL import Image
import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.auto_annotation import driver
single = types.ModuleType("cats.labelling.adapters.single")
single.PhotoLabeller = object
sys.modules["cats.labelling.adapters.single"] = single
from cats.labelling.adapters.cvat import LabelFunction
from cats.labelling.annotations import Annotation, Annotations, Category, Mask
duck = Category("duck", ("beak", "tail", "left eye"))
car, cow, hen = Category("car"), Category("cow"), Category("hen")
inside = np.zeros((40, 50), bool); inside[10:20, 5:30] = True
answers = {
    "duck": Annotation("duck", [[1, 2], [3, 4], [np.nan, np.nan]], [2, 1, 0], probability=[0.9, 0.6, 0.1]),
    "car": Annotation("car", box=(1, 2, 10, 20)),
    "cow": Annotation("cow", mask=Mask.from_array(inside)),
    "hen": Annotation("hen", polygons=([[1, 1], [9, 1], [9, 9]],)),
}
class Stub:
    references = Annotations((duck, car, cow, hen), ())
    name = "duck"
    def label_image(self, image):
        answer = answers[self.name]
        return types.SimpleNamespace(found=True, same_kind=0.7, annotation=lambda: answer)
stub = Stub()
function = LabelFunction(stub)
image = Image.new("RGB", (50, 40))
def context(threshold=None, polygons=False):
    return driver._DetectionFunctionContextImpl(
        frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons)
spec = [{"name": l.name, "type": getattr(l, "type", "any"), "sublabels": [s.name for s in getattr(l, "sublabels", [])]}
        for l in function.spec.labels]
shapes = {}
for name in answers:
    stub.name = name
    shapes[name] = [s.to_dict() for s in function.detect(context(), image)]
stub.name = "duck"
sure = [s.to_dict() for s in function.detect(context(0.65), image)]
none = list(function.detect(context(0.8), image))

# The driver's own checks, with a task whose labels have other ids.
def model(i, l):
    of = getattr(l, "sublabels", [])
    subs = [types.SimpleNamespace(id=100 + s.id, name=s.name, type="points", attributes=[]) for s in of]
    return types.SimpleNamespace(id=10 + i, name=l.name, type=getattr(l, "type", "any"), sublabels=subs, attributes=[])
mapper = driver._AnnotationMapper(
    driver.logging.getLogger(), function.spec.labels, [model(i, l) for i, l in enumerate(function.spec.labels)],
    allow_unmatched_labels=False, spec_nm=driver._SpecNameMapping(), conv_mask_to_poly=False)
stub.name = "duck"
mapped = list(function.detect(context(), image))
mapper.validate_and_remap(mapped, 7)
print(json.dumps({"spec": spec, "shapes": shapes, "sure": sure, "none": len(none),
                  "mapped": [s.to_dict() for s in mapped]}, default=str))
"""


def test_the_function_of_cvat() -> None:
    root = Path(__file__).resolve().parents[2]
    found = run_elsewhere("cvat", "cvat_sdk", CVAT, root)
    assert found["spec"][0] == {"name": "duck", "type": "skeleton", "sublabels": ["beak", "tail", "left eye"]}
    assert found["spec"][1] == {"name": "car", "type": "any", "sublabels": []}
    (skeleton,) = found["shapes"]["duck"]
    assert skeleton["type"] == "skeleton"
    places = [(e["points"], e["outside"], e["occluded"]) for e in skeleton["elements"]]
    assert places == [([1, 2], False, False), ([3, 4], False, True), ([0, 0], True, False)]
    assert [e["outside"] for e in found["sure"][0]["elements"]] == [False, True, True]
    assert found["none"] == 0
    assert found["shapes"]["car"][0]["points"] == [1, 2, 11, 22]
    assert found["shapes"]["cow"][0]["type"] == "mask"
    assert found["shapes"]["cow"][0]["points"][-4:] == [5, 10, 29, 19]
    assert found["shapes"]["hen"][0]["points"] == [1, 1, 9, 1, 9, 9]
    assert found["mapped"][0]["label_id"] == 10
    assert found["mapped"][0]["frame"] == 7
    assert [e["label_id"] for e in found["mapped"][0]["elements"]] == [100, 101, 102]


@pytest.fixture(scope="module")
def backend(labeller: PhotoLabeller, folder: Path) -> Iterator[str]:
    """The backend behind a real server on 127.0.0.1."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'cats-toolkit[serve]'")
    pytest.importorskip("starlette", reason="needs starlette: pip install 'cats-toolkit[serve]'")
    app = label_studio.make_app(labeller, folder)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        threading.Event().wait(0.1)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def ask(address: str, document: Any = None) -> tuple[int, Any]:
    data = document if isinstance(document, bytes) or document is None else json.dumps(document).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def task(name: str, number: int = 1) -> dict[str, Any]:
    return {"id": number, "data": {"image": f"/data/local-files/?d={quote(name)}"}}


def test_the_backend_is_up_and_takes_a_project(backend: str) -> None:
    assert ask(backend)[1]["status"] == "UP"
    assert ask(f"{backend}/health")[0] == 200
    setup = {"project": "1.1", "schema": "<View/>", "hostname": "http://localhost:8080", "access_token": "x"}
    assert ask(f"{backend}/setup", setup)[1]["model_version"].startswith("cats-")
    assert ask(f"{backend}/webhook", {"action": "ANNOTATION_CREATED"})[0] == 201


def test_predictions_are_annotations_of_label_studio(backend: str, labeller: PhotoLabeller, folder: Path) -> None:
    config = label_config(labeller.references.categories).replace('name="keypoint"', 'name="kp"')
    status, answer = ask(f"{backend}/predict", {"tasks": [task("a.png")], "project": "1.1", "label_config": config})
    assert status == 200
    (prediction,) = answer["results"]
    found = labeller.label(folder / "a.png")
    assert prediction["score"] == pytest.approx(found.same_kind)
    assert {region["from_name"] for region in prediction["result"]} <= {"rectangle", "kp", "brush", "polygon"}
    read = parse([{**task("a.png"), "predictions": [prediction]}], folder, [])
    (annotation,) = read.photos[0].annotations if found.found else (None,)
    if isinstance(annotation, Annotation):
        names = read.category("duck").keypoints
        for name, place in zip(names, annotation.points, strict=True):
            np.testing.assert_allclose(place, found.points[DUCK.keypoints.index(name)], atol=1e-6)


def test_what_cannot_be_read_is_an_empty_prediction(backend: str) -> None:
    tasks = [
        task("../secret.png", 1),
        task("none.png", 2),
        {"id": 3, "data": {"text": "no photo"}},
        {"id": 4},
        task("ü.jpg", 5),
    ]
    status, answer = ask(f"{backend}/predict", {"tasks": tasks, "label_config": ""})
    assert status == 200
    assert [entry["result"] for entry in answer["results"][:4]] == [[], [], [], []]
    assert len(answer["results"]) == len(tasks)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"{", "not JSON"),
        ([1], "not a JSON object"),
        ({"tasks": 5}, "tasks is not a list"),
        ({"tasks": [], "label_config": "<!DOCTYPE a [<!ENTITY b 'c'>]><View>&b;</View>"}, "entities"),
        (b" " * (17 << 20), "over 16 MiB"),
    ],
    ids=("half", "list", "number", "bomb", "large"),
)
def test_bad_requests(backend: str, document: Any, text: str) -> None:
    status, answer = ask(f"{backend}/predict", document)
    assert status == 400
    assert text in answer["error"]


def test_regions_without_a_control_are_left_out(labeller: PhotoLabeller, folder: Path, monkeypatch: Any) -> None:
    found = SimpleNamespace(
        error=None,
        found=True,
        same_kind=0.9,
        size=SIZES["a.png"],
        annotation=lambda: full_annotations(folder).photos[0].annotations[0],
    )
    monkeypatch.setattr(labeller, "label", lambda photo: found)
    config = '<View><Image name="photo" value="$image"/><KeyPointLabels name="kp" toName="photo"/></View>'
    (prediction,) = label_studio.predict(labeller, [task("a.png")], config, folder)
    assert [(r["type"], r["from_name"], r["to_name"]) for r in prediction["result"]] == [
        ("keypointlabels", "kp", "photo")
    ] * 2
    everything = label_studio.predict(labeller, [task("a.png")], "", folder)[0]["result"]
    assert {region["type"] for region in everything} == {"rectanglelabels", "keypointlabels", "brushlabels"}
    assert os.fspath(folder) not in json.dumps(everything)
