// Coordinates and keypoint transfer: the mirror of cats/core/geometry.py, which says what they mean.
// Points are [x, y] and sizes [width, height] in pixels; a grid is a flat array of channels x grid x grid.

export function pixelsToCells([x, y], [width, height], grid) {
  return [((x + 0.5) * grid) / width - 0.5, ((y + 0.5) * grid) / height - 0.5];
}

export function cellsToPixels([x, y], [width, height], grid) {
  return [((x + 0.5) * width) / grid - 0.5, ((y + 0.5) * height) / grid - 0.5];
}

/** The four cells around a place, clamped at the border: [[index, weight], ...] with weights that sum to 1. */
export function bilinearWeights([x, y], grid) {
  const cx = Math.min(Math.max(x, 0), grid - 1);
  const cy = Math.min(Math.max(y, 0), grid - 1);
  const left = Math.min(Math.trunc(cx), Math.max(grid - 2, 0));
  const top = Math.min(Math.trunc(cy), Math.max(grid - 2, 0));
  const right = Math.min(left + 1, grid - 1);
  const bottom = Math.min(top + 1, grid - 1);
  const u = cx - left;
  const v = cy - top;
  return [
    [top * grid + left, (1 - u) * (1 - v)],
    [top * grid + right, u * (1 - v)],
    [bottom * grid + left, (1 - u) * v],
    [bottom * grid + right, u * v],
  ];
}

/** Bilinear sample of one channel of a grid. */
export function sampleGrid(values, channel, cell, grid) {
  const offset = channel * grid * grid;
  return bilinearWeights(cell, grid).reduce((sum, [index, weight]) => sum + values[offset + index] * weight, 0);
}

/** A pixel of image a to pixels of image b by a flow a -> b in cells. */
export function transferPoint(point, flow, sizeA, sizeB, grid) {
  const cell = pixelsToCells(point, sizeA, grid);
  const moved = [cell[0] + sampleGrid(flow, 0, cell, grid), cell[1] + sampleGrid(flow, 1, cell, grid)];
  return cellsToPixels(moved, sizeB, grid);
}

/** The point of an image that is nearest: an image of width W spans [-0.5, W - 0.5]. */
export function clampToImage([x, y], [width, height]) {
  return [Math.min(Math.max(x, -0.5), width - 0.5), Math.min(Math.max(y, -0.5), height - 0.5)];
}
