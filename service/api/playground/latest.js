/**
 * Wraps `work` so that one call runs at a time, always with the latest arguments. Calls that are superseded while they
 * wait are skipped, so that an image follows a slider as fast as the service responds and never shows an older response.
 */
export function latest(work) {
  let waiting = null;
  let busy = false;
  return async (...given) => {
    waiting = given;
    if (busy) return;
    busy = true;
    try {
      while (waiting) {
        const current = waiting;
        waiting = null;
        await work(...current);
      }
    } finally {
      busy = false;
    }
  };
}
