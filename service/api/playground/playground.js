// The page's start: asks what is served, then brings its three sections to life.

import { createEditor } from "./editor.js";
import { createGenerator } from "./generator.js";
import { sample, takesStrayImages } from "./intake.js";
import { createMixer } from "./mixer.js";
import { byId, number, reporting } from "./page.js";
import { call, keepKey } from "./service.js";

const reload = () => location.reload();

async function start() {
  const model = (await (await call("v1/models")).json()).data[0];
  describe(model);
  const mixer = createMixer(model, { open: (tokens) => editor.open(tokens) });
  const editor = createEditor(model, { onSettled: mixer.takeFirst });
  takesStrayImages(editor.take);
  byId("sections").hidden = false;
  await Promise.all([
    editor.take(sample("coffee")),
    mixer.take(sample("cat")),
    createGenerator(model, { open: editor.open, openOther: mixer.open }),
  ]);
}

function describe(model) {
  const facts = {
    tokens: number(model.num_tokens),
    bytes: number(model.code_bytes),
    classes: number(model.generator?.num_classes ?? 0),
  };
  for (const place of document.querySelectorAll("[data-fact]")) place.textContent = facts[place.dataset.fact];
  const [side, codes] = [model.image_size, number(model.codebook_size)];
  byId("served").textContent = `${model.id} · ${side} × ${side} pixels · ${facts.tokens} of ${codes} codes`;
  byId("served").title = `Revision ${model.revision}`;
  byId("served").hidden = false;
}

byId("retry").addEventListener("click", reload);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value);
  reload();
});
byId("retry").hidden = await reporting(byId("page-problem"), start);
