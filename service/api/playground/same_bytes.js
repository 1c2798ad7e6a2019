// "At the same bytes": the original in other short forms, computed in the browser by their own libraries.

import { byId, element, number } from "./page.js";
import { decode as decodeBlurHash, encode as encodeBlurHash } from "./vendor/blurhash.js";
import { rgbaToThumbHash, thumbHashToRGBA } from "./vendor/thumbhash.js";

const [SIDE, THUMBHASH_SIDE, BLURHASH_SIDE] = [128, 100, 32]; // pixels; ThumbHash takes at most 100

/** Shows the placeholders of an original (an image element whose file is loaded), or none for null. */
export async function showSameBytes(original, codeBytes) {
  byId("same-bytes").hidden = !original;
  if (!original) return;
  byId("same-bytes-forms").replaceChildren(
    ...[thumbHash(original), blurHash(original), grid(original, codeBytes), await webp(original)].map(figure),
  );
}

function figure({ name, bytes, canvas }) {
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name} of the original`);
  const size = element("span", { className: "quiet", textContent: `${number(bytes)} bytes` });
  const frame = element("div", { className: "frame" }, canvas);
  return element("figure", {}, frame, element("figcaption", {}, name, size));
}

/** The centre square of an image or a canvas, `side` x `side`. */
function square(image, side) {
  const canvas = element("canvas", { width: side, height: side });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [width, height] = [image.naturalWidth ?? image.width, image.naturalHeight ?? image.height];
  const edge = Math.min(width, height);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.drawImage(image, (width - edge) / 2, (height - edge) / 2, edge, edge, 0, 0, side, side);
  return canvas;
}

const pixelsOf = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);

function drawn(pixels, width, height) {
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), width, height), 0, 0);
  return canvas;
}

function thumbHash(image) {
  const hash = rgbaToThumbHash(THUMBHASH_SIDE, THUMBHASH_SIDE, pixelsOf(square(image, THUMBHASH_SIDE)).data);
  const { w, h, rgba } = thumbHashToRGBA(hash);
  return { name: "ThumbHash", bytes: hash.length, canvas: drawn(rgba, w, h) };
}

function blurHash(image) {
  const { data } = pixelsOf(square(image, BLURHASH_SIDE));
  const hash = encodeBlurHash(data, BLURHASH_SIDE, BLURHASH_SIDE, 4, 4);
  return { name: "BlurHash", bytes: hash.length, canvas: drawn(decodeBlurHash(hash, SIDE, SIDE), SIDE, SIDE) };
}

/** The largest grid of colors, three bytes each, that fits into the bytes of the code. */
function grid(image, codeBytes) {
  const side = Math.max(1, Math.floor(Math.sqrt(codeBytes / 3)));
  const canvas = square(square(image, SIDE), side);
  canvas.className = "pixelated";
  return { name: `${side} × ${side} colors`, bytes: 3 * side * side, canvas };
}

/** The smallest WebP file that this browser makes. */
async function webp(image) {
  const file = await new Promise((resolve) => square(image, SIDE).toBlob(resolve, "image/webp", 0));
  const canvas = element("canvas", { width: SIDE, height: SIDE });
  canvas.getContext("2d").drawImage(await createImageBitmap(file), 0, 0);
  return { name: file.type === "image/webp" ? "WebP, lowest quality" : "PNG", bytes: file.size, canvas };
}
