// The page's behaviour once there are two photos and a match: points, hover, heat, morph, undo, exports.
// Where photos and matches come from is not known here: `setPhoto` and `setMatch` are called with them.

import { Blend } from "./blend.js";
import { clampToImage } from "./geometry.js";
import { Panel, makeCanvas } from "./panel.js";
import { download, drawPicture, fileName } from "./picture.js";

const GRAB = 14; // CSS pixels within which a pointer takes hold of a point
const BLEND_SIDE = 420; // pixels of the longer side of the morph
const element = (id) => document.getElementById(id);

export class App {
  constructor() {
    this.photos = { a: null, b: null };
    this.match = null;
    this.points = [];
    this.undone = [];
    this.done = [];
    this.selected = -1;
    this.hover = null;
    this.dragging = false;
    this.view = "points";
    this.panels = { a: new Panel(element("canvas-a")), b: new Panel(element("canvas-b")) };
    this._bindPhoto();
    this._bindTools();
    new ResizeObserver(() => this.layout()).observe(element("photos"));
    addEventListener("resize", () => this.layout());
    this.refresh();
  }

  /** Show a photo as "a" or "b": {image, size, name}, or null. Points and match of the former photo are dropped. */
  setPhoto(side, photo) {
    this.photos[side] = photo;
    this.panels[side].setPhoto(photo);
    const [caption, size] = [element(`name-${side}`), element(`size-${side}`)];
    caption.textContent = photo?.name ?? "";
    size.textContent = photo ? `${photo.size[0]} × ${photo.size[1]}` : "";
    element(`photo-${side}`).classList.toggle("filled", Boolean(photo));
    if (side === "a") Object.assign(this, { points: [], done: [], undone: [], selected: -1 });
    this.setMatch(null);
  }

  /** Take the match of the two photos, or null while there is none. */
  setMatch(match) {
    this.match = match;
    this.blend = null;
    this.hover = null;
    this.refresh();
    if (this.view !== "points") this.drawBlend();
  }

  /** Where b -> a leads, once it is known. */
  setBackward(flow) {
    if (this.match) this.match.backward = flow;
    this.refresh();
  }

  /** Put points in a place of the present ones; `undo` brings those back. */
  change(points, selected = points.length - 1) {
    this.done.push(this.points);
    this.undone = [];
    this.points = points;
    this.selected = selected;
    this.refresh();
  }

  addPoint(point) {
    if (!this.match) return;
    this.change([...this.points, clampToImage(point, this.photos.a.size)]);
    this.announce();
  }

  removePoint(index) {
    if (!this.points[index]) return;
    this.change(this.points.filter((_, i) => i !== index), Math.min(index, this.points.length - 2));
    say(`Point ${index + 1} removed`);
  }

  undo() {
    if (!this.done.length) return;
    this.undone.push(this.points);
    this._restore(this.done.pop(), "Undone");
  }

  redo() {
    if (!this.undone.length) return;
    this.done.push(this.points);
    this._restore(this.undone.pop(), "Redone");
  }

  _restore(points, what) {
    this.points = points;
    this.selected = points.length - 1;
    this.refresh();
    say(`${what}: ${points.length} point${points.length === 1 ? "" : "s"}`);
  }

  select(index) {
    if (!this.points.length) return;
    this.selected = (index + this.points.length) % this.points.length;
    this.hover = null;
    this.refresh();
    this.announce();
  }

  /** Say the selected point to those who do not see it. */
  announce() {
    const point = this.points[this.selected];
    if (!point || !this.match) return;
    const sure = `${this.match.scale} ${this.match.shownAt(point).toFixed(2)}`;
    const [a, b] = [point, this.match.transfer(point)].map((p) => p.map((value) => value.toFixed(0)).join(", "));
    say(`Point ${this.selected + 1} at ${a} in A lies at ${b} in B, ${sure}`);
  }

  /** Fit both photos into the window and draw everything again. */
  layout() {
    this.panels.a.fit();
    this.panels.b.fit();
    this.draw();
  }

  refresh() {
    document.documentElement.dataset.match = this.match ? "yes" : "no";
    this.draw();
    this._fillTable();
    const empty = !this.points.length;
    element("undo").disabled = !this.done.length;
    element("redo").disabled = !this.undone.length;
    element("clear").disabled = empty;
    for (const id of ["export-json", "export-png"]) element(id).disabled = empty || !this.match;
    for (const name of ["morph", "overlay"]) element(`view-${name}`).disabled = !this.match;
    element("hint").hidden = !this.match || !empty;
    if (!this.match && this.view !== "points") this.setView("points");
  }

