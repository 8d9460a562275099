// One photo on a canvas: placing it, drawing what lies over it, and pixels of the photo under a pointer.

import { clampToImage } from "./geometry.js";
import { confidenceColour, paintHeat } from "./colours.js";

export class Panel {
  /** @param {HTMLCanvasElement} canvas lies in a box whose width it fills */
  constructor(canvas) {
    this.canvas = canvas;
    this.photo = null;
  }

  /** Show a photo: {image: what drawImage takes, size: [width, height] in its own pixels, name}; null shows none. */
  setPhoto(photo) {
    this.photo = photo;
    this.canvas.hidden = !photo;
    this.fit();
  }

  /** Take the largest size that the box and 70 % of the window's height (44 % where photos are stacked) allow. */
  fit() {
    if (!this.photo) return;
    const [width, height] = this.photo.size;
    const room = this.canvas.parentElement.clientWidth;
    const stacked = matchMedia("(max-width: 640px)").matches;
    const scale = Math.min(room / width, (innerHeight * (stacked ? 0.44 : 0.7)) / height);
    this.width = Math.max(width * scale, 1);
    this.height = Math.max(height * scale, 1);
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
    this.canvas.width = Math.max(Math.round(this.width * this.ratio), 1);
    this.canvas.height = Math.max(Math.round(this.height * this.ratio), 1);
  }

  /** Pixel of the photo under a pointer event, clamped to the photo. */
  pointAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const [width, height] = this.photo.size;
    const x = ((event.clientX - box.left) / box.width) * width - 0.5;
    const y = ((event.clientY - box.top) / box.height) * height - 0.5;
    return clampToImage([x, y], this.photo.size);
  }

  /** CSS pixels from the canvas's corner of a pixel of the photo. */
  place([x, y]) {
    const [width, height] = this.photo.size;
    return [((x + 0.5) / width) * this.width, ((y + 0.5) / height) * this.height];
  }

  /**
   * Draw the photo and what lies over it.
   *
   * marks: [{point, label, confidence, selected, ghost, returned}] in pixels of the photo; those outside are drawn hollow
   * on its border. heat: {map, grid}, a distribution over the photo's grid, or null.
   */
  draw(marks, heat = null) {
    if (!this.photo) return;
    const context = this.canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.photo.image, 0, 0, this.width, this.height);
    if (heat) {
      // Paler and darker, so that the layer is seen on photos of every colour.
      context.globalCompositeOperation = "saturation";
      context.fillStyle = "rgba(128, 128, 128, 0.8)";
      context.fillRect(0, 0, this.width, this.height);
      context.globalCompositeOperation = "source-over";
      context.fillStyle = "rgba(10, 14, 22, 0.4)";
      context.fillRect(0, 0, this.width, this.height);
      const layer = paintHeat(heat.map, heat.grid, makeCanvas);
      context.drawImage(layer, 0, 0, this.width, this.height);
    }
    for (const mark of marks) drawMark(context, this, mark);
  }
}

export function makeCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function drawMark(context, panel, { point, label = "", confidence, selected, ghost, returned }) {
  const inside = clampToImage(point, panel.photo.size);
  const hollow = inside[0] !== point[0] || inside[1] !== point[1];
  const [x, y] = panel.place(inside);
  const radius = selected ? 8 : 6;
  const colour = confidenceColour(confidence);
  context.globalAlpha = ghost ? 0.85 : 1;
  if (returned) {
    const [rx, ry] = panel.place(clampToImage(returned, panel.photo.size));
    stroke(context, () => { context.moveTo(x, y); context.lineTo(rx, ry); }, "rgba(0, 0, 0, 0.6)", 4);
    stroke(context, () => { context.moveTo(x, y); context.lineTo(rx, ry); }, colour, 2);
    stroke(context, () => context.rect(rx - 4, ry - 4, 8, 8), "#fff", 3);
    stroke(context, () => context.rect(rx - 4, ry - 4, 8, 8), "#111", 1.5);
  }
  stroke(context, () => context.arc(x, y, radius + 1.5, 0, 7), "rgba(0, 0, 0, 0.65)", 3.5);
  if (!hollow) {
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.fillStyle = colour;
    context.fill();
  }
  stroke(context, () => context.arc(x, y, radius + 0.5, 0, 7), hollow ? colour : "#fff", 2);
  if (ghost) {
    stroke(context, () => {
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + dx * (radius + 3), y + dy * (radius + 3));
        context.lineTo(x + dx * (radius + 10), y + dy * (radius + 10));
      }
    }, "#fff", 2);
  }
  context.globalAlpha = 1;
  if (!label) return;
  context.font = `${selected ? 700 : 600} 12px system-ui, sans-serif`;
  const width = context.measureText(label).width + 8;
  const left = Math.min(x + radius + 3, panel.width - width);
  const top = Math.min(Math.max(y - radius - 12, 0), panel.height - 17);
  context.fillStyle = "rgba(12, 16, 24, 0.82)";
  context.beginPath();
  context.roundRect(left, top, width, 17, 5);
  context.fill();
  context.fillStyle = "#fff";
  context.textBaseline = "middle";
  context.fillText(label, left + 4, top + 9);
}

function stroke(context, path, colour, width) {
  context.beginPath();
  path();
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke();
}
