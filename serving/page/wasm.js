// The matcher of the static page: the model in this browser, on WebGPU where that gives the stored flow, else in WebAssembly.

/** Open the matcher of a site's settings; `report(text)` says what goes on meanwhile. See `main.js` for what it offers. */
export async function open(settings, report) {
  const asked = new URLSearchParams(location.search);
  const model = await download(settings.model.file, report);
  const engine = asked.get("engine") ?? "auto";
  let why = "";
  if (engine !== "wasm") {
    report("Testing WebGPU …");
    const { matcher, reason } = await tryWebGpu(settings, model, engine === "webgpu");
    if (matcher) return matcher;
    why = reason;
    if (engine === "webgpu") throw new Error(`WebGPU cannot be used: ${why}`);
  }
  report("Starting the model …");
  const threads = threadCount(asked.get("threads"));
  const matcher = await WasmMatcher.start(settings, model, "wasm", threads);
  matcher.note = why ? `WebGPU is not used: ${why}` : "";
  return matcher;
}

class WasmMatcher {
  constructor(settings, worker, provider, threads, version) {
    Object.assign(this, { settings, worker, note: "" });
    const where = provider === "wasm" ? `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}` : "WebGPU";
    this.describe = `in this browser, ${where}`;
    this.model = { ...settings.model, backend: `onnxruntime-web ${version}, ${where}` };
  }

  static async start(settings, model, provider, threads) {
    const worker = new Caller(new Worker(new URL("./worker.js", import.meta.url), { type: "module" }));
    const { preprocessing } = settings;
    try {
      const { version } = await worker.call("open", { provider, threads, model, preprocessing });
      return new WasmMatcher(settings, worker, provider, threads, version);
    } catch (error) {
      worker.end();
      throw error;
    }
  }

  /** RGB bytes of the model's input, kept with the photo. */
  async prepare(photo) {
    photo.prepared ??= createImageBitmap(photo.bitmap).then((bitmap) => this.worker.call("prepare", { bitmap }, [bitmap]));
    return photo.prepared;
  }

  async match(a, b) {
    const [one, other] = [await this.prepare(a), await this.prepare(b)];
    const { ms, ...found } = await this.worker.call("match", { a: one.rgb, b: other.rgb });
    return { ...found, times: { preprocess: one.ms + other.ms, model: ms } };
  }

  close() {
    this.worker.end();
  }
}

/** Calls of a worker's tasks as promises. */
class Caller {
  constructor(worker) {
    this.worker = worker;
    this.waiting = new Map();
    this.last = 0;
    worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
    worker.onerror = (event) => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "the worker did not start"));
      this.waiting.clear();
    };
  }

  call(task, values, transfer = []) {
    return new Promise((resolve, reject) => {
      const id = ++this.last;
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, task, ...values }, transfer);
    });
  }

  end() {
    this.worker.terminate();
  }
}

/** {matcher} on WebGPU, or the {reason} why there is none. Software adapters are slower than WebAssembly: only if `forced`. */
async function tryWebGpu(settings, model, forced) {
  if (!settings.webgpu) return { reason: settings.webgpu_reason };
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return { reason: "this browser offers no adapter" };
  const software = adapter.info?.isFallbackAdapter || /swiftshader|llvmpipe/i.test(adapter.info?.architecture ?? "");
  if (software && !forced) return { reason: "the adapter is software" };
  let matcher = null;
  try {
    matcher = await WasmMatcher.start(settings, model, "webgpu", 1);
    const moved = await selfTest(settings.selftest, matcher);
    const limit = settings.selftest.tolerance_px;
    if (moved <= limit) return { matcher };
    throw new Error(`its flow is ${moved.toPrecision(2)} px off the stored one, ${limit} are allowed`);
  } catch (error) {
    matcher?.close();
    return { reason: error.message };
  }
}

/** How far the flow of a stored pair is from the stored flow: the 99th percentile in pixels of the model's input. */
async function selfTest({ image, flow, grid }, matcher) {
  const bitmap = await createImageBitmap(await (await fetch(image)).blob(), { colorSpaceConversion: "none" });
  const [width, height] = matcher.settings.preprocessing.size;
  const halves = [0, width].map((left) => createImageBitmap(bitmap, left, 0, width, height));
  const [a, b] = (await Promise.all(halves)).map((half) => ({ bitmap: half }));
  const found = await matcher.match(a, b);
  const cells = grid * grid;
  const moved = Array.from({ length: cells }, (_, i) =>
    Math.hypot(found.flow[i] - flow[i], found.flow[cells + i] - flow[cells + i]) * (width / grid));
  moved.sort((one, other) => one - other);
  return moved[Math.ceil(cells * 0.99) - 1];
}

/** Threads need shared memory, which a page has only where it is isolated from other origins. */
function threadCount(asked) {
  if (!crossOriginIsolated) return 1;
  const cores = navigator.hardwareConcurrency || 1;
  return Math.max(1, Number(asked) || Math.min(cores > 4 ? cores >> 1 : cores, 8));
}

async function download(file, report) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
  const total = Number(response.headers.get("content-length")) || 0;
  const parts = [];
  let length = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
    report(`Loading the model … ${(length / 1e6).toFixed(1)}${total ? ` of ${(total / 1e6).toFixed(1)}` : ""} MB`);
  }
  return new Blob(parts).arrayBuffer();
}
