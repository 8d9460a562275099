"""The card of a model on a hub: what it is, what was measured, how it is used; from the metadata in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from cats.core.files import sha256_file
from cats.core.metadata import Metadata

_TEMPLATE = """---
library_name: cats-toolkit
pipeline_tag: keypoint-detection
{% if license %}license: {{ license }}
{% endif %}tags:
- semantic-correspondence
- keypoint-matching
- onnx
---

# {{ title }}

Semantic correspondence: which point of photo B is the same part as this point of photo A? A CATs (Cost Aggregation
Transformers), exported by CATs toolkit.
{% if picture %}
![The same points of two photos]({{ picture }})
{% endif %}
```python
from cats.runtime import Matcher

match = Matcher("hf://{{ repo }}").match("a.jpg", "b.jpg")
match.transfer([[120, 80]])  # pixels of a -> pixels of b
```

```sh
pip install 'cats-toolkit[cpu,hub]'
cats-run hf://{{ repo }} a.jpg b.jpg
```

| | |
|---|---|
{% for name, value in facts %}| {{ name }} | {{ value }} |
{% endfor %}
{% if parity %}## Compared with PyTorch

| measured | |
|---|---|
{% for name, value in parity %}| {{ name }} | {{ value }} |
{% endfor %}
{% endif %}{% if accuracy %}## Accuracy

| measured | |
|---|---|
{% for name, value in accuracy %}| {{ name }} | {{ value }} |
{% endfor %}
{% endif %}## Files

| file | bytes | SHA-256 |
|---|---|---|
{% for name, size, digest in files %}| `{{ name }}` | {{ size }} | `{{ digest }}` |
{% endfor %}"""


def model_card(
    repo: str, metadata: Metadata, files: list[Path], *, picture: str | None = None, license: str | None = None
) -> str:
    """Markdown with the header that hubs read.

    Args:
        repo: ``user/repo``.
        metadata: of the model's file.
        files: that lie beside the card.
        picture: name of a picture among them.
        license: identifier of the weights' licence, for the header.
    """
    config = metadata.config
    facts = [
        ("backbone", config.get("backbone")),
        ("hyperpixels", ", ".join(map(str, config.get("hyperpixels") or ()))),
        ("input", "two RGB photos of any size, scaled to {}x{}".format(*metadata.preprocessing.size)),
        ("output", "flow a -> b and confidence on a grid of {}x{} cells".format(*metadata.grid)),
        ("precision", metadata.precision),
        ("opset", metadata.opset),
        ("verified against PyTorch", "yes" if metadata.verified else "no"),
        ("weights", f"`{metadata.weights_sha256}`"),
        *((f"made with {tool}", version) for tool, version in metadata.tools.items()),
    ]
    template = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE)
    return template.render(
        title=repo.partition("/")[2],
        repo=repo,
        license=license,
        picture=picture,
        facts=[(name, _cell(value)) for name, value in facts if value not in (None, "")],
        parity=_rows(metadata.parity),
        accuracy=_rows(metadata.accuracy),
        files=[(_cell(path.name), path.stat().st_size, sha256_file(path)) for path in files],
    )


def _rows(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Rows of a table for one part of the metadata."""
    return [(_cell(name.replace("_", " ")), _cell(_sentence(value))) for name, value in (figures or {}).items()]


def _sentence(value: Any) -> str:
    """Figures of a JSON document in words: ``p99 0.03, max 0.2``."""
    if isinstance(value, dict):
        parts = (f"{name.replace('_', ' ')} {_sentence(part)}" for name, part in value.items())
        return ", ".join(part for part in parts if not part.endswith(" "))
    if isinstance(value, (list, tuple)):
        return " and ".join(_sentence(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _cell(value: object) -> str:
    """Text within a table; what a file says is no markup."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
