// The matcher of the served page: the server that the page is of.

const ARRAYS = ["flow", "confidence", "backward_flow", "probabilities"];
const TOKEN = "cats-token";

/** Open the matcher once the server is warm; see `main.js` for what it offers. */
export async function open(settings, report) {
  report("The server is warming up …");
  while (!(await fetch("v2/health/ready")).ok) await new Promise((resolve) => setTimeout(resolve, 500));
  return new HttpMatcher(settings);
}

class HttpMatcher {
  constructor(settings) {
    Object.assign(this, { describe: settings.describe, model: settings.model, note: "" });
  }

  async match(a, b) {
    const form = new FormData();
    form.append("a", a.blob, a.name);
    form.append("b", b.blob, b.name);
    form.append("grid", "1");
    form.append("arrays", ARRAYS.join(","));
    const answer = await (await post("v1/match", form)).json();
    const [flow, confidence, backward, probabilities] = ARRAYS.map((name) => numbers(answer.arrays[name]));
    return { flow, confidence, backward, probabilities, times: answer.time_ms };
  }
}

/** Post a form; asks for the token where the server wants one, and waits where it is busy. */
async function post(address, body) {
  for (let tries = 0; ; tries++) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await fetch(address, { method: "POST", body, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    if (response.ok) return response;
    if (response.status === 429 && tries < 5) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("retry-after")) || 1)));
      continue;
    }
    const text = (await response.json().catch(() => ({}))).error ?? response.statusText;
    const given = response.status === 401 && tries < 5 ? prompt(text) : null;
    if (!given) throw new Error(text);
    sessionStorage.setItem(TOKEN, given);
  }
}

function numbers(array) {
  if (!array) return null;
  return new Float32Array(Uint8Array.from(atob(array.data), (character) => character.charCodeAt(0)).buffer);
}
