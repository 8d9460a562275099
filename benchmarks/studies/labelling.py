"""Labels of a few photos to many: PCK by number of labelled photos, each step on and off, and the probabilities.

Every PF-WILLOW photo in turn is the one without labels, K others of its category, drawn anew in each draw, are the
references; PCK@0.1, protocol ``corrected``. With ``--fit`` the probabilities' coefficients are fitted too and written
beside the code (labelling/probability.json): points on PF-WILLOW, cross-validated by category; same kind or not on
Caltech-101, cross-validated by category, which PF-WILLOW takes no part in.

Usage: python -m cats.benchmarks.studies.labelling [--model M] [--backend openvino --precision bf16] [--fit] [OUT.json]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cats.assets import asset
from cats.benchmarks.record import SHARED, describe_run, write_record
from cats.benchmarks.studies.logistic import Logistic, auc, calibration_error, fit_logistic
from cats.core.files import write_text
from cats.core.geometry import Floats
from cats.core.images import image_size, read_image
from cats.core.photos import list_photos
from cats.data.proposal_flow import PFWillow
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.consensus import extent, find_consensus
from cats.labelling.label import MODEL, label_photos, open_for_labelling
from cats.labelling.passes import Finding, cast_votes, look_for
from cats.labelling.probability import FILE, KIND_MEASURES, POINT_MEASURES, kind_measures, point_measures
from cats.labelling.references import Look, LookStore, Reference, References, look_at, make_reference
from cats.labelling.through import FEW, Through, count_neighbours
from cats.runtime import Match, Matcher

COUNTS = (1, 2, 3, 5, 9)
DRAWS = 5
ALPHA = 0.1
KIND_REFERENCES, KIND_PHOTOS = 3, 1
SPEED_PHOTOS, SPEED_REFERENCES = 100, 5


class Remembering:
    """A matcher that matches a pair of pinned features once: draws share references."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._pinned: dict[int, Any] = {}
        self._known: dict[tuple[int, int], Match] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def pin(self, look: Look) -> Look:
        """Remember matches of this look."""
        self._pinned[id(look.source)] = look.source
        return look

    def match_batch(self, pairs: Sequence[Any], **options: Any) -> list[Match]:
        """See :meth:`cats.runtime.Matcher.match_batch`."""
        results = []
        for a, b in pairs:
            key = (id(a), id(b))
            match = self._known.get(key) or self._matcher.match_batch([(a, b)], **options)[0]
            if id(a) in self._pinned and id(b) in self._pinned:
                self._known[key] = match
            results.append(match)
        return results


@dataclass(eq=False)
class Photo:
    """A PF-WILLOW photo: its file, category, points, look at all of it, and itself as a reference."""

    path: Path
    category: str
    points: Floats
    whole: Look
    reference: Reference


