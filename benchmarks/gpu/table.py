"""Short table of the results, the failures first.

python -m cats.benchmarks.gpu.table results-*.jsonl [--json FILE] [--markdown FILE]
"""

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
    wanted = ("ms", "p99_px", "median_px", "pairs_per_s", "tb_per_s", "tflops", "relative", "max", "pck@0.1")
    return "  ".join(f"{k}={v:.5g}" for k, v in flat.items() if k.rpartition(".")[2] in wanted)[:150]


def markdown(found: list[dict]) -> str:
    """The results as a page: machine and versions, then one table a step."""
    said = {item["name"]: item for item in found if item["step"] == "machine"}
    texts = ["# A visit to a GPU", ""]
    if "nvidia-smi" in said:
        texts += [f"`{said['nvidia-smi']['says'].splitlines()[-1]}`", ""]
    if "software" in said:
        packages = ", ".join(f"{name} {version}" for name, version in said["software"]["packages"].items() if version)
        texts += [f"Python {said['software']['python']}, {said['software']['cpus']} CPU cores, {packages}.", ""]
    for step in dict.fromkeys(item["step"] for item in found):
        texts += [f"## {step}", "", "| what | figures |", "|---|---|"]
        for item in (item for item in found if item["step"] == step):
            said_of = next((f"{kind}: {item[kind]}" for kind in ("failed", "skipped", "passed") if kind in item), "")
            text = (said_of or figures(item)).replace("\n", " ").replace("|", "\\|")
            texts.append(f"| {item['name']} | {text[:300]} |")
        texts.append("")
    return "\n".join(texts)


def main() -> None:
    words, targets = sys.argv[1:], {}
    for option in ("--json", "--markdown"):
        if option in words:
            place = words.index(option)
            targets[option] = Path(words[place + 1])
            del words[place : place + 2]
    found = lines(words)
    if "--markdown" in targets:
        targets["--markdown"].write_text(markdown(found))
    if "--json" in targets:
        document: dict[str, dict] = {}
        for item in found:
            rest = {key: value for key, value in item.items() if key not in ("step", "name")}
            document.setdefault(item["step"], {})[item["name"]] = rest
        targets["--json"].write_text(json.dumps(document, indent=1) + "\n")
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
