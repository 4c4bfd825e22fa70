/**
 * Plays one interleaving against both caches, side by side, then many: node examples/stale-cache/run.mjs
 *
 * In the repository it needs a build (npm run build makes one).
 */
import { createCache as createRight } from "./right.mjs";
import { createClock, createStore } from "./store.mjs";
import { createCache as createWrong } from "./wrong.mjs";

const KEY = 7;

/** A fetch that has read at the store before a write, and comes back after it. Returns what happened when. */
async function playOne(createCache) {
  const clock = createClock();
  const happened = [];
  const say = (who, what) => happened.push({ at: clock.now, text: `${who.padEnd(6)}  ${what}` });
  let requests = 0;
  // Only the first reply is slow.
  const latency = () => ({ there: 1, back: requests++ === 0 ? 8 : 1 });
  const store = createStore({
    size: 16,
    initial: '"old"',
    clock,
    latency,
    say: (what) => say("store", what),
  });
  const cache = createCache(store);

  async function reader() {
    say("reader", `get(${KEY}): a miss`);
    say("reader", `get(${KEY}) gave ${await cache.get(KEY)}`);
    await clock.wait(20 - clock.now);
    const value = await cache.get(KEY);
    const stale = value !== store.peek(KEY);
    say("reader", `get(${KEY}) gave ${value}${stale ? ", a stale value" : ""}`);
  }
  async function writer() {
    await clock.wait(2);
    say("writer", `set(${KEY}, "new")`);
    await cache.set(KEY, '"new"');
    say("writer", "set() is done");
  }
  await Promise.all([reader(), writer(), clock.run()]);
  return happened;
}

/** One line for what happened in both at the same time, as often as it takes. */
function sideBySide(left, right) {
  const times = [...new Set([...left, ...right].map(({ at }) => at))].sort((a, b) => a - b);
  const width = Math.max(...left.map(({ text }) => text.length));
  const line = (time, l, r) => `${time.padStart(5)}  ${l.padEnd(width)}   ${r}`.trimEnd();
  const lines = [line("", "wrong.mjs", "right.mjs")];
  for (const time of times) {
    const [l, r] = [left, right].map((all) => all.filter(({ at }) => at === time));
    for (let n = 0; n < Math.max(l.length, r.length); n++) {
      lines.push(line(n === 0 ? `${time} ms` : "", l[n]?.text ?? "", r[n]?.text ?? ""));
    }
  }
  return lines.join("\n");
}

const INTERLEAVINGS = 200;
const KEYS = 4;
const READERS = 3;
const WRITERS = 2;
const READS = 20;
const WRITES = 5;

/** Whole numbers from 0 to below n, the same ones for the same seed (mulberry32). */
function randomOf(seed) {
  let state = seed;
  return (n) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % n;
  };
}

/**
 * Readers and writers at random. The values of a key are 0, 1, 2 ... in the order of its writes, so a read is stale if it
 * gives less than what had been written, and acknowledged, before it began.
 */
async function playSeed(createCache, seed) {
  const clock = createClock();
  const delay = randomOf(seed);
  const count = { reads: 0, stale: 0, staleForEver: 0, fetches: 0 };
  const latency = (what) => {
    if (what === "get") count.fetches++;
    return { there: delay(4), back: delay(10) };
  };
  const store = createStore({ size: KEYS, initial: 0, clock, latency });
  const cache = createCache(store);
  const written = Array.from({ length: KEYS }, () => 0);

  async function reader(random) {
    for (let n = 0; n < READS; n++) {
      await clock.wait(random(8));
      const key = random(KEYS);
      const least = written[key];
      count.reads++;
      if ((await cache.get(key)) < least) count.stale++;
    }
  }
  /** Each writer has keys of its own, so that the order of a key's writes is known. */
  async function writer(random, id) {
    for (let n = 0; n < WRITES; n++) {
      await clock.wait(random(40));
      const key = id + WRITERS * random(KEYS / WRITERS);
      const value = written[key] + 1;
      await cache.set(key, value);
      written[key] = value;
    }
  }
  const clients = [];
  for (let n = 0; n < READERS; n++) clients.push(reader(randomOf(seed * 100 + n)));
  for (let n = 0; n < WRITERS; n++) clients.push(writer(randomOf(seed * 100 + 50 + n), n));
  await Promise.all([...clients, clock.run()]);

  async function lastReader() {
    for (let key = 0; key < KEYS; key++) if ((await cache.get(key)) !== store.peek(key)) count.staleForEver++;
  }
  await Promise.all([lastReader(), clock.run()]);
  return count;
}

async function playMany(createCache) {
  const total = { reads: 0, stale: 0, staleForEver: 0, fetches: 0 };
  for (let seed = 1; seed <= INTERLEAVINGS; seed++) {
    const count = await playSeed(createCache, seed);
    for (const what of Object.keys(total)) total[what] += count[what];
  }
  return total;
}

console.log(sideBySide(await playOne(createWrong), await playOne(createRight)));

const totals = { wrong: await playMany(createWrong), right: await playMany(createRight) };
console.log(`\n${INTERLEAVINGS} interleavings of ${READERS} readers and ${WRITERS} writers on ${KEYS} keys:`);
for (const [name, { reads, stale, staleForEver, fetches }] of Object.entries(totals)) {
  console.log(
    `${name}: ${stale} of ${reads} reads gave a stale value, ${staleForEver} of ${INTERLEAVINGS * KEYS} entries ` +
      `are stale for ever (${fetches} fetches)`,
  );
}
if (totals.right.stale + totals.right.staleForEver > 0) process.exitCode = 1;