class Willow:
    """PF-WILLOW's photos by category, encoded once."""

    def __init__(self, matcher: Any, draws: int) -> None:
        self.matcher, self.store, self.number = matcher, LookStore(matcher), draws
        names = tuple(str(index) for index in range(10))
        data = PFWillow(SHARED / "data" / "PF-WILLOW")
        self.photos: dict[str, list[Photo]] = defaultdict(list)
        seen = set()
        for sample in (data[index] for index in range(len(data))):
            path = Path(str(sample.image_a))
            if path in seen:
                continue
            seen.add(path)
            category = path.parent.name
            reference = make_reference(path, sample.size_a, Annotation(category, sample.points_a))
            matcher.pin(self.store.look(path, reference.window))
            whole = matcher.pin(look_at(matcher, read_image(path)))
            self.photos[category].append(Photo(path, category, sample.points_a, whole, reference))
        self.categories = {name: Category(name, names) for name in self.photos}

    def references(self, chosen: Sequence[Photo]) -> References:
        """These photos as references."""
        return References(self.store, self.categories[chosen[0].category], [photo.reference for photo in chosen])

    def look(self, photo: Photo, references: References, looks: int = 2) -> Finding:
        """As ``label_photos`` does."""
        image, items = read_image(photo.path), references.items
        return look_for(self.matcher, self.store, photo.path, image, photo.whole, references, items, looks)

    def groups(self, count: int) -> Iterator[tuple[int, list[Photo], list[Photo]]]:
        """Draw number, references for a category, and its other photos; over all draws each photo as often."""
        number = max(self.number, 10 // count)
        for draw in range(number):
            for name, photos in self.photos.items():
                order = random.Random(f"through {count} {name}").sample(photos, len(photos))
                first = draw * len(order) // number
                order = order[first:] + order[:first]
                yield draw, order[:count], order[count:]

    def draws(self, count: int) -> Iterator[tuple[int, Photo, list[Photo]]]:
        """Draw number, photo without labels, and its references."""
        number = 1 if count == 9 else self.number  # there are ten photos of a category
        for draw in range(number):
            rng = random.Random(f"{count} {draw}")
            for photos in self.photos.values():
                for photo in photos:
                    yield draw, photo, rng.sample([other for other in photos if other is not photo], count)


def correct(places: Floats, photo: Photo) -> np.ndarray:
    """Which of K points are right."""
    return np.linalg.norm(places[: len(photo.points)] - photo.points, axis=1) <= ALPHA * extent(photo.points)


class Table:
    """PCK by step, number of references, category and draw."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], list[tuple[int, str, float]]] = defaultdict(list)

    def add(self, step: str, count: int, draw: int, photo: Photo, places: Floats) -> None:
        """Score one photo."""
        self._found[step, count].append((draw, photo.category, 100 * float(correct(places, photo).mean())))

    def rows(self) -> list[dict[str, Any]]:
        """Means over draws, with their spread."""
        rows = []
        for (step, count), entries in self._found.items():
            draws = [np.mean([v for d, _, v in entries if d == draw]) for draw in sorted({d for d, _, _ in entries})]
            names = sorted({category for _, category, _ in entries})
            rows.append(
                {
                    "step": step,
                    "references": count,
                    "pck": round(float(np.mean(draws)), 1),
                    "draws": [round(float(value), 1) for value in draws],
                    "by_category": {n: round(float(np.mean([v for _, c, v in entries if c == n])), 1) for n in names},
                }
            )
        return rows


def measure_steps(
    willow: Willow, counts: Sequence[int], table: Table, points: list[tuple[str, str, Floats, Any]]
) -> None:
    """Each step on and off for every draw; the points' measures for the fit go to ``points``."""
    for count in counts:
        start = time.perf_counter()
        for draw, photo, chosen in willow.draws(count):
            references = willow.references(chosen)
            found = willow.look(photo, references)
            shown = [willow.store.look(item.path, item.window) for item in references.items]
            first, _ = cast_votes(willow.matcher, references.items, shown, photo.whole, both_ways=True)
            raw = found.votes
            table.add("one look", count, draw, photo, find_consensus(first))
            table.add("two looks, mean of the votes", count, draw, photo, raw.points.mean(axis=0))
            without = replace(raw, shape=np.full_like(raw.shape, np.nan))
            equal = replace(without, error=np.zeros_like(raw.error), confidence=np.ones_like(raw.confidence))
            table.add("two looks, mode", count, draw, photo, find_consensus(equal))
            table.add("two looks, mode, weights", count, draw, photo, find_consensus(without))
            table.add("two looks, mode, weights, shape", count, draw, photo, found.places)
            points.append(
                (photo.category, str(count), point_measures(found)[: len(photo.points)], correct(found.places, photo))
            )
        print(f"K = {count}: {time.perf_counter() - start:.0f} s", flush=True)


def measure_through(
    willow: Willow,
    counts: Sequence[int],
    throughs: Sequence[int],
    table: Table,
    points: list[tuple[str, str, Floats, Any]],
) -> None:
    """K references drawn for a whole category, the other photos labelled, alone and through one another."""
    for count in counts:
        start = time.perf_counter()
        for draw, chosen, rest in willow.groups(count):
            references = willow.references(chosen)
            findings = [willow.look(photo, references) for photo in rest]
            for through in throughs:
                further = Through(willow.matcher, willow.store, findings, through)
                for photo, found in zip(rest, findings, strict=True):
                    better = further.improve(found) if through else found
                    table.add(f"through {through}", count, draw, photo, better.places)
                    if through == count_neighbours(count, None):
                        measures = point_measures(better)[: len(photo.points)]
                        name = f"{count} through {through}"
                        points.append((photo.category, name, measures, correct(better.places, photo)))
        print(f"through, K = {count}: {time.perf_counter() - start:.0f} s", flush=True)


def measure_speed(model: str, backend: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds for :data:`SPEED_PHOTOS` photos from :data:`SPEED_REFERENCES` references, loading and memory."""
    data = PFWillow(SHARED / "data" / "PF-WILLOW")
    samples = {Path(str(sample.image_a)): sample for sample in (data[index] for index in range(len(data)))}
    cars = [path for path in samples if path.parent.name == "car(S)"][:SPEED_REFERENCES]
    names = tuple(str(index) for index in range(10))
    labelled = [AnnotatedPhoto(p, samples[p].size_a, (Annotation("car", samples[p].points_a),)) for p in cars]
    rest = [path for path in samples if path not in cars]
    photos = [rest[index % len(rest)] for index in range(SPEED_PHOTOS)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    with open_for_labelling(model, None, backend, **options) as matcher:
        for _ in label_photos(Annotations((Category("car", names),), tuple(labelled)), photos, matcher):
            pass
        used = matcher.backend.describe()
    seconds = time.perf_counter() - start
    return {
        "photos": SPEED_PHOTOS,
        "references": SPEED_REFERENCES,
        "backend": used,
        "seconds": round(seconds, 1),
        "photos_per_second": round(SPEED_PHOTOS / seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "of_it_before": round(before / 1024),
    }


def fit_points(points: list[tuple[str, str, Floats, Any]]) -> tuple[Logistic, dict[str, Any]]:
    """Fit on all of PF-WILLOW; reliability on each category from a fit on the others."""
    measures = np.concatenate([entry[2] for entry in points])
    right = np.concatenate([entry[3] for entry in points])
    category = np.concatenate([[entry[0]] * len(entry[3]) for entry in points])
    references = np.concatenate([[entry[1]] * len(entry[3]) for entry in points])
    held_out = np.zeros(len(right))
    for name in np.unique(category):
        held_out[category == name] = fit_logistic(measures[category != name], right[category != name])(
            measures[category == name]
        )
    kept = held_out >= 0.8
    record = {
        "points": len(right),
        "right": round(float(right.mean()), 4),
        **calibration_error(held_out, right),
        "by_references": {
            str(k): calibration_error(held_out[references == k], right[references == k])["ece"]
            for k in np.unique(references)
        },
        "by_category": {
            str(c): calibration_error(held_out[category == c], right[category == c])["ece"] for c in np.unique(category)
        },
        "auc": round(auc(held_out, right), 4),
        "at_0.8": {"kept": round(float(kept.mean()), 4), "right": round(float(right[kept].mean()), 4)},
    }
    return fit_logistic(measures, right), record


def measure_kinds(matcher: Any) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Photos of Caltech-101 against references of their own and of another category.

    Returns:
        measures (N, 4), whether the kind is the same (N,), and the references' category (N,).
    """
    folders = sorted({photo.parent for photo in list_photos(SHARED / "data" / "Caltech-101")[0]})
    photos = {folder.name: list_photos(folder)[0] for folder in folders}
    rng, store = random.Random(0), LookStore(matcher)
    measures, same, names = [], [], []
    for name, files in photos.items():
        drawn = rng.sample(files, KIND_REFERENCES + KIND_PHOTOS)
        items = []
        for path in drawn[:KIND_REFERENCES]:
            width, height = image_size(path)
            items.append(make_reference(path, (width, height), Annotation(name, box=(0, 0, width, height))))
        references = References(store, Category(name), items)
        others = [rng.choice(photos[other]) for other in rng.sample([n for n in photos if n != name], KIND_PHOTOS)]
        for path, is_same in [*((path, True) for path in drawn[KIND_REFERENCES:]), *((path, False) for path in others)]:
            image = read_image(path)
            found = look_for(matcher, store, path, image, look_at(matcher, image), references, items, 2)
            measures.append(kind_measures(found))
            same.append(is_same)
            names.append(name)
    return np.array(measures), np.array(same), np.array(names)


def fit_kinds(measures: Floats, same: np.ndarray, names: np.ndarray) -> tuple[dict[str, Logistic], dict[str, Any]]:
    """With and without the likeness of features; figures on five folds of categories, each from a fit on the others."""
    categories = np.unique(names)
    models: dict[str, Logistic] = {}
    record: dict[str, Any] = {"photos": len(same), "categories": len(categories)}
    record["auc of the mean log confidence alone"] = round(auc(measures[:, 1], same), 4)
    record["auc of the likeness alone"] = round(auc(measures[:, 3], same), 4)
    for title, used in (("same_kind", measures), ("same_kind_without_likeness", measures[:, :-1])):
        held_out = np.zeros(len(same))
        for fold in range(5):
            inside = np.isin(names, categories[fold::5])
            held_out[inside] = fit_logistic(used[~inside], same[~inside])(used[inside])
        models[title] = fit_logistic(used, same)
        record[title] = {"auc": round(auc(held_out, same), 4), **calibration_error(held_out, same)}
    return models, record


def main() -> None:
    """Measure, and with ``--fit`` write the coefficients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", help="JSON record")
    parser.add_argument("--model", default=str(asset(MODEL)))
    parser.add_argument("--backend")
    parser.add_argument("--precision")
    parser.add_argument("--fit", action="store_true", help="write labelling/probability.json")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--through", default="0,4")
    parser.add_argument("--only", choices=("steps", "through", "kinds", "speed"), help="a part of it")
    given = parser.parse_args()
    options = {"precision": given.precision} if given.precision else {}
    if given.only == "speed":
        print(json.dumps(measure_speed(given.model, given.backend, options), indent=1))
        return
    table, points = Table(), []  # type: tuple[Table, list[tuple[str, str, Floats, Any]]]
    with open_for_labelling(given.model, None, given.backend, **options) as opened:
        matcher = Remembering(opened)
        willow = Willow(matcher, given.draws)
        counts = [int(text) for text in given.counts.split(",")]
        result: dict[str, Any] = {
            **describe_run("labelling", ["onnxruntime", "openvino"]),
            "model": Path(given.model).name,
            "backend": opened.backend.describe(),
            "protocol": "PF-WILLOW car and duck, corrected, PCK@0.1, mean over photos and draws",
        }
        fitted = json.loads(FILE.read_text())
        for count in counts:
            if given.only in (None, "steps"):
                measure_steps(willow, [count], table, points)
            if given.only in (None, "through") and count <= FEW:
                measure_through(willow, [count], [int(text) for text in given.through.split(",")], table, points)
            for row in table.rows():
                if row["references"] == count:
                    print(f"{row['step']:32s} K = {count}: {row['pck']:5.1f}  {row['by_category']}", flush=True)
            if points:
                point_model, result["probability"] = fit_points(points)
                fitted["points_on"] = f"PF-WILLOW car and duck, {result['probability']['points']} points"
                fitted["point"] = result["probability"]["fit"] = point_model.to_dict()
            result["pck"] = table.rows()
            if given.out:  # after each count: it takes long
                write_record(given.out, result)
        if given.only in (None, "kinds"):
            kind_models, result["same_kind"] = fit_kinds(*measure_kinds(matcher))
            of = result["same_kind"]
            fitted["same_kind_on"] = f"Caltech-101, {of['photos']} photos of {of['categories']} categories"
            fitted.update({title: model.to_dict() for title, model in kind_models.items()})
    print(json.dumps({key: result[key] for key in ("probability", "same_kind") if key in result}, indent=1))
    if given.fit:
        fitted["fitted_by"] = "benchmarks/studies/labelling.py --fit"
        fitted["measures"] = {"point": POINT_MEASURES, "same_kind": KIND_MEASURES}
        write_text(FILE, json.dumps(fitted, indent=1) + "\n")
    if given.out:
        write_record(given.out, result)


if __name__ == "__main__":
    main()
