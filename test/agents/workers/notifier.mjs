// The other agents of notifier.test.ts: each attaches to the arena and plays one role.
import { parentPort, workerData } from "node:worker_threads";
import {
  attachAgent,
  heapOf,
  host,
  isMmError,
  LockRank,
  lockMutexOp,
  lockReadOp,
  lockSpin,
  lockWriteOp,
  MmuNotifier,
  MmuNotifierEvent,
  Notifiers,
  reapRwSem,
  runAsync,
  runBlocking,
  srcuReadLock,
  synchronizeSrcuOp,
  unlockMutex,
  unlockRead,
  unlockSpin,
  unlockWrite,
} from "../../../.test-build/testing.js";

const { buffer, subs, role, at, args } = workerData;
const agent = attachAgent(buffer, { mayBlock: true, tid: host().tid, thread: host().thread });
const w = agent.words;
const notifiers = new Notifiers(agent, heapOf(w), subs, undefined, 12);
agent.reapers.push(
  (slot, owner) => notifiers.reap(slot, owner),
  (slot, owner) => (reapRwSem(agent, at.sem, slot, owner) ? "the semaphore" : undefined),
);
const errors = [];
agent.onError = (error) => errors.push(error.message);

const { mmapLock } = LockRank;
const post = (message) => parentPort.postMessage(message);
const stopped = () => Atomics.load(w, at.stop) !== 0;
const rangeOf = (start, end) => ({ start, end, event: MmuNotifierEvent.Unmap });
const obedient = (log = () => {}) => ({
  invalidate(interval, range, curSeq) {
    interval.setSeq(curSeq);
    log(interval, range);
    return true;
  },
});

/** A little generator, so that a worker's choices follow from its seed. */
let state = args.seed ?? 1;
const random = (n) => {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return (state >>> 8) % n;
};

// ---- locks -------------------------------------------------------------------------------------------------

/** Plain words that only the lock protects. */
let torn = 0;
function* underWrite() {
  yield* lockWriteOp(agent, at.sem, mmapLock, "the semaphore");
  w[at.pair] += 1;
  for (let k = random(50); k > 0; k--) Atomics.load(w, at.pair);
  w[at.pair + 1] += 1;
  unlockWrite(agent, at.sem, mmapLock);
}
function* underRead() {
  yield* lockReadOp(agent, at.sem, mmapLock, "the semaphore");
  const first = w[at.pair];
  for (let k = random(50); k > 0; k--) Atomics.load(w, at.pair);
  if (first !== w[at.pair + 1] || first !== w[at.pair]) torn++;
  unlockRead(agent, at.sem, mmapLock);
}
function* underMutex() {
  yield* lockMutexOp(agent, at.mutex, "the mutex");
  w[at.counter] += 1;
  unlockMutex(agent, at.mutex);
}
function underSpin() {
  lockSpin(agent, at.spin);
  w[at.counter + 1] += 1;
  unlockSpin(agent, at.spin);
}
const counts = { write: 0, mutex: 0, spin: 0 };
function counted() {
  const n = random(10);
  if (n < 3) return (counts.write++, underWrite());
  if (n < 7) return underRead();
  return (counts.mutex++, underMutex());
}

// ---- a mirror of a page table of words -------------------------------------------------------------------------

/** Versions: pages[p] is mapped now; what is not above revoked[p] may not be used any more. */
function changePages(start, end) {
  for (let page = start; page < end; page++) {
    const old = Atomics.add(w, at.pages + page, 1);
    for (let seen = Atomics.load(w, at.revoked + page); seen < old;) {
      seen = Atomics.compareExchange(w, at.revoked + page, seen, old);
    }
  }
}

function mirror() {
  const entries = new Map();
  const found = { hits: 0, fills: 0, retries: 0, stale: 0, invalidations: 0 };
  const interval = notifiers.sync.insert(
    obedient((_, range) => {
      found.invalidations++;
      for (let page = range.start; page < range.end; page++) entries.delete(page);
    }),
    0,
    args.pages,
  );
  const use = (page) => {
    const version = entries.get(page);
    if (version === undefined) return false;
    found.hits++;
    if (version <= Atomics.load(w, at.revoked + page)) found.stale++;
    return true;
  };
  const install = (page, seq, version) => {
    if (args.bug !== "no readRetry" && interval.readRetry(seq)) return false;
    entries.set(page, version);
    found.fills++;
    return true;
  };
  return { found, interval, use, install };
}

