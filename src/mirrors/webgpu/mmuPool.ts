/**
 * The pages of a GPU MMU's pool: which page of the space each holds, and what is known of its bytes.
 *
 *   state      in byPage  in the device's table  from -> to
 *   free       no         no                     -> resident by install()
 *   resident   yes        yes                    -> leaving by leave(), -> free by release()
 *   held       no         by any page that       a page of the device memory lives there, see mmuMemory.ts; from free by
 *                         lives there            hold(), -> free by release()
 *   leaving    yes        no                     bytes written by the GPU are on their way to the frame; -> free by release()
 *
 * Whoever changes the device's table changes the state with it: gpuMmu.ts.
 */

export const SLOT_WRITABLE = 0x1; //  the GPU may store to it
export const SLOT_DIRTY = 0x2; //     it has, and the frame does not have the bytes yet
export const SLOT_LEAVING = 0x4; //   the translation is gone, the bytes are not home
export const SLOT_TOUCHED = 0x8; //   used in the last round, by an invocation that really wanted it
export const SLOT_REFERENCED = 0x10; // used since the clock hand came by
export const SLOT_WATCHED = 0x20; //  the copy is good for as long as the page-table entry is not writable
export const SLOT_DOUBTFUL = 0x40; // the page may have been stored to since it was copied

const FREE = -1;
const HELD = -2;

export class MmuPool {
  readonly pages: number;
  /** Pages of the space that are resident or leaving, and where. */
  readonly byPage: Map<number, number> = new Map();
  readonly #vpns: Int32Array;
  readonly #pfns: Int32Array;
  readonly #flags: Uint8Array;
  /** Counts releases: what was begun for a slot before is not about its page any more. */
  readonly #generations: Uint32Array;
  #free: number;
  #hand = 0;

  constructor(pages: number) {
    this.pages = pages;
    this.#vpns = new Int32Array(pages).fill(FREE);
    this.#pfns = new Int32Array(pages);
    this.#flags = new Uint8Array(pages);
    this.#generations = new Uint32Array(pages);
    this.#free = pages;
  }

  get free(): number {
    return this.#free;
  }

  vpnOf(slot: number): number {
    return this.#vpns[slot]!;
  }

  pfnOf(slot: number): number {
    return this.#pfns[slot]!;
  }

  generationOf(slot: number): number {
    return this.#generations[slot]!;
  }

  has(slot: number, flags: number): boolean {
    return (this.#flags[slot]! & flags) !== 0;
  }

  add(slot: number, flags: number): void {
    this.#flags[slot] = this.#flags[slot]! | flags;
  }

  drop(slot: number, flags: number): void {
    this.#flags[slot] = this.#flags[slot]! & ~flags;
  }

  install(slot: number, vpn: number, pfn: number, flags: number): void {
    this.#vpns[slot] = vpn;
    this.#pfns[slot] = pfn;
    this.#flags[slot] = flags;
    this.byPage.set(vpn, slot);
    this.#free--;
  }

  /** Gives a free slot to a page of the device memory. */
  hold(slot: number, pfn: number): void {
    this.#vpns[slot] = HELD;
    this.#pfns[slot] = pfn;
    this.#flags[slot] = 0;
    this.#free--;
  }

  isHeld(slot: number): boolean {
    return this.#vpns[slot] === HELD;
  }

  release(slot: number): void {
    if (this.#vpns[slot]! >= 0) this.byPage.delete(this.#vpns[slot]!);
    this.#vpns[slot] = FREE;
    this.#flags[slot] = 0;
    this.#generations[slot] = this.#generations[slot]! + 1;
    this.#free++;
  }

  /** The slots with one of the flags, in order. */
  withFlags(flags: number): number[] {
    const found: number[] = [];
    for (let slot = 0; slot < this.pages; slot++) if ((this.#flags[slot]! & flags) !== 0) found.push(slot);
    return found;
  }

  /** The slots of the pages `[first, end)`. */
  inRange(first: number, end: number): number[] {
    const found: number[] = [];
    if (end - first <= this.byPage.size) {
      for (let vpn = first; vpn < end; vpn++) {
        const slot = this.byPage.get(vpn);
        if (slot !== undefined) found.push(slot);
      }
      return found;
    }
    for (const [vpn, slot] of this.byPage) if (vpn >= first && vpn < end) found.push(slot);
    return found;
  }

  /** `count` free slots, or as many as there are, neighbours as far as possible. */
  takeFree(count: number): number[] {
    const taken: number[] = [];
    for (let slot = 0; slot < this.pages && taken.length < count; slot++)
      if (this.#vpns[slot] === FREE) taken.push(slot);
    return taken;
  }

  /**
   * Chooses resident pages to give up, `count` or as many as may go: a clock over the referenced bits first, then, of those
   * that the last round has not touched, any; with `touched` those, too. Takes nothing away.
   */
  chooseVictims(count: number, touched: boolean): number[] {
    const victims: number[] = [];
    const chosen = new Uint8Array(this.pages);
    for (const pass of touched ? [0, 1, 2] : [0, 1]) {
      for (let k = 0; k < this.pages && victims.length < count; k++) {
        const slot = this.#hand;
        this.#hand = slot + 1 === this.pages ? 0 : slot + 1;
        if (this.#vpns[slot]! < 0 || chosen[slot] === 1 || this.has(slot, SLOT_LEAVING)) continue;
        if (pass < 2 && this.has(slot, SLOT_TOUCHED)) continue;
        if (pass === 0 && this.has(slot, SLOT_REFERENCED)) {
          this.drop(slot, SLOT_REFERENCED);
          continue;
        }
        chosen[slot] = 1;
        victims.push(slot);
      }
    }
    return victims;
  }

  /** The first broken invariant, or undefined. */
  check(): string | undefined {
    let used = 0;
    let held = 0;
    for (let slot = 0; slot < this.pages; slot++) {
      if (this.isHeld(slot)) held++;
      if (this.#vpns[slot]! < 0) continue;
      used++;
      if (this.byPage.get(this.#vpns[slot]!) !== slot)
        return `slot ${slot} holds page ${this.#vpns[slot]}, which is elsewhere`;
    }
    if (used !== this.byPage.size) return `${used} slots in use, ${this.byPage.size} pages known`;
    if (used + held + this.#free !== this.pages)
      return `${used} slots in use, ${held} held and ${this.#free} free of ${this.pages}`;
    return undefined;
  }
}
