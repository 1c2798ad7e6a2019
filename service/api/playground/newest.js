/**
 * Paces `work`: one call at a time, always with the newest arguments. Calls overtaken while they waited are never made,
 * so that a picture follows a slider as fast as the service answers, and never goes back to an older answer.
 */
export function newest(work) {
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
