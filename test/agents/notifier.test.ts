/**
 * Locks, subscriptions and deaths with real threads. Nothing here asserts a time: a lost wake-up, a wait for the dead,
 * or an answer that never comes is a hang, and a hang fails.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test } from "vitest";
import { bifolio } from "../lib/testBuild.ts";

type Agent = InstanceType<typeof bifolio.Agent>;
type Notifiers = InstanceType<typeof bifolio.Notifiers>;

const PAGE = 4096;
const MAX_AGENTS = 8;
const ON_LINUX = bifolio.host().tid !== 0;
const TEST_BUILD = fileURLToPath(new URL("../../.test-build/testing.js", import.meta.url));
const WORKER = new URL("./workers/notifier.mjs", import.meta.url);

/** Words of the arena that the roles of workers/notifier.mjs use. */
interface Places {
  readonly sem: number;
  readonly mutex: number;
  readonly spin: number;
  readonly srcu: number;
  readonly pair: number;
  readonly counter: number;
  readonly stop: number;
  readonly never: number;
  readonly pages: number;
  readonly revoked: number;
}

interface Rig {
  readonly buffer: SharedArrayBuffer;
  readonly words: Int32Array;
  readonly agent: Agent;
  readonly notifiers: Notifiers;
  readonly at: Places;
  readonly subs: number;
  readonly errors: string[];
}

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

function makeRig(): Rig {
  const { memories } = bifolio.createArena({
    budgetBytes: 32 * PAGE,
    pageSize: PAGE,
    arenaBytes: 2 ** 21,
    faultAroundBytes: PAGE,
    folioBytes: 65536,
    readAheadBytes: 65536,
    maxAgents: MAX_AGENTS,
    debug: true,
  });
  const buffer = memories[0]!.buffer as unknown as SharedArrayBuffer;
  const { host } = bifolio;
  const agent = bifolio.attachAgent(buffer, { mayBlock: false, tid: host().tid, thread: host().thread });
  const heap = bifolio.heapOf(agent.words);
  const alloc = (count: number): number => bifolio.allocWords(agent, heap, count);
  const subs = bifolio.createSubscriptions(agent, heap, MAX_AGENTS, 1);
  const notifiers = new bifolio.Notifiers(agent, heap, subs, undefined, 12);
  const at: Places = {
    sem: alloc(bifolio.rwSemWords(MAX_AGENTS)),
    mutex: alloc(bifolio.MUTEX_WORDS),
    spin: alloc(1),
    srcu: alloc(bifolio.srcuWords(MAX_AGENTS)),
    pair: alloc(2),
    counter: alloc(2),
    stop: alloc(1),
    never: alloc(1),
    pages: alloc(64),
    revoked: alloc(64),
  };
  agent.words.fill(-1, at.revoked, at.revoked + 64);
  agent.reapers.push(
    (slot, owner) => notifiers.reap(slot, owner),
    (slot, owner) => (bifolio.reapRwSem(agent, at.sem, slot, owner) ? "the semaphore" : undefined),
    (slot) => {
      bifolio.reapSrcu(agent, at.srcu, slot);
      return undefined;
    },
  );
  const errors: string[] = [];
  agent.onError = (error) => errors.push(error.message);
  cleanups.push(async () => agent.detach());
  return { buffer, words: agent.words, agent, notifiers, at, subs, errors };
}

interface Other {
  readonly worker: Worker;
  /** Resolves when the worker has posted this word; rejects if it fails. */
  said(word: string): Promise<void>;
  /** What its role returned. */
  readonly result: Promise<Record<string, number> & { outcome?: string }>;
  terminate(): Promise<void>;
}

function start(rig: Rig, role: string, args: Record<string, unknown> = {}): Other {
  const worker = new Worker(WORKER, {
    workerData: { buffer: rig.buffer, subs: rig.subs, at: rig.at, role, args },
  });
  const words = new Set<string>();
  const listeners: (() => void)[] = [];
  let failure: Error | undefined;
  const wake = (): void => listeners.forEach((listener) => listener());
  const result = new Promise<Record<string, number>>((resolve, reject) => {
    worker.on("message", (message: string | { result: Record<string, number> }) => {
      if (typeof message === "string") words.add(message);
      else resolve(message.result);
      wake();
    });
    worker.on("error", (error) => {
      failure = error as Error;
      reject(failure);
      wake();
    });
  });
  result.catch(() => {});
  cleanups.push(() => worker.terminate());
  return {
    worker,
    result,
    said: (word) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if (failure) reject(failure);
          else if (words.has(word)) resolve();
        };
        listeners.push(look);
        look();
      }),
    terminate: async () => {
      await worker.terminate();
    },
  };
}

