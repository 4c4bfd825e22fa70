/**
 * Frames of a simulated world. The frame that was freed last is the first to be given out again, so that whoever still
 * uses it meets its next owner. A frame belongs to one page of one space; a copy of the page has another frame.
 */
import { MmError } from "../errors.ts";
import type { Run } from "./run.ts";

export interface Frame {
  readonly pfn: number;
  /** "space 1 page 0", or what the scenario says; undefined: free. */
  owner: string | undefined;
  /** Taken with get(); the frame outlives its mapping by them. */
  references: number;
  mapped: boolean;
  /** Somebody outside the scenario maps it, too: a copy-on-write leaves it to them. */
  shared: boolean;
  value: number;
  /** Which write of its space's the value comes from. */
  version: number;
  dirty: boolean;
  /** The device wrote to it, and nobody has marked it dirty since. */
  unsaved: boolean;
}

export class SimFrames {
  readonly #run: Run;
  readonly #frames: Frame[] = [];
  readonly #free: number[] = [];
  readonly #location: number;
  readonly #allocator: number;

  constructor(run: Run, count: number) {
    this.#run = run;
    this.#allocator = run.newLocations(1);
    this.#location = run.newLocations(count);
    for (let pfn = 0; pfn < count; pfn++) {
      this.#frames.push({
        pfn,
        owner: undefined,
        references: 0,
        mapped: false,
        shared: false,
        value: 0,
        version: 0,
        dirty: false,
        unsaved: false,
      });
      this.#free.push(count - 1 - pfn);
    }
  }

  #at(pfn: number): Frame {
    const frame = this.#frames[pfn];
    if (!frame) throw new MmError("EINVAL", "frame", `there is no frame ${pfn} in this world`);
    return frame;
  }

  /** A frame to look at. */
  read(pfn: number): Frame {
    this.#run.touch(this.#location + pfn, false);
    return this.#at(pfn);
  }

  /** A frame to change. */
  write(pfn: number): Frame {
    this.#run.touch(this.#location + pfn, true);
    return this.#at(pfn);
  }

  /** A frame for `owner`. Errors: ENOMEM. */
  alloc(owner: string, value: number = 0): number {
    this.#run.touch(this.#allocator, true);
    const pfn = this.#free.pop();
    if (pfn === undefined)
      throw new MmError("ENOMEM", "alloc", `all ${this.#frames.length} frames of the world are in use`);
    const frame = this.write(pfn);
    frame.owner = owner;
    frame.shared = false;
    frame.value = value;
    frame.version = 0;
    frame.dirty = false;
    frame.unsaved = false;
    return pfn;
  }

  get(pfn: number): void {
    const frame = this.write(pfn);
    if (frame.owner === undefined)
      this.#run.violate(
        "use-after-free",
        `${this.#run.who} takes a reference to frame ${pfn}, which is free`,
      );
    frame.references++;
  }

  put(pfn: number): void {
    const frame = this.write(pfn);
    if (frame.references === 0) {
      this.#run.violate(
        "double-release",
        `${this.#run.who} puts a reference to frame ${pfn} that it does not have`,
      );
      return;
    }
    frame.references--;
    this.#freeUnused(frame);
  }

  /** Nothing maps it any more; it is free unless somebody has a reference. */
  unmapped(pfn: number): void {
    const frame = this.write(pfn);
    frame.mapped = false;
    this.#freeUnused(frame);
  }

  /** Frees a frame whoever uses it. */
  free(pfn: number): void {
    const frame = this.write(pfn);
    if (frame.owner === undefined) {
      this.#run.violate("double-release", `${this.#run.who} frees frame ${pfn}, which is free`);
      return;
    }
    frame.mapped = false;
    frame.references = 0;
    frame.shared = false;
    this.#freeUnused(frame);
  }

  #freeUnused(frame: Frame): void {
    if (frame.mapped || frame.shared || frame.references > 0 || frame.owner === undefined) return;
    this.#run.touch(this.#allocator, true);
    if (this.#run.tracing) this.#run.note(`frees frame ${frame.pfn}`);
    frame.owner = undefined;
    this.#free.push(frame.pfn);
  }

  /** At rest: frames with references, as text. */
  referenced(): string[] {
    return this.#frames
      .filter(({ references }) => references > 0)
      .map(({ pfn, references }) => `frame ${pfn} (${references})`);
  }
}
