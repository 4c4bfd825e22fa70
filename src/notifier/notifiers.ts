/**
 * The notifiers of one space, as users and primary MMUs see them. Linux: include/linux/mmu_notifier.h.
 * Registration lives here; the state machine in subscriptions.ts, the calls in delivery.ts.
 */
import { arenaFull, isMmError, MmError } from "../errors.ts";
import { allocWords, createLocalArena, heapOf, itFirst, itLast, itNext, itStart } from "../memory/index.ts";
import {
  type Agent,
  attachAgent,
  HDR_MAX_AGENTS,
  type Immediate,
  isPromise,
  loopOf,
  isOp,
  MSG_SUBJECT,
  type Op,
  ownerGone,
  promiseOp,
  runAsync,
  runBlocking,
  start,
  syncFacet,
  tryFacet,
  waitOp,
  wakeQueue,
} from "../sched/index.ts";
import { lockdepMap, lockdepWaits, lockSpin, synchronizeSrcuOp, unlockSpin } from "../sync/index.ts";
import { ADDRESS_END } from "../units.ts";
import { clearFlushYoung, clearYoung, testYoung } from "./aging.ts";
import { callbackThrew, inCallback } from "./callbacks.ts";
import {
  type DeliveryContext,
  type LocalSubscribers,
  makeRange,
  type OpenRange,
  Registry,
} from "./context.ts";
import {
  endOpenRange,
  handleMessages,
  openRange,
  REFUSES_WITH_END,
  releaseIntervalsOp,
  releaseListOp,
  releaseOneOp,
} from "./delivery.ts";
import {
  type IntervalId,
  type MmuIntervalNotifierOps,
  MmuNotifierEvent,
  type MmuNotifierOps,
  type MmuNotifierRange,
  type NotifierSpace,
  type RangeRequest,
  type SpaceId,
} from "./events.ts";
import {
  generationOfIntervalId,
  IntervalNotifier,
  intervalIdOf,
  nodeOfIntervalId,
} from "./intervalNotifier.ts";
import {
  IV_GENERATION,
  IV_LOCAL,
  IV_SUBS,
  IV_WORDS,
  LIST_LINKED,
  LIST_PENDING,
  LIST_UNLINKED,
  type ListNotifier,
  LN_BITS,
  LN_BITS_PAGES,
  LN_BITS_START,
  LN_GENERATION,
  LN_OP_CLEAR_FLUSH_YOUNG,
  LN_OP_CLEAR_YOUNG,
  LN_OP_END,
  LN_OP_RELEASE,
  LN_OP_SECONDARY_TLBS,
  LN_OP_START,
  LN_OP_TEST_YOUNG,
  LN_OPS,
  LN_OWNER,
  LN_PAGE_SHIFT,
  LN_STATE,
  LN_SUBS,
  MESSAGE_PUT,
  type Subs,
  SUBS_ID,
  SUBS_LIST,
  SUBS_LOCK,
  SUBS_OWNED,
  SUBS_QUEUE,
  SUBS_SRCU,
  SUBS_TREE,
  subsFreedAt,
  subsPutAt,
} from "./layout.ts";
import { type AccessedBitmap, MmuNotifier } from "./mmuNotifier.ts";
import { invalidateOwnSecondaryTlbs, postSecondaryTlbs } from "./secondaryTlbs.ts";
import {
  allocListNotifier,
  cancelListNotifier,
  createSubscriptions,
  disownSubscriptions,
  freeListNotifier,
  hasSubscriptions,
  insertInterval,
  isGone,
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
  get(ops: MmuNotifierOps): Op<MmuNotifier>;
  synchronize(): Op<void>;
  insert(ops: MmuIntervalNotifierOps, start: number, length: number): Op<IntervalNotifier>;
  invalidateRangeStart(range: RangeRequest): Op<MmuNotifierRange>;
  invalidate<T>(range: RangeRequest, change: Change<T>): Op<T>;
  release(): Op<void>;
}

const localOf = new WeakMap<Agent, LocalSubscribers>();

function localSubscribers(agent: Agent): LocalSubscribers {
  let local = localOf.get(agent);
  if (!local) {
    local = { intervals: new Registry(), list: new Map(), spaces: new Map(), refusedWithEnd: new WeakSet() };
    localOf.set(agent, local);
    handleMessages(agent, local);
    const { spaces } = local;
    agent.handle(MESSAGE_PUT, (m) =>
      spaces.get(Atomics.load(agent.words, m + MSG_SUBJECT) as Subs)?.space.notifiers.free(),
    );
    const heap = heapOf(agent.words);
    agent.allocMessage ??= (words) => allocWords(agent, heap, words);
    if (agent.debug) agent.onWaitRefused = (operation) => lockdepWaits(agent, operation);
  }
  return local;
}

