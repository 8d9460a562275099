// Inference beside the page, so that it stays responsive: one ONNX Runtime Web with one provider for each worker.
// Messages are {id, task, ...}; the answer is {id, result} or {id, error}.

import { normalise, resizeBitmap } from "./resize.js";

let session = null;
let Tensor = null;
let preprocessing = null;

const tasks = {
  /** Load the model: {provider: "wasm" | "webgpu", threads, model: ArrayBuffer, preprocessing}. */
  async open({ provider, threads, model, preprocessing: given }) {
    preprocessing = given;
    const ort = await import(provider === "webgpu" ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
    ort.env.wasm.wasmPaths = new URL("./ort/", self.location.href).href;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    Tensor = ort.Tensor;
    session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: [provider] });
    return { version: ort.env.versions.web, outputs: session.outputNames };
  },

  /** Resize a photo: {bitmap} to RGB bytes. */
  async prepare({ bitmap }) {
    const started = performance.now();
    const rgb = resizeBitmap(bitmap, preprocessing.size);
    bitmap.close();
    return { rgb, ms: performance.now() - started };
  },

  /** Run the model: {a, b} RGB bytes. */
  async match({ a, b }) {
    const [width, height] = preprocessing.size;
    const started = performance.now();
    const input = (rgb) => new Tensor("float32", normalise(rgb, preprocessing), [1, 3, height, width]);
    const outputs = await session.run({ image_a: input(a), image_b: input(b) });
    const values = async (name) => (outputs[name] ? Float32Array.from(await outputs[name].getData()) : null);
    const [flow, confidence, probabilities] = [await values("flow"), await values("confidence"), await values("probabilities")];
    if (!flow.every(Number.isFinite)) throw new Error("the model gave values that are not numbers");
    return { flow, confidence, probabilities, ms: performance.now() - started };
  },
};

self.onmessage = async ({ data: { id, task, ...values } }) => {
  try {
    self.postMessage({ id, result: await tasks[task](values) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
