// A photo as the model's input: Pillow's antialiased bilinear resize, horizontally first, and the normalisation of
// cats/core/images.py. On equal pixels the result is equal to the bit.

const PRECISION = 22; // bits of Pillow's fixed-point weights
const STRIP = 1 << 22; // pixels drawn at once, so that memory stays bounded for large photos

/** Weights of one direction: for each output sample the first input sample and integer weights. */
export function resizeWeights(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), from);
    const weights = [];
    for (let at = first; at < last; at++) {
      weights.push(Math.max(1 - Math.abs((at - center + 0.5) / support), 0));
    }
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: Int32Array.from(weights, (weight) => Math.trunc(0.5 + (weight / sum) * (1 << PRECISION))) };
  });
}

/** Resize the rows of RGBA pixels to `weights.length` columns: RGB bytes. */
export function resizeRows(pixels, width, height, weights, out, outTop) {
  const columns = weights.length;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < columns; x++) {
      const { first, weights: w } = weights[x];
      let at = (y * width + first) * 4;
      let [r, g, b] = [1 << (PRECISION - 1), 1 << (PRECISION - 1), 1 << (PRECISION - 1)];
      for (let i = 0; i < w.length; i++, at += 4) {
        r += pixels[at] * w[i];
        g += pixels[at + 1] * w[i];
        b += pixels[at + 2] * w[i];
      }
      const to = ((outTop + y) * columns + x) * 3;
      out[to] = r >> PRECISION;
      out[to + 1] = g >> PRECISION;
      out[to + 2] = b >> PRECISION;
    }
  }
}

/** Resize the columns of RGB bytes. */
export function resizeColumns(rgb, columns, weights) {
  const out = new Uint8ClampedArray(weights.length * columns * 3);
  const line = columns * 3;
  weights.forEach(({ first, weights: w }, y) => {
    for (let x = 0; x < line; x++) {
      let sum = 1 << (PRECISION - 1);
      for (let i = 0; i < w.length; i++) sum += rgb[(first + i) * line + x] * w[i];
      out[y * line + x] = sum >> PRECISION;
    }
  });
  return out;
}

/** An ImageBitmap, laid over white, as RGB bytes of `size` [width, height]. */
export function resizeBitmap(bitmap, [width, height]) {
  const across = resizeWeights(bitmap.width, width);
  const rows = Math.min(Math.max(Math.floor(STRIP / bitmap.width), 1), bitmap.height);
  const context = new OffscreenCanvas(bitmap.width, rows).getContext("2d", { willReadFrequently: true });
  const wide = new Uint8ClampedArray(bitmap.height * width * 3);
  for (let top = 0; top < bitmap.height; top += rows) {
    const count = Math.min(rows, bitmap.height - top);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, bitmap.width, count);
    context.drawImage(bitmap, 0, -top);
    resizeRows(context.getImageData(0, 0, bitmap.width, count).data, bitmap.width, count, across, wide, top);
  }
  return resizeColumns(wide, width, resizeWeights(bitmap.height, height));
}

/** RGB bytes to (value / 255 - mean) / std, channels first, in float32 arithmetic. */
export function normalise(rgb, { mean, std }) {
  const tables = mean.map((m, channel) =>
    Float32Array.from({ length: 256 }, (_, level) =>
      Math.fround(Math.fround(Math.fround(level / 255) - Math.fround(m)) / Math.fround(std[channel]))));
  const cells = rgb.length / 3;
  const out = new Float32Array(rgb.length);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < cells; i++) out[channel * cells + i] = tables[channel][rgb[i * 3 + channel]];
  }
  return out;
}
