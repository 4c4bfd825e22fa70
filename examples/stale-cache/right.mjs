/** The same cache as a secondary MMU of the store: key k is the address k, and a fill learns that it was overtaken. */
import { createNotifiers, MmuNotifierEvent } from "bifolio/notifier";

export function createCache(store) {
  const entries = new Map();
  const notifiers = createNotifiers();
  const callbacks = {
    invalidate(interval, range, curSeq) {
      interval.setSeq(curSeq); // fills under way will be told
      for (const key of entries.keys()) if (key >= range.start && key < range.end) entries.delete(key);
      return true;
    },
  };
  const interval = notifiers.try.insert(callbacks, 0, store.size); // the form without a promise; it never waits

  async function get(key) {
    if (entries.has(key)) return entries.get(key);
    const seq = await interval.readBegin(); // waits while a write is under way
    const value = await store.get(key);
    if (interval.readRetry(seq)) return get(key);
    entries.set(key, value); // no await since readRetry(), so nothing can have come in between
    return value;
  }

  async function set(key, value) {
    const range = { start: key, end: key + 1, event: MmuNotifierEvent.Clear };
    await notifiers.invalidate(range, () => store.set(key, value));
  }

  return { get, set };
}
