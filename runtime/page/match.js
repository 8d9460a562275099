// A match a -> b as the model gives it, and what follows from it without another run of the model.

import { bilinearWeights, pixelsToCells, sampleGrid, transferPoint } from "./geometry.js";

export class Match {
  /**
   * @param {object} parts
   * flow: 2 x grid x grid in cells, a -> b, x first; confidence: grid x grid in 0..1;
   * backward: the flow b -> a, or null; probabilities: (grid * grid) x (grid * grid), rows cells of a, or null;
   * calibration: {confidence, probability}, knots of the probability of being right over the confidence, or null;
   * sizeA, sizeB: [width, height] in pixels; times: milliseconds by stage; model: what the JSON export says of it.
   */
  constructor({ flow, confidence, backward = null, probabilities = null, calibration = null, sizeA, sizeB, times = {}, model = {} }) {
    Object.assign(this, { flow, confidence, backward, probabilities, calibration, sizeA, sizeB, times, model });
    this.grid = Math.round(Math.sqrt(confidence.length));
  }

  transfer(point) {
    return transferPoint(point, this.flow, this.sizeA, this.sizeB, this.grid);
  }

  confidenceAt(point) {
    return sampleGrid(this.confidence, 0, pixelsToCells(point, this.sizeA, this.grid), this.grid);
  }

  /** Probability that the match of a point of a is right; null where the model does not say it. */
  probabilityAt(point) {
    return this.calibration && interpolate(this.confidenceAt(point), this.calibration.confidence, this.calibration.probability);
  }

  /** What the page shows and colours by: the probability of being right, or the confidence of a model without it. */
  shownAt(point) {
    return this.probabilityAt(point) ?? this.confidenceAt(point);
  }

  /** What `shownAt` gives, in words. */
  get scale() {
    return this.calibration ? "probability" : "confidence";
  }

  /** Where a -> b -> a leads, in pixels of a; null while the match b -> a is not there. */
  returned(point) {
    if (!this.backward) return null;
    return transferPoint(this.transfer(point), this.backward, this.sizeB, this.sizeA, this.grid);
  }

  /** How far a -> b -> a leads away, in pixels of a; null while the match b -> a is not there. */
  forwardBackwardError(point) {
    const back = this.returned(point);
    return back && Math.hypot(back[0] - point[0], back[1] - point[1]);
  }

  /**
   * Probability of each cell of b for a point of a: Float64Array of grid x grid that sums to 1.
   *
   * Between cell centres the distributions of the four cells around are mixed bilinearly: the mean of the mixture is the
   * point that `transfer` gives. Without `probabilities`, a Gaussian about that point with the variance for which the
   * confidence exp(-(var_x + var_y) / 2) stands, the same in both directions: an approximation that the page names.
   */
  distribution(point) {
    const cells = this.grid * this.grid;
    const map = new Float64Array(cells);
    if (this.probabilities) {
      for (const [row, weight] of bilinearWeights(pixelsToCells(point, this.sizeA, this.grid), this.grid)) {
        for (let i = 0; i < cells; i++) map[i] += weight * this.probabilities[row * cells + i];
      }
    } else {
      const [x, y] = pixelsToCells(this.transfer(point), this.sizeB, this.grid);
      const variance = Math.max(-Math.log(Math.max(this.confidenceAt(point), 1e-12)), 0.05);
      for (let i = 0; i < cells; i++) {
        const dx = (i % this.grid) - x;
        const dy = Math.floor(i / this.grid) - y;
        map[i] = Math.exp(-(dx * dx + dy * dy) / (2 * variance));
      }
    }
    const sum = map.reduce((total, value) => total + value, 0);
    return sum > 0 ? map.map((value) => value / sum) : map;
  }

  /** The matches of points of a, as `cats-run --json` writes them. */
  document(points, names) {
    const rounded = (point) => point.map((value) => round(value, 3));
    return {
      a: names.a,
      b: names.b,
      size_a: this.sizeA,
      size_b: this.sizeB,
      model: this.model,
      matches: points.map((point) => {
        const error = this.forwardBackwardError(point);
        return {
          a: rounded(point),
          b: rounded(this.transfer(point)),
          confidence: round(this.confidenceAt(point), 4),
          ...(this.calibration ? { probability: round(this.probabilityAt(point), 4) } : {}),
          ...(error === null ? {} : { forward_backward: round(error, 3) }),
        };
      }),
      time_ms: Object.fromEntries(Object.entries(this.times).map(([stage, value]) => [stage, round(value, 3)])),
    };
  }
}

/** The value at x of the broken line through knots whose xs rise; beyond its ends, that of the end. */
function interpolate(x, xs, ys) {
  const next = xs.findIndex((knot) => knot >= x);
  if (next < 0) return ys[ys.length - 1];
  if (next === 0) return ys[0];
  const share = (x - xs[next - 1]) / (xs[next] - xs[next - 1]);
  return ys[next - 1] + (ys[next] - ys[next - 1]) * share;
}

function round(value, digits) {
  return Number(value.toFixed(digits));
}
