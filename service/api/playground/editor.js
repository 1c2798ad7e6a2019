// One image: beside what its tokens draw, its size and code, and each token to be changed.

import { choice } from "./cells.js";
import { codeOf, tokensOf } from "./code.js";
import { takesImages } from "./intake.js";
import { newest } from "./newest.js";
import { announce, blobOf, byId, copies, number, reporting, show } from "./page.js";
import { addressOf, call } from "./service.js";

/** Brings the section to life. `onSettled` is told the tokens whenever they are no longer being dragged. */
export function createEditor(model, { onSettled }) {
  const { id, revision, bits_per_token: bits, codebook_size: size, num_tokens: count } = model;
  const [field, slider] = [byId("token-number"), byId("token-slider")];
  const problem = byId("image-problem");
  let image = null; // { first, tokens, chosen, cells }: what is shown
  let expected = null; // what is on its way; an answer for anything else comes too late

  const address = () => addressOf(`v1/images/${id}@${revision}/${codeOf(image.tokens, bits)}.png`);
  const decode = async (what) => {
    const answer = await call("v1/decode", { json: { ...what, model: id, revision }, accept: "image/jpeg" });
    return answer.blob();
  };
  const redraw = newest((of, tokens) =>
    reporting(problem, async () => {
      const picture = await decode({ tokens });
      if (of === image) show(byId("image-result"), picture);
    }),
  );

  /** Loads something; `work` gives a function that shows it, unless something else has been asked for meanwhile. */
  async function load(work) {
    const mine = (expected = Symbol("load"));
    byId("image-pictures").setAttribute("aria-busy", "true");
    await reporting(problem, async () => {
      const put = await work();
      if (expected === mine) put();
    });
    if (expected === mine) byId("image-pictures").removeAttribute("aria-busy");
  }

  /** Shows the reconstruction of an image: a Blob, or the promise of one. */
  const take = (picture) =>
    load(async () => {
      const original = await picture;
      const answer = await (await call("v1/reconstruct", { image: original })).json();
      return () => {
        put(answer.tokens, blobOf(answer), original);
        const { psnr, ssim } = answer.quality;
        const close = psnr === null ? "exact" : `PSNR ${psnr.toFixed(1)} dB`;
        byId("image-quality").textContent = `${close} · SSIM ${ssim.toFixed(2)}`;
        announce("The image and its reconstruction are shown.");
      };
    });

  /** Shows tokens; there is no original then. */
  const open = (tokens) =>
    load(async () => {
      const picture = await decode({ tokens });
      return () => put(tokens, picture, null);
    });

  const openCode = (code) =>
    load(async () => {
      const picture = await decode({ code });
      return () => put(tokensOf(code, bits, count), picture, null);
    });

  function put(tokens, picture, original) {
    byId("tokens").replaceChildren();
    image = { first: tokens, tokens: [...tokens], chosen: 0 };
    image.cells = choice(byId("tokens"), tokens, { group: "token", onChoose: choose });
    show(byId("image-original"), original);
    byId("image-missing").hidden = original !== null;
    byId("image-missing").textContent = "No original: opened from its tokens.";
    show(byId("image-result"), picture);
    byId("image-quality").textContent = "";
    byId("size-file").textContent = original ? `${number(original.size)} bytes` : "–";
    byId("size-code").textContent = `${number(model.code_bytes)} bytes`;
    const ratio = original && number(Math.round(original.size / model.code_bytes));
    byId("size-ratio").textContent = original ? `${ratio} times smaller` : "";
    choose(0);
    describe();
    onSettled(image.tokens);
  }

  function choose(place) {
    image.chosen = place;
    byId("token-place").textContent = `Token ${place + 1} of ${count}`;
    field.value = slider.value = image.tokens[place];
  }

  function describe() {
    image.cells.paint(image.tokens);
    byId("code").textContent = codeOf(image.tokens, bits);
    byId("address").href = address();
    byId("address").textContent = new URL(address()).pathname;
    const changed = image.tokens.filter((token, place) => token !== image.first[place]).length;
    byId("tokens-back").disabled = !changed;
    byId("token-back").disabled = image.tokens[image.chosen] === image.first[image.chosen];
  }

  function change(tokens) {
    image.tokens = tokens;
    choose(image.chosen);
    describe();
    redraw(image, tokens);
  }

  const withToken = (token) => image.tokens.with(image.chosen, token);

  field.max = slider.max = size - 1;
  slider.addEventListener("input", () => change(withToken(slider.valueAsNumber)));
  field.addEventListener("input", () => field.validity.valid && change(withToken(field.valueAsNumber)));
  for (const input of [slider, field]) input.addEventListener("change", () => onSettled(image.tokens));
  for (const [button, tokens] of Object.entries({
    "token-random": () => withToken(Math.floor(Math.random() * size)),
    "token-back": () => withToken(image.first[image.chosen]),
    "tokens-back": () => image.first,
  })) {
    byId(button).addEventListener("click", () => {
      change(tokens());
      onSettled(image.tokens);
    });
  }
  byId("image-original").addEventListener("error", () => {
    byId("image-original").hidden = true;
    byId("image-missing").hidden = false;
    byId("image-missing").textContent = "This browser cannot show the original's format.";
  });
  byId("code-form").addEventListener("submit", (event) => {
    event.preventDefault();
    openCode(byId("code-field").value.trim());
  });
  copies(byId("code-copy"), () => codeOf(image.tokens, bits));
  copies(byId("address-copy"), address);
  takesImages("image", take);
  return { take, open };
}
