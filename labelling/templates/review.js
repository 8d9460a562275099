"use strict";
// The review sheet: every photo as a card, worst first, with points to drag. See review.py for the data.

const sheet = JSON.parse(document.getElementById("sheet").textContent);
const RAMP = [[196, 38, 78], [246, 178, 60], [38, 205, 190]]; // low, middle, high, as in the pictures of matches
const SVG = "http://www.w3.org/2000/svg";
const STORE = `cats-review:${sheet.id}`;

const cards = sheet.items.map((item) => ({
  item,
  state: "open",
  points: item.points.map((point) => ({ ...point })),
  chosen: 0,
  node: null,
}));
const undo = [];
let here = 0;
let unsaved = false;

function colour(probability) {
  const at = Math.min(Math.max(probability, 0), 1) * 2;
  const low = Math.min(Math.floor(at), 1);
  const mixed = RAMP[low].map((value, channel) => Math.round(value + (RAMP[low + 1][channel] - value) * (at - low)));
  return `rgb(${mixed.join(",")})`;
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in node && key !== "style") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function draw(tag, attributes, parent) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}

// Points and bones over a photo. The view box is in pixels of the original, whose centres are at integers.
function drawPoints(svg, points, category, options) {
  svg.replaceChildren();
  const [width, height] = options.size;
  const unit = Math.max(width, height) / 100;
  for (const polygon of options.polygons ?? []) {
    draw("polygon", { points: polygon.join(" "), fill: "#ffffff22", stroke: "#fff", "stroke-width": unit * 0.25 }, svg);
  }
  if (options.box) {
    const [x, y, w, h] = options.box;
    const place = { x, y, width: w, height: h, fill: "none" };
    draw("rect", { ...place, stroke: "#0008", "stroke-width": unit * 0.5 }, svg);
    draw("rect", { ...place, stroke: "#fff", "stroke-width": unit * 0.25 }, svg);
  }
  const seen = (k) => points[k] && points[k].x !== null && points[k].v > 0;
  for (const [from, to] of category?.skeleton ?? []) {
    if (!seen(from) || !seen(to)) continue;
    const ends = { x1: points[from].x, y1: points[from].y, x2: points[to].x, y2: points[to].y };
    draw("line", { ...ends, stroke: "#000a", "stroke-width": unit * 0.9 }, svg);
    const sure = Math.min(points[from].p, points[to].p);
    draw("line", { ...ends, stroke: colour(sure), "stroke-width": unit * 0.5 }, svg);
  }
  points.forEach((point, k) => {
    if (point.x === null) return;
    const group = draw("g", { "data-k": k }, svg);
    const shade = colour(point.p);
    const radius = unit * (options.chosen === k ? 1.9 : 1.4);
    const fill = point.v === 2 ? shade : point.v === 1 ? "#0006" : "#0003";
    const style = { cx: point.x, cy: point.y, r: radius, fill, stroke: "#fff", "stroke-width": unit * 0.45 };
    const circle = draw("circle", point.v === 2 ? style : { ...style, stroke: shade }, group);
    if (point.v === 0) circle.setAttribute("class", "off");
    draw("title", {}, group).textContent = `${category.keypoints[k]}: ${describe(point)}`;
    if (options.grips) {
      draw("circle", { cx: point.x, cy: point.y, r: unit * 3.2, fill: "transparent", class: "grip" }, group);
    }
    if (options.chosen === k) {
      const right = point.x > width * 0.75;
      const place = { x: point.x + unit * (right ? -2.5 : 2.5), y: point.y - unit * 2, "font-size": unit * 3.4 };
      const text = draw("text", { ...place, "stroke-width": unit * 0.9, "text-anchor": right ? "end" : "start" }, group);
      text.textContent = category.keypoints[k];
    }
  });
}

function describe(point) {
  const state = ["not labelled", "hidden", ""][point.v];
  const sure = point.edited ? "by hand" : point.p.toFixed(2);
  return state ? `${sure}, ${state}` : sure;
}

