// "Take away": the code of the image shown, as text, links and snippets; download and share.

import { addCopyButton, byId } from "./page.js";
import { urlOf } from "./service.js";

/** The code in the page's address (`#code=...`), or null. */
export const codeOfAddress = () => location.hash.match(/^#code=([\w-]+)$/)?.[1] ?? null;

/** Puts a code into the page's address, so that the address reopens the image. */
export const keepInAddress = (code) => history.replaceState(null, "", `#code=${code}`);

/** Initializes the buttons. `code` returns the code of the image shown. */
export function createTakeAway({ id, revision }, code) {
  const imageUrl = () => urlOf(`v1/images/${id}@${revision}/${code()}.png`);
  const pageUrl = () => urlOf(`#code=${code()}`);
  const snippets = {
    "code-copy": code,
    "address-copy": imageUrl,
    "link-copy": pageUrl,
    "img-copy": () => `<img src="${imageUrl()}" alt="">`,
    "curl-copy": () => `curl -o image.png ${imageUrl()}`,
    "python-copy": () =>
      `from titok_client import TiTokClient\n\nwith TiTokClient("${urlOf("")}") as titok:\n` +
      `    titok.decode("${code()}").save("image.png")\n`,
  };
  for (const [button, text] of Object.entries(snippets)) addCopyButton(byId(button), text);
  byId("share").hidden = !navigator.share;
  // A share that is cancelled rejects.
  byId("share").addEventListener("click", () => navigator.share({ title: document.title, url: pageUrl() }).catch(() => {}));
  return {
    /** Shows the present code and its URL. */
    update() {
      byId("code").textContent = code();
      byId("address").href = byId("download").href = imageUrl();
      byId("address").textContent = new URL(imageUrl()).pathname;
      byId("download").download = `${code().slice(0, 12)}.png`;
    },
  };
}
