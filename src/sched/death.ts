/**
 * Noticing that an agent died, and giving back what it left.
 *
 * Workers die silently, also in the middle of a critical section. Three who notice: adopt() in the agent that
 * started the worker hears its "exit"; whoever waits looks from time to time whether the operating-system thread of
 * the agent it waits for is still there (Linux); a lock word names its owner, and an owner whose slot has been
 * reaped holds nothing any more.
 *
 * States of a slot: FREE -> ATTACHING -> LIVE attachAgent(); LIVE -> FREE detach(); LIVE -> REAPING -> FREE reap().
 */
import { MmError } from "../errors.ts";
import type { Agent } from "./agent.ts";
import { ownerAlive, wakeQueue } from "./doorbell.ts";
import {
  AG_ACKQ,
  AG_MORE,
  AG_SENDING,
  AG_SLEEP,
  AG_STATE,
  AG_THREAD,
  AG_TID,
  AG_TURN,
  AGENT_FREE,
  AGENT_LIVE,
  AGENT_REAPING,
  agentAt,
  agentState,
  generationOfOwner,
  type Message,
  MESSAGE_COUNT,
  MESSAGE_DONE,
  MESSAGE_FREE,
  MESSAGE_POSTED,
  MESSAGE_RESERVED,
  messageAt,
  MSG_MORE,
  MSG_POSTED,
  MSG_RESULT,
  MSG_STATE,
  SLEEP_AWAKE,
  slotOfOwner,
} from "./layout.ts";

interface HostProbe {
  /** This thread's operating-system id, 0 where unknown. */
  readonly tid: number;
  /** worker_threads' threadId + 1, 0 where unknown. */
  readonly thread: number;
  readonly isMainThread: boolean;
  readonly cores: number;
  threadGone(tid: number): boolean;
}

type GetBuiltin = (id: string) => unknown;

/** What the host tells about threads: everything in Node on Linux, less elsewhere. */
function probeHost(): HostProbe {
  const nothing: HostProbe = {
    tid: 0,
    thread: 0,
    isMainThread: !("WorkerGlobalScope" in globalThis),
    cores: globalThis.navigator?.hardwareConcurrency ?? 2,
    threadGone: () => false,
  };
  const getBuiltin = (globalThis as { process?: { getBuiltinModule?: GetBuiltin } }).process
    ?.getBuiltinModule;
  if (!getBuiltin) return nothing;
  const threads = getBuiltin("node:worker_threads") as { threadId: number; isMainThread: boolean };
  const os = getBuiltin("node:os") as { availableParallelism(): number };
  const fs = getBuiltin("node:fs") as {
    readlinkSync(path: string): string;
    existsSync(path: string): boolean;
  };
  let tid = 0;
  try {
    tid = Number(fs.readlinkSync("/proc/thread-self").split("/").at(-1)) || 0;
  } catch {
    // Not Linux: deaths are then noticed by adopt() alone.
  }
  return {
    tid,
    thread: threads.threadId + 1,
    isMainThread: threads.isMainThread,
    cores: os.availableParallelism(),
    threadGone: (id) => id !== 0 && !fs.existsSync(`/proc/self/task/${id}`),
  };
}

let probe: HostProbe | undefined;
export function host(): HostProbe {
  probe ??= probeHost();
  return probe;
}

/** Looks whether an agent's thread is still there, and reaps the agent if not. True if it lives. */
export function checkLiveness(agent: Agent, ownerId: number): boolean {
  if (!ownerAlive(agent.words, ownerId)) return false;
  const slot = slotOfOwner(ownerId);
  const tid = Atomics.load(agent.words, agentAt(slot) + AG_TID);
  if (tid === host().tid || !host().threadGone(tid)) return true;
  reap(agent, slot, ownerId);
  return false;
}

/** Slots of the agents that attached in the worker with this threadId. */
export function slotsOfThread(agent: Agent, threadId: number): number[] {
  const slots: number[] = [];
  for (let slot = 0; slot < agent.top(); slot++) {
    if (agent.isLive(slot) && Atomics.load(agent.words, agentAt(slot) + AG_THREAD) === threadId + 1)
      slots.push(slot);
  }
  return slots;
}

/** Frees a message of a dead agent, or sees to it that somebody else does. */
function reapMessage(agent: Agent, m: Message): void {
  const w = agent.words;
  const state = Atomics.load(w, m + MSG_STATE);
  if (state === MESSAGE_RESERVED && Atomics.load(w, m + MSG_POSTED) === 1) {
    agent.sendTo(Atomics.load(w, m + MSG_RESULT), m, true); // as promised
  } else if (state === MESSAGE_RESERVED || state === MESSAGE_DONE) {
    Atomics.store(w, m + MSG_STATE, MESSAGE_FREE);
  } else if (state === MESSAGE_POSTED) {
    // Still in somebody's mailbox: whoever answers it frees it.
    Atomics.store(w, m + MSG_POSTED, 1);
    if (Atomics.load(w, m + MSG_STATE) === MESSAGE_DONE) Atomics.store(w, m + MSG_STATE, MESSAGE_FREE);
  }
}

/**
 * Gives back what a dead agent left: answers its mailbox, runs the rows' reapers, frees its slot.
 * One reaper wins; the others see a slot that is no longer live.
 */
export function reap(agent: Agent, slot: number, ownerId: number = agent.ownerAt(slot)): void {
  const w = agent.words;
  const dead = agentAt(slot);
  const generation = generationOfOwner(ownerId);
  const live = agentState(generation, AGENT_LIVE);
  if (ownerId === 0) return;
  if (Atomics.compareExchange(w, dead + AG_STATE, live, agentState(generation, AGENT_REAPING)) !== live)
    return;
  if ((Atomics.load(w, dead + AG_TURN) & 1) === 1) Atomics.add(w, dead + AG_TURN, 1);
  Atomics.store(w, dead + AG_SLEEP, SLEEP_AWAKE);
  Atomics.store(w, dead + AG_SENDING, 0);
  agent.closeMailbox(slot);
  let held: string | undefined;
  for (const reaper of agent.reapers) {
    try {
      held = reaper(slot, ownerId) ?? held;
    } catch (error) {
      held = `what its reaper could not read (${error instanceof Error ? error.message : String(error)})`;
    }
  }
  if (held !== undefined) agent.poison(ownerId);
  for (let k = 0; k < MESSAGE_COUNT; k++) reapMessage(agent, messageAt(dead, k));
  const more = Atomics.load(w, dead + AG_MORE) as Message;
  for (let m = more; m !== 0; m = Atomics.load(w, m + MSG_MORE) as Message) reapMessage(agent, m);
  Atomics.store(w, dead + AG_STATE, AGENT_FREE);
  wakeQueue(w, dead + AG_ACKQ);
  agent.ringEverybody();
  agent.report(
    new MmError(
      "EOWNERDEAD",
      "adopt",
      held === undefined
        ? `agent ${slot} died; what it held has been given back`
        : `agent ${slot} died while it held ${held}; the memory can no longer be trusted`,
    ),
  );
}
