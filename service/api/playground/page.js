// Helpers of all sections: elements, images, numbers, problems, announcements, copy buttons.

import { Problem } from "./service.js";

export const byId = (id) => document.getElementById(id);

export const number = (value) => value.toLocaleString("en");

/** Shows an image (a Blob, or null to hide it) and releases the previous one. */
export function show(img, blob) {
  if (img.src.startsWith("blob:")) URL.revokeObjectURL(img.src);
  img.hidden = !blob;
  if (blob) img.src = URL.createObjectURL(blob);
  else img.removeAttribute("src");
}

/** The Blob of an image in a JSON response: base64 and its media type. */
export function blobOf({ image, content_type: type }) {
  return new Blob([Uint8Array.from(atob(image), (character) => character.charCodeAt(0))], { type });
}

/** Announces a text to screen readers. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/** Runs `work` and shows an error response in `box`. Returns whether `work` succeeded. Aborted requests show nothing. */
export async function showProblems(box, work) {
  box.hidden = true;
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    if (!(error instanceof Problem)) throw error;
    box.replaceChildren(element("strong", { textContent: error.title }), element("p", { textContent: error.detail }));
    if (error.instance) {
      const request = element("code", { textContent: error.instance });
      box.append(element("details", {}, element("summary", { textContent: "Details" }), "Request ", request));
    }
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

/** Makes a button copy the result of `text` to the clipboard. */
export function addCopyButton(button, text) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    await copy(text());
    button.textContent = "Copied";
    announce("Copied");
    setTimeout(() => (button.textContent = label), 1500);
  });
}

async function copy(text) {
  // navigator.clipboard exists only over HTTPS and on localhost.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