  draw() {
    const { match } = this;
    const checked = element("check").checked;
    const marks = this.points.map((point, index) => ({
      point,
      label: String(index + 1),
      selected: index === this.selected,
      confidence: match ? match.shownAt(point) : 0.5,
    }));
    if (this.hover && match) marks.push({ point: this.hover, ghost: true, confidence: match.shownAt(this.hover) });
    this.panels.a.draw(marks.map((mark) => ({ ...mark, returned: checked && match ? match.returned(mark.point) : null })));
    const shown = this.hover ?? this.points[this.selected];
    const heat = match && shown && element("heat").checked ? { map: match.distribution(shown), grid: match.grid } : null;
    this.panels.b.draw(match ? marks.map((mark) => ({ ...mark, point: match.transfer(mark.point) })) : [], heat);
    this._drawReadout(shown);
  }

  _drawReadout(point) {
    const { match } = this;
    element("readout").classList.toggle("on", Boolean(match && point));
    const heat = match?.probabilities
      ? "Heat: the model's probability of each cell of B."
      : "Heat: a Gaussian as wide as the confidence says; this match holds no probabilities.";
    const colours = match?.calibration ? "how likely a match is right." : "the model's confidence, no probability of being right.";
    element("map-kind").textContent = match ? `${heat} Colours of points: ${colours}` : "";
    if (!match || !point) return;
    const sure = match.shownAt(point);
    element("confidence-name").textContent = match.scale;
    element("confidence").value = sure;
    element("confidence-value").textContent = sure.toFixed(2);
    element("place-b").textContent = match.transfer(point).map((value) => value.toFixed(1)).join(", ");
    const error = match.forwardBackwardError(point);
    element("round-trip").textContent = error === null ? "–" : `${error.toFixed(1)} px`;
  }

  _fillTable() {
    const rows = this.points.map((point, index) => {
      const row = document.createElement("tr");
      row.className = index === this.selected ? "selected" : "";
      const b = this.match?.transfer(point);
      const confidence = this.match?.confidenceAt(point);
      const sure = this.match?.shownAt(point);
      const error = this.match?.forwardBackwardError(point) ?? null;
      const text = (p) => (p ? p.map((value) => value.toFixed(1)).join(", ") : "–");
      Object.assign(row.dataset, { a: JSON.stringify(point), b: JSON.stringify(b ?? null), confidence });
      row.dataset.probability = JSON.stringify(this.match?.probabilityAt(point) ?? null);
      const cells = [text(point), text(b), sure?.toFixed(2) ?? "–", error === null ? "–" : `${error.toFixed(1)} px`];
      const number = Object.assign(document.createElement("button"), { textContent: index + 1, className: "number" });
      number.setAttribute("aria-label", `Select point ${index + 1}`);
      number.setAttribute("aria-pressed", String(index === this.selected));
      number.addEventListener("click", () => this.select(index));
      const remove = Object.assign(document.createElement("button"), { textContent: "✕", className: "quiet" });
      remove.setAttribute("aria-label", `Remove point ${index + 1}`);
      remove.addEventListener("click", () => this.removePoint(index));
      for (const content of [number, ...cells, remove]) {
        const cell = document.createElement("td");
        cell.append(content);
        row.append(cell);
      }
      return row;
    });
    element("scale-heading").textContent = this.match?.scale === "probability" ? "Probability" : "Confidence";
    element("rows").replaceChildren(...rows);
    element("table").hidden = !rows.length;
  }

