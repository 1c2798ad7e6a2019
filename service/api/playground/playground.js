// Entry point: loads the model description, then initializes the three sections.

import { createEditor } from "./editor.js";
import { createGenerator } from "./generator.js";
import { createMixer } from "./mixer.js";
import { byId, number, showProblems } from "./page.js";
import { Problem, call, storeKey } from "./service.js";
import { codeOfAddress } from "./take_away.js";
import { acceptImagesAnywhere, sampleImage } from "./uploads.js";

const reload = () => location.reload();

async function start() {
  const model = (await (await call("v1/models")).json()).data[0];
  describe(model);
  if (model.kind === "vae") {
    const detail = `${model.id} is a VAE: its tokens are vectors, which have no codes to edit or mix. Use the API.`;
    throw new Problem({ title: "No token ids", detail });
  }
  const mixer = createMixer(model, { editImage: (tokens) => editor.openTokens(tokens) });
  const editor = createEditor(model, { onSettled: mixer.setFirst });
  acceptImagesAnywhere(editor.openImage);
  byId("sections").hidden = false;
  const openAddress = () => codeOfAddress() && editor.openCode(codeOfAddress());
  window.addEventListener("hashchange", openAddress);
  await Promise.all([
    openAddress() ?? editor.openImage(sampleImage("coffee")),
    mixer.openImage(sampleImage("cat")),
    createGenerator(model, { editImage: editor.openTokens, useAsB: mixer.openTokens }),
  ]);
}

function describe(model) {
  const facts = {
    tokens: number(model.num_tokens),
    bytes: number(model.code_bytes),
    classes: number(model.generator?.num_classes ?? 0),
  };
  for (const place of document.querySelectorAll("[data-fact]")) place.textContent = facts[place.dataset.fact];
  const side = model.image_size;
  const codes = model.kind === "vae" ? `${model.latents.shape[1]} numbers each` : `codebook of ${number(model.codebook_size)}`;
  byId("served").textContent = `${model.id} · ${side} × ${side} pixels · ${facts.tokens} tokens · ${codes}`;
  byId("served").title = `Revision ${model.revision}`;
  byId("served").hidden = false;
}

byId("retry").addEventListener("click", reload);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  storeKey(byId("key").value);
  reload();
});
byId("retry").hidden = await showProblems(byId("page-problem"), start);
