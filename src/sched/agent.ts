/**
 * Agents: what Linux calls a CPU. The main thread or a worker, with a slot of words in the arena, a doorbell,
 * a mailbox, turns and safepoints. Not here: running operations (drivers.ts), noticing deaths (death.ts).
 *
 * States, for the others
 *   state    TURN   SLEEP    acknowledgements            callbacks
 *   running  odd    awake    waited for                  at its next safepoint
 *   parked   odd    parked   counts as given             it is woken for them
 *   idle     even   any      counts as given             it is woken for them
 *
 * From -> to: idle -> running enter(); running -> idle leave(), a microtask after the first access of a turn;
 * running -> parked park(); parked -> running unpark(). Entering and waking publish the new state first and
 * look at the flush requests afterwards; whoever requests a flush does the two the other way round.
 *
 * Safepoints: enter(), poll(), leave(), every wait. There, and nowhere else, the agent flushes TLB entries,
 * acknowledges, and runs callbacks.
 */
import { MmError, panic } from "../errors.ts";
import { checkLiveness } from "./death.ts";
import { arm, ownerAlive, ring, setLocalWaker, wakeQueue } from "./doorbell.ts";
import {
  AG_ACKQ,
  AG_BELL,
  AG_FACK,
  AG_FREQ,
  AG_MARK_LOCK,
  AG_MAY_BLOCK,
  AG_MBOX,
  AG_MORE,
  AG_SENDING,
  AG_SERVED,
  AG_SLEEP,
  AG_SLEEP_WORD,
  AG_STATE,
  AG_THREAD,
  AG_TID,
  AG_TURN,
  AGENT_ATTACHING,
  AGENT_FREE,
  AGENT_LIVE,
  agentAt,
  type AgentSlot,
  agentState,
  GENERATION_LIMIT,
  generationOf,
  HDR_AGENT_TOP,
  HDR_CORES,
  HDR_DEBUG,
  HDR_GENERATION,
  HDR_MAX_AGENTS,
  HDR_POISON,
  MAILBOX_CLOSED,
  type Message,
  MESSAGE_COUNT,
  MESSAGE_DONE,
  MESSAGE_FREE,
  MESSAGE_POSTED,
  MESSAGE_RESERVED,
  messageAt,
  MSG_FROM,
  MSG_KIND,
  MSG_MORE,
  MSG_NEXT,
  MSG_POSTED,
  MSG_RESULT,
  MSG_STATE,
  MSG_TEXT,
  MSG_TEXT_BYTES,
  MSG_TEXT_LENGTH,
  MSG_WORDS,
  ownerIdOf,
  RE_END,
  RE_SPACE,
  RE_START,
  RING_LAG,
  ringEntryAt,
  SLEEP_ARMED,
  SLEEP_AWAKE,
  SLEEP_PARKED,
  slotOfOwner,
  stateOf,
} from "./layout.ts";
import type { Op, WaitEffect } from "./op.ts";

/** The words of segment 0, twice: as int32 and as float64 over the same buffer. */
export interface Arena {
  readonly words: Int32Array;
  readonly doubles: Float64Array;
}

/** Whoever takes locks: its owner id stands in the lock word. */
export interface LockOwner extends Arena {
  readonly ownerId: number;
}

/** How an operation was started; decides `blockable` of the ranges it raises. */
export type Mode = "blocking" | "async" | "try" | "checker";

/** A lock of this system that a task holds: its place in the order, and where it was taken. */
export interface HeldLock {
  readonly rank: number;
  readonly taken: Error;
}

/** An operation being driven. */
export interface Task {
  readonly op: Op<unknown>;
  readonly mode: Mode;
  /** What it waits for while it is suspended. */
  effect: WaitEffect | undefined;
  /** Locks held, newest last; kept in debug mode only. */
  readonly held: HeldLock[];
  readonly settle: (outcome: { value: unknown } | { error: unknown }) => void;
}

/** Clears `[start, end)` (pages) of this agent's TLB of `space`; space 0 means all of every space. */
export type FlushHandler = (space: number, start: number, end: number) => void;

/** Answers a message. Sets MSG_RESULT; the answer is given when it returns, or later by finishMessage() if it returns true. */
export type MessageHandler = (message: Message) => boolean | void;