function brief(point) {
  return point.v === 1 ? "hidden" : point.edited ? "by hand" : point.p.toFixed(2);
}

function photoView(source, name, size, kind, caption) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `-0.5 -0.5 ${size[0]} ${size[1]}`);
  const image = make("img", { src: source, alt: name, loading: "lazy", width: size[0], height: size[1] });
  const frame = make("div", { className: "frame" }, image, svg);
  frame.style.setProperty("--aspect", size[0] / size[1]);
  return { figure: make("figure", { className: `view ${kind}` }, frame, make("figcaption", {}, caption)), svg };
}

function build(card, index) {
  const { item } = card;
  const category = sheet.categories[item.category];
  const node = make("article", { id: `photo-${index}`, tabIndex: -1 });
  card.summary = make("p");
  const tools = make("div", { className: "tools" });
  if (category) {
    card.accept = make("button", { type: "button", className: "accept", title: "a" }, "Accept");
    card.reject = make("button", { type: "button", className: "reject", title: "r" }, "Reject");
    card.accept.addEventListener("click", () => { go(index, false); decide(card, "accepted"); });
    card.reject.addEventListener("click", () => { go(index, false); decide(card, "rejected"); });
    tools.append(card.accept, card.reject);
  }
  node.append(make("div", { className: "head" }, make("h2", {}, item.name), card.summary, tools));
  const views = make("div", { className: "views" });
  const photo = photoView(item.image, item.name, item.size, "photo", `${item.size[0]} x ${item.size[1]} pixels`);
  views.append(photo.figure);
  card.svg = photo.svg;
  const reference = sheet.references[item.reference];
  if (reference) {
    const view = photoView(reference.image, reference.name, reference.size, "reference", `reference ${reference.name}`);
    drawPoints(view.svg, reference.points, sheet.categories[reference.category], reference);
    views.append(view.figure);
    card.reference = { ...reference, svg: view.svg };
  }
  if (category) {
    card.list = make("ul", { className: "points" });
    views.append(card.list);
  }
  node.append(views);
  photo.svg.addEventListener("pointerdown", (event) => startDrag(event, card));
  node.addEventListener("click", () => { if (here !== index) go(index, false); });
  card.node = node;
  refresh(card);
  return node;
}

function refresh(card) {
  const { item } = card;
  const category = sheet.categories[item.category];
  card.node.className = `${card.state} ${cards[here] === card ? "here" : ""}`;
  card.accept?.setAttribute("aria-pressed", card.state === "accepted");
  card.reject?.setAttribute("aria-pressed", card.state === "rejected");
  if (!category) {
    card.summary.replaceChildren(make("span", { className: "other" }, `not labelled: ${item.why}`));
    return;
  }
  const least = leastSure(card);
  const open = card.points.filter((point) => point.v === 0).length;
  const parts = [item.categoryName, `least sure point ${least.toFixed(2)}`];
  if (open) parts.push(`${open} not labelled`);
  if (item.sameKind !== null) parts.push(`same kind ${item.sameKind.toFixed(2)}`);
  card.summary.textContent = parts.join(" · ");
  const chosen = cards[here] === card ? card.chosen : -1;
  drawPoints(card.svg, card.points, category, { ...item, chosen, grips: true });
  if (card.reference) drawPoints(card.reference.svg, card.reference.points, category, { ...card.reference, chosen });
  card.list.replaceChildren(
    ...card.points.map((point, k) => {
      const dot = make("span", { className: "dot" });
      dot.style.borderColor = colour(point.p);
      if (point.v === 2) dot.style.background = colour(point.p);
      const button = make(
        "button",
        { type: "button", className: point.v ? "" : "off", title: describe(point) },
        dot, make("span", { className: "name" }, category.keypoints[k]), make("span", { className: "value" }, brief(point)),
      );
      button.setAttribute("aria-label", `${category.keypoints[k]}: ${describe(point)}`);
      button.setAttribute("aria-current", chosen === k);
      button.addEventListener("click", () => choose(card, k));
      return make("li", {}, button);
    }),
  );
}

