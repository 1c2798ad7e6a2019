// Section "Encode and decode": an image, its reconstruction, sizes and code, and an editor for its tokens.

import { choice } from "./cells.js";
import { codeOf, tokensOf } from "./code.js";
import { latest } from "./latest.js";
import { addCopyButton, announce, blobOf, byId, number, show, showProblems } from "./page.js";
import { call, urlOf } from "./service.js";
import { acceptImages } from "./uploads.js";

/** Initializes the section. `onSettled` is called with the tokens when an image is loaded or a slider is released. */
export function createEditor(model, { onSettled }) {
  const { id, revision, bits_per_token: bits, codebook_size: size, num_tokens: count } = model;
  const [field, slider] = [byId("token-number"), byId("token-slider")];
  const problem = byId("image-problem");
  let image = null; // the image shown: { initial, tokens, selected, cells }
  let pending = null; // the load in progress; responses to earlier loads are discarded

  const imageUrl = () => urlOf(`v1/images/${id}@${revision}/${codeOf(image.tokens, bits)}.png`);
  const decode = async (input) => {
    const response = await call("v1/decode", { json: { ...input, model: id, revision }, accept: "image/jpeg" });
    return response.blob();
  };
  const redraw = latest((of, tokens) =>
    showProblems(problem, async () => {
      const result = await decode({ tokens });
      if (of === image) show(byId("image-result"), result);
    }),
  );

  /** Loads an image. `work` returns a function that shows it, which is not called if another load has started meanwhile. */
  async function load(work) {
    const current = (pending = Symbol("load"));
    byId("image-pictures").setAttribute("aria-busy", "true");
    await showProblems(problem, async () => {
      const showLoaded = await work();
      if (pending === current) showLoaded();
    });
    if (pending === current) byId("image-pictures").removeAttribute("aria-busy");
  }

  /** Encodes and reconstructs an image (a Blob or a promise of one) and shows both. */
  const openImage = (file) =>
    load(async () => {
      const original = await file;
      const result = await (await call("v1/reconstruct", { image: original })).json();
      return () => {
        display(result.tokens, blobOf(result), original);
        const { psnr, ssim } = result.quality;
        const fidelity = psnr === null ? "exact" : `PSNR ${psnr.toFixed(1)} dB`;
        byId("image-quality").textContent = `${fidelity} · SSIM ${ssim.toFixed(2)}`;
        announce("Reconstruction finished");
      };
    });

  /** Decodes tokens and shows the image, without an original. */
  const openTokens = (tokens) =>
    load(async () => {
      const result = await decode({ tokens });
      return () => display(tokens, result, null);
    });

  const openCode = (code) =>
    load(async () => {
      const result = await decode({ code });
      return () => display(tokensOf(code, bits, count), result, null);
    });

  function display(tokens, result, original) {
    byId("tokens").replaceChildren();
    image = { initial: tokens, tokens: [...tokens], selected: 0 };
    image.cells = choice(byId("tokens"), tokens, { group: "token", onSelect: select });
    show(byId("image-original"), original);
    byId("image-missing").hidden = original !== null;
    byId("image-missing").textContent = "No original: decoded from tokens.";
    show(byId("image-result"), result);
    byId("image-quality").textContent = "";
    byId("size-file").textContent = original ? `${number(original.size)} bytes` : "–";
    byId("size-code").textContent = `${number(model.code_bytes)} bytes`;
    const ratio = original && number(Math.round(original.size / model.code_bytes));
    byId("size-ratio").textContent = original ? `${ratio} times smaller` : "";
    select(0);
    update();
    onSettled(image.tokens);
  }

  function select(place) {
    image.selected = place;
    byId("token-place").textContent = `Token ${place + 1} of ${count}`;
    field.value = slider.value = image.tokens[place];
  }

  function update() {
    image.cells.paint(image.tokens);
    byId("code").textContent = codeOf(image.tokens, bits);
    byId("address").href = imageUrl();
    byId("address").textContent = new URL(imageUrl()).pathname;
    const changed = image.tokens.filter((token, place) => token !== image.initial[place]).length;
    byId("tokens-back").disabled = !changed;
    byId("token-back").disabled = image.tokens[image.selected] === image.initial[image.selected];
  }

  function change(tokens) {
    image.tokens = tokens;
    select(image.selected);
    update();
    redraw(image, tokens);
  }

  const withToken = (token) => image.tokens.with(image.selected, token);

  field.max = slider.max = size - 1;
  slider.addEventListener("input", () => change(withToken(slider.valueAsNumber)));
  field.addEventListener("input", () => field.validity.valid && change(withToken(field.valueAsNumber)));
  for (const input of [slider, field]) input.addEventListener("change", () => onSettled(image.tokens));
  for (const [button, tokens] of Object.entries({
    "token-random": () => withToken(Math.floor(Math.random() * size)),
    "token-back": () => withToken(image.initial[image.selected]),
    "tokens-back": () => image.initial,
  })) {
    byId(button).addEventListener("click", () => {
      change(tokens());
      onSettled(image.tokens);
    });
  }
  byId("image-original").addEventListener("error", () => {
    byId("image-original").hidden = true;
    byId("image-missing").hidden = false;
    byId("image-missing").textContent = "This browser cannot display the format of the original.";
  });
  byId("code-form").addEventListener("submit", (event) => {
    event.preventDefault();
    openCode(byId("code-field").value.trim());
  });
  addCopyButton(byId("code-copy"), () => codeOf(image.tokens, bits));
  addCopyButton(byId("address-copy"), imageUrl);
  acceptImages("image", openImage);
  return { openImage, openTokens };
}
