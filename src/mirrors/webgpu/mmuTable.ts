/**
 * The page table of a GPU MMU as the host keeps it, and which parts of it the device does not have yet. Open addressing
 * with linear probing; removal moves later entries up, so that a search ends at the first empty entry.
 *
 *   G1  The device's copy differs from `words` in blocks that are marked as changed only.
 */
import { HASH_FACTOR, TABLE_SLOT, TABLE_WRITE } from "./mmuShader.ts";

/** Entries that are written together; 256 bytes. */
const BLOCK_SHIFT = 5;
const ENTRY_WORDS = 2;

export class MmuTable {
  /** Key and value of each entry, as the device has them. */
  readonly words: Uint32Array<ArrayBuffer>;
  readonly #mask: number;
  readonly #hashShift: number;
  readonly #changed: Uint8Array;
  #anyChanged = false;

  /** `shift`: log2 of the entries. Holds at most half as many pages. */
  constructor(shift: number) {
    this.words = new Uint32Array(ENTRY_WORDS * 2 ** shift);
    this.#mask = 2 ** shift - 1;
    this.#hashShift = 32 - shift;
    this.#changed = new Uint8Array((2 ** shift) >>> BLOCK_SHIFT);
  }

  #homeOf(key: number): number {
    return Math.imul(key, HASH_FACTOR) >>> this.#hashShift;
  }

  /** The entry of a key, or the empty one where it would be. */
  #seek(key: number): number {
    for (let at = this.#homeOf(key); ; at = (at + 1) & this.#mask) {
      const seen = this.words[at * ENTRY_WORDS]!;
      if (seen === key || seen === 0) return at;
    }
  }

  #put(at: number, key: number, value: number): void {
    this.words[at * ENTRY_WORDS] = key;
    this.words[at * ENTRY_WORDS + 1] = value;
    this.#changed[at >>> BLOCK_SHIFT] = 1;
    this.#anyChanged = true;
  }

  /** Maps a page, or changes what it is mapped to. */
  set(vpn: number, slot: number, write: boolean): void {
    this.#put(this.#seek(vpn + 1), vpn + 1, (write ? TABLE_WRITE | slot : slot) >>> 0);
  }

  /** The pool page of a page, -1 if it is not mapped. */
  slotOf(vpn: number): number {
    const at = this.#seek(vpn + 1);
    return this.words[at * ENTRY_WORDS] === 0 ? -1 : this.words[at * ENTRY_WORDS + 1]! & TABLE_SLOT;
  }

  remove(vpn: number): void {
    let hole = this.#seek(vpn + 1);
    if (this.words[hole * ENTRY_WORDS] === 0) return;
    for (let at = (hole + 1) & this.#mask; ; at = (at + 1) & this.#mask) {
      const key = this.words[at * ENTRY_WORDS]!;
      if (key === 0) break;
      // It may move up unless its search begins after the hole.
      if (((at - this.#homeOf(key)) & this.#mask) < ((at - hole) & this.#mask)) continue;
      this.#put(hole, key, this.words[at * ENTRY_WORDS + 1]!);
      hole = at;
    }
    this.#put(hole, 0, 0);
  }

  clear(): void {
    this.words.fill(0);
    this.#changed.fill(1);
    this.#anyChanged = true;
  }

  /** Calls `write` for each run of words that the device does not have; from then on it has them. */
  flush(write: (word: number, count: number) => void): void {
    if (!this.#anyChanged) return;
    this.#anyChanged = false;
    const words = ENTRY_WORDS << BLOCK_SHIFT;
    for (let block = 0; block < this.#changed.length; block++) {
      if (this.#changed[block] === 0) continue;
      const first = block;
      while (this.#changed[block] === 1) this.#changed[block++] = 0;
      write(first * words, (block - first) * words);
    }
  }
}