/** Linux: UINT_MAX. */
const MOST_USERS = 2 ** 32 - 1;
/** The agent leaves: what it has registered goes, as if it had died. Preconditions: none of its callbacks runs. */
export function dropSubscriptions(agent: Agent): void {
  for (const c of localOf.get(agent)?.spaces.values() ?? [])
    if (!isGone(c)) reapSubscriptions(c, agent.slot, agent.ownerId);
}

/** Flushes every secondary TLB that is notified through this agent: an agent that cannot say which asks for it. */
export function invalidateAllSecondaryTlbs(agent: Agent): void {
  for (const c of localOf.get(agent)?.spaces.values() ?? [])
    if (!isGone(c)) invalidateOwnSecondaryTlbs(c, 0, ADDRESS_END);
}

/** Page size of accessed bitmaps where no PhysicalMemory says otherwise. */
const DEFAULT_PAGE_SHIFT = 12;

/** Errors and events of one space; one object per agent. */
export class Notifiers {
  /** @internal */
  readonly agent: Agent;
  /** Names them in other agents: of an AddressSpace its id; see createNotifiers(). */
  get id(): SpaceId {
    return this.context.space.id;
  }

  /** @internal What the rows above need to raise ranges without a promise. */
  readonly context: DeliveryContext;
  // Made when they are asked for: most spaces are never asked.
  #operations: NotifierOperations | undefined;
  #sync: Immediate<NotifierOperations> | undefined;
  #try: Immediate<NotifierOperations> | undefined;
  readonly #pageShift: number;
  /** Put, and not freed yet. */
  readonly #toFree: MmuNotifier[] = [];
  #freeing = false;

  /** @internal */
  constructor(agent: Agent, heap: number, subs: Subs, space: NotifierSpace | undefined, pageShift: number) {
    this.agent = agent;
    this.#pageShift = pageShift;
    this.context = {
      agent,
      subs,
      id: Atomics.load(agent.words, subs + SUBS_ID),
      heap,
      maxAgents: Atomics.load(agent.words, HDR_MAX_AGENTS),
      space: space ?? { id: subs, notifiers: this },
      local: localSubscribers(agent),
    };
    const { spaces } = this.context.local;
    for (const [at, known] of spaces) if (isGone(known)) spaces.delete(at);
    spaces.set(subs, this.context);
  }

