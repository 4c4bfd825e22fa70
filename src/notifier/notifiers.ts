/**
 * The notifiers of one space, as users and primary MMUs see them. Linux: include/linux/mmu_notifier.h.
 * Registration lives here; the state machine in subscriptions.ts, the calls in delivery.ts.
 */
import { MmError } from "../errors.ts";
import { allocWords, createLocalArena, heapOf, itFirst, itLast, itNext, itStart } from "../memory/index.ts";
import {
  type Agent,
  attachAgent,
  HDR_MAX_AGENTS,
  type Immediate,
  isPromise,
  loopOf,
  isOp,
  type Op,
  promiseOp,
  runAsync,
  runBlocking,
  syncFacet,
  tryFacet,
} from "../sched/index.ts";
import { lockSpin, synchronizeSrcuOp, unlockSpin } from "../sync/index.ts";
import { ADDRESS_END } from "../units.ts";
import {
  clearFlushYoung,
  clearYoung,
  type DeliveryContext,
  endOpenRange,
  handleMessages,
  type LocalSubscribers,
  makeRange,
  type OpenRange,
  releaseIntervalsOp,
  releaseListOp,
  releaseOneOp,
  tellStartOp,
  testYoung,
} from "./delivery.ts";
import {
  type IntervalId,
  type MmuIntervalNotifierOps,
  MmuNotifierEvent,
  type MmuNotifierOps,
  type MmuNotifierRange,
  type NotifierSpace,
  type RangeRequest,
} from "./events.ts";
import {
  generationOfIntervalId,
  IntervalNotifier,
  intervalIdOf,
  nodeOfIntervalId,
} from "./intervalNotifier.ts";
import {
  IV_GENERATION,
  IV_SUBS,
  LIST_LINKED,
  LIST_PENDING,
  LIST_UNLINKED,
  type ListNotifier,
  LN_BITS,
  LN_BITS_LENGTH,
  LN_BITS_START,
  LN_GENERATION,
  LN_OP_CLEAR_FLUSH_YOUNG,
  LN_OP_CLEAR_YOUNG,
  LN_OP_END,
  LN_OP_RELEASE,
  LN_OP_START,
  LN_OP_TEST_YOUNG,
  LN_OPS,
  LN_OWNER,
  LN_PAGE_SHIFT,
  LN_STATE,
  LN_SUBS,
  LN_WORDS,
  type Subs,
  SUBS_INTERVALS,
  SUBS_LIST,
  SUBS_LOCK,
  SUBS_SRCU,
  SUBS_TREE,
} from "./layout.ts";
import type { MmuNotifier } from "./mmuNotifier.ts";
import {
  beginRange,
  cancelListNotifier,
  createSubscriptions,
  freeListNotifier,
  hasSubscriptions,
  insertInterval,
  isReleased,
  linkListNotifier,
  markReleased,
  newGeneration,
  reapSubscriptions,
  unlinkListNotifier,
  waitUntilLinkedOp,
} from "./subscriptions.ts";

type Change<T> = (range: MmuNotifierRange) => T | Promise<T> | Op<T>;

export interface NotifierOperations {
  register(notifier: MmuNotifier): Op<void>;
  unregister(notifier: MmuNotifier): Op<void>;
  insert(ops: MmuIntervalNotifierOps, start: number, length: number): Op<IntervalNotifier>;
  invalidateRangeStart(range: RangeRequest): Op<MmuNotifierRange>;
  invalidate<T>(range: RangeRequest, change: Change<T>): Op<T>;
  release(): Op<void>;
}

const localOf = new WeakMap<Agent, LocalSubscribers>();

function localSubscribers(agent: Agent): LocalSubscribers {
  let local = localOf.get(agent);
  if (!local) {
    local = { intervals: new Map(), list: new Map(), spaces: new Map() };
    localOf.set(agent, local);
    handleMessages(agent, local);
    const heap = heapOf(agent.words);
    agent.allocMessage ??= (words) => allocWords(agent, heap, words);
  }
  return local;
}

/** Page size of accessed bitmaps where no PhysicalMemory says otherwise. */
const DEFAULT_PAGE_SHIFT = 12;

