"""Carry the keypoints of one labelled photo to others and write them as COCO: python examples/label_photos.py"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from cats.assets import asset
from cats.core.images import image_size
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.formats import write_annotations
from cats.labelling.label import label_photos

points = json.loads(asset("astronaut.json").read_text())[:5]
face = Category("face", ("left eye", "right eye", "nose", "mouth", "chin"), ((0, 2), (1, 2), (2, 3), (3, 4)))
photo = AnnotatedPhoto(asset("astronaut.jpg"), image_size(asset("astronaut.jpg")), (Annotation("face", points),))
references = Annotations((face,), (photo,))  # or read_annotations("refs.json"), of CVAT, Label Studio, ...

found = []
for result in label_photos(references, [asset("grace_hopper.jpg")], min_probability=0.3):
    for name, (x, y), sure in zip(face.keypoints, result.points, result.probability, strict=True):
        print(f"{result.path.name}: {name} at ({x:.0f}, {y:.0f}), probability {sure:.2f}")
    found.append(AnnotatedPhoto(result.path, result.size, (result.annotation(),)))

with TemporaryDirectory() as place:
    write_annotations(
        Annotations((face,), tuple(found)), Path(place, "labels.json"), root=asset("astronaut.jpg").parent
    )
