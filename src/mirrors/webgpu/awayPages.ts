/**
 * Pages of a mirrored range whose newest bytes are in its buffer, and how these come home.
 *
 * Invariants
 *   A1  A page has a frame here exactly while the tracker's `away` bit of it is set by this mirror.
 *   A2  Bytes leave the set when they are in their frames, or with the page still away while they are on their way.
 *   A3  What is on its way is waited for by whoever needs one of its pages, and is begun once.
 *
 * Imported by rangeMirror.ts only.
 */
import type { AddressSpace, WriteTracker } from "../../mm/index.ts";
import { type ByteRange, ByteRanges } from "./byteRanges.ts";
import { readBack } from "./readBack.ts";

/** What the mirror is asked for. */
export interface Home {
  readonly space: AddressSpace;
  readonly tracker: WriteTracker;
  readonly pageSize: number;
  /** Where the bytes are now. */
  source(): { readonly device: GPUDevice; readonly buffer: GPUBuffer };
  /** False once the space exits: its bytes go with it. */
  isLive(): boolean;
  /** The error for bytes that could not be read back. */
  readError(cause: unknown, ranges: readonly ByteRange[]): Error;
  countHome(bytes: number): void;
}

/** Bytes on their way home. */
interface Homecoming {
  readonly first: number;
  readonly end: number;
  readonly done: Promise<void>;
}

export class AwayPages {
  readonly #home: Home;
  readonly #pageSize: number;
  /** Bytes of the buffer that are newer than those in the frames. */
  readonly #bytes = new ByteRanges();
  readonly #frames = new Map<number, number>();
  readonly #homecomings = new Set<Homecoming>();
  /** What was lost with a device and has been unmapped since. */
  readonly #unmapped = new ByteRanges();

  constructor(home: Home) {
    this.#home = home;
    this.#pageSize = home.pageSize;
  }

  /** The bytes, as ranges of the buffer. */
  list(): ByteRange[] {
    return this.#bytes.list();
  }

  /** True for a page that is away. */
  has(page: number): boolean {
    return this.#frames.has(page);
  }

  /** Notes that a page has gone. Preconditions: the tracker sends it away. */
  sent(page: number, pfn: number): void {
    this.#frames.set(page, pfn);
  }

  /** Bytes `[start, end)` of the buffer are the newest. Preconditions: their pages are away, and none is on its way home. */
  add(start: number, end: number): void {
    this.#bytes.add(start, end);
  }

  /** Bytes of pages `[first, end)` that are away. */
  within(first: number, end: number): ByteRange[] {
    return this.#bytes.within(first * this.#pageSize, end * this.#pageSize);
  }

  /** True if bytes of pages `[first, end)` are away, or on their way home. */
  isOut(first: number, end: number): boolean {
    if (this.#homecomings.size > 0 && this.#overlapping(first, end).length > 0) return true;
    return !this.#bytes.empty && this.within(first, end).length > 0;
  }

  #overlapping(first: number, end: number): Promise<void>[] {
    return [...this.#homecomings].filter((h) => h.first < end && h.end > first).map(({ done }) => done);
  }

  /** Waits until nothing of pages `[first, end)` is on its way home. */
  async settled(first: number, end: number): Promise<void> {
    for (let on = this.#overlapping(first, end); on.length > 0; on = this.#overlapping(first, end))
      await Promise.allSettled(on);
  }

  /** Brings whole pages home, and waits for those that are on their way. Errors: EIO. */
  bringHome(first: number, end: number): Promise<void> {
    const on = this.#overlapping(first, end);
    const ranges = this.#bytes.take(first * this.#pageSize, end * this.#pageSize);
    if (ranges.length > 0) {
      const done = this.#bringRangesHome(ranges);
      const homecoming = {
        first: Math.floor(ranges[0]!.start / this.#pageSize),
        end: Math.ceil(ranges.at(-1)!.end / this.#pageSize),
        done,
      };
      this.#homecomings.add(homecoming);
      const forget = (): void => void this.#homecomings.delete(homecoming);
      done.then(forget, forget);
      on.push(done);
    }
    return Promise.all(on).then(() => undefined);
  }

  async #bringRangesHome(ranges: readonly ByteRange[]): Promise<void> {
    const home = this.#home;
    const pageSize = this.#pageSize;
    try {
      const { device, buffer } = home.source();
      await readBack(device, buffer, ranges, (start, bytes) => {
        if (!home.isLive()) return;
        home.countHome(bytes.length);
        for (let at = 0; at < bytes.length;) {
          const page = Math.floor((start + at) / pageSize);
          const within = (start + at) % pageSize;
          const n = Math.min(bytes.length - at, pageSize - within);
          home.space.memory.frame(this.#frames.get(page)!).set(bytes.subarray(at, at + n), within);
          at += n;
        }
      });
    } catch (cause) {
      for (const { start, end } of ranges) this.#bytes.add(start, end);
      throw home.readError(cause, ranges);
    }
    if (!home.isLive()) return;
    for (const { start, end } of ranges)
      this.giveBack(Math.floor(start / pageSize), Math.ceil(end / pageSize));
  }

  /** Lets the CPUs have pages again. Preconditions: their bytes are home, or given up. */
  giveBack(first: number, end: number): void {
    for (let page = first; page < end; page++) this.#frames.delete(page);
    this.#home.tracker.comeHome(first, end);
  }

  /** Gives pages up that are unmapped while their device is lost: takeLost() tells of them. */
  loseUnmapped(first: number, end: number): void {
    for (const range of this.#bytes.take(first * this.#pageSize, end * this.#pageSize))
      this.#unmapped.add(range.start, range.end);
    this.giveBack(first, end);
  }

  /** Gives everything up, and returns what that was. Preconditions: nothing is on its way. */
  takeLost(pages: number): ByteRange[] {
    const length = pages * this.#pageSize;
    for (const { start, end } of this.#unmapped.take(0, length)) this.#bytes.add(start, end);
    const lost = this.#bytes.take(0, length);
    this.giveBack(0, pages);
    return lost;
  }

  /** Forgets everything: the space is gone. */
  clear(pages: number): void {
    this.#bytes.take(0, pages * this.#pageSize);
    this.#frames.clear();
  }
}