/** Errors and events of one space; one object per agent. */
export class Notifiers {
  /** @internal */
  readonly agent: Agent;
  /** @internal What the rows above need to raise ranges without a promise. */
  readonly context: DeliveryContext;
  /** The same operations, blocking (where the agent may block) and never waiting (EAGAIN). */
  readonly sync: Immediate<NotifierOperations>;
  readonly try: Immediate<NotifierOperations>;
  /** @internal The operations themselves, for those that drive them. */
  readonly operations: NotifierOperations;
  readonly #pageShift: number;

  /** @internal */
  constructor(agent: Agent, heap: number, subs: Subs, space: NotifierSpace | undefined, pageShift: number) {
    this.agent = agent;
    this.#pageShift = pageShift;
    this.context = {
      agent,
      subs,
      heap,
      maxAgents: Atomics.load(agent.words, HDR_MAX_AGENTS),
      space: space ?? { id: subs, notifiers: this },
      local: localSubscribers(agent),
    };
    this.context.local.spaces.set(subs, this.context);
    this.operations = {
      register: (notifier) => this.#registerOp(notifier),
      unregister: (notifier) => this.#unregisterOp(notifier),
      insert: (ops, start, length) => this.#insertOp(ops, start, length),
      invalidateRangeStart: (range) => this.#startOp(range),
      invalidate: (range, change) => this.#invalidateOp(range, change),
      release: () => this.#releaseOp(),
    };
    this.sync = {
      ...syncFacet(agent, this.operations),
      invalidateRangeStart: (range) => this.#startNow(range),
    };
    this.try = tryFacet(agent, this.operations);
  }

  /** @internal Forgets the space in this agent. */
  forget(): void {
    this.context.local.spaces.delete(this.context.subs);
  }

  /** @internal For exit(). */
  releaseOp(): Op<void> {
    return this.#releaseOp();
  }

  /** @internal True while an interval is registered, by any agent. */
  get inUse(): boolean {
    return Atomics.load(this.agent.words, this.context.subs + SUBS_INTERVALS) !== 0;
  }

  /** @internal For the reaper of the row that owns the space. */
  reap(slot: number, ownerId: number): string | undefined {
    return reapSubscriptions(this.context, slot, ownerId);
  }