const codeOf = (error: unknown): string =>
  bifolio.isMmError(error) ? error.code : `foreign: ${(error as Error).message}`;

const range = (from: number, to: number): { start: number; end: number; event: 0 } => ({
  start: from,
  end: to,
  event: bifolio.MmuNotifierEvent.Unmap,
});

const obedient = (log: () => void = () => {}): Parameters<Notifiers["insert"]>[0] => ({
  invalidate(interval, _range, curSeq) {
    interval.setSeq(curSeq);
    log();
    return true;
  },
});

// ---- locks -------------------------------------------------------------------------------------------------

describe("locks under real contention", () => {
  test.each([
    ["two that block", ["lockBlocking", "lockBlocking"]],
    ["one that blocks, one in its event loop, one doing both", ["lockBlocking", "lockAsync", "lockMixed"]],
    ["more agents than cores", ["lockBlocking", "lockBlocking", "lockBlocking", "lockMixed", "lockAsync"]],
  ])("%s: nobody is lost, nothing is torn, every update counts", async (_name, roles) => {
    const rig = makeRig();
    const rounds = 3000;
    const others = roles.map((role, seed) => start(rig, role, { rounds, seed: seed + 1 }));
    const results = (await Promise.all(others.map((o) => o.result))) as never as {
      torn: number;
      counts: { write: number; mutex: number; spin: number };
    }[];
    const sum = (of: (r: (typeof results)[0]) => number): number => results.map(of).reduce((a, b) => a + b);
    expect(sum((r) => r.torn)).toBe(0);
    expect([...rig.words.subarray(rig.at.pair, rig.at.pair + 2)]).toEqual([
      sum((r) => r.counts.write),
      sum((r) => r.counts.write),
    ]);
    expect([...rig.words.subarray(rig.at.counter, rig.at.counter + 2)]).toEqual([
      sum((r) => r.counts.mutex),
      sum((r) => r.counts.spin),
    ]);
    expect([rig.at.sem, rig.at.mutex, rig.at.spin].map((word) => rig.words[word])).toEqual([0, 0, 0]);
  });
});

// ---- answering ---------------------------------------------------------------------------------------------

describe("subscribers answer the invalidations of other agents", () => {
  test.each([["subscribeBlocked"], ["subscribePolling"], ["subscribeIdle"]])("%s", async (role) => {
    const rig = makeRig();
    const rounds = 300;
    const subscriber = start(rig, role);
    await subscriber.said("subscribed");
    const held =
      role === "subscribeBlocked" ? await rig.notifiers.invalidateRangeStart(range(1000, 1001)) : undefined;
    await subscriber.said("blocked");
    const blocking = start(rig, "invalidate", { rounds });
    for (let k = 0; k < rounds; k++) await rig.notifiers.invalidate(range(k % 10, 10), () => {});
    expect((await blocking.result)["rounds"]).toBe(rounds);
    if (held) rig.notifiers.invalidateRangeEnd(held);
    else if (role === "subscribeIdle") await rig.notifiers.invalidate(range(2000, 2001), () => {});
    Atomics.store(rig.words, rig.at.stop, 1);
    expect((await subscriber.result)["told"]).toBe(2 * rounds);
    expect(rig.errors).toEqual([]);
  });

  test("all of them at once, invalidated from two sides, while others subscribe and leave", async () => {
    const rig = makeRig();
    const rounds = 200;
    const subscribers = ["subscribePolling", "subscribeIdle"].map((role) => start(rig, role));
    for (const s of subscribers) await s.said("blocked");
    const busy = [start(rig, "invalidate", { rounds }), start(rig, "churn", { rounds: 100, seed: 5 })];
    let own = 0;
    await rig.notifiers.insert(
      obedient(() => own++),
      0,
      10,
    );
    for (let k = 0; k < rounds; k++) await rig.notifiers.invalidate(range(0, 5), () => {});
    await Promise.all(busy.map((b) => b.result));
    await rig.notifiers.invalidate(range(2000, 2001), () => {});
    Atomics.store(rig.words, rig.at.stop, 1);
    const told = await Promise.all(subscribers.map(async (s) => (await s.result)["told"]));
    expect(told).toEqual([2 * rounds, 2 * rounds]);
    expect(own).toBeGreaterThanOrEqual(rounds);
    expect(bifolio.checkSubscriptions(rig.notifiers.context)).toBeUndefined();
  });
});

