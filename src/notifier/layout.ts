/**
 * Records of the notifier row: the subscriptions of a space, an interval, a list notifier.
 *
 * Access key: A any agent, Atomics only · C constant while allocated · S under SUBS_LOCK ·
 * T as S, and read without it while the tree is frozen (SUBS_SEQ odd and a range of one's own open) ·
 * O written by the owning agent only.
 */
import { IT_WORDS } from "../memory/index.ts";

import { srcuWords } from "../sync/index.ts";
import type { Slot } from "../units.ts";

// Subscriptions of one space. Linux: struct mmu_notifier_subscriptions.
export const SUBS_LOCK = 0; //      spinlock
export const SUBS_SEQ = 1; //     A (stored under S)  even: tree mutable; odd: an invalidation that matters is open
export const SUBS_TREE = 2; //    T  root of the interval tree
export const SUBS_DEFERRED = 3; // S  intervals to insert or remove once the tree is mutable
export const SUBS_LIST = 4; //    A (stored under S)  newest list notifier
export const SUBS_PENDING = 5; // S  list notifiers to publish once no range is open
export const SUBS_ANY = 6; //     A  1 from the first registration on, never cleared (mm_has_notifiers)
export const SUBS_STATE = 7; //   A  SUBS_*
export const SUBS_ID = 8; //      C  id of the space; GONE_ID once the record is nobody's
export const SUBS_OWNED = 9; //   S  1 while the space, or whoever made the notifiers, has it
export const SUBS_QUEUE = 10; //  A  readers, removers, registrations
export const SUBS_INTERVALS = 12; // S  intervals whose records are not freed
export const SUBS_GENERATION = 13; // A  makes the ids of reused records differ, whoever registers
export const SUBS_SECONDARY_TLBS = 14; // A (stored under S)  listed notifiers that have the op
export const SUBS_SRCU = 16; //   A  grace-period domain; srcuWords(maxAgents) words
/** Open ranges, one count per agent slot: the sum is Linux's active_invalidate_ranges. */
export const subsOpenAt = (subs: number, maxAgents: number, slot: number): number =>
  subs + SUBS_SRCU + srcuWords(maxAgents) + slot; // A
/** Notifiers that agents have put, and freed since: two counts per agent slot, which only grow. */
export const subsPutAt = (subs: number, maxAgents: number, slot: number): number =>
  subsOpenAt(subs, maxAgents, maxAgents) + 2 * slot; // O
export const subsFreedAt = (subs: number, maxAgents: number, slot: number): number =>
  subsPutAt(subs, maxAgents, slot) + 1; // O
/** List notifiers of an agent whose records are not freed. */
export const subsListedAt = (subs: number, maxAgents: number, slot: number): number =>
  subsPutAt(subs, maxAgents, maxAgents) + slot; // S
export const subsWords = (maxAgents: number): number => subsListedAt(0, maxAgents, maxAgents);

/** No space has it. */
export const GONE_ID = -1;

export const SUBS_LIVE = 0;
export const SUBS_RELEASED = 1;

/** Value of SUBS_SEQ in a fresh record: even, and not 0, so that an interval's odd number below it is positive. */
export const FIRST_SEQ = 2;

// Interval. Linux: struct mmu_interval_notifier. The tree node comes first.
export const IV_SEQ: number = IT_WORDS; //            A  always odd: the invalidation that hit it last
export const IV_OWNER: number = IT_WORDS + 1; //      C  owner id of the agent whose callback it is
export const IV_SUBS: number = IT_WORDS + 2; //       C
export const IV_DEFERRED: number = IT_WORDS + 3; //   S  next on the deferred list
export const IV_STATE: number = IT_WORDS + 4; //      S  INTERVAL_*
export const IV_GENERATION: number = IT_WORDS + 5; // C  makes the ids of a reused record differ
export const IV_LOCAL: number = IT_WORDS + 6; //      O  the owner's number for its object
export const IV_WORDS: number = IT_WORDS + 8;

// From -> to: FREE -> TREE insert, tree mutable; FREE -> INSERTING insert, tree frozen; INSERTING -> TREE last end;
// INSERTING -> FREE remove; TREE -> FREE remove, tree mutable; TREE -> REMOVING remove, tree frozen;
// REMOVING -> FREE last end; TREE or REMOVING -> ORPHANED its agent died, tree frozen; ORPHANED -> freed last end.
// All under SUBS_LOCK.
export const INTERVAL_FREE = 0;
export const INTERVAL_TREE = 1;
export const INTERVAL_INSERTING = 2;
export const INTERVAL_REMOVING = 3;
export const INTERVAL_ORPHANED = 4;

// List notifier. Linux: struct mmu_notifier.
export const LN_NEXT = 0; //       A (stored under S)
export const LN_OWNER = 1; //      C  owner id
export const LN_SUBS = 2; //       C
export const LN_OPS = 3; //        C  LN_OP_* it implements
export const LN_STATE = 4; //      A (stored under S)  LIST_*
export const LN_BITS = 5; //       C  word of the accessed bitmap, 0 = none
export const LN_BITS_PAGES = 6; // C  pages that it covers
export const LN_PAGE_SHIFT = 7; // C  page size of the bitmap
export const LN_BITS_START = 8; // C  double: address of bit 0
export const LN_ANSWER = 10; //    A  ANSWER_*: what another agent's notifier said when it was asked last
export const LN_GENERATION = 11; // C  a message for an earlier notifier in this record is not for this one
export const LN_ANSWER_START = 12; // A  double: of which range
export const LN_ANSWER_END = 14;
export const LN_WORDS = 16;

export const LN_OP_RELEASE = 0x1;
export const LN_OP_CLEAR_FLUSH_YOUNG = 0x2;
export const LN_OP_CLEAR_YOUNG = 0x4;
export const LN_OP_TEST_YOUNG = 0x8;
export const LN_OP_START = 0x10;
export const LN_OP_END = 0x20;
export const LN_OP_SECONDARY_TLBS = 0x40;

export const LIST_FREE = 0;
export const LIST_PENDING = 1;
export const LIST_LINKED = 2;
export const LIST_UNLINKED = 3; // also: the space was released before it could be published

export const ANSWER_NONE = 0;
export const ANSWER_ASKED = 1;
export const ANSWER_OLD = 2;
export const ANSWER_YOUNG = 3;

// Kinds of message of this row.
export const MESSAGE_INTERVALS = 1; // invalidate the receiver's intervals from ARG0 on
export const MESSAGE_LIST = 2; //      call an op of list notifier ARG0; ARG3 is op + LIST_OPS * generation
export const LIST_OPS = 0x100;
export const MESSAGE_PUT = 3; //       to itself: free what has been put
export const RESULT_DONE = 0;
export const RESULT_REFUSED = 1;
export const RESULT_THREW = 2;
/** It returned a promise, which an agent that may block cannot wait for. */
export const RESULT_PROMISED = 3;
/** Flag beside the event: the range is blockable. */
export const RANGE_BLOCKABLE = 0x100;
export const RANGE_EVENT_MASK = 0xff;

export type Subs = Slot<"subscriptions">;
export type Interval = Slot<"interval">;
export type ListNotifier = Slot<"listNotifier">;