  #checkLive(operation: string): void {
    this.agent.checkUsable(operation);
    if (isReleased(this.context)) {
      throw new MmError("ESRCH", operation, "the space is exiting or has exited");
    }
  }

  /** True from the first registration on. Linux: mm_has_notifiers(). */
  get any(): boolean {
    return hasSubscriptions(this.context);
  }

  /** @internal Whether a range concerns nobody now: a hint, for batching. */
  concernsNobody(start: number, end: number): boolean {
    return (
      !this.any ||
      (Atomics.load(this.agent.words, this.context.subs + SUBS_LIST) === 0 &&
        this.#locked(() => itFirst(this.agent, this.context.subs + SUBS_TREE, start, end - 1) === 0))
    );
  }

  #locked<T>(look: () => T): T {
    lockSpin(this.agent, this.context.subs + SUBS_LOCK);
    try {
      return look();
    } finally {
      unlockSpin(this.agent, this.context.subs + SUBS_LOCK);
    }
  }

  // ---- list notifiers ----------------------------------------------------------------------------------------------

  /**
   * Registers a notifier that hears of the whole space from now on. It is published when no range is open, so it never
   * sees an end without its start. May wait. Errors: EBUSY if it is registered, ESRCH if the space is exiting.
   * Linux: mmu_notifier_register().
   */
  register(notifier: MmuNotifier): Promise<void> {
    return runAsync(this.agent, this.#registerOp(notifier));
  }

  *#registerOp(notifier: MmuNotifier): Op<void> {
    const { agent, heap, subs, local } = this.context;
    const w = agent.words;
    const loop = loopOf(agent);
    this.#checkLive("register");
    if (notifier.notifiers) throw new MmError("EBUSY", "register", "this notifier is registered already");
    const { accessed } = notifier;
    if (accessed && accessed.bits.buffer !== w.buffer) {
      throw new MmError("EINVAL", "register", "the bits of accessed must come from memory.allocShared()");
    }
    const ln = allocWords(agent, heap, LN_WORDS) as ListNotifier;
    if (ln === 0)
      throw new MmError("ENOMEM", "register", "the arena is full; create the memory with a larger arena");
    Atomics.store(w, ln + LN_OWNER, agent.ownerId);
    Atomics.store(w, ln + LN_SUBS, subs);
    Atomics.store(w, ln + LN_OPS, implemented(notifier.ops));
    Atomics.store(w, ln + LN_PAGE_SHIFT, this.#pageShift);
    if (accessed) {
      Atomics.store(w, ln + LN_BITS, accessed.bits.byteOffset >> 2);
      Atomics.store(w, ln + LN_BITS_LENGTH, accessed.bits.length);
      agent.doubles[(ln + LN_BITS_START) >> 1] = accessed.start;
    }
    const generation = newGeneration(this.context);
    Atomics.store(w, ln + LN_GENERATION, generation);
    notifier.attach(this, ln, generation);
    local.list.set(ln, notifier);
    loop.listen();
    if (!notifier.retains) loop.release();
    linkListNotifier(this.context, ln);
    try {
      yield* waitUntilLinkedOp(this.context, ln);
      if (Atomics.load(w, ln + LN_STATE) === LIST_UNLINKED) this.#checkLive("register");
    } catch (error) {
      if (!cancelListNotifier(this.context, ln)) return; // it has come into the list after all
      this.#forgetListed(notifier, ln);
      throw error;
    }
  }

  /** Preconditions: off every list, and no walker is at it. */
  #forgetListed(notifier: MmuNotifier, ln: ListNotifier): void {
    const { agent, local } = this.context;
    local.list.delete(ln);
    notifier.detach();
    loopOf(agent).unlisten(notifier.retains);
    freeListNotifier(this.context, ln);
  }

  /**
   * Unregisters: calls its release unless the space has exited, then waits until no callback of it can run. May wait.
   * Errors: EPERM if another agent registered it, EINVAL if it is not registered here, EBUSY while its register() waits.
   * Linux: mmu_notifier_unregister().
   */
  unregister(notifier: MmuNotifier): Promise<void> {
    return runAsync(this.agent, this.#unregisterOp(notifier));
  }

  *#unregisterOp(notifier: MmuNotifier): Op<void> {
    const { agent, subs, local } = this.context;
    const ln = notifier.record;
    const { generation } = notifier;
    if (ln === 0 || local.list.get(ln) !== notifier) {
      const elsewhere = notifier.notifiers !== undefined && notifier.notifiers.agent !== agent;
      throw new MmError(
        elsewhere ? "EPERM" : "EINVAL",
        "unregister",
        elsewhere
          ? "only the agent that registered a notifier unregisters it"
          : "this notifier is not registered here",
      );
    }
    const state = Atomics.load(agent.words, ln + LN_STATE);
    if (state === LIST_PENDING)
      throw new MmError("EBUSY", "unregister", "its registration is not finished; wait for register()");
    if (state === LIST_LINKED)
      yield* releaseOneOp(this.context, notifier, this.#wholeSpace(MmuNotifierEvent.Release));
    // Another unregister() of it may have been faster, here and after the grace period.
    if (notifier.generation === generation && notifier.record === ln) unlinkListNotifier(this.context, ln);
    yield* synchronizeSrcuOp(agent, subs + SUBS_SRCU);
    if (notifier.generation === generation && notifier.record === ln) this.#forgetListed(notifier, ln);
  }

  // ---- intervals -----------------------------------------------------------------------------------------------------

  /**
   * Subscribes to `[start, start + length)` bytes; no alignment needed. Never waits.
   * Errors: EOVERFLOW for length 0 or a range that wraps, EINVAL for numbers that are no addresses, ESRCH if the space
   * is exiting, ENOMEM. Linux: mmu_interval_notifier_insert().
   */
  insert(ops: MmuIntervalNotifierOps, start: number, length: number): Promise<IntervalNotifier> {
    return runAsync(this.agent, this.#insertOp(ops, start, length));
  }

  // eslint-disable-next-line require-yield
  *#insertOp(ops: MmuIntervalNotifierOps, start: number, length: number): Op<IntervalNotifier> {
    this.#checkLive("insert");
    if (!Number.isSafeInteger(start) || start < 0 || !Number.isInteger(length) || length < 0) {
      throw new MmError("EINVAL", "insert", "start and length must be whole numbers of bytes, not negative");
    }
    // Not `start + length`, which is rounded above the last exact integer.
    if (length === 0 || length - 1 > ADDRESS_END - start) {
      throw new MmError(
        "EOVERFLOW",
        "insert",
        "the interval is empty or goes beyond the end of the address space",
      );
    }
    const last = start + (length - 1);
    const { local, agent } = this.context;
    const node = insertInterval(this.context, start, last);
    const generation = Atomics.load(agent.words, node + IV_GENERATION);
    const interval = new IntervalNotifier(
      this.context,
      intervalIdOf(node, generation),
      start,
      last,
      ops,
      () => local.intervals.delete(node),
    );
    local.intervals.set(node, interval);
    loopOf(agent).listen();
    return interval;
  }

  /** An interval of another agent: readBegin, readRetry and checkRetry only. Errors: ESRCH if it has been removed. */
  interval(id: IntervalId): IntervalNotifier {
    const { agent, subs, local } = this.context;
    const node = nodeOfIntervalId(id);
    const own = local.intervals.get(node);
    if (own && own.id === id) return own;
    const w = agent.words;
    if (
      !Number.isSafeInteger(id) ||
      id <= 0 ||
      node >= w.length - IV_GENERATION ||
      Atomics.load(w, node + IV_GENERATION) !== generationOfIntervalId(id) ||
      Atomics.load(w, node + IV_SUBS) !== subs
    ) {
      throw new MmError("ESRCH", "interval", "no such interval notifier in this space");
    }
    return new IntervalNotifier(
      this.context,
      id,
      itStart(this.agent, node),
      itLast(this.agent, node),
      undefined,
      () => {},
    );
  }

  /** @internal Ids of the intervals that overlap `[start, end)`, in order. For tests and dumps. */
  overlapping(start: number, end: number): IntervalId[] {
    const { agent, subs } = this.context;
    return this.#locked(() => {
      const ids: IntervalId[] = [];
      for (
        let n = itFirst(agent, subs + SUBS_TREE, start, end - 1);
        n !== 0;
        n = itNext(agent, n, start, end - 1)
      ) {
        ids.push(intervalIdOf(n as never, Atomics.load(agent.words, n + IV_GENERATION)));
      }
      return ids;
    });
  }

  // ---- for the primary MMU -----------------------------------------------------------------------------------------

  /**
   * Tells every subscriber that `[start, end)` is about to change; when it returns they use none of it. Give the range
   * to invalidateRangeEnd() exactly once. May wait. Errors: EAGAIN (try form), ECALLBACK if a subscriber threw; then the
   * range is closed and nothing may be changed. Linux: mmu_notifier_invalidate_range_start().
   */
  invalidateRangeStart(range: RangeRequest): Promise<MmuNotifierRange> {
    return runAsync(this.agent, this.#startOp(range));
  }

  /** A checked range, not open yet. */
  #newRange(request: RangeRequest, blockable: boolean): OpenRange {
    const { start, end, event, owner } = request;
    if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < 0 || start >= end) {
      throw new MmError(
        "EINVAL",
        "invalidateRangeStart",
        "start must be below end, both whole numbers of bytes",
      );
    }
    return makeRange(this.context.space, start, end, event, blockable, owner);
  }

  *#startOp(request: RangeRequest): Op<MmuNotifierRange> {
    const range = this.#newRange(request, this.agent.current?.mode !== "try");
    if (!beginRange(this.context, range.start, range.end)) yield* tellStartOp(this.context, range, false);
    range.opener = this;
    return range;
  }

  /** The blocking form: a range that concerns nobody needs no driver. */
  #startNow(request: RangeRequest): MmuNotifierRange {
    const { agent, context } = this;
    agent.checkNotInCallback("invalidateRangeStart");
    const range = this.#newRange(request, agent.mayBlock);
    if (!beginRange(context, range.start, range.end)) runBlocking(agent, tellStartOp(context, range, false));
    range.opener = this;
    return range;
  }

  /**
   * The change is made. Never waits. Errors: EINVAL if this object has not opened the range, or it has been ended.
   * Linux: mmu_notifier_invalidate_range_end().
   */
  invalidateRangeEnd(range: MmuNotifierRange): void {
    const open = range as OpenRange;
    if (open.opener !== this) {
      throw new MmError(
        "EINVAL",
        "invalidateRangeEnd",
        "this range is not open here; each start has one end",
        {
          range,
        },
      );
    }
    open.opener = undefined;
    endOpenRange(this.context, open);
  }

  /** Start, change, end, whatever happens in between; returns what `change` returned. Errors: as invalidateRangeStart(). */
  invalidate<T>(range: RangeRequest, change: Change<T>): Promise<T> {
    return runAsync(this.agent, this.#invalidateOp(range, change));
  }

  *#invalidateOp<T>(request: RangeRequest, change: Change<T>): Op<T> {
    const range = yield* this.#startOp(request);
    try {
      const result = change(range);
      if (isOp(result)) return (yield* result) as T;
      if (isPromise(result)) return yield* promiseOp(result as Promise<T>, "the change of an invalidation");
      return result as T;
    } finally {
      this.invalidateRangeEnd(range);
    }
  }

  /** Asks every list notifier, clearing; true if any was young. Never waits. Linux: mmu_notifier_clear_flush_young(). */
  clearFlushYoung(start: number, end: number): boolean {
    return clearFlushYoung(this.context, start, end);
  }

  /** As clearFlushYoung() without the flush. Linux: mmu_notifier_clear_young(). */
  clearYoung(start: number, end: number): boolean {
    return clearYoung(this.context, start, end);
  }

  /** True as soon as one notifier says that the page is young; changes nothing. Linux: mmu_notifier_test_young(). */
  testYoung(address: number): boolean {
    return testYoung(this.context, address);
  }

  /**
   * The space dies: intervals get a Release event, list notifiers their release op, and are taken off the list. Once.
   * May wait. Linux: mmu_notifier_release().
   */
  release(): Promise<void> {
    return runAsync(this.agent, this.#releaseOp());
  }

  *#releaseOp(): Op<void> {
    const { agent, subs } = this.context;
    const w = agent.words;
    if (!markReleased(this.context) || !this.any) return;
    const range = this.#wholeSpace(MmuNotifierEvent.Release);
    yield* releaseIntervalsOp(this.context, range);
    yield* releaseListOp(this.context, range);
    for (let ln = Atomics.load(w, subs + SUBS_LIST); ln !== 0; ln = Atomics.load(w, subs + SUBS_LIST)) {
      unlinkListNotifier(this.context, ln as ListNotifier);
    }
    yield* synchronizeSrcuOp(agent, subs + SUBS_SRCU);
  }

  #wholeSpace(event: MmuNotifierEvent): OpenRange {
    return makeRange(this.context.space, 0, ADDRESS_END, event, true);
  }
}

