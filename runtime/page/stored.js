// The page of a match that is stored in it: photos, flow and confidence, no model.

import { App } from "./app.js";
import { Match } from "./match.js";

/** Numbers of a base64 text: little-endian float32, or bytes times a scale. */
function numbers(text) {
  if (!text) return null;
  const bytes = Uint8Array.from(atob(text.data), (character) => character.charCodeAt(0));
  return text.scale ? Float32Array.from(bytes, (value) => value * text.scale) : new Float32Array(bytes.buffer);
}

async function show() {
  const stored = JSON.parse(document.getElementById("cats-match").textContent);
  const app = new App();
  for (const side of ["a", "b"]) {
    const image = document.getElementById(`stored-${side}`);
    await image.decode();
    app.setPhoto(side, { image, size: stored[`size_${side}`], name: stored[side] });
  }
  app.setMatch(
    new Match({
      flow: numbers(stored.flow),
      confidence: numbers(stored.confidence),
      calibration: stored.calibration,
      backward: numbers(stored.backward_flow),
      probabilities: numbers(stored.probabilities),
      sizeA: stored.size_a,
      sizeB: stored.size_b,
      times: stored.time_ms,
      model: stored.model,
    }),
  );
  if (stored.points.length) app.change(stored.points);
  app.done = [];
  app.refresh();
  document.documentElement.dataset.state = "matched";
}

show();
