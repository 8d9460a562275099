"""CVAT for images 1.1, in XML: skeletons, points, boxes, polygons, masks and tags.

The shapes of one object have one ``group_id``. A hidden keypoint is ``occluded``, one without a place ``outside``.
Bones stand in the drawing (``svg``) of a skeleton's label, as CVAT has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Tree  # for writing; what is read goes through defusedxml

import numpy as np

from cats.core.errors import InputError
from cats.core.files import write_bytes
from cats.core.geometry import Floats, Size
from cats.labelling.annotations import HIDDEN, VISIBLE, AnnotatedPhoto, Annotation, Annotations, Category, Mask
from cats.labelling.formats.common import (
    UNNAMED,
    PhotoFolder,
    corners_box,
    name_of,
    naming,
    number,
    numbers,
    place_points,
    read_text,
    what_is_lost,
)

_SHAPES = ("skeleton", "points", "box", "polygon", "mask", "tag")
_DRAWING = 100.0  # CVAT draws skeletons on a square of this side

_Parts = dict[str, Any]


def read(path: Path, root: Path, notes: list[str]) -> Annotations:
    """Read a file; see :func:`cats.labelling.formats.read_annotations`."""
    document = parse_xml(read_text(path, separator=b"<"))
    if document.tag != "annotations":
        raise InputError(f"its root is <{document.tag}>, not the <annotations> of CVAT for images 1.1")
    if document.find("track") is not None:
        raise InputError("it is of the format CVAT for video: export the task as CVAT for images 1.1")
    categories = _declared(document)
    images = document.findall("image")
    kinds = _keypoint_labels(images, categories)
    folder = PhotoFolder(root)
    aside: set[str] = set()
    found = []
    for image in images:
        name = image.get("name", "")
        with naming(f"image {name}"):
            file = folder.find(name)
            size = folder.measure(file, (_whole(image, "width"), _whole(image, "height")))
            aside |= {element.tag for element in image} - set(_SHAPES)
            found.append((file, size, _objects(image, size, kinds)))
    for _, _, objects in found:
        for parts in objects:
            category = categories.setdefault(parts["category"], Category(parts["category"]))
            names = tuple(dict.fromkeys((*category.keypoints, *parts["points"])))
            categories[category.name] = Category(category.name, names, category.skeleton)
    if aside:
        notes.append(f"left aside shapes of the types {', '.join(sorted(aside))}")
    photos = [
        AnnotatedPhoto(file, size, tuple(_finish(parts, categories[parts["category"]]) for parts in objects))
        for file, size, objects in found
    ]
    return Annotations(tuple(c for c in categories.values() if c.name not in kinds), tuple(photos))


def write(annotations: Annotations, path: Path, root: Path) -> list[str]:
    """Write a file; see :func:`cats.labelling.formats.write_annotations`."""
    document = Tree.Element("annotations")
    Tree.SubElement(document, "version").text = "1.1"
    task = Tree.SubElement(Tree.SubElement(document, "meta"), "task")
    for key, value in (("name", path.stem), ("size", len(annotations.photos)), ("mode", "annotation")):
        Tree.SubElement(task, key).text = str(value)
    labels = Tree.SubElement(task, "labels")
    for category in annotations.categories:
        _declare(labels, category)
    group = 0
    for index, photo in enumerate(annotations.photos):
        width, height = photo.size
        head = {"id": str(index), "name": name_of(photo.path, root), "width": str(width), "height": str(height)}
        image = Tree.SubElement(document, "image", head)
        for annotation in photo.annotations:
            group += 1
            _add_object(image, annotation, annotations.category(annotation.category), group)
    Tree.indent(document)
    write_bytes(path, Tree.tostring(document, encoding="utf-8", xml_declaration=True) + b"\n")
    return what_is_lost(annotations, "keypoint names", "hidden points", "bones", "boxes", "outlines", "masks")


def parse_xml(text: str) -> Tree.Element:
    """The root of an XML document without entities of its own; raises :class:`InputError` for other texts."""
    from defusedxml import DefusedXmlException
    from defusedxml import ElementTree as Defused

    try:
        root: Tree.Element = Defused.fromstring(text, forbid_dtd=True)
    except DefusedXmlException as error:
        raise InputError("it defines entities or a document type, which label files do not need: refused") from error
    except (Tree.ParseError, ValueError, RecursionError) as error:
        raise InputError(f"not XML: {error}") from error
    return root


def _declared(document: Tree.Element) -> dict[str, Category]:
    """Categories of the labels in ``meta``, the keypoints of skeletons with their bones among them."""
    labels = [label for label in document.iter("label") if label.find("name") is not None]
    children: dict[str, list[str]] = {}
    for label in labels:
        if parent := _text(label, "parent"):
            children.setdefault(parent, []).append(_text(label, "name"))
    categories = {}
    for label in labels:
        name = _text(label, "name")
        if not _text(label, "parent"):
            keypoints = tuple(children.get(name, ()))
            with naming(f"label {name}"):
                categories[name] = Category(name, keypoints, _bones(_text(label, "svg"), keypoints))
    return categories


def _bones(drawing: str, keypoints: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Pairs of keypoints out of a skeleton's drawing: its circles are the points, its lines the bones."""
    if not drawing.strip():
        return ()
    svg = parse_xml(f"<svg>{drawing}</svg>" if "<svg" not in drawing else drawing)
    circles = [element for element in svg.iter() if element.tag.endswith("circle")]
    nodes = {}
    for index, circle in enumerate(circles):
        name = circle.get("data-label-name")
        named = name in keypoints if name else False
        nodes[circle.get("data-node-id")] = keypoints.index(name) if named and name else index
    lines = [element for element in svg.iter() if element.tag.endswith("line")]
    ends = [(nodes.get(line.get("data-node-from")), nodes.get(line.get("data-node-to"))) for line in lines]
    return tuple((a, b) for a, b in ends if a is not None and b is not None)