const roles = {
  /** Blocking operations only, with spinlocks between. */
  lockBlocking() {
    for (let k = 0; k < args.rounds; k++) {
      runBlocking(agent, counted());
      if (random(4) === 0) {
        counts.spin++;
        underSpin();
      }
    }
    return { torn, counts };
  },

  /** Several tasks at once in the event loop. */
  async lockAsync() {
    const task = async () => {
      for (let k = 0; k < args.rounds; k++) await runAsync(agent, counted());
    };
    await Promise.all([task(), task(), task()]);
    return { torn, counts };
  },

  /** Tasks in flight while the agent blocks in other operations. */
  async lockMixed() {
    for (let k = 0; k < args.rounds; k++) {
      const pending = [runAsync(agent, counted()), runAsync(agent, counted())];
      runBlocking(agent, counted());
      await Promise.all(pending);
    }
    return { torn, counts };
  },

  /** Takes a lock and keeps it until the thread is terminated. */
  holdMutex() {
    runBlocking(agent, lockMutexOp(agent, at.mutex, "the mutex"));
    post("holds");
    Atomics.wait(w, at.never, 0);
  },
  holdWrite() {
    runBlocking(agent, lockWriteOp(agent, at.sem, mmapLock, "the semaphore"));
    post("holds");
    Atomics.wait(w, at.never, 0);
  },
  holdRead() {
    runBlocking(agent, lockReadOp(agent, at.sem, mmapLock, "the semaphore"));
    post("holds");
    Atomics.wait(w, at.never, 0);
  },
  holdSpin() {
    lockSpin(agent, at.spin);
    post("holds");
    Atomics.wait(w, at.never, 0);
  },
  holdSrcu() {
    srcuReadLock(agent, at.srcu);
    post("holds");
    Atomics.wait(w, at.never, 0);
  },
  holdRange() {
    notifiers.sync.invalidateRangeStart(rangeOf(0, 10));
    post("holds");
    Atomics.wait(w, at.never, 0);
  },

  /** Waits for what somebody holds, blocking; says how it ended. */
  wait() {
    const interval = args.lock === "range" ? notifiers.interval(args.interval) : undefined;
    post("ready");
    try {
      if (args.lock === "mutex") runBlocking(agent, lockMutexOp(agent, at.mutex, "the mutex"));
      else if (args.lock === "write")
        runBlocking(agent, lockReadOp(agent, at.sem, mmapLock, "the semaphore"));
      else if (args.lock === "read")
        runBlocking(agent, lockWriteOp(agent, at.sem, mmapLock, "the semaphore"));
      else if (args.lock === "spin") lockSpin(agent, at.spin);
      else if (args.lock === "srcu") runBlocking(agent, synchronizeSrcuOp(agent, at.srcu));
      else interval.sync.readBegin();
      return { outcome: "went on", errors };
    } catch (error) {
      return { outcome: isMmError(error) ? error.code : String(error), errors };
    }
  },

  /** A subscriber that blocks in an operation: a fill of a range that somebody else keeps open. */
  subscribeBlocked() {
    let told = 0;
    notifiers.sync.insert(
      obedient(() => told++),
      0,
      10,
    );
    const other = notifiers.sync.insert(
      obedient(() => Atomics.notify(w, at.never)),
      1000,
      10,
    );
    post("subscribed");
    while (other.tryReadBegin() !== undefined) agent.poll();
    post("blocked");
    const seq = other.sync.readBegin();
    return { told, seq };
  },

  /** One that computes and polls. */
  subscribePolling() {
    let told = 0;
    notifiers.sync.insert(
      obedient(() => told++),
      0,
      10,
    );
    post("subscribed");
    post("blocked");
    for (let k = 0; !stopped(); k++) {
      agent.enter();
      if (k % 50 === 0) agent.poll();
    }
    return { told };
  },

  /** One that is idle in its event loop until it is told to stop. */
  async subscribeIdle() {
    let told = 0;
    let stop;
    const done = new Promise((resolve) => (stop = resolve));
    await notifiers.insert(
      obedient(() => told++),
      0,
      10,
    );
    await notifiers.insert(
      obedient(() => queueMicrotask(stop)),
      2000,
      10,
    );
    post("subscribed");
    post("blocked");
    await done;
    return { told };
  },

  /** Invalidates, blocking. */
  invalidate() {
    for (let k = 0; k < args.rounds; k++) notifiers.sync.invalidate(rangeOf(k % 10, (k % 10) + 1), () => {});
    return { rounds: args.rounds };
  },

  /** Stays subscribed, idle, until the thread is terminated. */
  async staySubscribed() {
    await notifiers.insert(obedient(), 0, 10);
    await notifiers.register(new MmuNotifier({ invalidateRangeStart() {}, invalidateRangeEnd() {} }));
    post("holds");
    await new Promise(() => {});
  },

  /** Has nothing but a subscription, until the third invalidation. */
  async stay() {
    let told = 0;
    const interval = await notifiers.insert(
      obedient(() => {
        if (++told === 3) queueMicrotask(() => void interval[args.how]());
      }),
      0,
      10,
    );
  },

  /** Never comes out of its callback. */
  async neverAnswer() {
    await notifiers.insert(
      {
        invalidate() {
          post("asked");
          Atomics.wait(w, at.never, 0);
          return true;
        },
      },
      0,
      10,
    );
    post("holds");
    await new Promise(() => {});
  },

  /** A busy mirror that polls. */
  mirrorPolling() {
    const { found, interval, use, install } = mirror();
    post("ready");
    while (!stopped()) {
      const page = random(args.pages);
      if (!use(page)) {
        for (let tries = 0; tries < 100; tries++) {
          const seq = interval.sync.readBegin();
          const version = Atomics.load(w, at.pages + page);
          if (random(2) === 0) agent.poll(); // a safepoint between the read and the check
          if (install(page, seq, version)) break;
          found.retries++;
        }
      }
      if (random(16) === 0) agent.poll();
      if (random(64) === 0) {
        const start = random(args.pages);
        notifiers.sync.invalidate(rangeOf(start, start + 1), () => changePages(start, start + 1));
      }
    }
    return found;
  },

  /** A mirror whose fills are promises. */
  async mirrorAsync() {
    const { found, interval, use, install } = mirror();
    post("ready");
    while (!stopped()) {
      const page = random(args.pages);
      if (!use(page)) {
        for (let tries = 0; tries < 100; tries++) {
          const seq = await interval.readBegin();
          const version = Atomics.load(w, at.pages + page);
          if (random(2) === 0) await new Promise((resolve) => setImmediate(resolve));
          if (install(page, seq, version)) break;
          found.retries++;
        }
      }
      await Promise.resolve();
      if (random(8) === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    return found;
  },

  /** Changes the table. */
  changePages() {
    for (let k = 0; k < args.rounds; k++) {
      const start = random(args.pages);
      const end = Math.min(args.pages, start + 1 + random(4));
      notifiers.sync.invalidate(rangeOf(start, end), () => changePages(start, end));
    }
    return { rounds: args.rounds };
  },

  /** Comes and goes: subscribes, listens, leaves, all the time. */
  churn() {
    let told = 0;
    for (let k = 0; k < args.rounds; k++) {
      const interval = notifiers.sync.insert(
        obedient(() => told++),
        random(10),
        1 + random(10),
      );
      const list = new MmuNotifier({ invalidateRangeStart: () => void told++, invalidateRangeEnd() {} });
      if (k % 4 === 0) notifiers.sync.register(list);
      interval.readRetry(interval.sync.readBegin());
      interval.sync.remove();
      if (k % 4 === 0) notifiers.sync.unregister(list);
    }
    return { told };
  },
};

post("attached");
const result = (await roles[role]()) ?? {};
post({ result, errors });
