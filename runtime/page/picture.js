// What the page gives away as files: the picture of a match, and any text or picture as a download.

import { clampToImage } from "./geometry.js";
import { confidenceColour } from "./colours.js";
import { makeCanvas } from "./panel.js";

const HEIGHT = 720;
const MARGIN = 20;
const GAP = 12;
const CAPTION = 30;

/** Both photos side by side with numbered lines between the points: a canvas. */
export function drawPicture(match, photoA, photoB, points) {
  const photos = [photoA, photoB];
  const sizes = photos.map(({ size: [width, height] }) => [Math.round((width * HEIGHT) / height), HEIGHT]);
  const lefts = [MARGIN, MARGIN + sizes[0][0] + GAP];
  const canvas = makeCanvas(lefts[1] + sizes[1][0] + MARGIN, HEIGHT + CAPTION + 2 * MARGIN);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#282c34";
  context.font = "15px system-ui, sans-serif";
  context.textBaseline = "middle";
  photos.forEach(({ image, name, size }, side) => {
    context.drawImage(image, lefts[side], MARGIN + CAPTION, ...sizes[side]);
    const caption = `${"AB"[side]}   ${name}   ${size[0]} x ${size[1]}`;
    context.fillText(caption, lefts[side], MARGIN + CAPTION / 2 - 2, sizes[side][0]);
  });
  const place = ([x, y], side) => {
    const [width, height] = photos[side].size;
    const [px, py] = clampToImage([x, y], photos[side].size);
    return [lefts[side] + ((px + 0.5) / width) * sizes[side][0], MARGIN + CAPTION + ((py + 0.5) / height) * HEIGHT];
  };
  const marks = points.map((point, index) => ({
    label: String(index + 1),
    colour: confidenceColour(match.shownAt(point)),
    ends: [place(point, 0), place(match.transfer(point), 1)],
  }));
  for (const [style, width] of [["rgba(0, 0, 0, 0.35)", 4], [null, 2.2]]) {
    for (const { colour, ends } of marks) {
      context.beginPath();
      context.moveTo(...ends[0]);
      context.lineTo(...ends[1]);
      context.strokeStyle = style ?? colour;
      context.lineWidth = width;
      context.stroke();
    }
  }
  context.font = "600 13px system-ui, sans-serif";
  context.textAlign = "center";
  for (const { label, colour, ends } of marks) {
    for (const [x, y] of ends) {
      context.beginPath();
      context.arc(x, y, 10, 0, 7);
      context.fillStyle = "#141820";
      context.fill();
      context.strokeStyle = colour;
      context.lineWidth = 3;
      context.stroke();
      context.fillStyle = "#fff";
      context.fillText(label, x, y + 1);
    }
  }
  return canvas;
}

/** Hand a Blob to the user as a file. */
export function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A file name out of the names of both photos. */
export function fileName(a, b, suffix) {
  const stem = (name) => name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 40) || "photo";
  return `${stem(a)}-${stem(b)}${suffix}`;
}
