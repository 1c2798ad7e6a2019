// Parts of the page that every section writes to: pictures, numbers, problems, what is announced, what is copied.

import { Problem } from "./service.js";

export const byId = (id) => document.getElementById(id);

export const number = (value) => value.toLocaleString("en");

/** Shows a picture: a Blob, or base64 with its type. The one it replaces is let go. */
export function show(img, picture) {
  if (img.src.startsWith("blob:")) URL.revokeObjectURL(img.src);
  img.hidden = !picture;
  if (picture) img.src = URL.createObjectURL(picture);
  else img.removeAttribute("src");
}

export function blobOf({ image, content_type: type }) {
  return new Blob([Uint8Array.from(atob(image), (character) => character.charCodeAt(0))], { type });
}

/** Tells those who listen instead of looking. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/** Runs something and shows in `box` what the service refuses; true if nothing. What was given up is no problem. */
export async function reporting(box, work) {
  box.hidden = true;
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    if (!(error instanceof Problem)) throw error;
    box.replaceChildren(element("strong", { textContent: error.title }), element("p", { textContent: error.detail }));
    if (error.instance) box.append(element("small", { textContent: `Request ${error.instance}` }));
    box.hidden = false;
    if (error.status === 401) byId("key-form").hidden = false;
    return false;
  }
}

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Makes a button copy what `text` gives, and say so. */
export function copies(button, text) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    await copy(text());
    button.textContent = "Copied";
    announce("Copied");
    setTimeout(() => (button.textContent = label), 1500);
  });
}

async function copy(text) {
  // Browsers have a clipboard only for https and the own machine.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
