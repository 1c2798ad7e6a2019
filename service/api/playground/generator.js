// Section "Generate images": generation with live previews, and a gallery of images with their settings.

import { cell } from "./cells.js";
import { showPicks } from "./class_picks.js";
import { announce, blobOf, byId, element, show, showProblems } from "./page.js";
import { call, parseEvents, Problem } from "./service.js";

const SLIDERS = {
  steps: "gen-steps",
  guidance_scale: "gen-guidance",
  temperature: "gen-temperature",
  token_temperature: "gen-token-temperature",
};
const DEFAULT_PRESET = "demo";
const COUNTS = [4, 1]; // images at once; the first is the default

/** Initializes the section. `editImage` and `useAsB` are called with the tokens of a gallery image. */
export async function createGenerator(model, { editImage, useAsB }) {
  if (!model.generator) {
    byId("no-generator").hidden = false;
    byId("generator").hidden = true;
    return;
  }
  const [name, seed, preset, count] = [byId("gen-class"), byId("gen-seed"), byId("gen-preset"), byId("gen-count")];
  let running = null; // AbortController of the generation in progress
  let another = false; // a generation with a new seed follows the one in progress

  function applySettings(settings) {
    for (const [setting, id] of Object.entries(SLIDERS)) {
      const [slider, value] = [byId(id), settings[setting] ?? null];
      slider.parentElement.hidden = value === null; // a preset without a temperature of its own for tokens
      if (value === null) continue;
      slider.max = Math.max(slider.max, value);
      slider.value = value;
      showValue(slider);
    }
  }

  function readSettings() {
    const text = name.value.trim();
    const sliders = Object.entries(SLIDERS).map(([setting, id]) => [setting, byId(id)]);
    const shown = sliders.filter(([, slider]) => !slider.parentElement.hidden);
    return {
      class: text === "" ? null : /^\d+$/.test(text) ? Number(text) : text,
      seed: seed.valueAsNumber,
      n: Number(count.value),
      preset: preset.value,
      ...Object.fromEntries(shown.map(([setting, slider]) => [setting, slider.valueAsNumber])),
    };
  }

  async function generate() {
    running?.abort();
    const controller = (running = new AbortController());
    const settings = readSettings();
    byId("gen-stop").disabled = false;
    prepareGrid(settings.n);
    progress(0, settings.steps, "Waiting …");
    const succeeded = await showProblems(byId("generate-problem"), () => stream(settings, controller.signal));
    if (running !== controller) return;
    running = null;
    byId("gen-stop").disabled = true;
    if (!succeeded) progress(0, settings.steps, controller.signal.aborted ? "Stopped" : "");
    if (succeeded && another) generateAnother();
    another = false;
  }

  function generateAnother() {
    randomizeSeed();
    generate();
  }

  async function stream(settings, signal) {
    const json = { ...settings, preview: true };
    const response = await call("v1/generate", { json, accept: "text/event-stream", signal });
    const items = [];
    for await (const [event, data] of parseEvents(response)) {
      if (event === "error") throw new Problem(data);
      if (event === "step" && data.index === 0) {
        showTokens(data.tokens);
        const known = `${data.known} of ${model.num_tokens} tokens`;
        progress(data.step, data.steps, `Step ${data.step} of ${data.steps}, ${known}`);
      }
      if (event === "image") items.push(data);
      if (data.image) showImage(data.index, blobOf(data));
      if (event === "done") {
        const title = data.class_name ?? "no class";
        const seeds = settings.n > 1 ? `seeds ${items[0].seed} to ${items.at(-1).seed}` : `seed ${items[0].seed}`;
        progress(1, 1, `${title}, ${seeds}`);
        announce(`Generated: ${title}, ${seeds}`);
        for (const item of items.reverse()) addToGallery(item, title, settings);
        return;
      }
    }
    throw new Problem({ title: "Connection lost", detail: "The stream ended before the image was finished." });
  }

  function addToGallery(item, title, settings) {
    const label = `${title}, seed ${item.seed}`;
    const image = element("img", { alt: label });
    show(image, blobOf(item));
    const button = (text, onClick) => {
      const made = element("button", { type: "button", textContent: text, ariaLabel: `${text}: ${label}` });
      made.addEventListener("click", onClick);
      return made;
    };
    const restore = button("Settings", () => {
      [name.value, seed.value, preset.value, count.value] = [settings.class ?? "", item.seed, settings.preset, 1];
      applySettings(settings);
      name.focus();
    });
    const edit = button("Edit", () => {
      editImage(item.tokens);
      byId("tokens-section").scrollIntoView();
    });
    const second = button("Use as B", () => {
      useAsB(item.tokens, label);
      byId("mix-section").scrollIntoView();
    });
    const quiet = element("span", { className: "quiet", textContent: `seed ${item.seed}` });
    const caption = element("p", {}, element("strong", { textContent: title }), quiet);
    const buttons = element("div", { className: "buttons" }, restore, edit, second);
    byId("gallery").prepend(element("li", {}, image, caption, buttons));
    byId("gallery-title").hidden = false;
  }

  function randomizeSeed() {
    seed.value = Math.floor(Math.random() * 2 ** 31);
  }

  preset.append(...Object.keys(model.generator.presets).map((value) => element("option", { value, textContent: value })));
  preset.value = DEFAULT_PRESET;
  for (const value of COUNTS.filter((number) => number <= model.limits.max_generate)) {
    count.append(element("option", { value, textContent: value === 1 ? "1 image" : `${value} images` }));
  }
  applySettings(model.generator.presets[preset.value]);
  preset.addEventListener("change", () => applySettings(model.generator.presets[preset.value]));
  for (const id of Object.values(SLIDERS)) byId(id).addEventListener("input", ({ target }) => showValue(target));
  byId("gen-seed-random").addEventListener("click", randomizeSeed);
  byId("gen-another").addEventListener("click", () => {
    if (running) another = true;
    else generateAnother();
  });
  byId("gen-stop").addEventListener("click", () => running?.abort());
  byId("generate-form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  showTokens(Array(model.num_tokens).fill(null));
  await showProblems(byId("generate-problem"), async () => {
    const { data } = await (await call(`v1/models/${model.id}/classes`)).json();
    byId("gen-classes").append(...data.map(option));
    name.value = showPicks(data, (value) => {
      name.value = value;
      generate();
    });
  });
}

/** An option of the class list. Its value is the name, or the id if another class has the same name. */
function option(entry, _, all) {
  const shared = all.some((other) => other.id !== entry.id && other.name === entry.name);
  return shared ? element("option", { value: entry.id, label: entry.name }) : element("option", { value: entry.name });
}

function showValue(slider) {
  slider.parentElement.querySelector("output").value = slider.value;
}

/** Makes room for `count` images; earlier ones stay, dimmed, until the new ones come. */
function prepareGrid(count) {
  const frames = byId("gen-grid").children;
  while (frames.length > count) byId("gen-grid").lastChild.remove();
  while (frames.length < count) {
    const image = element("img", { alt: `Image ${frames.length + 1} being generated`, hidden: true });
    byId("gen-grid").append(element("div", { className: "frame" }, image));
  }
  for (const { firstChild: image } of frames) image.classList.add("old");
}

function showImage(index, blob) {
  byId("gen-empty").hidden = true;
  const image = byId("gen-grid").children[index].firstChild;
  image.classList.remove("old");
  show(image, blob);
}

function showTokens(ids) {
  byId("gen-tokens").replaceChildren(...ids.map(cell));
}

function progress(done, of, text) {
  byId("gen-progress").max = of;
  byId("gen-progress").value = done;
  byId("gen-state").textContent = text;
}
