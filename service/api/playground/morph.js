// An animation from image A to image B and back, played in the page or recorded as a WebM file.

import { byId } from "./page.js";

const FRAMES = 24; // from A to B
const FRAME_MS = 60;

/** `mixed` returns the Blob of the interpolation with a share of B in 0..1. */
export function createMorph({ mixed, report }) {
  const canvas = byId("morph");
  let frames = null; // bitmaps, until an image changes
  let playing = null; // the token of the present playback

  async function load() {
    if (frames) return frames;
    const loaded = [];
    for (let frame = 0; frame <= FRAMES; frame += 1) {
      byId("morph-state").textContent = `Frame ${frame + 1} of ${FRAMES + 1}`;
      loaded.push(await createImageBitmap(await mixed(frame / FRAMES)));
    }
    byId("morph-state").textContent = "";
    return (frames = loaded);
  }

  function stop() {
    playing = null;
    canvas.hidden = true;
    byId("morph-play").textContent = "Play morph";
  }

  /** Draws from A to B and back, once or until it is stopped. */
  async function play({ once }) {
    const current = (playing = Symbol("playback"));
    const images = await load();
    if (playing !== current) return;
    Object.assign(canvas, { width: images[0].width, height: images[0].height, hidden: false });
    const context = canvas.getContext("2d");
    const order = [...images, ...images.slice(1, -1).reverse()];
    do {
      for (const image of order) {
        if (playing !== current) return;
        context.drawImage(image, 0, 0);
        await new Promise((resolve) => setTimeout(resolve, FRAME_MS));
      }
    } while (!once);
  }

  async function record() {
    await load();
    const chunks = [];
    const recorder = new MediaRecorder(canvas.captureStream(), { mimeType: "video/webm" });
    recorder.addEventListener("dataavailable", ({ data }) => chunks.push(data));
    const stopped = new Promise((resolve) => recorder.addEventListener("stop", resolve));
    const played = play({ once: true });
    recorder.start();
    await played;
    recorder.stop();
    await stopped;
    stop();
    const link = byId("morph-file");
    if (link.href) URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(new Blob(chunks, { type: "video/webm" }));
    link.hidden = false;
    link.click();
  }

  byId("morph-save").hidden = !window.MediaRecorder?.isTypeSupported("video/webm");
  byId("morph-play").addEventListener("click", () => {
    if (playing) return stop();
    byId("morph-play").textContent = "Stop";
    return report(() => play({ once: false }));
  });
  byId("morph-save").addEventListener("click", () => report(record));
  return {
    /** Discards the frames: an image has changed. */
    reset() {
      frames = null;
      stop();
    },
  };
}