  _bindPhoto() {
    const canvas = this.panels.a.canvas;
    const nearest = (event) => {
      const box = canvas.getBoundingClientRect();
      const at = [event.clientX - box.left, event.clientY - box.top];
      const far = this.points.map((point) => this.panels.a.place(point)).map(([x, y]) => Math.hypot(x - at[0], y - at[1]));
      const index = far.indexOf(Math.min(...far));
      return index >= 0 && far[index] <= GRAB ? index : -1;
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.match || event.button) return;
      const started = performance.now();
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.hover = null;
      this.dragging = true;
      const index = nearest(event);
      if (index >= 0) this.change([...this.points], index);
      else this.change([...this.points, this.panels.a.pointAt(event)]);
      document.documentElement.dataset.answerMs = String(performance.now() - started);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.match) return;
      const point = this.panels.a.pointAt(event);
      if (this.dragging) {
        this.points = replaced(this.points, this.selected, point);
        this._fillTable();
      } else if (event.pointerType !== "touch") {
        this.hover = point;
      }
      this._drawSoon();
    });
    const release = () => {
      if (!this.dragging) return;
      this.dragging = false;
      this.refresh();
      this.announce();
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    for (const name of ["pointerleave", "blur"]) {
      canvas.addEventListener(name, () => {
        this.hover = null;
        this._drawSoon();
      });
    }
    canvas.addEventListener("keydown", (event) => this._onKey(event));
    addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.target.matches("input[type=text]")) return;
      const key = event.key.toLowerCase();
      if (key === "z" || key === "y") {
        event.preventDefault();
        if (key === "y" || event.shiftKey) this.redo();
        else this.undo();
      }
    });
  }

  _drawSoon() {
    this._frame ??= requestAnimationFrame(() => {
      this._frame = null;
      this.draw();
    });
  }

  _onKey(event) {
    if (!this.match || event.ctrlKey || event.metaKey) return;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { size } = this.photos.a;
    if (arrows[event.key]) {
      const step = event.shiftKey ? 1 : Math.max(size[0], size[1]) / 50;
      const move = ([x, y]) => clampToImage([x + arrows[event.key][0] * step, y + arrows[event.key][1] * step], size);
      if (event.altKey && this.points[this.selected]) {
        this.change(replaced(this.points, this.selected, move(this.points[this.selected])), this.selected);
        this.announce();
      } else {
        this.hover = move(this.hover ?? this.points[this.selected] ?? size.map((side) => (side - 1) / 2));
        this.draw();
      }
    } else if (event.key === "Enter" || event.key === " ") {
      this.addPoint(this.hover ?? size.map((side) => (side - 1) / 2));
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.removePoint(this.selected);
    } else if (event.key === "n" || event.key === "p") {
      this.select(this.selected + (event.key === "n" ? 1 : -1));
    } else if (event.key === "Escape") {
      this.hover = null;
      this.draw();
    } else {
      return;
    }
    event.preventDefault();
  }

  _bindTools() {
    element("undo").addEventListener("click", () => this.undo());
    element("redo").addEventListener("click", () => this.redo());
    element("clear").addEventListener("click", () => {
      this.change([]);
      say("All points removed");
    });
    for (const id of ["heat", "check"]) element(id).addEventListener("change", () => this.draw());
    for (const name of ["points", "morph", "overlay"]) {
      element(`view-${name}`).addEventListener("click", () => this.setView(name));
    }
    element("mix").addEventListener("input", () => {
      this._blendFrame ??= requestAnimationFrame(() => {
        this._blendFrame = null;
        this.drawBlend();
      });
    });
    element("export-json").addEventListener("click", () => {
      const document_ = this.match.document(this.points, { a: this.photos.a.name, b: this.photos.b.name });
      this._save(new Blob([`${JSON.stringify(document_)}\n`], { type: "application/json" }), ".json");
    });
    element("export-png").addEventListener("click", () => {
      const picture = drawPicture(this.match, this.photos.a, this.photos.b, this.points);
      picture.toBlob((blob) => this._save(blob, ".png"), "image/png");
    });
    const theme = element("theme");
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const show = () => theme.setAttribute("aria-pressed", String(document.documentElement.dataset.theme === "dark"));
    document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
    dark.addEventListener("change", () => {
      document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
      show();
    });
    theme.addEventListener("click", () => {
      const { dataset } = document.documentElement;
      dataset.theme = dataset.theme === "dark" ? "light" : "dark";
      show();
    });
    show();
  }

  _save(blob, suffix) {
    download(blob, fileName(this.photos.a.name, this.photos.b.name, suffix));
  }

  /** Show "points" (both photos), "morph" or "overlay". */
  setView(view) {
    this.view = view;
    for (const name of ["points", "morph", "overlay"]) {
      element(`view-${name}`).setAttribute("aria-pressed", String(name === view));
    }
    element("photos").hidden = view !== "points";
    element("blend").hidden = view === "points";
    element("mix-label").textContent = view === "morph" ? "From A to B" : "B over A";
    if (view === "points") this.layout();
    else this.drawBlend();
  }

  drawBlend() {
    if (!this.match || this.view === "points") return;
    this.blend ??= new Blend(this.match, smallPixels(this.photos.a), smallPixels(this.photos.b));
    const t = Number(element("mix").value) / 100;
    element("mix-value").textContent = `${Math.round(t * 100)} %`;
    const image = this.blend.render(t, this.view === "overlay");
    const canvas = element("canvas-blend");
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
}

/** Tell screen readers; what is said twice in a row is said again. */
export function say(text) {
  const live = element("live");
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}

function replaced(items, index, item) {
  return items.map((old, i) => (i === index ? item : old));
}

function smallPixels({ image, size: [width, height] }) {
  const scale = Math.min(1, BLEND_SIDE / Math.max(width, height));
  const canvas = makeCanvas(Math.max(Math.round(width * scale), 1), Math.max(Math.round(height * scale), 1));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
