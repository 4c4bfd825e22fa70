/**
 * Waiting for a word of mapped memory, and waking those who do. Linux: kernel/futex/.
 *
 * A word is known by what it belongs to, never by its frame, which may change: a page of a file and the offset in it
 * where the file is mapped shared, else the space and the address. Waiters of all words hang in a table of buckets, each
 * with a word of its own to sleep on.
 *
 * Wait: find the word's key and frame, take the bucket's lock, compare, enter. Between finding the frame and comparing is
 * no safepoint, so the translation holds. Notify: take the lock, mark, wake. Whoever stores before he notifies is seen.
 *
 * Lock order: bucket (spin), a leaf.
 */
import { MmError } from "../errors.ts";
import { LockRank, lockSpin, tryLockRead, unlockRead, unlockSpin } from "../sync/index.ts";
import { FL_ID, MM_FUTEXES, FUTEX_BUCKETS, SP_MMAP_LOCK, VM_SHARED } from "./layout.ts";
import type { Mm } from "./mm.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { fileIndexOf, findVma, vmaFile, vmaFlags } from "./vma.ts";

// Bucket.
const BU_LOCK = 0;
const BU_FIRST = 1; // A (stored under BU_LOCK)  waiter that came last
const BUCKET_WORDS = 2;

// Waiter; everything but FW_WOKEN under the bucket's lock.
const FW_NEXT = 0;
const FW_OWNER = 1; //  owner id of the agent that waits
const FW_ID = 2; //     of the file, or of the space
const FW_PAGE = 3;
const FW_OFFSET = 4; // bytes in the page
/** 1: woken. What the waiter sleeps on. */
export const FW_WOKEN = 5;
const FW_WORDS = 6;

/** What a word is known by. */
export interface FutexKey {
  readonly id: number;
  readonly page: number;
  readonly offset: number;
}

/** The key of a word, undefined if mmapLock is taken just now. Never waits. */
export function tryKeyOf(space: SpaceCore, address: number): FutexKey | undefined {
  const { agent, mm } = space;
  const page = Math.floor(address / mm.pageSize);
  const offset = address - page * mm.pageSize;
  const lock = space.slot + SP_MMAP_LOCK;
  if (!tryLockRead(agent, lock, LockRank.mmapLock)) return undefined;
  const vma = findVma(space, address);
  const file = vma === 0 || (vmaFlags(space, vma) & VM_SHARED) === 0 ? 0 : vmaFile(space, vma);
  const key =
    file === 0
      ? { id: space.id, page, offset }
      : { id: Atomics.load(agent.words, file + FL_ID), page: fileIndexOf(space, vma, page), offset };
  unlockRead(agent, lock, LockRank.mmapLock);
  return key;
}

function bucketOf(mm: Mm, key: FutexKey): number {
  const hash = (Math.imul(key.id, 0x9e3779b1) ^ Math.imul(key.page, 0x85ebca6b) ^ (key.offset >> 2)) >>> 0;
  return mm.header + MM_FUTEXES + (((hash ^ (hash >>> 15)) >>> 0) % FUTEX_BUCKETS) * BUCKET_WORDS;
}

/** A waiter of this word, 0 if its value is another. Preconditions: no safepoint since `words` and `index` were found. */
export function enterFutex(mm: Mm, key: FutexKey, words: Int32Array, index: number, value: number): number {
  const { agent } = mm;
  const w = agent.words;
  const waiter = mm.alloc(FW_WORDS, "atomics.wait");
  const bucket = bucketOf(mm, key);
  lockSpin(agent, bucket + BU_LOCK);
  const waits = Atomics.load(words, index) === value;
  if (waits) {
    Atomics.store(w, waiter + FW_WOKEN, 0);
    Atomics.store(w, waiter + FW_OWNER, agent.ownerId);
    Atomics.store(w, waiter + FW_ID, key.id);
    Atomics.store(w, waiter + FW_PAGE, key.page);
    Atomics.store(w, waiter + FW_OFFSET, key.offset);
    Atomics.store(w, waiter + FW_NEXT, Atomics.load(w, bucket + BU_FIRST));
    Atomics.store(w, bucket + BU_FIRST, waiter);
  }
  unlockSpin(agent, bucket + BU_LOCK);
  if (waits) return waiter;
  mm.free(waiter, FW_WORDS);
  return 0;
}

/** Ends a wait. True if it was woken. */
export function leaveFutex(mm: Mm, key: FutexKey, waiter: number): boolean {
  const { agent } = mm;
  const bucket = bucketOf(mm, key);
  lockSpin(agent, bucket + BU_LOCK);
  const woken = Atomics.load(agent.words, waiter + FW_WOKEN) === 1;
  if (!woken) unlink(mm, bucket, waiter);
  unlockSpin(agent, bucket + BU_LOCK);
  mm.free(waiter, FW_WORDS);
  return woken;
}

/** Preconditions: the bucket's lock. */
function unlink(mm: Mm, bucket: number, waiter: number): void {
  const w = mm.agent.words;
  let link = bucket + BU_FIRST;
  while (Atomics.load(w, link) !== waiter) link = Atomics.load(w, link) + FW_NEXT;
  Atomics.store(w, link, Atomics.load(w, waiter + FW_NEXT));
}

/** Wakes up to `count` waiters of a word, those who came first; returns how many. Never waits. */
export function notifyFutex(mm: Mm, key: FutexKey, count: number): number {
  const { agent } = mm;
  const w = agent.words;
  const bucket = bucketOf(mm, key);
  const found: number[] = [];
  lockSpin(agent, bucket + BU_LOCK);
  for (let at = Atomics.load(w, bucket + BU_FIRST); at !== 0; at = Atomics.load(w, at + FW_NEXT)) {
    const same =
      Atomics.load(w, at + FW_ID) === key.id &&
      Atomics.load(w, at + FW_PAGE) === key.page &&
      Atomics.load(w, at + FW_OFFSET) === key.offset;
    if (same) found.unshift(at);
  }
  const woken = found.slice(0, count);
  for (const waiter of woken) {
    unlink(mm, bucket, waiter);
    Atomics.store(w, waiter + FW_WOKEN, 1);
    // Before the lock goes: from then on the waiter may free its record.
    Atomics.notify(w, waiter + FW_WOKEN);
  }
  unlockSpin(agent, bucket + BU_LOCK);
  return woken.length;
}

/** Takes out what a dead agent waited for. */
export function reapFutexes(mm: Mm, ownerId: number): void {
  const { agent } = mm;
  const w = agent.words;
  for (let k = 0; k < FUTEX_BUCKETS; k++) {
    const bucket = mm.header + MM_FUTEXES + k * BUCKET_WORDS;
    lockSpin(agent, bucket + BU_LOCK);
    for (let at = Atomics.load(w, bucket + BU_FIRST); at !== 0;) {
      const next = Atomics.load(w, at + FW_NEXT);
      if (Atomics.load(w, at + FW_OWNER) === ownerId) {
        unlink(mm, bucket, at);
        mm.free(at, FW_WORDS);
      }
      at = next;
    }
    unlockSpin(agent, bucket + BU_LOCK);
  }
}

/** Errors: EINVAL. */
export function checkCount(count: number): void {
  if (!(count >= 0)) throw new MmError("EINVAL", "atomics.notify", "count must be a number, not negative");
}
