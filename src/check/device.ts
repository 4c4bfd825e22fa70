/**
 * A device of a simulated world: a table of translations of one space, and, if the scenario wants one, a TLB in front of
 * it. The table is the scenario's to fill and to drop; what the device then does with it is judged.
 */
import { type Op, waitOp } from "../sched/index.ts";
import type { Call } from "./call.ts";
import { Point } from "./run.ts";
import { PAGE, type SimSpace, type Translation } from "./simSpace.ts";

export interface DeviceOptions {
  readonly name?: string;
  /** It keeps what it has used until flushTlb(). Default false. */
  readonly tlb?: boolean;
  /** It walks the primary page table itself, and has no table of its own but the TLB. Default false. */
  readonly walks?: boolean;
}

export interface DeviceEntry {
  readonly pfn: number;
  readonly write: boolean;
  /** Set by each access through it. */
  accessed: boolean;
  /** Set by each write through it. */
  dirty: boolean;
}

export class Device {
  readonly space: SimSpace;
  readonly name: string;
  readonly #table = new Map<number, DeviceEntry>();
  readonly #tlb: Map<number, DeviceEntry> | undefined;
  readonly #walks: boolean;
  readonly #location: number;
  readonly #busyLocation: number;
  #busy = 0;
  /** @internal Fills under way, as far as the scenario says. */
  filling = 0;

  /** @internal */
  constructor(space: SimSpace, name: string, options: DeviceOptions) {
    this.space = space;
    this.name = name;
    this.#walks = options.walks ?? false;
    this.#tlb = (options.tlb ?? this.#walks) ? new Map() : undefined;
    this.#location = space.world.run.newLocations(space.pages);
    this.#busyLocation = space.world.run.newLocations(1);
    space.devices.push(this);
  }

  #touch(vpn: number, write: boolean): void {
    this.space.world.run.touch(this.#location + vpn, write);
  }

  /** Installs a translation. Never waits. */
  map(address: number, translation: Translation | number, options: { write?: boolean } = {}): void {
    const { pfn, write } =
      typeof translation === "number" ? { pfn: translation, write: options.write ?? true } : translation;
    const vpn = Math.floor(address / PAGE);
    this.#touch(vpn, true);
    const { run } = this.space.world;
    if (run.tracing) run.note(`${this.name}: 0x${address.toString(16)} -> frame ${pfn}`);
    this.space.judgeInstall(address, pfn, write, this.name);
    this.#table.set(vpn, { pfn, write, accessed: false, dirty: false });
  }

  /** Drops the translations of `[start, end)`, clipped to the space; those in the TLB stay. Gives what was there. */
  unmap(start: number, end: number): DeviceEntry[] {
    const gone: DeviceEntry[] = [];
    const { pages } = this.space;
    const { run } = this.space.world;
    for (
      let vpn = Math.max(0, Math.floor(start / PAGE));
      vpn < Math.min(pages, Math.ceil(end / PAGE));
      vpn++
    ) {
      this.#touch(vpn, true);
      const entry = this.#table.get(vpn);
      if (!entry) continue;
      gone.push(entry);
      this.#table.delete(vpn);
      if (run.tracing) run.note(`${this.name} drops 0x${(vpn * PAGE).toString(16)}`);
    }
    return gone;
  }

  /** Drops what the TLB has of `[start, end)`. */
  flushTlb(start: number, end: number): void {
    const { pages } = this.space;
    for (
      let vpn = Math.max(0, Math.floor(start / PAGE));
      vpn < Math.min(pages, Math.ceil(end / PAGE));
      vpn++
    ) {
      this.#touch(vpn, true);
      this.#tlb?.delete(vpn);
    }
    const { run } = this.space.world;
    if (run.tracing) run.note(`${this.name} flushes its TLB`);
  }

  /** The table's entry. */
  entry(address: number): DeviceEntry | undefined {
    const vpn = Math.floor(address / PAGE);
    this.#touch(vpn, true); // its bits may be changed by whoever asks
    return this.#table.get(vpn);
  }

