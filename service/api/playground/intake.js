// Where pictures come in: the file dialog, the bundled samples, a drop, the clipboard.

import { byId, element } from "./page.js";
import { addressOf, call } from "./service.js";

const SAMPLES = { coffee: "A cup of coffee", cat: "A cat", rocket: "A rocket", hills: "Hills at dusk" };

/** A bundled picture. */
export async function sample(name) {
  return (await call(`playground/samples/${name}.jpg`, { accept: "image/jpeg" })).blob();
}

/**
 * Calls `take` with whatever picture comes in at an image of the page, whose elements are named after `name`: a Blob, or
 * the promise of one.
 */
export function takesImages(name, take) {
  byId(`${name}-file`).addEventListener("change", ({ target }) => {
    if (target.files.length) take(target.files[0]);
    target.value = "";
  });
  for (const [key, title] of Object.entries(SAMPLES)) {
    const image = element("img", { src: addressOf(`playground/samples/${key}.jpg`), alt: title });
    const button = element("button", { type: "button", title }, image);
    button.addEventListener("click", () => take(sample(key)));
    byId(`${name}-samples`).append(button);
  }
  const zone = byId(`${name}-drop`);
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

/** Pasted pictures go to `take`, and so do ones dropped beside every image, for which the browser would leave the page. */
export function takesStrayImages(take) {
  document.addEventListener("paste", ({ clipboardData }) => {
    const [file] = clipboardData.files;
    if (file) take(file);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (event.defaultPrevented) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}
