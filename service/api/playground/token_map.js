// A map of what one token changes: the difference between the image and the image with another id in its place.

import { byId } from "./page.js";
import { latest } from "./latest.js";

/** `decode` decodes tokens to a Blob; `replaced` returns the tokens with another id at a place. */
export function createTokenMap({ decode, current, replaced }) {
  const canvas = byId("token-map");
  let wanted = null; // the place whose map is to be shown

  const draw = latest(async (place) => {
    const [tokens, image] = [current(), byId("image-result")];
    const other = await createImageBitmap(await decode(replaced(place)));
    await image.decode();
    if (wanted !== place || tokens !== current()) return;
    paint(canvas, image, other);
    canvas.hidden = false;
  });

  return {
    async show(place) {
      wanted = place;
      await draw(place).catch(() => {}); // a map is no answer that anybody waits for
    },
    hide() {
      wanted = null;
      canvas.hidden = true;
    },
  };
}

function paint(canvas, first, second) {
  const { width, height } = second;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixelsOf = (image) => {
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };
  const [before, after] = [pixelsOf(first), pixelsOf(second)];
  const map = new ImageData(width, height);
  for (let at = 0; at < before.length; at += 4) {
    const change = [0, 1, 2].reduce((sum, channel) => sum + Math.abs(before[at + channel] - after[at + channel]), 0);
    map.data.set([255, 0, 110, Math.min(230, change * 2)], at);
  }
  context.putImageData(map, 0, 0);
}
