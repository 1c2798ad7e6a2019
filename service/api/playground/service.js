// The service as the page calls it: addresses relative to the page, the key if there is one, problems as exceptions.

const KEY = "titok-api-key";

/** What the service refused, as its problem document says it (RFC 9457), or that it did not answer. */
export class Problem extends Error {
  constructor({ title = "Something went wrong", detail = "", status = 0, instance = "" }) {
    super(detail || title);
    Object.assign(this, { title, detail, status, instance });
  }

  static async of(answer) {
    const text = await answer.text();
    try {
      return new Problem(JSON.parse(text));
    } catch {
      return new Problem({ title: `The answer was ${answer.status}`, detail: text.slice(0, 300), status: answer.status });
    }
  }
}

/** The full address of a path of the service, wherever the page itself is mounted. */
export const addressOf = (path) => new URL(path, document.baseURI).href;

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/**
 * A call: `json` is sent as JSON, `image` (a Blob) as a form's file; without either it is a GET. Throws a Problem unless
 * it succeeds.
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
  let answer;
  try {
    answer = await fetch(addressOf(path), { method: body ? "POST" : "GET", headers, body, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem({ title: "No answer", detail: "The service cannot be reached. Is it running?" });
  }
  if (!answer.ok) throw await Problem.of(answer);
  return answer;
}

/** The events of a stream as [name, data]: WHATWG HTML, section 9.2, as far as this service uses it (a line of JSON each). */
export async function* eventsOf(answer) {
  let waiting = "";
  for await (const text of chunksOf(answer.body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (waiting + text).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1).trim();
      if (field("data")) yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

// Safari has no asynchronous iteration of streams.
async function* chunksOf(stream) {
  const reader = stream.getReader();
  try {
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) yield value;
  } finally {
    reader.cancel().catch(() => {});
  }
}
