// Image input: file dialog, bundled samples, drag and drop, clipboard.

import { byId, element } from "./page.js";
import { call, urlOf } from "./service.js";

const SAMPLES = { coffee: "A cup of coffee", cat: "A cat", rocket: "A rocket", hills: "Hills at dusk" };

/** Loads a bundled sample image. */
export async function sampleImage(name) {
  return (await call(`playground/samples/${name}.jpg`, { accept: "image/jpeg" })).blob();
}

/**
 * Calls `open` with each image that the user selects or drops at the elements named `<name>-file`, `<name>-samples` and
 * `<name>-drop`: a Blob or a promise of one.
 */
export function acceptImages(name, open) {
  byId(`${name}-file`).addEventListener("change", ({ target }) => {
    if (target.files.length) open(target.files[0]);
    target.value = "";
  });
  for (const [key, title] of Object.entries(SAMPLES)) {
    const image = element("img", { src: urlOf(`playground/samples/${key}.jpg`), alt: title });
    const button = element("button", { type: "button", title }, image);
    button.addEventListener("click", () => open(sampleImage(key)));
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
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
}

/** Calls `open` with pasted images, and with images dropped elsewhere, which the browser would navigate to. */
export function acceptImagesAnywhere(open) {
  document.addEventListener("paste", ({ clipboardData }) => {
    const [file] = clipboardData.files;
    if (file) open(file);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (event.defaultPrevented) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
}