  /** @internal The operations themselves, for those that drive them. */
  get operations(): NotifierOperations {
    return (this.#operations ??= {
      register: (notifier) => this.#registerOp(notifier),
      unregister: (notifier) => this.#unregisterOp(notifier),
      get: (ops) => this.#getOp(ops),
      synchronize: () => this.#synchronizeOp(),
      insert: (ops, start, length) => this.#insertOp(ops, start, length),
      invalidateRangeStart: (range) => this.#startOp(range),
      invalidate: (range, change) => this.#invalidateOp(range, change),
      release: () => this.#releaseOp(),
    });
  }

  /** The same operations, blocking where the agent may block, else as `try`. */
  get sync(): Immediate<NotifierOperations> {
    return (this.#sync ??= {
      ...syncFacet(this.agent, this.operations),
      invalidateRangeStart: (range) => this.#startNow(range),
    });
  }

  /** The same operations, which never wait: EAGAIN instead. */
  get try(): Immediate<NotifierOperations> {
    return (this.#try ??= tryFacet(this.agent, this.operations));
  }

  /** @internal The space is gone: its subscriptions go with the last of them. */
  disown(): void {
    disownSubscriptions(this.context);
  }

  /** @internal For exit(). */
  releaseOp(): Op<void> {
    return this.#releaseOp();
  }

  /** @internal Frees what this agent has put; a message of its own asks for it. */
  free(): void {
    this.#startFreeing();
  }

  /** @internal For the reaper of the row that owns the space. */
  reap(slot: number, ownerId: number): string | undefined {
    return reapSubscriptions(this.context, slot, ownerId);
  }

  #checkLive(operation: string): void {
    this.agent.checkUsable(operation);
    if (isGone(this.context) || isReleased(this.context)) {
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
    const { agent, subs, local } = this.context;
    const w = agent.words;
    const loop = loopOf(agent);
    this.#checkLive("register");
    if (notifier.notifiers) throw new MmError("EBUSY", "register", "this notifier is registered already");
    this.#checkOps(notifier.ops);
    const { accessed } = notifier;
    const pages = accessed ? Math.ceil(accessed.length / 2 ** this.#pageShift) : 0;
    if (accessed) checkAccessed(accessed, pages, 2 ** this.#pageShift, w);
    const ln = allocListNotifier(this.context);
    if (ln === 0) throw arenaFull("register");
    Atomics.store(w, ln + LN_OWNER, agent.ownerId);
    Atomics.store(w, ln + LN_SUBS, subs);
    Atomics.store(w, ln + LN_OPS, implemented(notifier.ops));
    Atomics.store(w, ln + LN_PAGE_SHIFT, this.#pageShift);
    if (accessed) {
      Atomics.store(w, ln + LN_BITS, accessed.bits.byteOffset >> 2);
      Atomics.store(w, ln + LN_BITS_PAGES, pages);
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

  /** What no notifier may implement together. */
  #checkOps(ops: MmuNotifierOps): void {
    if (ops.archInvalidateSecondaryTlbs && (ops.invalidateRangeStart || ops.invalidateRangeEnd)) {
      const why = "archInvalidateSecondaryTlbs excludes invalidateRangeStart and invalidateRangeEnd";
      throw new MmError("EINVAL", "register", why);
    }
    if (this.agent.debug && this.context.local.refusedWithEnd.has(ops))
      throw new MmError("EINVAL", "register", REFUSES_WITH_END);
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
    if (agent.debug) lockdepMap(agent, "unregister");
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

  /**
   * The notifier of these callbacks in this space, registered if it is not yet; counted, see put(). One for each agent and
   * object of callbacks, also one that register() was given. May wait, as register(). Errors: as register(); EOVERFLOW;
   * ECALLBACK if allocNotifier threw, EINVAL if it gave something else. Linux: mmu_notifier_get().
   */
  get(ops: MmuNotifierOps): Promise<MmuNotifier> {
    return runAsync(this.agent, this.#getOp(ops));
  }

  *#getOp(ops: MmuNotifierOps): Op<MmuNotifier> {
    this.#checkLive("get");
    for (let known = this.#registeredWith(ops); known; known = this.#registeredWith(ops)) {
      const ln = known.record;
      const { generation } = known;
      // Somebody else's get() or register() is about to finish, or to fail: then it is for us to register it.
      yield* waitUntilLinkedOp(this.context, ln);
      if (known.record !== ln || known.generation !== generation || known.users === 0) continue;
      if (known.users >= MOST_USERS)
        throw new MmError("EOVERFLOW", "get", "this notifier has too many users");
      known.addUsers(1);
      return known;
    }
    const notifier = this.#alloc(ops);
    try {
      yield* this.#registerOp(notifier);
    } catch (error) {
      this.#callFree(notifier);
      throw error;
    }
    return notifier;
  }

  /** A notifier with these callbacks that is registered here, or about to be. */
  #registeredWith(ops: MmuNotifierOps): MmuNotifier | undefined {
    for (const notifier of this.context.local.list.values()) {
      if (notifier.notifiers === this && notifier.ops === ops && notifier.users > 0) return notifier;
    }
    return undefined;
  }

  #alloc(ops: MmuNotifierOps): MmuNotifier {
    let notifier: MmuNotifier;
    try {
      notifier = ops.allocNotifier
        ? inCallback(this.agent, () => ops.allocNotifier!(this.context.space))
        : new MmuNotifier(ops);
    } catch (cause) {
      throw callbackThrew("allocNotifier", cause);
    }
    if (!(notifier instanceof MmuNotifier) || notifier.ops !== ops || notifier.notifiers) {
      throw new MmError("EINVAL", "get", "allocNotifier must return a new MmuNotifier of the same callbacks");
    }
    return notifier;
  }

  /**
   * Gives a use of a notifier back. The last one takes it off the list at once; callbacks that run already may still be
   * running, so it is freed, and freeNotifier called, after a grace period. Its release is called only if the space ends
   * first: drop all translations before. Never waits; also in callbacks. Errors: EPERM if another agent registered it,
   * EINVAL if it has no use to give back. Linux: mmu_notifier_put().
   */
  put(notifier: MmuNotifier): void {
    const { agent, subs, maxAgents, local } = this.context;
    const ln = notifier.record;
    if (notifier.notifiers && notifier.notifiers.agent !== agent)
      throw new MmError("EPERM", "put", "only the agent that registered a notifier gives it back");
    const mine = notifier.notifiers === this && local.list.get(ln) === notifier;
    if (!mine || notifier.users === 0 || Atomics.load(agent.words, ln + LN_STATE) === LIST_PENDING)
      throw new MmError("EINVAL", "put", "this notifier has no use here to give back");
    notifier.addUsers(-1);
    if (notifier.users > 0) return;
    unlinkListNotifier(this.context, ln);
    Atomics.add(agent.words, subsPutAt(subs, maxAgents, agent.slot), 1);
    this.#toFree.push(notifier);
    // Not here and now: the caller may be a callback of this very notifier.
    const message = agent.tryReserveMessage(MESSAGE_PUT);
    if (message === 0) return queueMicrotask(() => this.#startFreeing()); // the arena is full
    Atomics.store(agent.words, message + MSG_SUBJECT, subs);
    agent.send(agent.slot, message, true);
  }

  #startFreeing(): void {
    if (this.#freeing) return;
    this.#freeing = true;
    start(this.agent, this.#freeOp(), (settled) => {
      this.#freeing = false;
      if ("error" in settled && isMmError(settled.error)) this.agent.report(settled.error);
    });
  }

  /** Frees what has been put, in that order. */
  *#freeOp(): Op<void> {
    const { agent, subs, maxAgents } = this.context;
    while (this.#toFree.length > 0) {
      const batch = this.#toFree.length;
      yield* synchronizeSrcuOp(agent, subs + SUBS_SRCU);
      for (const notifier of this.#toFree.splice(0, batch)) {
        this.#forgetListed(notifier, notifier.record);
        this.#callFree(notifier);
        Atomics.add(agent.words, subsFreedAt(subs, maxAgents, agent.slot), 1);
      }
      wakeQueue(agent.words, subs + SUBS_QUEUE);
    }
  }

  #callFree(notifier: MmuNotifier): void {
    try {
      inCallback(this.agent, () => notifier.ops.freeNotifier?.(notifier));
    } catch (cause) {
      this.agent.report(callbackThrew("freeNotifier", cause));
    }
  }

  /**
   * Waits until every put() so far, of any agent, has freed what it put. May wait; not in a callback.
   * Linux: mmu_notifier_synchronize(), which waits for a grace period only.
   */
  synchronize(): Promise<void> {
    return runAsync(this.agent, this.#synchronizeOp());
  }

  *#synchronizeOp(): Op<void> {
    const { agent, subs, maxAgents } = this.context;
    const w = agent.words;
    for (let slot = 0; slot < agent.top(); slot++) {
      const owner = agent.ownerAt(slot);
      const puts = Atomics.load(w, subsPutAt(subs, maxAgents, slot));
      const freed = (): boolean =>
        ((Atomics.load(w, subsFreedAt(subs, maxAgents, slot)) - puts) | 0) >= 0 || ownerGone(w, owner);
      yield* waitOp(subs + SUBS_QUEUE, freed, "notifiers that have been put", () => owner);
    }
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
      this.#forgetInterval,
    );
    interval.local = local.intervals.add(interval);
    Atomics.store(agent.words, node + IV_LOCAL, interval.local);
    loopOf(agent).listen();
    return interval;
  }

  readonly #forgetInterval = (interval: IntervalNotifier): void => {
    this.context.local.intervals.delete(interval.local);
  };

  /** An interval of another agent: readBegin, readRetry and checkRetry only. Errors: ESRCH if it has been removed. */
  interval(id: IntervalId): IntervalNotifier {
    const { agent, subs, local } = this.context;
    const node = nodeOfIntervalId(id);
    const w = agent.words;
    if (
      !Number.isSafeInteger(id) ||
      id <= 0 ||
      node >= w.length - IV_WORDS ||
      Atomics.load(w, node + IV_GENERATION) !== generationOfIntervalId(id) ||
      Atomics.load(w, node + IV_SUBS) !== subs
    ) {
      throw new MmError("ESRCH", "interval", "no such interval notifier in this space");
    }
    const own = local.intervals.get(Atomics.load(w, node + IV_LOCAL));
    if (own?.id === id) return own;
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
    if (owner !== undefined && event !== MmuNotifierEvent.Migrate && event !== MmuNotifierEvent.Exclusive) {
      throw new MmError("EINVAL", "invalidateRangeStart", "owner goes with Migrate and Exclusive only");
    }
    return makeRange(this.context.space, start, end, event, blockable, owner);
  }

  *#startOp(request: RangeRequest): Op<MmuNotifierRange> {
    const range = this.#newRange(request, this.agent.current?.mode !== "try");
    const rest = openRange(this.context, range, false);
    if (rest) yield* rest;
    range.opener = this;
    return range;
  }

  /** The blocking form: a range that concerns nobody needs no driver. */
  #startNow(request: RangeRequest): MmuNotifierRange {
    const { agent, context } = this;
    agent.checkNotInCallback("invalidateRangeStart");
    // Before it may say EAGAIN, so that a loop of tries never starves the agent that must answer.
    if (agent.wanted) agent.safepoint();
    const range = this.#newRange(request, agent.mayBlock);
    const rest = openRange(context, range, false);
    if (rest) runBlocking(agent, rest);
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
   * Entries of `[start, end)` (bytes) have changed: who keeps translations of its own walks of them drops those. This
   * agent's notifiers are called at once, other agents' at their next safepoint, which nobody waits for; an AddressSpace
   * does wait for them. Never waits. Linux: mmu_notifier_arch_invalidate_secondary_tlbs().
   */
  archInvalidateSecondaryTlbs(start: number, end: number): void {
    postSecondaryTlbs(this.context, start, end);
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

function checkAccessed(
  { start, bits }: AccessedBitmap,
  pages: number,
  pageSize: number,
  w: Int32Array,
): void {
  const wrong =
    bits.buffer !== w.buffer
      ? "the bits of accessed must come from memory.allocShared()"
      : start % pageSize !== 0
        ? `accessed must start at a multiple of the page size (${pageSize})`
        : pages > bits.length * 32
          ? `accessed has ${bits.length * 32} bits for ${pages} pages`
          : undefined;
  if (wrong !== undefined) throw new MmError("EINVAL", "register", wrong);
}

function implemented(ops: MmuNotifierOps): number {
  return (
    (ops.release ? LN_OP_RELEASE : 0) |
    (ops.clearFlushYoung ? LN_OP_CLEAR_FLUSH_YOUNG : 0) |
    (ops.clearYoung ? LN_OP_CLEAR_YOUNG : 0) |
    (ops.testYoung ? LN_OP_TEST_YOUNG : 0) |
    (ops.invalidateRangeStart ? LN_OP_START : 0) |
    (ops.invalidateRangeEnd ? LN_OP_END : 0) |
    (ops.archInvalidateSecondaryTlbs ? LN_OP_SECONDARY_TLBS : 0)
  );
}

/** Whoever can lend an agent and a heap: a PhysicalMemory. */
export interface NotifierHost {
  /** @internal */
  readonly agent: Agent;
}

export interface CreateNotifiersOptions {
  /** Where the subscriptions lie, for several agents; without it they lie in this agent only. */
  readonly memory?: NotifierHost;
  /** With `memory`: the `id` of notifiers that another agent has made; undefined makes new ones. */
  readonly id?: SpaceId;
  /** Without `memory`: lockdep and other checks; slow. */
  readonly debug?: boolean;
  /** Without `memory`, which has one of its own: hears of errors that have no caller, such as an end that throws. */
  readonly onError?: (error: MmError) => void;
}

/**
 * Notifiers for somebody else's primary MMU. With `memory`, other agents reach the same ones by their `id`; without, they
 * are one agent's, in a plain ArrayBuffer, and no cross-origin isolation is needed. Never waits.
 * Errors: ENOMEM, ESRCH if `id` names none.
 */
export function createNotifiers(options: CreateNotifiersOptions = {}): Notifiers {
  const { memory, id, debug = false, onError } = options;
  const agent = memory?.agent ?? attachAgent(createLocalArena(debug), { mayBlock: false });
  if (!memory) agent.onError = onError;
  const heap = heapOf(agent.words);
  const subs =
    id === undefined ? newSubscriptions(agent, heap) : subscriptionsOf(agent, memory === undefined ? 0 : id);
  const known = localSubscribers(agent).spaces.get(subs);
  if (known && !isGone(known)) return known.space.notifiers;
  const notifiers = new Notifiers(agent, heap, subs, undefined, DEFAULT_PAGE_SHIFT);
  agent.reapers.push((slot, ownerId) => notifiers.reap(slot, ownerId));
  return notifiers;
}

function newSubscriptions(agent: Agent, heap: number): Subs {
  const subs = createSubscriptions(agent, heap, Atomics.load(agent.words, HDR_MAX_AGENTS), 0);
  if (subs === 0) throw new MmError("ENOMEM", "createNotifiers", "the arena is full");
  Atomics.store(agent.words, subs + SUBS_ID, subs);
  return subs;
}

/** The record with this id, if another agent made it with createNotifiers(). */
function subscriptionsOf(agent: Agent, id: SpaceId): Subs {
  const w = agent.words;
  const fits = Number.isSafeInteger(id) && id > 0 && id < w.length - SUBS_SRCU;
  if (fits && Atomics.load(w, id + SUBS_ID) === id && Atomics.load(w, id + SUBS_OWNED) === 1)
    return id as Subs;
  throw new MmError("ESRCH", "createNotifiers", "no notifiers with this id in this memory");
}
