// HTTP client of the page: URLs relative to the page, the API key, error responses as exceptions.

const KEY = "titok-api-key";

/** An error response (problem document, RFC 9457), or no response at all. */
export class Problem extends Error {
  constructor({ title = "Error", detail = "", status = 0, instance = "" }) {
    super(detail || title);
    Object.assign(this, { title, detail, status, instance });
  }

  static async of(response) {
    const text = await response.text();
    try {
      return new Problem(JSON.parse(text));
    } catch {
      return new Problem({ title: `HTTP status ${response.status}`, detail: text.slice(0, 300), status: response.status });
    }
  }
}

/** The absolute URL of a path of the service, relative to where the page is mounted. */
export const urlOf = (path) => new URL(path, document.baseURI).href;

export const storeKey = (key) => sessionStorage.setItem(KEY, key);

/**
 * Sends a request: a POST with `json` as JSON or `image` (a Blob) as a form file, or a GET without either. Throws a
 * Problem if it fails.
 */
export async function call(path, { json, image, accept = "application/json", signal } = {}) {
  const headers = { Accept: accept };
  let body;
  if (image) (body = new FormData()).set("image", image, "image");
  if (json) {
    body = JSON.stringify(json);
    headers["Content-Type"] = "application/json";
  }
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(urlOf(path), { method: body ? "POST" : "GET", headers, body, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem({ title: "No response", detail: "The service cannot be reached. Is it running?" });
  }
  if (!response.ok) throw await Problem.of(response);
  return response;
}

/** Parses server-sent events (WHATWG HTML, section 9.2) of one line of JSON each, as [name, data]. */
export async function* parseEvents(response) {
  let waiting = "";
  for await (const text of chunksOf(response.body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (waiting + text).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1).trim();
      if (field("data")) yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

// Safari does not support asynchronous iteration of streams.
async function* chunksOf(stream) {
  const reader = stream.getReader();
  try {
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) yield value;
  } finally {
    reader.cancel().catch(() => {});
  }
}