// ---- mirrors -----------------------------------------------------------------------------------------------

describe("a mirrored page table of words", () => {
  async function mirrors(bug?: string): Promise<Record<string, number>> {
    const rig = makeRig();
    const args = { pages: 16, bug };
    const agents = [
      start(rig, "mirrorPolling", { ...args, seed: 11 }),
      start(rig, "mirrorPolling", { ...args, seed: 12 }),
      start(rig, "mirrorAsync", { ...args, seed: 13 }),
    ];
    for (const agent of agents) await agent.said("ready");
    const changing = [21, 22].map((seed) => start(rig, "changePages", { pages: 16, rounds: 800, seed }));
    await Promise.all(changing.map((c) => c.result));
    Atomics.store(rig.words, rig.at.stop, 1);
    const found = await Promise.all(agents.map((a) => a.result));
    for (const f of found) expect(f["invalidations"]).toBeGreaterThan(0);
    const total: Record<string, number> = {};
    for (const f of found)
      for (const [key, n] of Object.entries(f)) total[key] = (total[key] ?? 0) + Number(n);
    return total;
  }

  // Now and then nothing comes between a look and its install in a whole run.

  test("is never stale", async () => {
    let retries = 0;
    for (let run = 0; run < 10 && retries === 0; run++) {
      const total = await mirrors();
      expect(total["stale"]).toBe(0);
      expect(total["hits"]).toBeGreaterThan(100);
      retries = total["retries"]!;
    }
    expect(retries).toBeGreaterThan(0);
  }, 60_000);

  test("is caught stale where readRetry is left out", async () => {
    let stale = 0;
    for (let run = 0; run < 10 && stale === 0; run++) stale += (await mirrors("no readRetry"))["stale"]!;
    expect(stale).toBeGreaterThan(0);
  }, 60_000);
});

// ---- death -------------------------------------------------------------------------------------------------