function leastSure(card) {
  const sure = card.points.filter((point) => point.x !== null).map((point) => (point.edited ? 1 : point.p));
  return sure.length ? Math.min(...sure) : 0;
}

function remember(card) {
  undo.push({ card, state: card.state, points: card.points.map((point) => ({ ...point })) });
  if (undo.length > 500) undo.shift();
  unsaved = true;
}

function changed(card) {
  refresh(card);
  count();
  try {
    const kept = cards.flatMap((one, index) => (one.state === "open" && !one.points.some((point) => point.edited) ? [] : [[index, one.state, one.points]]));
    localStorage.setItem(STORE, JSON.stringify(kept));
  } catch { /* a browser without storage for files: the page asks before it is closed */ }
}

function decide(card, state) {
  remember(card);
  card.state = card.state === state ? "open" : state;
  changed(card);
}

function setPoint(card, k, values) {
  const point = card.points[k];
  const [width, height] = card.item.size;
  Object.assign(point, values, { edited: true });
  if (point.x !== null) {
    point.x = Math.round(Math.min(Math.max(point.x, 0), width - 1) * 100) / 100;
    point.y = Math.round(Math.min(Math.max(point.y, 0), height - 1) * 100) / 100;
  }
  if (point.v) point.p = 1;
  if (card.state !== "accepted") card.state = "open";
}

function choose(card, k) {
  card.chosen = k;
  go(cards.indexOf(card), false);
}

function startDrag(event, card) {
  const group = event.target.closest("g");
  const index = cards.indexOf(card);
  if (!card.points.length) return;
  const svg = card.svg;
  const place = (move) => new DOMPoint(move.clientX, move.clientY).matrixTransform(svg.getScreenCTM().inverse());
  if (!group) { // a click beside the points sets the chosen one where it has no label yet
    if (here !== index || card.points[card.chosen].v) return;
    const at = place(event);
    remember(card);
    setPoint(card, card.chosen, { x: at.x, y: at.y, v: 2 });
    changed(card);
    return;
  }
  event.preventDefault();
  const k = Number(group.dataset.k);
  choose(card, k);
  const start = place(event);
  const from = { x: card.points[k].x, y: card.points[k].y };
  let moved = false;
  const move = (next) => {
    const at = place(next);
    if (!moved && Math.hypot(next.clientX - event.clientX, next.clientY - event.clientY) < 2) return;
    if (!moved) remember(card);
    moved = true;
    setPoint(card, k, { x: from.x + at.x - start.x, y: from.y + at.y - start.y, v: card.points[k].v || 2 });
    refresh(card);
  };
  const stop = () => {
    window.removeEventListener("pointermove", move);
    window.removeEventListener("pointerup", stop);
    window.removeEventListener("pointercancel", stop);
    if (moved) changed(card);
  };
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", stop);
  window.addEventListener("pointercancel", stop);
}

function visible() {
  return cards.flatMap((card, index) => (card.node.hidden ? [] : [index]));
}

function go(index, scroll = true) {
  const before = cards[here];
  here = index;
  if (before && before !== cards[index]) refresh(before);
  refresh(cards[index]);
  if (scroll) {
    cards[index].node.scrollIntoView({ block: "start" });
    cards[index].node.focus({ preventScroll: true });
  }
}

function step(by) {
  const shown = visible();
  if (!shown.length) return;
  const at = shown.indexOf(here);
  go(shown[Math.min(Math.max(at < 0 ? 0 : at + by, 0), shown.length - 1)]);
}

