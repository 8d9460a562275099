"""Points and pairs as files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cats.core.errors import InputError
from cats.core.tables import parse_points, read_pairs, read_points


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", "[[1, 2], [3.5, -0.25]]"),
        ("p.csv", "1,2\n3.5,-0.25\n"),
        ("p.csv", "\ufeffx, y\r\n1, 2\r\n\r\n3.5, -0.25"),
        ("p.txt", "X,Y\n1,2\n3.5,-0.25"),
    ],
)
def test_points_in_both_forms(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    np.testing.assert_array_equal(read_points(tmp_path / name), [[1, 2], [3.5, -0.25]])


def test_points_as_they_are_typed_or_the_name_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("1,2\n3.5,-0.25")
    for text in ("1,2;3.5,-0.25", " 1, 2 ; 3.5, -25e-2;", "p.txt"):
        np.testing.assert_array_equal(parse_points(text, tmp_path), [[1, 2], [3.5, -0.25]])
    for text in ("", "none.txt", "1,2,3", "1,nan", "3e400,1", "x" * 5000, "1,2\0"):
        with pytest.raises(InputError, match=r"are not x,y;x,y;|nor a file"):
            parse_points(text, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("p.json", b"[[1, 2], [3", r"p\.json is not JSON"),
        ("p.json", b"[[1, 2, 3]]", r"p\.json: points have shape \(1, 3\)"),
        ("p.json", b"[[1, 2], [3]]", r"p\.json: points must be numbers"),
        ("p.json", b'{"x": 1}', r"p\.json: an object without the matches"),
        ("p.json", b'{"matches": [{"a": [1, 2]}]}', r"p\.json: an object without the matches"),
        ("p.json", b"[[1, NaN]]", r"p\.json is not JSON: NaN is not a finite number"),
        ("p.json", b"[]", "holds no points"),
        ("p.json", b"[" * 100_000, r"p\.json is not JSON"),
        ("p.csv", b"1,2\n3;4\n", r"p\.csv: line 2: '3;4' is not x,y"),
        ("p.csv", b"1,2\nx,y\n", r"p\.csv: line 2"),
        ("p.csv", b"x,y\nu,v\n1,2\n", r"p\.csv: line 2"),
        ("p.csv", b"1,2,3\n", r"p\.csv: line 1"),
        ("p.csv", b"1,2\n1,2,3,4\n", r"p\.csv: line 2"),
        ("p.csv", b"1,inf\n", r"p\.csv: point 0 is .*finite"),
        ("p.csv", b"x,y\n", "holds no points"),
        ("p.csv", b"\xff\xfe\x00\x00", "not a text file"),
    ],
)
def test_bad_points(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=text):
        read_points(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", "[[1, 2, 5, 6], [3, 4, 7, 8]]"),
        (
            "p.json",
            '{"a": "a.jpg", "matches": [{"a": [1, 2], "b": [5, 6]}, {"a": [3, 4], "b": [7, 8], "confidence": 1}]}',
        ),
        ("p.csv", "xa,ya,xb,yb\n1,2,5,6\n3,4,7,8\n"),
    ],
)
def test_correspondences_in_every_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    np.testing.assert_array_equal(read_points(tmp_path / name), [[1, 2, 5, 6], [3, 4, 7, 8]])
    (tmp_path / "pairs.csv").write_text(f"a,b,points\nx.jpg,y.jpg,{name}\n")
    np.testing.assert_array_equal(read_pairs(tmp_path / "pairs.csv")[0].points_of_a(), [[1, 2], [3, 4]])


def test_pairs_are_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "points.csv").write_text("7,8\n")
    (folder / "pairs.csv").write_text(
        'b , a, points, note\nb1.jpg, sub/a1.jpg,, first\n/abs/b2.jpg,a2.jpg,"1,2; 3,4",x\nb3.jpg,a3.jpg,points.csv,y\n'
    )
    rows = read_pairs(folder / "pairs.csv")
    assert [row.a for row in rows] == [folder / "sub" / "a1.jpg", folder / "a2.jpg", folder / "a3.jpg"]
    assert [row.b for row in rows] == [folder / "b1.jpg", Path("/abs/b2.jpg"), folder / "b3.jpg"]
    assert rows[0].points_of_a() is None
    np.testing.assert_array_equal(rows[1].points_of_a(), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(rows[2].points_of_a(), [[7, 8]])
    assert [row.line for row in rows] == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,c\n1,2\n", r"no column b \(its first line is \['a', 'c'\]\)"),
        ("a,b\n", "holds no pairs"),
        ("", "no column a and b"),
        ("a,b\nx.jpg\n", "line 2: a row needs both a and b"),
        ("a,b\nx.jpg,\n", "line 2: a row needs both a and b"),
        ("a,b,points\nx.jpg,y.jpg,1,2\n", "line 2: more fields than the header; put points in quotes"),
        ('a,b\nx.jpg,"y.jpg\n', "not a CSV file"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "pairs.csv")


def test_points_of_a_are_taken_from_correspondences(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('a,b,points\nx.jpg,y.jpg,"1,2,10,20;3,4,30,40"\nx.jpg,y.jpg,"1,2,3,4;5,6"\n')
    rows = read_pairs(tmp_path / "pairs.csv")
    np.testing.assert_array_equal(rows[0].points_of_a(), [[1, 2], [3, 4]])
    with pytest.raises(InputError, match=r"'1,2,3,4;5,6' are not .* two or four in every row"):
        rows[1].points_of_a()


@pytest.mark.parametrize("name", ["p.csv", "p.json"])
def test_numbers_that_no_float_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"[[1{'0' * 400},1]]" if name == "p.json" else f"1{'0' * 400},1\n")
    with pytest.raises(InputError, match=rf"{name}"):
        read_points(tmp_path / name)
    with pytest.raises(InputError, match="points '1000"):
        parse_points("1" + "0" * 400 + ",1", tmp_path)


@pytest.mark.parametrize("read", [read_pairs, read_points])
def test_files_without_an_end_are_not_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "p.csv").symlink_to("/dev/zero")
    (tmp_path / "q.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.csv")
    with open(tmp_path / "sparse.csv", "wb") as handle:
        handle.truncate(1 << 40)
    for name, text in (("p.csv", "a device"), ("q.json", "a device"), ("pipe.csv", "a pipe"), ("sparse.csv", "limit")):
        with pytest.raises(InputError, match=rf"{name}.*{text}"):
            read(tmp_path / name)
    for name in ("a\0.csv", "\ud800.csv"):
        with pytest.raises(InputError, match="no file can have this name"):
            read(tmp_path / name)


def test_a_bad_row_has_its_line_and_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('a,b\nx.jpg,\nx.jpg,y.jpg\n"x\n.jpg",y.jpg,1,2\n')
    with pytest.raises(InputError, match=r"p.csv, line 2: a row needs both"):
        read_pairs(path)
    rows = read_pairs(path, keep_bad=True)
    assert [(row.line, row.problem and row.problem[:15]) for row in rows] == [
        (2, "a row needs bot"),
        (3, None),
        (5, "more fields tha"),
    ]
    path.write_text('a,b\nx.jpg,y.jpg\nx.jpg,"y"z\n')
    with pytest.raises(InputError, match=r"p.csv, line 3: not a CSV file"):
        read_pairs(path, keep_bad=True)


def test_tables_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cats.core.tables.MAX_ROWS", 2)
    path = tmp_path / "p.csv"
    path.write_text("a,b\n" + "x.jpg,y.jpg\n" * 3)
    with pytest.raises(InputError, match="more than 2 pairs"):
        read_pairs(path)
    path.write_text("1,2\n" * 3)
    with pytest.raises(InputError, match="line 3: more than 2 points"):
        read_points(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    for name, text in {"endless.csv": "it is a device", "pipe.json": "it is a pipe", "a\0.csv": "no file can"}.items():
        with pytest.raises(InputError, match=text):
            read_points(tmp_path / name)
    with pytest.raises(InputError, match="it is a device"):
        read_pairs(tmp_path / "endless.csv")
