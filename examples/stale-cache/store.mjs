/** A slow store, on a clock of its own: no real time passes, and every run has the same interleaving. */

/** Time that passes in run() only: one event, then everything that follows from it, then the next event. */
export function createClock() {
  const events = [];
  const clock = {
    now: 0,
    /** Resolves `ms` from now; what is due at the same time comes in the order of the calls. */
    wait(ms) {
      return new Promise((resolve) => events.push({ at: clock.now + ms, resolve }));
    },
    /** Until nobody waits any more. */
    async run() {
      // Every promise job, however many follow from one another, runs before the next immediate.
      const settled = () => new Promise((resolve) => setImmediate(resolve));
      for (await settled(); events.length > 0; await settled()) {
        const at = Math.min(...events.map((event) => event.at));
        const [next] = events.splice(
          events.findIndex((event) => event.at === at),
          1,
        );
        clock.now = at;
        next.resolve();
      }
    },
  };
  return clock;
}

/**
 * `size` keys, 0 and up, each with the value `initial`. A request is under way for `latency().there` until the store
 * does it, and its reply for `latency().back`.
 */
export function createStore({ size, initial, clock, latency, say = () => {} }) {
  const values = Array.from({ length: size }, () => initial);
  return {
    size,
    async get(key) {
      const { there, back } = latency("get");
      await clock.wait(there);
      const value = values[key];
      say(`reads ${key}: ${value}`);
      await clock.wait(back);
      say(`its reply ${value} arrives`);
      return value;
    },
    async set(key, value) {
      const { there, back } = latency("set");
      await clock.wait(there);
      values[key] = value;
      say(`writes ${key}: ${value}`);
      await clock.wait(back);
    },
    /** What get() would read now. */
    peek: (key) => values[key],
  };
}
