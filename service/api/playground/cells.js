// Tokens as coloured, numbered cells. A token has the same colour wherever it appears.

import { element } from "./page.js";

const GOLDEN_ANGLE = 137.508; // spreads neighbouring ids over the colour circle

/** A cell that is only looked at; null is a token not known yet. */
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

/** Cells, of which one is chosen: radio buttons, so that arrow keys move as everybody knows it. */
export function choice(box, tokens, { group, onChoose }) {
  const fields = tokens.map((token, place) => {
    const input = element("input", { type: "radio", name: group, value: place, checked: place === 0 });
    input.addEventListener("change", () => onChoose(place));
    const shown = cell(token);
    const name = element("span", { className: "unseen", textContent: `Token ${place + 1}: ` });
    box.append(element("label", {}, input, name, shown));
    return { input, shown };
  });
  return {
    /** Shows other ids; those that differ from the first ones are marked. */
    paint(ids) {
      ids.forEach((id, place) => {
        paint(fields[place].shown, id);
        fields[place].shown.classList.toggle("changed", id !== tokens[place]);
      });
    },
  };
}
