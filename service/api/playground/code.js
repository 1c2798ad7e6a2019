// Token ids and codes: `bits` a token, big-endian, zero-padded to whole bytes, in URL-safe base64 without padding.

/** The code of some tokens. */
export function codeOf(tokens, bits) {
  const bytes = [];
  let held = 0;
  let width = 0;
  for (const token of tokens) {
    held = (held << bits) | token;
    for (width += bits; width >= 8; width -= 8) bytes.push((held >> (width - 8)) & 255);
    held &= (1 << width) - 1;
  }
  if (width) bytes.push((held << (8 - width)) & 255);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** The tokens of a code that the service has accepted. */
export function tokensOf(code, bits, count) {
  const bytes = atob(code.replaceAll("-", "+").replaceAll("_", "/"));
  const tokens = [];
  let held = 0;
  let width = 0;
  for (const byte of bytes) {
    held = (held << 8) | byte.charCodeAt(0);
    width += 8;
    while (width >= bits && tokens.length < count) {
      width -= bits;
      tokens.push(held >> width);
      held &= (1 << width) - 1;
    }
  }
  return tokens;
}
