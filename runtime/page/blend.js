// Image a turning into image b: a triangle mesh over a whose corners move to where the match puts them.

const SUBDIVISION = 2; // a cell's centre and its borders are corners: between them the flow is bilinear

export class Blend {
  /** @param a, b {data, width, height} RGBA pixels of the photos at the size to blend them. */
  constructor(match, a, b) {
    Object.assign(this, { a, b });
    const steps = match.grid * SUBDIVISION;
    const corners = [];
    for (let j = 0; j <= steps; j++) {
      for (let i = 0; i <= steps; i++) {
        const [u, v] = [i / steps, j / steps];
        const point = [u * match.sizeA[0] - 0.5, v * match.sizeA[1] - 0.5];
        const [x, y] = match.transfer(point);
        const confidence = match.confidenceAt(point);
        corners.push([u, v, (x + 0.5) / match.sizeB[0], (y + 0.5) / match.sizeB[1], confidence]);
      }
    }
    const triangles = [];
    for (let j = 0; j < steps; j++) {
      for (let i = 0; i < steps; i++) {
        const at = j * (steps + 1) + i;
        const [p, q, r, s] = [at, at + 1, at + steps + 1, at + steps + 2].map((index) => corners[index]);
        triangles.push([p, q, s], [p, s, r]);
      }
    }
    this.surest = Math.max(...corners.map((corner) => corner[4]), 1e-6);
    const sure = (triangle) => triangle[0][4] + triangle[1][4] + triangle[2][4];
    this.triangles = triangles.sort((one, other) => sure(one) - sure(other)); // where the mesh folds, the surest shows
  }

  /** [width, height] of the picture between the two, 0 <= t <= 1. */
  size(t, overlay) {
    const share = overlay ? 0 : t;
    return ["width", "height"].map((side) => Math.round(this.a[side] + (this.b[side] - this.a[side]) * share));
  }

  /**
   * The picture at t as ImageData. Morph: shape and colours go from a (0) to b (1); what the mesh leaves free shows both
   * photos as they lie. Overlay: b bent into a's frame over a, weighted by t and the confidence of each place in relation
   * to the surest one's.
   */
  render(t, overlay) {
    const [width, height] = this.size(t, overlay);
    const image = new ImageData(width, height);
    const shape = overlay ? 0 : t;
    if (!overlay) fillBackground(image, this.a, this.b, t);
    for (const triangle of this.triangles) {
      const at = triangle.map(([u, v, x, y]) => [(u + (x - u) * shape) * width, (v + (y - v) * shape) * height]);
      fillTriangle(image, at, triangle, this.a, this.b, overlay ? (confidence) => (t * confidence) / this.surest : () => t);
    }
    return image;
  }
}

function fillBackground(image, a, b, t) {
  const one = [0, 0, 0];
  const other = [0, 0, 0];
  for (let y = 0, at = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++, at += 4) {
      const [u, v] = [(x + 0.5) / image.width, (y + 0.5) / image.height];
      sample(a, u, v, one);
      sample(b, u, v, other);
      write(image.data, at, one, other, t);
    }
  }
}

function fillTriangle(image, [p, q, r], corners, a, b, mix) {
  const area = (q[0] - p[0]) * (r[1] - p[1]) - (r[0] - p[0]) * (q[1] - p[1]);
  if (Math.abs(area) < 1e-9) return;
  const left = Math.max(Math.floor(Math.min(p[0], q[0], r[0])), 0);
  const right = Math.min(Math.ceil(Math.max(p[0], q[0], r[0])), image.width - 1);
  const top = Math.max(Math.floor(Math.min(p[1], q[1], r[1])), 0);
  const bottom = Math.min(Math.ceil(Math.max(p[1], q[1], r[1])), image.height - 1);
  const one = [0, 0, 0];
  const other = [0, 0, 0];
  const edge = 1e-9; // a pixel whose centre lies on a shared side belongs to both triangles, so that no gap stays
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const [px, py] = [x + 0.5, y + 0.5];
      const wp = ((q[0] - px) * (r[1] - py) - (r[0] - px) * (q[1] - py)) / area;
      const wq = ((r[0] - px) * (p[1] - py) - (p[0] - px) * (r[1] - py)) / area;
      const wr = 1 - wp - wq;
      if (wp < -edge || wq < -edge || wr < -edge) continue;
      const value = (i) => corners[0][i] * wp + corners[1][i] * wq + corners[2][i] * wr;
      sample(a, value(0), value(1), one);
      sample(b, value(2), value(3), other);
      write(image.data, (y * image.width + x) * 4, one, other, mix(value(4)));
    }
  }
}

/** Bilinear sample at a relative position, clamped at the border. */
function sample({ data, width, height }, u, v, out) {
  const x = Math.min(Math.max(u * width - 0.5, 0), width - 1);
  const y = Math.min(Math.max(v * height - 0.5, 0), height - 1);
  const left = Math.floor(x);
  const top = Math.floor(y);
  const fx = x - left;
  const fy = y - top;
  const at = (top * width + left) * 4;
  const across = left + 1 < width ? 4 : 0;
  const down = top + 1 < height ? width * 4 : 0;
  for (let c = 0; c < 3; c++) {
    const upper = data[at + c] * (1 - fx) + data[at + across + c] * fx;
    const lower = data[at + down + c] * (1 - fx) + data[at + down + across + c] * fx;
    out[c] = upper * (1 - fy) + lower * fy;
  }
}

function write(data, at, one, other, t) {
  for (let c = 0; c < 3; c++) data[at + c] = one[c] + (other[c] - one[c]) * t;
  data[at + 3] = 255;
}