/** Gives back what a dead agent left in the shared words; a string names a lock it held, which poisons the memory. */
export type Reaper = (slot: number, ownerId: number) => string | undefined;

export interface AgentOptions {
  readonly mayBlock: boolean;
  /** Operating-system thread id and worker threadId + 1, where the host tells. */
  readonly tid?: number;
  readonly thread?: number;
  /** A CheckerDriver takes all its steps: no timers, no waitAsync, no spinning. */
  readonly simulated?: boolean;
}

const settled = Promise.resolve();

/** After so many rounds at a mark lock, whose section is a few stores, its holder may be dead. */
const MARK_ROUNDS_BEFORE_LOOK = 10_000;
/** An agent between looking at a mailbox and pushing to it keeps the slot from being taken; it needs some ten instructions. */
const ATTACH_ROUNDS = 1000;

export class Agent implements LockOwner {
  readonly words: Int32Array;
  readonly doubles: Float64Array;
  readonly bytes: Uint8Array;
  readonly slot: number;
  readonly base: AgentSlot;
  readonly ownerId: number;
  readonly mayBlock: boolean;
  readonly debug: boolean;
  /** False where all agents share one thread or the buffer is not shared: nobody else can ever change a word meanwhile. */
  readonly shared: boolean;
  /** Rounds to spin before sleeping: 3 to 4 us; none on one core. */
  readonly spinRounds: number;
  /** Lets the checker switch fast paths off, so that it reaches the slow ones. */
  fastPaths = true;
  /** See AgentOptions. */
  simulated: boolean;

  /** The task whose generator runs now. */
  current: Task | undefined;
  /** Above 0 while a callback runs: no operation may start. */
  callbackDepth = 0;
  /** Above 0 while a start or an end of a range runs a callback; kept in debug mode only. */
  invalidating = 0;
  /** Where the range was started, while a callback runs that must not wait; kept in debug mode only. */
  unwaiting: Error | undefined;
  /** In a turn. */
  running = false;
  /** Suspended tasks of this agent. */
  readonly tasks: Set<Task> = new Set();
  /** Operations of this agent that wait for the host. */
  hostWaits = 0;
  /** Those of them that others may be waiting for meanwhile: see HostEffect.owed. */
  owed = 0;
  /** Words of the heap, in a row that has one, for messages beyond the slot's own; 0 if there is no room. */
  allocMessage: ((words: number) => number) | undefined;
  /** Errors that have no caller. */
  onError: ((error: MmError) => void) | undefined;
  /** Run when a turn ends. */
  readonly turnEnd: (() => void)[] = [];
  /** Run when a turn ends, and by poll(), which ends the turn for views. */
  readonly viewsEnd: (() => void)[] = [];
  readonly reapers: Reaper[] = [];
  /** Takes operations from the async driver, to take their steps itself: the explorer's, in a simulated agent. */
  takeOver: ((op: Op<unknown>, settle: Task["settle"]) => void) | undefined;
  /** Set by drivers.ts: called when a task or a subscription begins to need the event loop. */
  wakeUp: () => void = () => {};

  /** Hears of operations that a callback asked for whose range may not wait. Set by sync/. */
  onWaitRefused: (operation: string) => void = () => {};

  readonly #handlers = new Map<number, MessageHandler>();
  #flush: FlushHandler = () => {};
  #serving = false;
  #detached = false;
  readonly #leave = (): void => this.leave();

  constructor(buffer: ArrayBufferLike, slot: number, generation: number, options: AgentOptions) {
    this.words = new Int32Array(buffer);
    this.doubles = new Float64Array(buffer, 0, Math.floor(buffer.byteLength / 8));
    this.bytes = new Uint8Array(buffer);
    this.slot = slot;
    this.base = agentAt(slot);
    this.ownerId = ownerIdOf(slot, generation);
    this.mayBlock = options.mayBlock;
    this.shared = !(buffer instanceof ArrayBuffer); // without isolation the name SharedArrayBuffer does not exist
    this.simulated = options.simulated ?? false;
    this.debug = this.words[HDR_DEBUG] === 1;
    this.spinRounds = (this.words[HDR_CORES] ?? 1) > 1 ? 500 : 0;
    if (!this.shared) setLocalWaker(this.words, () => queueMicrotask(() => this.wakeUp()));
  }

