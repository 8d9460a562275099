"""Short table of the results, the failures first.  python -m cats.benchmarks.gpu.table results-*.jsonl [--json FILE]"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def lines(paths: list[str]) -> list[dict]:
    found = []
    for path in paths:
        for line in Path(path).read_text().splitlines() if Path(path).is_file() else []:
            try:
                found.append(json.loads(line))
            except ValueError:  # cut off in the middle
                continue
    return found


def figures(item: dict) -> str:
    """The few numbers that fit into a line."""
    flat: dict[str, object] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(part, f"{name}.{key}" if name else key)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = value

    walk({k: v for k, v in item.items() if k not in ("step", "name", "took_s")}, "")
    wanted = ("ms", "p99_px", "median_px", "pairs_per_s", "tb_per_s", "tflops", "relative", "max")
    return "  ".join(f"{k}={v:.5g}" for k, v in flat.items() if k.rpartition(".")[2] in wanted)[:150]


def main() -> None:
    paths = [word for word in sys.argv[1:] if not word.startswith("--") and not word.endswith(".json")]
    found = lines(paths)
    if "--json" in sys.argv:
        document: dict[str, dict] = {}
        for item in found:
            rest = {key: value for key, value in item.items() if key not in ("step", "name")}
            document.setdefault(item["step"], {})[item["name"]] = rest
        Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(document, indent=1) + "\n")
    for item in found:
        if "failed" in item or item.get("name") == "ended early":
            print(f"FAILED {item['step']} {item['name']}: {str(item.get('failed', item.get('status')))[:200]}")
    for item in found:
        text = figures(item)
        if text and "failed" not in item:
            print(f"{item['step'][:11]:11} {item['name'][:58]:58} {text}")
    counts = {kind: sum(kind in item for item in found) for kind in ("failed", "skipped", "passed")}
    print(f"{len(found)} lines: {counts}")


if __name__ == "__main__":
    main()
