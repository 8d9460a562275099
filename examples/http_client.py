"""Ask a running ``cats serve`` where points of a.jpg lie in b.jpg: python http_client.py URL A B "x,y;x,y"."""

import base64
import json
import sys
import urllib.request

url, a, b, points = sys.argv[1:5]


def photo(path: str) -> str:
    """A photo's file as base64."""
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


question = {
    "a": photo(a),
    "b": photo(b),
    "points": [[float(value) for value in point.split(",")] for point in points.split(";")],
}
request = urllib.request.Request(
    f"{url.rstrip('/')}/v1/match", json.dumps(question).encode(), {"Content-Type": "application/json"}
)
with urllib.request.urlopen(request) as answer:
    for match in json.load(answer)["matches"]:
        print(match["a"], "->", match["b"], "confidence", match["confidence"])
