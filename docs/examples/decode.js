// Decodes a code with onnxruntime-web. `session(url)` loads a decoder that `titok export` wrote, `decode(session, code)` returns
// ImageData. All files come from the page's own origin: see docs/export.md.
import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// More than one thread needs a page that is cross-origin isolated.
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

export function session(url) {
    return ort.InferenceSession.create(url, {executionProviders: ["wasm"]});
}

// The text of a code -> ids: big-endian numbers of `bits` bits, 12 for 4,096 codes.
export function idsOf(code, bits = 12) {
    const text = Array.from(code, (letter) => ALPHABET.indexOf(letter).toString(2).padStart(6, "0")).join("");
    return Array.from({length: Math.floor(text.length / bits)}, (_, place) =>
        BigInt(parseInt(text.slice(place * bits, (place + 1) * bits), 2)));
}

export async function decode(decoder, code, bits = 12) {
    const ids = idsOf(code, bits);
    const {images} = await decoder.run({ids: new ort.Tensor("int64", BigInt64Array.from(ids), [1, ids.length])});
    const [, height, width] = images.dims;
    const pixels = new ImageData(width, height);
    for (let from = 0, to = 0; from < images.data.length; from += 3, to += 4) {
        pixels.data.set([images.data[from], images.data[from + 1], images.data[from + 2], 255], to);
    }
    return pixels;
}
