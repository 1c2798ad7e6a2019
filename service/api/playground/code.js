// Converts token ids to codes and back: `bits` per token, big-endian, zero-padded to bytes, URL-safe base64 without padding.

/** Packs token ids into a code. */
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

/** Unpacks the token ids of a valid code. */
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
