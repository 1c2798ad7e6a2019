// New images of a class, watched as they are sampled, and kept in a gallery with what makes them again.

import { cell } from "./cells.js";
import { announce, blobOf, byId, element, reporting, show } from "./page.js";
import { call, eventsOf, Problem } from "./service.js";

const SLIDERS = { steps: "gen-steps", guidance_scale: "gen-guidance", temperature: "gen-temperature" };
const FIRST_PRESET = "demo";

/** Brings the section to life. `open` and `openOther` are called with tokens to be shown as the first or second image. */
export async function createGenerator(model, { open, openOther }) {
  if (!model.generator) {
    byId("no-generator").hidden = false;
    byId("generator").hidden = true;
    return;
  }
  const [name, seed, preset] = [byId("gen-class"), byId("gen-seed"), byId("gen-preset")];
  let running = null; // the AbortController of the generation under way

  function set(settings) {
    for (const [setting, id] of Object.entries(SLIDERS)) {
      byId(id).max = Math.max(byId(id).max, settings[setting]);
      byId(id).value = settings[setting];
      tell(byId(id));
    }
  }

  function wished() {
    const text = name.value.trim();
    return {
      class: text === "" ? null : /^\d+$/.test(text) ? Number(text) : text,
      seed: seed.valueAsNumber,
      preset: preset.value,
      steps: byId(SLIDERS.steps).valueAsNumber,
      guidance_scale: byId(SLIDERS.guidance_scale).valueAsNumber,
      temperature: byId(SLIDERS.temperature).valueAsNumber,
    };
  }

  async function generate() {
    running?.abort();
    const controller = (running = new AbortController());
    const wish = wished();
    byId("gen-stop").disabled = false;
    progress(0, wish.steps, "Waiting …");
    const succeeded = await reporting(byId("generate-problem"), () => follow(wish, controller.signal));
    if (running !== controller) return;
    running = null;
    byId("gen-stop").disabled = true;
    if (!succeeded) progress(0, wish.steps, controller.signal.aborted ? "Stopped" : "");
  }

  async function follow(wish, signal) {
    const answer = await call("v1/generate", { json: { ...wish, preview: true }, accept: "text/event-stream", signal });
    let item = null;
    for await (const [event, data] of eventsOf(answer)) {
      if (event === "error") throw new Problem(data);
      if (event === "step") {
        tokens(data.tokens);
        const known = `${data.known} of ${model.num_tokens} tokens`;
        progress(data.step, data.steps, `Step ${data.step} of ${data.steps}, ${known}`);
      }
      if (event === "image") item = data;
      if (data.image) picture(blobOf(data));
      if (event === "done") {
        const title = data.class_name ?? "no class";
        progress(1, 1, `${title}, seed ${item.seed}`);
        announce(`Generated: ${title}, seed ${item.seed}`);
        keep(item, title, wish);
        return;
      }
    }
    throw new Problem({ title: "The answer broke off", detail: "The service ended before the image was finished." });
  }

  function keep(item, title, wish) {
    const label = `${title}, seed ${item.seed}`;
    const image = element("img", { alt: label });
    show(image, blobOf(item));
    const button = (text, act) => {
      const made = element("button", { type: "button", textContent: text, ariaLabel: `${text}: ${label}` });
      made.addEventListener("click", act);
      return made;
    };
    const settings = button("Settings", () => {
      [name.value, seed.value, preset.value] = [wish.class ?? "", item.seed, wish.preset];
      set(wish);
      name.focus();
    });
    const edit = button("Edit", () => {
      open(item.tokens);
      byId("tokens-section").scrollIntoView();
    });
    const second = button("Use as B", () => {
      openOther(item.tokens, label);
      byId("mix-section").scrollIntoView();
    });
    const quiet = element("span", { className: "quiet", textContent: `seed ${item.seed}` });
    const caption = element("p", {}, element("strong", { textContent: title }), quiet);
    const buttons = element("div", { className: "buttons" }, settings, edit, second);
    byId("gallery").prepend(element("li", {}, image, caption, buttons));
    byId("gallery-title").hidden = false;
  }

  function anotherSeed() {
    seed.value = Math.floor(Math.random() * 2 ** 31);
  }

  preset.append(...Object.keys(model.generator.presets).map((value) => element("option", { value, textContent: value })));
  preset.value = FIRST_PRESET;
  set(model.generator.presets[preset.value]);
  preset.addEventListener("change", () => set(model.generator.presets[preset.value]));
  for (const id of Object.values(SLIDERS)) byId(id).addEventListener("input", ({ target }) => tell(target));
  byId("gen-seed-random").addEventListener("click", anotherSeed);
  byId("gen-another").addEventListener("click", () => {
    anotherSeed();
    generate();
  });
  byId("gen-stop").addEventListener("click", () => running?.abort());
  byId("generate-form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  tokens(Array(model.num_tokens).fill(null));
  await reporting(byId("generate-problem"), async () => {
    const { data } = await (await call(`v1/models/${model.id}/classes`)).json();
    byId("gen-classes").append(...data.map(option));
    name.value = byId("gen-classes").firstElementChild.value;
  });
}

/** A class to choose; one that shares its name with another goes by its id. */
function option(entry, _, all) {
  const shared = all.some((other) => other.id !== entry.id && other.name === entry.name);
  return shared ? element("option", { value: entry.id, label: entry.name }) : element("option", { value: entry.name });
}

function tell(slider) {
  slider.parentElement.querySelector("output").value = slider.value;
}

function picture(blob) {
  byId("gen-empty").hidden = true;
  show(byId("gen-picture"), blob);
}

function tokens(ids) {
  byId("gen-tokens").replaceChildren(...ids.map(cell));
}

function progress(done, of, text) {
  byId("gen-progress").max = of;
  byId("gen-progress").value = done;
  byId("gen-state").textContent = text;
}
