// Tokens as coloured, numbered cells. The colour depends on the token id only.

import { element } from "./page.js";

const GOLDEN_ANGLE = 137.508; // spreads neighbouring ids over the colour circle

/** A read-only cell; null is a token that is not yet known. */
export function cell(token) {
  const made = element("span", { className: "cell" });
  paint(made, token);
  return made;
}

export function paint(made, token) {
  made.classList.toggle("unknown", token === null);
  made.textContent = token ?? "·";
  made.style.setProperty("--hue", ((token ?? 0) * GOLDEN_ANGLE) % 360);
}

/** Cells of which one is selected. They are radio buttons, so that the arrow keys move the selection. */
export function choice(box, tokens, { group, onSelect }) {
  const fields = tokens.map((token, place) => {
    const input = element("input", { type: "radio", name: group, value: place, checked: place === 0 });
    input.addEventListener("change", () => onSelect(place));
    const shown = cell(token);
    const name = element("span", { className: "unseen", textContent: `Token ${place + 1}: ` });
    box.append(element("label", {}, input, name, shown));
    return { input, shown };
  });
  return {
    /** Shows new ids, and marks those that differ from the initial ids and those beyond the length. */
    paint(ids, length = ids.length) {
      ids.forEach((id, place) => {
        paint(fields[place].shown, id);
        fields[place].shown.classList.toggle("changed", id !== tokens[place]);
        fields[place].shown.classList.toggle("dropped", place >= length);
      });
    },
  };
}