  /** @internal */
  hasEntryIn(start: number, end: number): boolean {
    for (let vpn = 0; vpn < this.space.pages; vpn++) this.#touch(vpn, false);
    const inside = (vpn: number): boolean => vpn * PAGE < end && (vpn + 1) * PAGE > start;
    return [...this.#table.keys(), ...(this.#tlb?.keys() ?? [])].some(inside);
  }

  /** What the device uses for an address: the TLB's entry, else the table's, which then is in the TLB. */
  #lookUp(address: number): DeviceEntry | undefined {
    const vpn = Math.floor(address / PAGE);
    this.#touch(vpn, true);
    const cached = this.#tlb?.get(vpn);
    if (cached) return cached;
    let entry = this.#table.get(vpn);
    if (!entry && this.#walks) {
      const walked = this.space.entry(address);
      if (walked) entry = { ...walked, accessed: false, dirty: false };
    }
    if (entry) this.#tlb?.set(vpn, entry);
    return entry;
  }

  #access(kind: "read" | "write", address: number, entry: DeviceEntry, value: number): number {
    entry.accessed = true;
    if (kind === "write") entry.dirty = true;
    return this.space.access(kind, address, entry.pfn, this.name, this.#walks, value);
  }

  /** Reads a page through the device's translation, at one moment: its value, or undefined where there is none. */
  read(address: number): Call<number | undefined> {
    return this.space.world.call("device.read", () => this.#readOp(address));
  }

  *#readOp(address: number): Op<number | undefined> {
    yield new Point(`${this.name} reads 0x${address.toString(16)}`);
    return this.readNow(address);
  }

  /** As read(), without a scheduling point before it. */
  readNow(address: number): number | undefined {
    const entry = this.#lookUp(address);
    return entry && this.#access("read", address, entry, 0);
  }

  /** Writes a page through the device's translation, at one moment. False: there is none, or it does not allow it. */
  write(address: number, value: number): Call<boolean> {
    return this.space.world.call("device.write", () => this.#writeOp(address, value));
  }

  *#writeOp(address: number, value: number): Op<boolean> {
    yield new Point(`${this.name} writes 0x${address.toString(16)}`);
    return this.writeNow(address, value);
  }

  /** As write(), without a scheduling point before it. */
  writeNow(address: number, value: number): boolean {
    const entry = this.#lookUp(address);
    if (!entry?.write) return false;
    this.#access("write", address, entry, value);
    return true;
  }

  /** A long access: the translation is looked up at one moment and used at a later one. False: there is none. */
  transfer(kind: "read" | "write", address: number, value = 0): Call<boolean> {
    return this.space.world.call("device.transfer", () => this.#transferOp(kind, address, value));
  }

  *#transferOp(kind: "read" | "write", address: number, value: number): Op<boolean> {
    const { run } = this.space.world;
    const point = new Point(`${this.name} begins to ${kind} 0x${address.toString(16)}`);
    yield point;
    const entry = this.#lookUp(address);
    if (!entry || (kind === "write" && !entry.write)) return false;
    run.touch(this.#busyLocation, true);
    this.#busy++;
    yield point.at(`${this.name} ${kind}s 0x${address.toString(16)}`);
    this.#access(kind, address, entry, value);
    run.touch(this.#busyLocation, true);
    this.#busy--;
    return true;
  }

  /** Waits until no transfer is under way. */
  drain(): Call<void> {
    return this.space.world.call("device.drain", () => this.#drainOp());
  }

  *#drainOp(): Op<void> {
    const { world } = this.space;
    world.maySleep(`${this.name}.drain`);
    yield* waitOp(
      0,
      () => {
        world.run.touch(this.#busyLocation, false);
        return this.#busy === 0;
      },
      `the transfers of ${this.name}`,
    );
  }

  /** Transfers are under way. */
  get busy(): boolean {
    this.space.world.run.touch(this.#busyLocation, false);
    return this.#busy > 0;
  }

  /** @internal */
  describe(): string {
    const entries = [...this.#table].map(([vpn, { pfn, write }]) => `${vpn}:f${pfn}${write ? "w" : "r"}`);
    const tlb = [...(this.#tlb ?? [])].map(([vpn, { pfn }]) => `${vpn}:f${pfn}`);
    return `${this.name} ${entries.join(" ") || "-"}${tlb.length > 0 ? ` tlb ${tlb.join(" ")}` : ""}`;
  }
}
