// Two images: what lies between them, and tokens swapped from one to the other.

import { cell, paint } from "./cells.js";
import { tokensOf } from "./code.js";
import { takesImages } from "./intake.js";
import { newest } from "./newest.js";
import { blobOf, byId, element, reporting, show } from "./page.js";
import { call } from "./service.js";

/** Brings the section to life. `open` is called with the tokens of the image between. */
export function createMixer(model, { open: openBetween }) {
  const { id, revision, bits_per_token: bits, num_tokens: count } = model;
  const problem = byId("other-problem");
  const slider = byId("mix-share");
  const swapped = new Set();
  const pictures = { first: null, second: null };
  let between = null;
  let expected = null; // the second image on its way; an earlier one comes too late

  /** The tokens of both images, swapped where they are. */
  function pair() {
    const pick = (from, other) => from.map((token, place) => (swapped.has(place) ? other[place] : token));
    return [pick(pictures.first, pictures.second), pick(pictures.second, pictures.first)];
  }

  const mix = newest(async (tokens, share) => {
    const json = { tokens, weights: [1 - share, share], model: id, revision };
    await reporting(problem, async () => {
      const answer = await call("v1/mix", { json, accept: "image/jpeg" });
      between = tokensOf(answer.headers.get("X-Titok-Code"), bits, count);
      show(byId("mix-between"), await answer.blob());
    });
  });

  const decode = newest(async (tokens) => {
    await reporting(problem, async () => {
      const { data } = await (await call("v1/decode", { json: { tokens, model: id, revision } })).json();
      ["mix-first", "mix-second"].forEach((name, index) => {
        show(byId(name), blobOf({ image: data[index].b64, content_type: data[index].content_type }));
      });
    });
  });

  function slide() {
    const share = slider.valueAsNumber;
    byId("mix-weights").textContent = `${100 - share} % A, ${share} % B`;
    slider.setAttribute("aria-valuetext", byId("mix-weights").textContent);
    if (pictures.first && pictures.second) mix(pair(), share / 100);
  }

  function redraw() {
    if (!pictures.first || !pictures.second) return;
    const [first, second] = pair();
    [...byId("swaps").children].forEach((button, place) => {
      button.setAttribute("aria-pressed", swapped.has(place));
      button.setAttribute("aria-label", `Swap token ${place + 1}: A has ${first[place]}, B has ${second[place]}`);
      paint(button.firstChild, first[place]);
      paint(button.lastChild, second[place]);
    });
    byId("swap-count").textContent = `${swapped.size} of ${count} swapped`;
    decode([first, second]);
    slide();
  }

  function swap(places) {
    swapped.clear();
    places.forEach((place) => swapped.add(place));
    redraw();
  }

  /** The first image, which the section above shows. */
  function takeFirst(tokens) {
    pictures.first = tokens;
    redraw();
  }

  /** The second image by its tokens. */
  function open(tokens, name = "") {
    expected = null;
    put(tokens, name);
  }

  function put(tokens, name) {
    pictures.second = tokens;
    byId("other-name").textContent = name;
    redraw();
  }

  /** The second image: a Blob, or the promise of one. */
  async function take(picture) {
    const mine = (expected = Symbol("load"));
    await reporting(problem, async () => {
      const given = await picture;
      const { data } = await (await call("v1/encode", { image: given })).json();
      if (expected === mine) put(data[0].tokens, given.name ?? "");
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
    openBetween(between);
    byId("tokens-section").scrollIntoView();
  });
  slider.addEventListener("input", slide);
  takesImages("other", take);
  return { take, open, takeFirst };
}
