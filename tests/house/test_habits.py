"""What a repository has beside its code: version, citation, licences, templates; and files that are read at once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import cats
from cats.benchmarks.record import REPOSITORY
from cats.runtime.commands.doctor import doctor, markdown_report

ROOMS = ("assets", "benchmarks", "calibration", "export", "labelling", "runtime", "serving")


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    pytest.importorskip("tomllib")
    spec = importlib.util.spec_from_file_location("write_licences", REPOSITORY / "docs/write_licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(page: str) -> dict[str, str]:
    """Package -> licence of the page."""
    lines = re.findall(r"^\| ([\w-]+) \| [^|]+ \| (.+) \|$", page, re.MULTILINE)
    return {name: licence for name, licence in lines if name not in ("package", "what")}


def test_every_dependency_has_its_licence(licences: ModuleType) -> None:
    written = table((REPOSITORY / "docs/licences.md").read_text())
    wanted = licences.requirements()
    assert not set(wanted) - set(written), "run docs/write_licences.py"
    assert not set(written) - set(wanted), "run docs/write_licences.py"
    assert [name for name in wanted if "not installed" in written[name]] == []


def test_base_dependencies_say_what_is_written(licences: ModuleType) -> None:
    written = table((REPOSITORY / "docs/licences.md").read_text())
    base = [name for name, extras in licences.requirements().items() if "the package" in extras]
    assert len(base) >= 8
    words = {"numpy": "BSD", "pillow": "MIT-CMU|HPND"}  # whose wording changed between releases that may be installed
    for name in base:
        assert re.search(words.get(name, re.escape(written[name].split()[0])), licences.licence(name)), name


@pytest.mark.parametrize("folder", ["cats", *ROOMS, "tests", "examples"])
def test_no_file_of_code_has_more_than_400_lines(folder: str) -> None:
    files = [file for kind in ("py", "c", "h", "hpp", "js") for file in (REPOSITORY / folder).rglob(f"*.{kind}")]
    assert files
    lengths = {str(file.relative_to(REPOSITORY)): len(file.read_bytes().splitlines()) for file in files}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_there_is_one_version() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert 'version = { attr = "cats.__version__" }' in text
    assert not re.search(r'^version = "', text, re.MULTILINE)
    assert f"\n## {cats.__version__}\n" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_citation_and_templates_are_yaml() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert "version" not in citation  # which would be a second place for it
    for file in sorted((REPOSITORY / ".github").rglob("*.yml")):
        assert isinstance(yaml.safe_load(file.read_text()), dict), file
    bug = yaml.safe_load((REPOSITORY / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    assert any("cats doctor --report" in str(part) for part in bug["body"])


def test_report_is_one_folded_block() -> None:
    found = doctor()
    found["warnings"] = [f"{Path.home()}/x ``` <b>", *found["warnings"]]
    report = markdown_report(found)
    assert report.startswith("<details><summary>cats doctor: cats-toolkit")
    assert report.endswith("</details>\n")
    assert report.count("```") == 2
    assert f"numpy {importlib.metadata.version('numpy')}" in report
    assert "warning: ~/x" in report
    assert all(finding["name"] in report for finding in found["backends"])
