// The script of decode.html: a module of its own, since the content security policy of the page allows no inline scripts.
import {decode, session} from "./decode.js";

const [code, button, status, canvas] = ["code", "decode", "status", "picture"].map((id) => document.getElementById(id));
const decoder = await session("./decoder.onnx");
button.disabled = false;
status.textContent = "Ready";
button.addEventListener("click", async () => {
    const begun = performance.now();
    const pixels = await decode(decoder, code.value);
    Object.assign(canvas, {width: pixels.width, height: pixels.height});
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    status.textContent = `Decoded in ${Math.round(performance.now() - begun)} ms`;
});