  // ---- turns and safepoints -------------------------------------------------------------------------------

  /** Begins a turn, if none has begun. From here to the turn's end others wait for this agent's acknowledgements. */
  enter(): void {
    if (this.running) return;
    if (this.#detached) this.checkUsable("access"); // the slot may be another agent's by now
    this.running = true;
    Atomics.add(this.words, this.base + AG_TURN, 1);
    // A microtask, not a macrotask: an agent in a chain of awaits would never reach the latter.
    void settled.then(this.#leave);
    this.safepoint();
  }

  /** Ends the turn: translations are unusable until the next access, views are dropped. */
  leave(): void {
    if (!this.running) return;
    for (const end of this.viewsEnd) end();
    for (const end of this.turnEnd) end();
    this.flushRequested();
    this.running = false;
    Atomics.add(this.words, this.base + AG_TURN, 1);
    wakeQueue(this.words, this.base + AG_ACKQ);
  }

  /** A safepoint in a long synchronous loop. */
  poll(): void {
    for (const end of this.viewsEnd) end();
    this.safepoint();
  }

  /** Flushes what was asked for, acknowledges, answers the mailbox. Never throws. */
  safepoint(): void {
    if (this.#detached) return;
    this.flushRequested();
    if (Atomics.load(this.words, this.base + AG_MBOX) > 0) this.#serveMailbox();
  }

  /** True if others wait for this agent: a plain load, a hint for loops. */
  get wanted(): boolean {
    const w = this.words;
    return w[this.base + AG_MBOX]! > 0 || w[this.base + AG_FREQ] !== w[this.base + AG_FACK];
  }

  setFlushHandler(flush: FlushHandler): void {
    this.#flush = flush;
  }

  /** Flushes TLB entries that others marked, then acknowledges. */
  flushRequested(): void {
    const w = this.words;
    const done = Atomics.load(w, this.base + AG_FACK);
    const wanted = Atomics.load(w, this.base + AG_FREQ);
    if (wanted === done) return;
    let all = ((wanted - done) | 0) > RING_LAG;
    for (let r = (done + 1) | 0; !all && ((wanted - r) | 0) >= 0; r = (r + 1) | 0) {
      const entry = ringEntryAt(this.base, r);
      this.#flush(
        Atomics.load(w, entry + RE_SPACE),
        Atomics.load(w, entry + RE_START),
        Atomics.load(w, entry + RE_END),
      );
      // The ring may have lapped us while we read: then what we read may be half of something newer.
      all = ((Atomics.load(w, this.base + AG_FREQ) - done) | 0) > RING_LAG;
    }
    if (all) this.#flush(0, 0, 0);
    Atomics.store(w, this.base + AG_FACK, wanted);
    wakeQueue(w, this.base + AG_ACKQ);
  }

  // ---- marks: asking another agent to flush ------------------------------------------------------------------

  /**
   * Asks agent `slot` to flush `[start, end)` (pages) of its TLB of `space`; returns the request's number.
   * Preconditions: the page-table entries have been changed.
   */
  mark(slot: number, space: number, start: number, end: number): number {
    const w = this.words;
    const target = agentAt(slot);
    for (let round = 1; ; round++) {
      const holder = Atomics.compareExchange(w, target + AG_MARK_LOCK, 0, this.ownerId);
      if (holder === 0) break;
      if (round % MARK_ROUNDS_BEFORE_LOOK === 0) checkLiveness(this, holder);
      if (!ownerAlive(w, holder)) {
        // The section is a ring entry that FREQ does not count yet: taking the lock over is safe.
        Atomics.compareExchange(w, target + AG_MARK_LOCK, holder, 0);
      }
    }
    const request = (Atomics.load(w, target + AG_FREQ) + 1) | 0;
    const entry = ringEntryAt(target, request);
    Atomics.store(w, entry + RE_SPACE, space);
    Atomics.store(w, entry + RE_START, start);
    Atomics.store(w, entry + RE_END, end);
    Atomics.store(w, target + AG_FREQ, request);
    Atomics.store(w, target + AG_MARK_LOCK, 0);
    return request;
  }

  /** Asks agent `slot` to flush everything, and rings it. */
  markAll(slot: number): void {
    this.mark(slot, 0, 0, 0);
    ring(this.words, slot);
  }

  /** True once agent `slot` has done what `request` asked, or is gone; not before, also where it is idle or parked. */
  flushed(slot: number, request: number): boolean {
    const w = this.words;
    const target = agentAt(slot);
    return (
      ((Atomics.load(w, target + AG_FACK) - request) | 0) >= 0 ||
      stateOf(Atomics.load(w, target + AG_STATE)) !== AGENT_LIVE
    );
  }

  /** Turn counter of an agent, to be read after mark(): see acknowledged(). */
  turnOf(slot: number): number {
    return Atomics.load(this.words, agentAt(slot) + AG_TURN);
  }

  /** True once agent `slot` can use no translation that `request` asked it to drop. `turn` was read after the mark. */
  acknowledged(slot: number, request: number, turn: number): boolean {
    const w = this.words;
    const target = agentAt(slot);
    return (
      (turn & 1) === 0 ||
      ((Atomics.load(w, target + AG_FACK) - request) | 0) >= 0 ||
      Atomics.load(w, target + AG_TURN) !== turn ||
      Atomics.load(w, target + AG_SLEEP) === SLEEP_PARKED ||
      stateOf(Atomics.load(w, target + AG_STATE)) !== AGENT_LIVE
    );
  }

  // ---- parking -------------------------------------------------------------------------------------------------

  /** The doorbell's value, to be read before arming. */
  bell(): number {
    return Atomics.load(this.words, this.base + AG_BELL);
  }

  arm(queue: number): void {
    if (queue !== 0) arm(this.words, queue, this.slot);
  }

  /** Sleeps until the doorbell differs from `bell`, at most `ms`. Preconditions: mayBlock, all waits armed and tested. */
  park(bell: number, ms: number): void {
    const w = this.words;
    const before = Atomics.exchange(w, this.base + AG_SLEEP, SLEEP_PARKED);
    wakeQueue(w, this.base + AG_ACKQ);
    Atomics.wait(w, this.base + AG_BELL, bell, ms);
    this.unpark(before);
  }

  /**
   * As park(), on a word of the user's; `inArena` is its index where it lies in the arena, so that rings reach it. A ring
   * right before the sleep begins is lost, because it changes another word: the caller sleeps in slices.
   */
  parkOn(
    words: Int32Array,
    index: number,
    value: number,
    inArena: number,
    ms: number,
  ): "ok" | "not-equal" | "timed-out" {
    const w = this.words;
    Atomics.store(w, this.base + AG_SLEEP_WORD, inArena);
    const before = Atomics.exchange(w, this.base + AG_SLEEP, SLEEP_PARKED);
    wakeQueue(w, this.base + AG_ACKQ);
    const outcome = Atomics.load(w, this.base + AG_MBOX) > 0 ? "ok" : Atomics.wait(words, index, value, ms);
    Atomics.store(w, this.base + AG_SLEEP_WORD, 0);
    this.unpark(before);
    return outcome;
  }

  private unpark(before: number): void {
    // Awake first, then the flush requests, then anything else.
    Atomics.store(this.words, this.base + AG_SLEEP, before === SLEEP_ARMED ? SLEEP_ARMED : SLEEP_AWAKE);
    this.safepoint();
  }

  /** Says whether a waitAsync listens on the doorbell. */
  setArmed(armed: boolean): void {
    Atomics.store(this.words, this.base + AG_SLEEP, armed ? SLEEP_ARMED : SLEEP_AWAKE);
  }

  // ---- mailbox ---------------------------------------------------------------------------------------------------

  handle(kind: number, handler: MessageHandler): void {
    if (this.#handlers.has(kind)) panic(`two handlers for messages of kind ${kind}`);
    this.#handlers.set(kind, handler);
  }

  /** A message of this agent's to fill in, or 0 if all are under way and the arena is full. */
  tryReserveMessage(kind: number): Message {
    const w = this.words;
    for (let k = 0; k < MESSAGE_COUNT; k++) {
      const m = messageAt(this.base, k);
      if (this.#reserve(m, kind)) return m;
    }
    const head = Atomics.load(w, this.base + AG_MORE);
    for (let m = head as Message; m !== 0; m = Atomics.load(w, m + MSG_MORE) as Message) {
      if (this.#reserve(m, kind)) return m;
    }
    // The ends of open ranges may hold all the others, and what this one is for may come before those ends.
    const m = (this.allocMessage?.(MSG_WORDS) ?? 0) as Message;
    if (m !== 0) {
      Atomics.store(w, m + MSG_MORE, head);
      Atomics.store(w, m + MSG_STATE, MESSAGE_FREE);
      Atomics.store(w, this.base + AG_MORE, m);
      this.#reserve(m, kind);
    }
    return m;
  }

  #reserve(m: Message, kind: number): boolean {
    const w = this.words;
    if (Atomics.compareExchange(w, m + MSG_STATE, MESSAGE_FREE, MESSAGE_RESERVED) !== MESSAGE_FREE)
      return false;
    Atomics.store(w, m + MSG_KIND, kind);
    Atomics.store(w, m + MSG_FROM, this.slot);
    Atomics.store(w, m + MSG_POSTED, 0);
    Atomics.store(w, m + MSG_RESULT, 0);
    Atomics.store(w, m + MSG_TEXT_LENGTH, 0);
    return true;
  }

  /** Says that a filled message will be sent to `ownerId` without an answer: if this agent dies first, its reaper sends it. */
  promiseMessage(ownerId: number, m: Message): void {
    Atomics.store(this.words, m + MSG_RESULT, ownerId);
    Atomics.store(this.words, m + MSG_POSTED, 1);
  }

  /** As sendTo(), to whoever has the slot now. */
  send(slot: number, m: Message, posted: boolean): boolean {
    return this.sendTo(this.ownerAt(slot), m, posted);
  }

  /**
   * Puts a filled message in the mailbox of the agent with this owner id and rings it. `posted`: nobody waits for the
   * answer, and the message is free again when it is served. False: that agent is gone; a message that was not
   * posted is still the sender's. Once sent it is served, or answered by a reaper, or lies with an agent that is gone.
   */
  sendTo(ownerId: number, m: Message, posted: boolean): boolean {
    const w = this.words;
    const slot = slotOfOwner(ownerId);
    Atomics.store(w, m + MSG_POSTED, posted ? 1 : 0);
    Atomics.store(w, m + MSG_RESULT, 0);
    // From here on nobody takes the slot anew: a message in the mailbox of a successor would be answered by a stranger.
    Atomics.store(w, this.base + AG_SENDING, slot + 1);
    const sent = ownerId !== 0 && ownerAlive(w, ownerId) && this.#push(slot, m);
    Atomics.store(w, this.base + AG_SENDING, 0);
    // After the push: a target that looks first and sees nothing would never look again.
    if (sent) ring(w, slot);
    else if (posted) this.freeMessage(m);
    return sent;
  }

  #push(slot: number, m: Message): boolean {
    const w = this.words;
    const mailbox = agentAt(slot) + AG_MBOX;
    Atomics.store(w, m + MSG_STATE, MESSAGE_POSTED);
    for (let head = Atomics.load(w, mailbox); head !== MAILBOX_CLOSED;) {
      Atomics.store(w, m + MSG_NEXT, head);
      const seen = Atomics.compareExchange(w, mailbox, head, m);
      if (seen === head) return true;
      head = seen;
    }
    Atomics.store(w, m + MSG_STATE, MESSAGE_RESERVED);
    return false;
  }

  /** Closes the mailbox of an agent that is going or gone, and answers what is in it. */
  closeMailbox(slot: number): void {
    const w = this.words;
    const mailbox = agentAt(slot) + AG_MBOX;
    for (let m = Atomics.exchange(w, mailbox, MAILBOX_CLOSED) as Message; m > 0;) {
      const next = Atomics.load(w, m + MSG_NEXT) as Message;
      this.setMessageText(m, "the agent is gone");
      this.finishMessage(m);
      m = next;
    }
  }

  messageDone(m: Message): boolean {
    return Atomics.load(this.words, m + MSG_STATE) === MESSAGE_DONE;
  }

  freeMessage(m: Message): void {
    Atomics.store(this.words, m + MSG_STATE, MESSAGE_FREE);
  }

  /** Gives the answer: the sender goes on. */
  finishMessage(m: Message): void {
    const w = this.words;
    const from = Atomics.load(w, m + MSG_FROM);
    Atomics.add(w, this.base + AG_SERVED, 1);
    const posted = Atomics.load(w, m + MSG_POSTED) === 1;
    Atomics.store(w, m + MSG_STATE, posted ? MESSAGE_FREE : MESSAGE_DONE);
    ring(w, from);
  }

  setMessageText(m: Message, text: string): void {
    const encoded = new TextEncoder().encode(text).subarray(0, MSG_TEXT_BYTES);
    this.bytes.set(encoded, (m + MSG_TEXT) * 4);
    Atomics.store(this.words, m + MSG_TEXT_LENGTH, encoded.length);
  }

  messageText(m: Message): string {
    const length = Atomics.load(this.words, m + MSG_TEXT_LENGTH);
    const start = (m + MSG_TEXT) * 4;
    return new TextDecoder().decode(this.bytes.slice(start, start + length));
  }

  #serveMailbox(): void {
    // Not from inside a callback, nor from inside a message: order is the sender's, and the depth stays 1.
    if (this.#serving || this.callbackDepth > 0) return;
    this.#serving = true;
    const w = this.words;
    try {
      for (;;) {
        let m = Atomics.exchange(w, this.base + AG_MBOX, 0);
        if (m === 0) return;
        let oldest = 0;
        while (m !== 0) {
          const next = Atomics.load(w, m + MSG_NEXT);
          Atomics.store(w, m + MSG_NEXT, oldest);
          oldest = m;
          m = next;
        }
        while (oldest !== 0) {
          const message = oldest as Message;
          oldest = Atomics.load(w, message + MSG_NEXT); // read before the answer frees the record
          this.#serveMessage(message);
        }
      }
    } finally {
      this.#serving = false;
    }
  }

  #serveMessage(message: Message): void {
    const handler = this.#handlers.get(Atomics.load(this.words, message + MSG_KIND));
    let later: boolean | void = false;
    try {
      if (handler) later = handler(message);
      else this.setMessageText(message, "no handler for this message");
    } catch (error) {
      this.setMessageText(message, error instanceof Error ? error.message : String(error));
      this.report(new MmError("ECALLBACK", "message", "a message handler threw", { cause: error }));
    }
    if (later !== true) this.finishMessage(message);
  }

  // ---- errors ------------------------------------------------------------------------------------------------------

  /** Tells `onError` of something that has no caller. */
  report(error: MmError): void {
    if (!this.onError) return;
    try {
      this.onError(error);
    } catch {
      // An error handler that throws has nobody left to tell.
    }
  }

  get poisonedBy(): number {
    return Atomics.load(this.words, HDR_POISON);
  }

  /** Throws EOWNERDEAD once an agent has died with a lock held: what that lock protected may be half changed. */
  checkUsable(operation: string): void {
    const dead = this.words[HDR_POISON]!; // plain: whoever needs that lock does not get it anyway
    if (dead !== 0) {
      throw new MmError(
        "EOWNERDEAD",
        operation,
        `agent ${slotOfOwner(dead)} died while it held a lock; the memory can no longer be trusted, create it anew`,
      );
    }
    if (this.#detached) {
      throw new MmError("ESRCH", operation, "the memory has been closed in this agent");
    }
  }

  /** Throws EDEADLK inside a callback: what it would wait for may be waiting for the callback. */
  checkNotInCallback(operation: string): void {
    if (this.callbackDepth > 0) {
      if (this.unwaiting) this.onWaitRefused(operation);
      throw new MmError(
        "EDEADLK",
        operation,
        "not from inside a notifier callback; do it after the callback has returned",
      );
    }
  }

  poison(ownerId: number): void {
    Atomics.compareExchange(this.words, HDR_POISON, 0, ownerId);
    this.ringEverybody();
  }

  ringEverybody(): void {
    const top = this.top();
    for (let slot = 0; slot < top; slot++) ring(this.words, slot);
  }

  /** One above the highest agent slot in use. */
  top(): number {
    return Atomics.load(this.words, HDR_AGENT_TOP);
  }

  isLive(slot: number): boolean {
    return stateOf(Atomics.load(this.words, agentAt(slot) + AG_STATE)) === AGENT_LIVE;
  }

  /** Owner id of the agent in a slot, 0 if none lives there. */
  ownerAt(slot: number): number {
    const state = Atomics.load(this.words, agentAt(slot) + AG_STATE);
    return stateOf(state) === AGENT_LIVE ? ownerIdOf(slot, generationOf(state)) : 0;
  }

  get detached(): boolean {
    return this.#detached;
  }

  /** Gives the slot back. Preconditions: no task is suspended, nothing of this agent is registered. */
  detach(): void {
    if (this.#detached) return;
    this.leave();
    this.#detached = true;
    this.setArmed(false);
    this.closeMailbox(this.slot);
    this.wakeUp(); // lets go of the event loop
    Atomics.store(this.words, this.base + AG_STATE, AGENT_FREE);
    this.ringEverybody();
  }
}

/** Takes a free agent slot. Errors: EAGAIN if all are taken. */
export function attachAgent(buffer: ArrayBufferLike, options: AgentOptions): Agent {
  const w = new Int32Array(buffer);
  const limit = Atomics.load(w, HDR_MAX_AGENTS);
  const generation = (Atomics.add(w, HDR_GENERATION, 1) % GENERATION_LIMIT) + 1;
  let awaited = true;
  for (let round = 0; awaited && round < ATTACH_ROUNDS; round++) {
    awaited = false;
    for (let slot = 0; slot < limit; slot++) {
      const state = agentAt(slot) + AG_STATE;
      const mine = agentState(generation, AGENT_ATTACHING);
      if (Atomics.compareExchange(w, state, AGENT_FREE, mine) !== AGENT_FREE) continue;
      // First the state, then the look: whoever means the slot's last agent sees the one or is seen by the other.
      if (someoneSendsTo(w, slot)) {
        awaited = true;
        Atomics.store(w, state, AGENT_FREE);
        continue;
      }
      initSlot(w, slot, options);
      Atomics.store(w, state, agentState(generation, AGENT_LIVE));
      return new Agent(buffer, slot, generation, options);
    }
  }
  throw new MmError(
    "EAGAIN",
    "attach",
    `all ${limit} agent slots are taken; raise maxAgents in createMemory()`,
  );
}

/** True while an agent is about to push a message to the mailbox of this slot. */
function someoneSendsTo(w: Int32Array, slot: number): boolean {
  const top = Atomics.load(w, HDR_AGENT_TOP);
  for (let s = 0; s < top; s++) if (Atomics.load(w, agentAt(s) + AG_SENDING) === slot + 1) return true;
  return false;
}

function initSlot(w: Int32Array, slot: number, options: AgentOptions): void {
  const agent = agentAt(slot);
  for (const field of [AG_MBOX, AG_SLEEP, AG_SLEEP_WORD, AG_SERVED, AG_SENDING]) {
    Atomics.store(w, agent + field, 0);
  }
  for (let k = 0; k < MESSAGE_COUNT; k++) forgetMessage(w, messageAt(agent, k));
  const more = Atomics.load(w, agent + AG_MORE) as Message;
  for (let m = more; m !== 0; m = Atomics.load(w, m + MSG_MORE) as Message) forgetMessage(w, m);
  if ((Atomics.load(w, agent + AG_TURN) & 1) === 1) Atomics.add(w, agent + AG_TURN, 1);
  Atomics.store(w, agent + AG_FACK, Atomics.load(w, agent + AG_FREQ));
  Atomics.store(w, agent + AG_TID, options.tid ?? 0);
  Atomics.store(w, agent + AG_THREAD, options.thread ?? 0);
  Atomics.store(w, agent + AG_MAY_BLOCK, options.mayBlock ? 1 : 0);
  for (let top = Atomics.load(w, HDR_AGENT_TOP); top <= slot; top = Atomics.load(w, HDR_AGENT_TOP)) {
    Atomics.compareExchange(w, HDR_AGENT_TOP, top, slot + 1);
  }
}

/** Frees what a predecessor left behind; what is in somebody's mailbox is freed there. */
function forgetMessage(w: Int32Array, m: Message): void {
  const state = Atomics.load(w, m + MSG_STATE);
  if (state === MESSAGE_RESERVED || state === MESSAGE_DONE) Atomics.store(w, m + MSG_STATE, MESSAGE_FREE);
}
