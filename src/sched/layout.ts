/**
 * The words that agents use to find, wake and answer each other: the arena header and one slot per agent.
 *
 * Access key, after each offset:
 *   A  any agent, Atomics only      C  constant once the memory exists
 *   O  written by the owning agent only (Atomics), read by any     M  under the slot's MARK_LOCK
 *   B  message fields: written by the sender while RESERVED, by the receiver while POSTED
 */
import type { Slot } from "../units.ts";

export const ARENA_MAGIC = 0x42_69_66_6f; // "Bifo"
export const ARENA_VERSION = 1;

// Arena header. Word 0 stays 0, so that slot 0 can mean "none".
export const HDR_MAGIC = 1; //       C
export const HDR_VERSION = 2; //     C
export const HDR_POISON = 3; //      A  owner id of the agent that died with a lock, 0 = sound
export const HDR_MAX_AGENTS = 4; //  C
export const HDR_AGENT_TOP = 5; //   A  one above the highest slot ever taken
export const HDR_DEBUG = 6; //       C  1: lockdep, poisoned frames, invariant checks
export const HDR_ROOT = 7; //        C  slot of the header of the memory row
export const HDR_GENERATION = 8; //  A  source of owner generations
export const HDR_CORES = 9; //       C  processors: spinning is pointless on one
export const HDR_WORDS = 64;

/** Agents at most: a wait queue has a bit for each. */
export const AGENT_LIMIT = 64;

// Agent slot. Separate cache lines for what others write and for what the agent writes.
export const AG_BELL = 0; //        A  doorbell: counts up; the agent sleeps on it and on nothing else
export const AG_MBOX = 1; //        A  newest message of a linked list, 0 = empty, MAILBOX_CLOSED = nobody lives here
export const AG_FREQ = 2; //        A (stored under M)  flush requests made
export const AG_MARK_LOCK = 3; //   A  spinlock over the ring of flush requests
export const AG_ACKQ = 16; //       A  wait queue: who wants to be rung on acknowledgement, turn end, park
export const AG_SLEEP = 32; //      O  SLEEP_*
export const AG_TURN = 33; //       O (reaper once)  odd: in a turn; even: idle
export const AG_FACK = 34; //       O  flush requests done
export const AG_STATE = 35; //      A  generation above, AGENT_* in the lowest bits: one word, so that one CAS means one agent
export const AG_TID = 37; //        O  operating-system thread id where known, else 0
export const AG_THREAD = 38; //     O  worker_threads' threadId + 1 where known, else 0
export const AG_MAY_BLOCK = 39; //  O
export const AG_SLEEP_WORD = 40; // O  word index of the user's word the agent sleeps on in memory.wait, 0 = none
export const AG_SERVED = 41; //     O  messages answered, for statistics
export const AG_SENDING = 42; //    O (reaper once)  slot + 1 whose mailbox it is about to push to: not to be taken anew
export const AG_MORE = 43; //       O  messages beyond the first MESSAGE_COUNT, linked by MSG_MORE; the slot keeps them
export const AG_RING = 48; //       M  RING_ENTRIES ranges to flush
export const RING_ENTRIES = 16; // power of two
/** Behind by more than this, a reader may be looking at an entry that is being overwritten: flush everything. */
export const RING_LAG: number = RING_ENTRIES - 2;
export const RE_SPACE = 0;
export const RE_START = 1; // first page
export const RE_END = 2; //   page after the last
export const RE_WORDS = 4;
export const AG_MESSAGES: number = AG_RING + RING_ENTRIES * RE_WORDS;
export const MESSAGE_COUNT = 6;

// Message: lives in the sender's slot; the receiver answers in place.
export const MSG_NEXT = 0; //     B
export const MSG_STATE = 1; //    A  MESSAGE_*
export const MSG_KIND = 2; //     B  which handler; see Agent.handle()
export const MSG_FROM = 3; //     B  sender's slot number
export const MSG_SUBJECT = 4; //  B
export const MSG_ARG0 = 5; //     B
export const MSG_ARG1 = 6; //     B
export const MSG_ARG2 = 7; //     B
export const MSG_ARG3 = 8; //     B
export const MSG_POSTED = 9; //   B  1: nobody waits, the receiver frees it; while RESERVED: the reaper sends it, see promise()
export const MSG_START = 10; //   B  double
export const MSG_END = 12; //     B  double
export const MSG_RESULT = 14; //  B  while RESERVED with MSG_POSTED 1: owner id of the agent it will be sent to
export const MSG_TEXT_LENGTH = 15; // B
export const MSG_TEXT = 16; //    B  UTF-8 bytes of an error text
export const MSG_MORE = 63; //    C  next of AG_MORE
export const MSG_WORDS = 64;
export const MSG_TEXT_BYTES: number = (MSG_MORE - MSG_TEXT) * 4;

export const AG_WORDS = 512;

const STATE_BITS = 2;
const STATE_MASK = 3;
export const AGENT_FREE = 0;
export const AGENT_LIVE = 1;
export const AGENT_REAPING = 2;
export const AGENT_ATTACHING = 3;
/** Values of AG_STATE. A generation has 23 bits. */
export const agentState = (generation: number, state: number): number => (generation << STATE_BITS) | state;
export const stateOf = (word: number): number => word & STATE_MASK;
export const generationOf = (word: number): number => word >>> STATE_BITS;

export const MAILBOX_CLOSED = -1;

export const SLEEP_AWAKE = 0;
export const SLEEP_PARKED = 1; // in Atomics.wait: quiescent, flushes before anything else when it wakes
export const SLEEP_ARMED = 2; //  a waitAsync listens on the doorbell

export const MESSAGE_FREE = 0;
export const MESSAGE_RESERVED = 1;
export const MESSAGE_POSTED = 2;
export const MESSAGE_DONE = 3;

export type AgentSlot = Slot<"agent">;
export type Message = Slot<"message">;
/** A wait queue: QUEUE_WORDS words with a bit for each agent. */
export type WaitQueue = Slot<"waitQueue">;
export const QUEUE_WORDS = 2;
export const QUEUE_BITS = 32;

export const agentAt = (slot: number): AgentSlot => (HDR_WORDS + slot * AG_WORDS) as AgentSlot;
export const messageAt = (agent: AgentSlot, k: number): Message =>
  (agent + AG_MESSAGES + k * MSG_WORDS) as Message;
export const ringEntryAt = (agent: AgentSlot, request: number): number =>
  agent + AG_RING + (request & (RING_ENTRIES - 1)) * RE_WORDS;
/** First word after the agent slots. */
export const schedEnd = (maxAgents: number): number => HDR_WORDS + maxAgents * AG_WORDS;

// Owner id: generation above, slot number + 1 below; 0 is nobody.
const OWNER_SLOT_BITS = 8;
const OWNER_SLOT_MASK = 0xff;
export const GENERATION_LIMIT = 0x7fffff;
export const ownerIdOf = (slot: number, generation: number): number =>
  (generation << OWNER_SLOT_BITS) | (slot + 1);
export const slotOfOwner = (ownerId: number): number => (ownerId & OWNER_SLOT_MASK) - 1;
export const generationOfOwner = (ownerId: number): number => ownerId >>> OWNER_SLOT_BITS;
