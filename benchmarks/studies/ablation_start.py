"""How loud correlation and appearance are in the aggregator's tokens before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from cats.benchmarks.studies.ablation_data import Willow
from cats.benchmarks.studies.ablation_rows import ROWS
from cats.model import CATs

_PAIRS = 12


@torch.no_grad()
def measure_start(willow_root: Path, backbone: CATs, seed: int = 0) -> dict[str, Any]:
    """Of the full row's random start, by level, on pairs of PF-WILLOW.

    Returns:
        ``levels``, each with the standard deviations of ``correlation`` and ``appearance``, the mean ``ratio`` of their
        norms in a token, and the mean ``share`` of a token's variance that is the correlation's after the first
        LayerNorm; ``added``: standard deviation of what the aggregator adds to the correlation; ``pairs``, ``seed``.
    """
    willow = Willow(willow_root, backbone, _PAIRS)
    torch.manual_seed(seed)
    model = ROWS["full"].build(backbone).eval()
    sides = ([willow.place[getattr(s, side)] for s in willow.samples] for side in ("image_a", "image_b"))
    a, b = ([maps[side] for maps in willow.maps] for side in sides)
    correlation, appearance = model.cost_volume(a, b), model.project(a)
    assert appearance is not None
    levels = []
    for level in range(correlation.shape[1]):
        rows, seen = correlation[:, level], appearance[:, level]
        tokens = F.layer_norm(torch.cat([rows, seen], dim=-1), (rows.shape[-1] + seen.shape[-1],)).square()
        share = tokens[..., : rows.shape[-1]].sum(-1) / tokens.sum(-1)
        found = {
            "correlation": rows.std(),
            "appearance": seen.std(),
            "ratio": (seen.norm(dim=-1) / rows.norm(dim=-1)).mean(),
            "share": share.mean(),
        }
        levels.append({name: round(float(value), 4) for name, value in found.items()})
    added = model.match_features(a, b) - correlation.mean(dim=1)
    return {"levels": levels, "added": round(float(added.std()), 4), "pairs": len(willow.samples), "seed": seed}
