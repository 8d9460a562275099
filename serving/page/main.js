// The page that matches: photos go to a matcher, its match to the App.
//
// cats-web.json names the module of the matcher ("wasm" runs the model here, "http" asks the server that the page is of).
// Its `open(settings, report)` gives an object with
//   describe   where it runs, for people;      note   more about that, or "";      model   for the JSON export;
//   match(a, b)  photos of photos.js to {flow, confidence, probabilities or null, backward or null, times}.

import { App, say } from "./app.js";
import { Match } from "./match.js";
import { listen, readPhoto } from "./photos.js";

const element = (id) => document.getElementById(id);
const app = new App();
const root = document.documentElement;
let matcher = null;
let calibration = null; // of confidences, where the model has one
let pending = []; // points to set once the photos are matched
let turn = 0; // a match whose photos were replaced meanwhile is dropped

function report(text, failed = false) {
  element("engine").textContent = text;
  element("engine").classList.toggle("error", failed);
}

function fail(error) {
  root.dataset.state = "failed";
  report(error.message, true);
}

async function take(side, blob, name, points = []) {
  try {
    const photo = await readPhoto(blob, name);
    setPhotos({ ...app.photos, [side]: photo }, points);
  } catch (error) {
    fail(error);
  }
}

function setPhotos(photos, points = []) {
  for (const side of ["a", "b"]) if (photos[side] !== app.photos[side]) app.setPhoto(side, photos[side]);
  pending = points;
  matchPhotos();
}

async function matchPhotos() {
  const mine = ++turn;
  const { a, b } = app.photos;
  if (!a || !b || !matcher) return;
  root.dataset.state = "matching";
  report("Matching …");
  try {
    const started = performance.now();
    const found = await matcher.match(a, b);
    if (mine !== turn) return;
    const match = new Match({ ...found, sizeA: a.size, sizeB: b.size, model: matcher.model, calibration });
    app.setMatch(match);
    if (pending.length) app.change(pending, 0);
    pending = [];
    root.dataset.pairMs = String(performance.now() - started);
    root.dataset.state = "matched";
    describe(`matched in ${Math.round(performance.now() - started)} ms `);
    say("Matched. Choose points in photo A.");
    const backward = found.backward ?? (await matcher.match(b, a)).flow;
    if (mine !== turn) return;
    app.setBackward(backward);
    root.dataset.state = "checked";
  } catch (error) {
    if (mine === turn) fail(error);
  }
}

function describe(prefix = "") {
  report(`${prefix}${matcher.describe}`);
  element("engine-note").textContent = matcher.note;
}

function showSamples(samples) {
  const buttons = samples.map(({ a, b, label, points }) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "sample" });
    for (const file of [a, b]) button.append(Object.assign(new Image(), { src: file, alt: "" }));
    button.append(Object.assign(document.createElement("span"), { textContent: label }));
    button.setAttribute("aria-label", `Sample pair: ${label}`);
    button.addEventListener("click", async () => {
      try {
        const files = await Promise.all([a, b].map(async (file) => (await fetch(file)).blob()));
        const [one, other] = await Promise.all(files.map((blob, i) => readPhoto(blob, [a, b][i].split("/").pop())));
        setPhotos({ a: one, b: other }, points);
      } catch (error) {
        fail(error);
      }
    });
    return button;
  });
  if (buttons.length) element("samples").replaceChildren("Try", ...buttons);
}

async function start() {
  const settings = await (await fetch("cats-web.json")).json();
  calibration = settings.calibration ?? null;
  showSamples(settings.samples);
  const last = () => (document.activeElement?.closest("#photo-b") ? "b" : "a");
  listen(take, () => (!app.photos.a ? "a" : !app.photos.b ? "b" : last()));
  element("swap").addEventListener("click", () => setPhotos({ a: app.photos.b, b: app.photos.a }));
  const { open } = await import(`./${settings.matcher}.js`);
  matcher = await open(settings, report);
  root.dataset.state = "ready";
  describe();
  matchPhotos();
}

start().catch(fail);