def _keypoint_labels(images: list[Tree.Element], categories: dict[str, Category]) -> set[str]:
    """Labels that are keypoints of one unnamed category: several, and each on single points alone."""
    single: dict[str, bool] = {}
    for element in (element for image in images for element in image):
        label = element.get("label", "")
        one = element.tag == "points" and ";" not in element.get("points", "").strip().strip(";")
        single[label] = single.get(label, True) and one
    loose = {
        label for label, one in single.items() if one and not (label in categories and categories[label].keypoints)
    }
    return loose if len(loose) > 1 else set()


def _objects(image: Tree.Element, size: Size, kinds: set[str]) -> list[_Parts]:
    """The objects of a photo as loose parts; those of one group and label are one object."""
    objects: dict[object, _Parts] = {}
    for element in image:
        if element.tag not in _SHAPES:
            continue
        label = element.get("label", "")
        category = UNNAMED if label in kinds else label
        group = element.get("group_id", "0")
        key: object = (group, category) if group != "0" else (UNNAMED if label in kinds else id(element))
        parts = objects.setdefault(key, {"category": category, "points": {}, "box": None, "polygons": [], "mask": None})
        with naming(f"{element.tag} {label}"):
            _add_shape(parts, element, size, label in kinds)
    return list(objects.values())


def _add_shape(parts: _Parts, element: Tree.Element, size: Size, is_keypoint: bool) -> None:
    if element.tag == "skeleton":
        for point in element.findall("points"):
            if point.get("outside") != "1":
                _add_points(parts, point, [point.get("label", "")])
    elif element.tag == "points":
        count = len(numbers(element.get("points", ""), "points"))
        names = [element.get("label", "")] if is_keypoint else [str(index + 1) for index in range(count)]
        _add_points(parts, element, names)
    elif element.tag == "box":
        if number(element.get("rotation", 0), "rotation"):
            raise InputError("a turned box: boxes are upright here")
        corners = [number(element.get(key), key) for key in ("xtl", "ytl", "xbr", "ybr")]
        parts["box"] = corners_box(*corners)
    elif element.tag == "polygon":
        parts["polygons"].append(numbers(element.get("points", ""), "points"))
    elif element.tag == "mask":
        parts["mask"] = _read_mask(element, size)


def _add_points(parts: _Parts, element: Tree.Element, names: list[str]) -> None:
    places = numbers(element.get("points", ""), "points")
    if len(places) != len(names):
        raise InputError(f"{len(places)} points where {len(names)} is expected")
    visibility = HIDDEN if element.get("occluded") == "1" else VISIBLE
    for name, (x, y) in zip(names, places.tolist(), strict=True):
        if name in parts["points"]:
            raise InputError(f"two keypoints {name} in one object: give the shapes of an object a group of their own")
        parts["points"][name] = (x, y, visibility)


def _finish(parts: _Parts, category: Category) -> Annotation:
    placed = place_points(category.keypoints, parts["points"])
    return Annotation(category.name, **placed, box=parts["box"], polygons=tuple(parts["polygons"]), mask=parts["mask"])


