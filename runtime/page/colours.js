// Colours of confidences and probabilities; those of confidences are the ones of runtime/draw.py.

const CONFIDENCE = [[196, 38, 78], [246, 178, 60], [38, 205, 190]];

/** Colour of a confidence in 0..1 as "rgb(r, g, b)". */
export function confidenceColour(confidence) {
  const at = Math.min(Math.max(confidence, 0), 1) * (CONFIDENCE.length - 1);
  const low = Math.min(Math.floor(at), CONFIDENCE.length - 2);
  const mixed = CONFIDENCE[low].map((value, i) => Math.round(value + (CONFIDENCE[low + 1][i] - value) * (at - low)));
  return `rgb(${mixed.join(", ")})`;
}

/** Paint a distribution (grid x grid) as a canvas of grid x grid pixels, its largest value opaque. */
export function paintHeat(map, grid, makeCanvas) {
  const canvas = makeCanvas(grid, grid);
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid, grid);
  const peak = map.reduce((most, value) => Math.max(most, value), 1e-12);
  map.forEach((value, i) => {
    const share = Math.sqrt(value / peak); // a square root, or all but the peak would be too faint to be seen
    image.data.set([255, Math.round(225 - 150 * share), Math.round(40 + 30 * (1 - share)), Math.round(205 * share)], i * 4);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}