describe.runIf(ON_LINUX)("the death of a thread is noticed by whoever waits for it", () => {
  test("a subscriber: invalidators go on, waiting or blocking", async () => {
    const rig = makeRig();
    const dead = start(rig, "staySubscribed");
    await dead.said("holds");
    expect(await rig.notifiers.invalidate(range(0, 10), () => "heard")).toBe("heard");
    await dead.terminate();
    expect(await rig.notifiers.invalidate(range(0, 10), () => "changed")).toBe("changed");
    expect(rig.errors).toEqual([expect.stringMatching(/agent 1 died; what it held has been given back/)]);
    expect(rig.notifiers.overlapping(0, 10)).toEqual([]);
    expect(rig.notifiers.try.invalidate(range(0, 10), () => "alone")).toBe("alone");
    expect(bifolio.checkSubscriptions(rig.notifiers.context)).toBeUndefined();
  });

  test.each(["the event loop", "a blocking agent"])(
    "a subscriber that owes an answer, to %s: the invalidation ends",
    async (whom) => {
      const rig = makeRig();
      const dead = start(rig, "neverAnswer");
      await dead.said("holds");
      const blocked = whom === "a blocking agent" ? start(rig, "invalidate", { rounds: 1 }) : undefined;
      const waiting = blocked ? blocked.result : rig.notifiers.invalidate(range(0, 1), () => "changed");
      await dead.said("asked");
      await dead.terminate();
      await waiting;
      expect(rig.notifiers.overlapping(0, 10)).toEqual([]);
      expect(await rig.notifiers.invalidate(range(0, 10), () => "changed")).toBe("changed");
    },
  );

  test.each(["the event loop", "a blocking agent"])(
    "an invalidator with a range open: the reader in %s goes on",
    async (where) => {
      const rig = makeRig();
      const interval = await rig.notifiers.insert(obedient(), 0, 10);
      const dead = start(rig, "holdRange");
      await dead.said("holds");
      expect(interval.tryReadBegin()).toBeUndefined();
      if (where === "a blocking agent") {
        const reader = start(rig, "wait", { lock: "range", interval: interval.id });
        await reader.said("ready");
        await dead.terminate();
        expect((await reader.result).outcome).toBe("went on");
      } else {
        const reading = interval.readBegin();
        await dead.terminate();
        expect(await reading).toBe(3);
      }
      expect(interval.tryReadBegin()).toBe(3);
    },
  );

  test("a reader of a semaphore, and one in a grace period: what it held is given back", async () => {
    for (const lock of ["read", "srcu"]) {
      const rig = makeRig();
      const dead = start(rig, lock === "read" ? "holdRead" : "holdSrcu");
      await dead.said("holds");
      const op = (): Parameters<typeof bifolio.runAsync>[1] =>
        lock === "read"
          ? bifolio.lockWriteOp(rig.agent, rig.at.sem, bifolio.LockRank.mmapLock, "the semaphore")
          : bifolio.synchronizeSrcuOp(rig.agent, rig.at.srcu);
      const waiting = bifolio.runAsync(rig.agent, op());
      await dead.terminate();
      await waiting;
      expect(rig.agent.poisonedBy).toBe(0);
    }
  });

  test.each([
    ["a mutex", "holdMutex", "mutex"],
    ["a semaphore for writing", "holdWrite", "write"],
    ["a spinlock", "holdSpin", "spin"],
  ])(
    "the holder of %s: EOWNERDEAD for whoever waits and whoever comes, never a hang",
    async (_name, role, lock) => {
      const rig = makeRig();
      const dead = start(rig, role);
      await dead.said("holds");
      const waiters = [start(rig, "wait", { lock }), start(rig, "wait", { lock })];
      for (const waiter of waiters) await waiter.said("ready");
      await dead.terminate();
      for (const waiter of waiters) expect((await waiter.result).outcome).toBe("EOWNERDEAD");
      await expect(rig.notifiers.insert(obedient(), 0, 10)).rejects.toThrow(/EOWNERDEAD/);
      expect((await start(rig, "wait", { lock }).result).outcome).toBe("EOWNERDEAD");
    },
  );

  const ROUNDS = 8;

  test("killed at any moment in the middle of everything: the others end, with a result or with EOWNERDEAD", async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const rig = makeRig();
      const victims = [
        start(rig, "churn", { rounds: 1e9, seed: round }),
        start(rig, "invalidate", { rounds: 1e9 }),
      ];
      const survivor = start(rig, "churn", { rounds: 300, seed: 100 + round });
      const interval = await rig.notifiers.insert(obedient(), 0, 10);
      for (const v of victims) await v.said("attached");
      for (let k = 0; k < 10 * (round + 1); k++) await rig.notifiers.invalidate(range(0, 20), () => {});
      await Promise.all(victims.map((v) => v.terminate()));
      const outcomes = [
        await survivor.result.then(() => "done", codeOf),
        await interval.readBegin().then(() => "done", codeOf),
        await rig.notifiers.invalidate(range(0, 20), () => "done").catch(codeOf),
      ];
      expect(outcomes.filter((outcome) => outcome !== "done" && outcome !== "EOWNERDEAD")).toEqual([]);
      if (outcomes[2] === "done") {
        expect(rig.notifiers.overlapping(0, 100)).toEqual([interval.id]);
        expect(bifolio.checkSubscriptions(rig.notifiers.context)).toBeUndefined();
      }
    }
  });
});

// ---- staying alive -----------------------------------------------------------------------------------------