function filter() {
  const category = document.getElementById("category").value;
  const below = Number(document.getElementById("below").value);
  const state = document.getElementById("state").value;
  document.getElementById("below-value").textContent = below;
  for (const card of cards) {
    const { item } = card;
    const fits = (!category || item.categoryName === category) && (!item.points.length || below >= 1 || card.least <= below);
    const kind = item.points.length ? card.state : "other";
    card.node.hidden = !fits || (state !== "" && state !== kind);
  }
  const shown = visible();
  document.getElementById("none").hidden = shown.length > 0;
  if (shown.length && !shown.includes(here)) go(shown[0], false);
  count();
}

function count() {
  const of = (state) => cards.filter((card) => card.item.points.length && card.state === state).length;
  const labelled = cards.filter((card) => card.item.points.length).length;
  const points = cards.reduce((sum, card) => sum + card.points.filter((point) => point.edited).length, 0);
  document.getElementById("counts").textContent =
    `${visible().length} of ${cards.length} photos shown · ${of("accepted")} accepted, ${of("rejected")} rejected, ` +
    `${of("open")} of ${labelled} to review · ${points} points by hand`;
}

function edits() {
  const result = [];
  for (const { item, state, points } of cards) {
    if (!item.points.length) continue;
    const now = points.flatMap((point, k) => (point.edited ? [{ k, x: point.x, y: point.y, v: point.v }] : []));
    if (!now.length && state !== "rejected") continue;
    const { keypoints } = sheet.categories[item.category];
    result.push({ ...item.place, name: item.name, size: item.size, category: item.categoryName, keypoints, removed: state === "rejected", points: now });
  }
  return result.sort((a, b) => a.serial - b.serial);
}

function download() {
  const { suffix, parts } = patchLabels(sheet.labels, edits());
  const url = URL.createObjectURL(new Blob(parts, { type: "application/octet-stream" }));
  make("a", { href: url, download: sheet.file + suffix }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  unsaved = false;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const card = cards[here];
  const point = card?.points[card.chosen];
  const arrow = ARROWS[event.key];
  if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else if (event.key === "d") download();
  else if (event.key === "u" && undo.length) {
    const last = undo.pop();
    last.card.state = last.state;
    last.card.points = last.points;
    go(cards.indexOf(last.card));
    changed(last.card);
  } else if (!point) return;
  else if (event.key === "a" || event.key === "r") { decide(card, event.key === "a" ? "accepted" : "rejected"); step(1); }
  else if (event.key === "[" || event.key === "]") {
    const count_ = card.points.length;
    choose(card, (card.chosen + (event.key === "]" ? 1 : count_ - 1)) % count_);
  } else if (event.key === "x" || event.key === "Delete") {
    remember(card);
    setPoint(card, card.chosen, { v: point.v || point.x === null ? 0 : 2 });
    changed(card);
  } else if (event.key === "h" && point.x !== null) {
    remember(card);
    setPoint(card, card.chosen, { v: point.v === 1 ? 2 : 1 });
    changed(card);
  } else if (arrow && point.x !== null) {
    const [x, y] = arrow.map((value) => value * (event.shiftKey ? 10 : 1));
    remember(card);
    setPoint(card, card.chosen, { x: point.x + x, y: point.y + y, v: point.v || 2 });
    changed(card);
  } else return;
  event.preventDefault();
});

window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

try {
  for (const [index, state, points] of JSON.parse(localStorage.getItem(STORE) ?? "[]")) {
    Object.assign(cards[index], { state, points });
  }
} catch { /* nothing kept */ }
for (const name of new Set(sheet.items.map((item) => item.categoryName).filter(Boolean))) {
  document.getElementById("category").append(make("option", { value: name }, name));
}
for (const card of cards) card.least = leastSure(card);
document.getElementById("photos").append(...cards.map(build));
for (const id of ["category", "below", "state"]) document.getElementById(id).addEventListener("input", filter);
document.getElementById("download").addEventListener("click", download);
filter();
if (cards.length) refresh(cards[0]);