def _read_mask(element: Tree.Element, size: Size) -> Mask:
    """CVAT's masks are runs along the rows of a box, the first outside."""
    left, top, width, height = (_whole(element, key) for key in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
        raise InputError(f"a mask at {left}, {top} of {width}x{height} pixels does not lie in the photo")
    runs = [int(number(text, "rle")) for text in element.get("rle", "").split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise InputError(f"a mask whose runs do not add up to its {width}x{height} pixels")
    inside = np.zeros((size[1], size[0]), bool)
    line = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    inside[top : top + height, left : left + width] = line.reshape(height, width)
    return Mask.from_array(inside)


def _write_mask(mask: Mask) -> dict[str, str]:
    inside = mask.to_array()
    rows, columns = np.nonzero(inside)
    top, left = (int(rows.min()), int(columns.min())) if len(rows) else (0, 0)
    bottom, right = (int(rows.max()), int(columns.max())) if len(rows) else (0, 0)
    box = inside[top : bottom + 1, left : right + 1]
    runs = Mask.from_array(box.T).counts  # along the rows
    place = {"left": left, "top": top, "width": box.shape[1], "height": box.shape[0]}
    return {"rle": ", ".join(map(str, runs)), **{key: str(value) for key, value in place.items()}}


def _declare(labels: Tree.Element, category: Category) -> None:
    label = Tree.SubElement(labels, "label")
    Tree.SubElement(label, "name").text = category.name
    Tree.SubElement(label, "type").text = "skeleton" if category.keypoints else "any"
    Tree.SubElement(label, "attributes")
    if not category.keypoints:
        return
    Tree.SubElement(label, "svg").text = _draw(category)
    for name in category.keypoints:
        keypoint = Tree.SubElement(labels, "label")
        Tree.SubElement(keypoint, "name").text = name
        Tree.SubElement(keypoint, "type").text = "points"
        Tree.SubElement(keypoint, "attributes")
        Tree.SubElement(keypoint, "parent").text = category.name


def _draw(category: Category) -> str:
    """A skeleton on a circle, in CVAT's SVG."""
    angles = 2 * np.pi * np.arange(len(category.keypoints)) / len(category.keypoints)
    places = np.round(_DRAWING * (0.5 + 0.4 * np.column_stack([np.sin(angles), -np.cos(angles)])), 2).tolist()
    parts = []
    for a, b in category.skeleton:
        (x1, y1), (x2, y2) = places[a], places[b]
        ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        parts.append(
            _tag(
                "line", {**ends, "data-type": "edge", "data-node-from": a + 1, "stroke": "black", "data-node-to": b + 1}
            )
        )
    for index, (name, (x, y)) in enumerate(zip(category.keypoints, places, strict=True), start=1):
        number_ = {"data-element-id": index, "data-node-id": index, "data-label-name": name}
        parts.append(_tag("circle", {"r": 1.5, "cx": x, "cy": y, "data-type": "element node", **number_}))
    return "".join(parts)


def _tag(name: str, attributes: dict[str, object]) -> str:
    element = Tree.Element(name, {key: str(value) for key, value in attributes.items()})
    return Tree.tostring(element, encoding="unicode", short_empty_elements=False)


def _add_object(image: Tree.Element, annotation: Annotation, category: Category, group: int) -> None:
    head = {"label": category.name, "source": "manual" if annotation.probability is None else "auto"}
    tail = {"z_order": "0", "group_id": str(group)}
    shapes = list(_shapes(annotation, category))
    for tag, attributes in shapes:
        element = Tree.SubElement(image, tag, {**head, **attributes, **tail})
        if tag == "skeleton":
            for k, name in enumerate(category.keypoints):
                _add_element(element, annotation, k, name)
    if not shapes:
        Tree.SubElement(image, "tag", {**head, "group_id": str(group)})


def _shapes(annotation: Annotation, category: Category) -> Iterator[tuple[str, dict[str, str]]]:
    if category.keypoints and annotation.labelled.any():
        yield "skeleton", {}
    if annotation.box is not None:
        x, y, width, height = annotation.box
        corners = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
        yield "box", {"occluded": "0", **{key: repr(value) for key, value in corners.items()}}
    for polygon in annotation.polygons:
        yield "polygon", {"occluded": "0", "points": _join(polygon)}
    if annotation.mask is not None:
        yield "mask", {"occluded": "0", **_write_mask(annotation.mask)}


def _add_element(skeleton: Tree.Element, annotation: Annotation, k: int, name: str) -> None:
    known = bool(annotation.labelled[k])
    place = annotation.points[k] if known else np.zeros(2)
    attributes = {
        "label": name,
        "source": skeleton.get("source", "manual"),
        "outside": str(int(not known)),
        "occluded": str(int(annotation.visibility[k] == HIDDEN)),
        "points": _join(place[None]),
    }
    Tree.SubElement(skeleton, "points", attributes)


def _join(points: Floats) -> str:
    return ";".join(f"{x!r},{y!r}" for x, y in points.tolist())


def _text(element: Tree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _whole(element: Tree.Element, key: str) -> int:
    return int(number(element.get(key), key))
