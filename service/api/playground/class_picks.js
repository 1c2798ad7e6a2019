// "Classes to try": a few classes of the generator with an image of each.

import { blobOf, byId, element, show } from "./page.js";
import { call } from "./service.js";

const COUNT = 8;
// Those of the shipped generator that look best, then some of ImageNet.
const PREFERRED = [
  ...["mountain", "sea", "forest", "glacier", "cat", "starfish", "buildings", "golf ball"],
  ...["golden retriever", "tabby", "valley", "seashore", "daisy", "castle", "hot-air balloon", "macaw"],
];

/**
 * Offers classes, whose images are generated when they come into view. `choose` is called with the name of the one that is
 * selected. Returns the name of the first one.
 */
export function showPicks(classes, choose) {
  const named = classes.filter(({ id, name }) => !classes.some((other) => other.id !== id && other.name === name));
  const preferred = PREFERRED.flatMap((wish) => named.filter(({ names }) => names.includes(wish)));
  const spread = named.filter((_, place) => place % Math.ceil(named.length / COUNT) === 0);
  const picks = [...new Set([...preferred, ...spread])].slice(0, COUNT);
  byId("gen-picks-field").hidden = !picks.length;
  const images = picks.map(({ name }) => {
    const image = element("img", { alt: "" });
    const button = element("button", { type: "button", title: name }, image, element("span", { textContent: name }));
    button.addEventListener("click", () => choose(name));
    byId("gen-picks").append(button);
    return { name, image };
  });
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
    observer.disconnect();
    paintAll(images);
  });
  observer.observe(byId("gen-picks"));
  return picks[0]?.name ?? String(classes[0].id);
}

/** One after the other, so that the service is hardly busy; the first failure ends it, since the names suffice. */
async function paintAll(images) {
  try {
    for (const { name, image } of images) {
      const json = { class: name, seed: 0, preset: "fast", format: "webp" };
      const { data } = await (await call("v1/generate", { json })).json();
      show(image, blobOf(data[0]));
    }
  } catch {
    byId("gen-picks").classList.add("plain");
  }
}