describe("processes stay as long as they must, and no longer", () => {
  /** Runs a module; what it printed, and its exit code. */
  async function script(source: string): Promise<{ out: string; code: number }> {
    const child = spawn(process.execPath, ["--input-type=module", "-e", source], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    cleanups.push(async () => child.kill("SIGKILL"));
    let out = "";
    child.stdout.on("data", (data: Buffer) => (out += data.toString()));
    child.stderr.on("data", (data: Buffer) => (out += data.toString()));
    const [code] = (await once(child, "close")) as [number];
    return { out: out.trim(), code };
  }

  const PROLOGUE = `
    import { Worker } from "node:worker_threads";
    import * as b from ${JSON.stringify(TEST_BUILD)};
    const unmap = (start, end) => ({ start, end, event: b.MmuNotifierEvent.Unmap });
    const ops = { invalidate: (i, r, seq) => (i.setSeq(seq), true) };
    const later = (fn) => setTimeout(fn, 300).unref();
    function arena() {
      const { memories } = b.createArena({ budgetBytes: 32 * 4096, pageSize: 4096, arenaBytes: 2 ** 20,
        faultAroundBytes: 4096, folioBytes: 65536, readAheadBytes: 65536, maxAgents: 4, debug: true });
      return memories[0].buffer;
    }
    function join(buffer, subs) {
      const agent = b.attachAgent(buffer, { mayBlock: false, tid: b.host().tid, thread: b.host().thread });
      const heap = b.heapOf(agent.words);
      subs ??= b.createSubscriptions(agent, heap, 4, 1);
      return { agent, subs, notifiers: new b.Notifiers(agent, heap, subs, undefined, 12) };
    }
  `;

  test("a script with a pending operation waits for it: alone in its memory", async () => {
    const { out, code } = await script(`${PROLOGUE}
      const n = b.createNotifiers();
      const i = await n.insert(ops, 0, 10);
      const open = await n.invalidateRangeStart(unmap(0, 10));
      later(() => n.invalidateRangeEnd(open));
      console.log(await i.readBegin());
    `);
    expect([out, code]).toEqual(["3", 0]);
  });

  test("a script with a pending operation waits for it: in shared memory", async () => {
    const { out, code } = await script(`${PROLOGUE}
      const { notifiers: n } = join(arena());
      const i = (await n.insert(ops, 0, 10)).unref();
      const open = await n.invalidateRangeStart(unmap(0, 10));
      later(() => n.invalidateRangeEnd(open));
      console.log(await i.readBegin());
    `);
    expect([out, code]).toEqual(["3", 0]);
  });

  test("a script whose callback waits for a promise waits for it", async () => {
    const { out, code } = await script(`${PROLOGUE}
      const n = b.createNotifiers();
      console.log(await n.invalidate(unmap(0, 10), () => new Promise((resolve) => later(() => resolve("changed")))));
    `);
    expect([out, code]).toEqual(["changed", 0]);
  });

  test.each([
    ["an interval", "const s = await n.insert(ops, 0, 10);", "s.unref()"],
    ["an interval", "const s = await n.insert(ops, 0, 10);", "s.remove()"],
    ["a list notifier", "const s = new b.MmuNotifier({}); await n.register(s);", "s.unref()"],
    ["a list notifier", "const s = new b.MmuNotifier({}); await n.register(s);", "n.unregister(s)"],
  ])("%s in shared memory keeps a process (%s) until %s", async (_what, subscribe, letGo) => {
    const { out, code } = await script(`${PROLOGUE}
      const { notifiers: n } = join(arena());
      ${subscribe}
      later(() => { console.log("still here"); ${letGo}; });
    `);
    expect([out, code]).toEqual(["still here", 0]);
  });

  test.each(["s.unref().unref();", "s.unref(); await s.remove();", "await s.remove(); s.unref();"])(
    "an interval that lets go once more than it can lets nobody else go: %s",
    async (letGo) => {
      const { out, code } = await script(`${PROLOGUE}
        const { notifiers: n } = join(arena());
        const keeps = await n.insert(ops, 20, 10);
        const s = await n.insert(ops, 0, 10);
        ${letGo}
        later(() => { console.log("still here"); keeps.remove(); });
      `);
      expect([out, code]).toEqual(["still here", 0]);
    },
  );

  test("one that was unreferenced before it was registered does not keep the process", async () => {
    const { out, code } = await script(`${PROLOGUE}
      const { notifiers: n } = join(arena());
      await n.register(new b.MmuNotifier({}).unref());
      later(() => console.log("still here"));
    `);
    expect([out, code]).toEqual(["", 0]);
  });

  test("a subscription in a memory of one agent keeps no process: nobody else could call it", async () => {
    const { out, code } = await script(`${PROLOGUE}
      await b.createNotifiers().insert(ops, 0, 10);
      later(() => console.log("still here"));
    `);
    expect([out, code]).toEqual(["", 0]);
  });

  test.each(["remove", "unref"])(
    "an idle worker with only a subscription stays and answers, until %s",
    async (how) => {
      const { out, code } = await script(`${PROLOGUE}
      const { agent, subs, notifiers: n } = join(arena());
      const worker = new Worker(new URL(${JSON.stringify(WORKER.href)}),
        { execArgv: [], workerData: { buffer: agent.words.buffer, subs, at: {}, role: "stay", args: { how: "${how}" } } });
      let exited = false;
      const exit = new Promise((resolve) => worker.on("exit", (code) => resolve((exited = true, code))));
      await new Promise((resolve) => worker.on("message", (m) => m.result !== undefined && resolve()));
      for (let k = 0; k < 3; k++) {
        await new Promise((resolve) => setTimeout(resolve, 200));
        console.log(exited ? "gone" : "there", await n.invalidate(unmap(0, 10), () => "answered"));
      }
      console.log("exit", await exit);
      `);
      expect(out.split("\n")).toEqual(["there answered", "there answered", "there answered", "exit 0"]);
      expect(code).toBe(0);
    },
  );
});
