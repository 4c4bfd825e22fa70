/** The ordinary cache: fills on a miss, drops on a write. A fill that a write overtakes puts the old value back. */

export function createCache(store) {
  const entries = new Map();

  async function get(key) {
    if (entries.has(key)) return entries.get(key);
    const value = await store.get(key);
    entries.set(key, value);
    return value;
  }

  async function set(key, value) {
    await store.set(key, value);
    entries.delete(key);
  }

  return { get, set };
}
