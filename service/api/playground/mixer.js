// Section "Mix two images": interpolation between two images, and tokens swapped between them.

import { cell, paint } from "./cells.js";
import { tokensOf } from "./code.js";
import { latest } from "./latest.js";
import { createMorph } from "./morph.js";
import { blobOf, byId, element, show, showProblems } from "./page.js";
import { call } from "./service.js";
import { acceptImages } from "./uploads.js";

/** Initializes the section. `editImage` is called with the tokens of the interpolated image. */
export function createMixer(model, { editImage }) {
  const { id, revision, bits_per_token: bits, num_tokens: count } = model;
  const problem = byId("other-problem");
  const slider = byId("mix-share");
  const swapped = new Set();
  const images = { first: null, second: null }; // token ids
  let interpolated = null; // token ids
  let pending = null; // the load of the second image in progress; responses to earlier loads are discarded

  /** The tokens of both images after swapping. */
  function pair() {
    const pick = (from, other) => from.map((token, place) => (swapped.has(place) ? other[place] : token));
    return [pick(images.first, images.second), pick(images.second, images.first)];
  }

  const request = (tokens, share) => {
    const json = { tokens, weights: [1 - share, share], model: id, revision };
    return call("v1/mix", { json, accept: "image/jpeg" });
  };
  const morph = createMorph({
    mixed: async (share) => (await request(pair(), share)).blob(),
    report: (work) => showProblems(problem, work),
  });

  const mix = latest(async (tokens, share) => {
    await showProblems(problem, async () => {
      const response = await request(tokens, share);
      interpolated = tokensOf(response.headers.get("X-Titok-Code"), bits, count);
      show(byId("mix-between"), await response.blob());
    });
  });

  const decode = latest(async (tokens) => {
    await showProblems(problem, async () => {
      const { data } = await (await call("v1/decode", { json: { tokens, model: id, revision } })).json();
      ["mix-first", "mix-second"].forEach((name, index) => {
        show(byId(name), blobOf({ image: data[index].b64, content_type: data[index].content_type }));
      });
    });
  });

  function interpolate() {
    const share = slider.valueAsNumber;
    byId("mix-weights").textContent = `${100 - share} % A, ${share} % B`;
    slider.setAttribute("aria-valuetext", byId("mix-weights").textContent);
    if (images.first && images.second) mix(pair(), share / 100);
  }

  function redraw() {
    if (!images.first || !images.second) return;
    morph.reset();
    const [first, second] = pair();
    [...byId("swaps").children].forEach((button, place) => {
      button.setAttribute("aria-pressed", swapped.has(place));
      button.setAttribute("aria-label", `Swap token ${place + 1}: A has ${first[place]}, B has ${second[place]}`);
      paint(button.firstChild, first[place]);
      paint(button.lastChild, second[place]);
    });
    byId("swap-count").textContent = `${swapped.size} of ${count} swapped`;
    decode([first, second]);
    interpolate();
  }

  function swap(places) {
    swapped.clear();
    places.forEach((place) => swapped.add(place));
    redraw();
  }

  /** Sets image A, which is the image of the section above. */
  function setFirst(tokens) {
    images.first = tokens;
    redraw();
  }

  /** Sets image B by its tokens. */
  function openTokens(tokens, name = "") {
    pending = null;
    setSecond(tokens, name);
  }

  function setSecond(tokens, name) {
    images.second = tokens;
    byId("other-name").textContent = name;
    redraw();
  }

  /** Encodes image B: a Blob or a promise of one. */
  async function openImage(file) {
    const current = (pending = Symbol("load"));
    await showProblems(problem, async () => {
      const image = await file;
      const { data } = await (await call("v1/encode", { image })).json();
      if (pending === current) setSecond(data[0].tokens, image.name ?? "");
    });
  }

  for (let place = 0; place < count; place += 1) {
    const button = element("button", { type: "button", className: "swap" }, cell(null), cell(null));
    button.addEventListener("click", () => {
      if (!swapped.delete(place)) swapped.add(place);
      redraw();
    });
    byId("swaps").append(button);
  }
  const places = [...Array(count).keys()];
  byId("swap-half").addEventListener("click", () => swap(places.slice(0, count / 2)));
  byId("swap-all").addEventListener("click", () => swap(places));
  byId("swap-none").addEventListener("click", () => swap([]));
  byId("mix-open").addEventListener("click", () => {
    editImage(interpolated);
    byId("tokens-section").scrollIntoView();
  });
  slider.addEventListener("input", interpolate);
  acceptImages("other", openImage);
  return { openImage, openTokens, setFirst };
}
