// Section "Encode and decode": an image, its reconstruction, sizes and code, and an editor for its tokens.

import { choice } from "./cells.js";
import { codeOf, tokensOf } from "./code.js";
import { latest } from "./latest.js";
import { announce, blobOf, byId, number, show, showProblems } from "./page.js";
import { showSameBytes } from "./same_bytes.js";
import { call } from "./service.js";
import { createTakeAway, keepInAddress } from "./take_away.js";
import { createTokenMap } from "./token_map.js";
import { acceptImages } from "./uploads.js";

const MOST_UNDONE = 100; // changes

/** Initializes the section. `onSettled` is called with the tokens when an image is loaded or a slider is released. */
export function createEditor(model, { onSettled }) {
  const { id, revision, bits_per_token: bits, codebook_size: size, num_tokens: count } = model;
  const [field, slider] = [byId("token-number"), byId("token-slider")];
  const problem = byId("image-problem");
  let image = null; // the image shown: { initial, tokens, length, selected, cells, fidelity, earlier }
  let pending = null; // the load in progress; responses to earlier loads are discarded

  const shownTokens = () => image.tokens.slice(0, image.length);
  const takeAway = createTakeAway(model, () => codeOf(shownTokens(), bits));
  const decode = async (input, accept = "image/jpeg") =>
    (await call("v1/decode", { json: { ...input, model: id, revision }, accept })).blob();
  const redraw = latest((of, tokens) =>
    showProblems(problem, async () => {
      const result = await decode({ tokens });
      if (of === image) show(byId("image-result"), result);
    }),
  );
  const tokenMap = createTokenMap({
    decode: (tokens) => decode({ tokens }, "image/png"),
    current: () => image.tokens,
    replaced: (place) => shownTokens().with(place, (image.tokens[place] + Math.floor(size / 2)) % size),
  });

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
        const { psnr, ssim } = result.quality;
        const noise = psnr === null ? "exact" : `PSNR ${psnr.toFixed(1)} dB`;
        display(result.tokens, blobOf(result), original, `${noise} · SSIM ${ssim.toFixed(2)}`);
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

  function display(tokens, result, original, fidelity = "") {
    byId("tokens").replaceChildren();
    image = { initial: tokens, tokens: [...tokens], length: tokens.length, selected: 0, fidelity, earlier: [] };
    image.cells = choice(byId("tokens"), tokens, { group: "token", onSelect: select });
    show(byId("image-original"), original);
    byId("image-missing").hidden = original !== null;
    byId("image-missing").textContent = "No original: decoded from tokens.";
    show(byId("image-result"), result);
    byId("image-wipe").classList.toggle("alone", original === null);
    if (!original) showSameBytes(null);
    byId("size-file").textContent = original ? `${number(original.size)} bytes` : "–";
    image.original = original;
    byId("length").max = byId("length").value = tokens.length;
    showEffect(false);
    select(0);
    update();
    onSettled(image.tokens);
  }

  function select(place) {
    image.selected = place;
    if (byId("token-effect").getAttribute("aria-pressed") === "true") showEffect(true);
    byId("token-place").textContent = `Token ${place + 1} of ${count}`;
    field.value = slider.value = image.tokens[place];
  }

  function update() {
    image.cells.paint(image.tokens, image.length);
    takeAway.update();
    const bytes = Math.ceil((image.length * bits) / 8);
    byId("size-code").textContent = byId("tag-bytes").textContent = `${number(bytes)} bytes`;
    byId("length-value").textContent = `${image.length} of ${image.tokens.length} tokens, ${number(bytes)} bytes`;
    const ratio = image.original && number(Math.round(image.original.size / bytes));
    byId("size-ratio").textContent = ratio ? `The file has ${ratio} times as many bytes as the code.` : "";
    const changed = image.tokens.some((token, place) => token !== image.initial[place]);
    // The figures are those of the whole code of the original.
    byId("image-quality").textContent = changed || image.length < image.tokens.length ? "" : image.fidelity;
    byId("tokens-undo").disabled = !image.earlier.length;
    byId("tokens-back").disabled = !changed;
    byId("token-back").disabled = image.tokens[image.selected] === image.initial[image.selected];
  }

  function change(tokens) {
    image.tokens = tokens;
    select(image.selected);
    update();
    redraw(image, shownTokens());
  }

  /** Remembers the present tokens, so that the change that follows can be undone. */
  function remember() {
    image.earlier = [...image.earlier, image.tokens].slice(-MOST_UNDONE);
  }

  function settle() {
    keepInAddress(codeOf(shownTokens(), bits));
    onSettled(image.tokens);
  }

  function showEffect(on) {
    byId("token-effect").setAttribute("aria-pressed", on);
    if (on) tokenMap.show(image.selected);
    else tokenMap.hide();
  }

  const withToken = (token) => image.tokens.with(image.selected, token);

  field.max = slider.max = size - 1;
  let gesture = false; // a slider is being moved; its whole movement is one change
  const edit = (token) => {
    if (!gesture) remember();
    gesture = true;
    change(withToken(token));
  };
  slider.addEventListener("input", () => edit(slider.valueAsNumber));
  field.addEventListener("input", () => field.validity.valid && edit(field.valueAsNumber));
  for (const input of [slider, field]) {
    input.addEventListener("change", () => {
      gesture = false;
      settle();
    });
  }
  for (const [button, tokens] of Object.entries({
    "token-random": () => withToken(Math.floor(Math.random() * size)),
    "token-back": () => withToken(image.initial[image.selected]),
    "tokens-back": () => image.initial,
  })) {
    byId(button).addEventListener("click", () => {
      remember();
      change(tokens());
      settle();
    });
  }
  function undo() {
    if (!image?.earlier.length) return;
    gesture = false;
    change(image.earlier.pop());
    settle();
  }
  byId("tokens-undo").addEventListener("click", undo);
  document.addEventListener("keydown", (event) => {
    const isText = event.target.matches("input:not([type=range], [type=radio])");
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey || isText) return;
    event.preventDefault();
    undo();
  });
  byId("token-effect").addEventListener("click", ({ currentTarget }) => {
    showEffect(currentTarget.getAttribute("aria-pressed") !== "true");
  });
  byId("tokens").addEventListener("pointerover", ({ target, pointerType }) => {
    const place = [...byId("tokens").children].indexOf(target.closest("label"));
    if (pointerType === "mouse" && place >= 0 && place < image.length) tokenMap.show(place);
  });
  byId("tokens").addEventListener("pointerleave", () => showEffect(false));
  byId("length-field").hidden = !model.prefix_decodable;
  byId("length").min = model.min_tokens;
  byId("length").addEventListener("input", ({ target }) => {
    image.length = target.valueAsNumber;
    showEffect(false);
    update();
    redraw(image, shownTokens());
  });
  byId("length").addEventListener("change", settle);
  byId("wipe").addEventListener("input", ({ target }) => {
    byId("image-wipe").style.setProperty("--wipe", `${target.value}%`);
  });
  byId("image-original").addEventListener("load", ({ target }) => showSameBytes(target, model.code_bytes));
  byId("image-original").addEventListener("error", () => {
    byId("image-original").hidden = true;
    byId("image-missing").hidden = false;
    byId("image-missing").textContent = "This browser cannot display the format of the original.";
    showSameBytes(null);
  });
  byId("code-form").addEventListener("submit", (event) => {
    event.preventDefault();
    openCode(byId("code-field").value.trim());
  });
  acceptImages("image", openImage);
  return { openImage, openTokens, openCode };
}