function implemented(ops: MmuNotifierOps): number {
  return (
    (ops.release ? LN_OP_RELEASE : 0) |
    (ops.clearFlushYoung ? LN_OP_CLEAR_FLUSH_YOUNG : 0) |
    (ops.clearYoung ? LN_OP_CLEAR_YOUNG : 0) |
    (ops.testYoung ? LN_OP_TEST_YOUNG : 0) |
    (ops.invalidateRangeStart ? LN_OP_START : 0) |
    (ops.invalidateRangeEnd ? LN_OP_END : 0)
  );
}

/** Whoever can lend an agent and a heap: a PhysicalMemory. */
export interface NotifierHost {
  /** @internal */
  readonly agent: Agent;
}

/**
 * Notifiers for somebody else's primary MMU. With `memory`, several agents can subscribe; without, one agent, a plain
 * ArrayBuffer, and no cross-origin isolation is needed. Errors: ENOMEM.
 */
export function createNotifiers(options: { memory?: NotifierHost; debug?: boolean } = {}): Notifiers {
  const agent =
    options.memory?.agent ?? attachAgent(createLocalArena(options.debug ?? false), { mayBlock: false });
  const heap = heapOf(agent.words);
  const subs = createSubscriptions(agent, heap, Atomics.load(agent.words, HDR_MAX_AGENTS), 0);
  if (subs === 0) throw new MmError("ENOMEM", "createNotifiers", "the arena is full");
  const notifiers = new Notifiers(agent, heap, subs, undefined, DEFAULT_PAGE_SHIFT);
  agent.reapers.push((slot, ownerId) => notifiers.reap(slot, ownerId));
  return notifiers;
}
