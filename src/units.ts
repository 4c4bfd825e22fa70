/**
 * Branded numbers: the units of addresses and of positions in the arena, at no run-time cost.
 * Casts to these types stand here, in `…At` functions, and at the public face after validation.
 */
declare const unit: unique symbol;
export type Unit<Base, Name extends string> = Base & { readonly [unit]: Name };

/** Byte address in an address space: an integer in [0, pageSize * 2^31). Any alignment. */
export type Vaddr = Unit<number, "Vaddr">;
/** Virtual page number, `floor(address / pageSize)`: 31 bits. */
export type Vpn = Unit<number, "Vpn">;
/** Physical frame number: an index into the frame table, never bytes. 0 is the shared zero page. */
export type Pfn = Unit<number, "Pfn">;
/** Arena word index of a record of kind `K`; add one of its field offsets. 0 is "none". */
export type Slot<K extends string> = Unit<number, `Slot<${K}>`>;

/** Bytes in a word of the arena. */
export const WORD_BYTES = 4;
export const WORD_SHIFT = 2;

/** Virtual page numbers have this many bits; the address space ends at `pageSize * 2 ** VPN_BITS`. */
export const VPN_BITS = 31;

/** Byte address of the start of a page. */
export const addressOf = (vpn: number, pageShift: number): Vaddr => (vpn * 2 ** pageShift) as Vaddr;

/** Page that holds a byte. Division, not `>>`: shifts truncate to 32 bits, an address has up to 47. */
export const vpnOf = (address: number, pageShift: number): Vpn => Math.floor(address / 2 ** pageShift) as Vpn;

/** End of "the whole space", as ULONG_MAX is in Linux. Exclusive end, so the last byte itself is outside. */
export const ADDRESS_END: number = Number.MAX_SAFE_INTEGER;

const SIZE_UNITS: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  k: 1024,
  kb: 1024,
  kib: 1024,
  m: 1024 ** 2,
  mb: 1024 ** 2,
  mib: 1024 ** 2,
  g: 1024 ** 3,
  gb: 1024 ** 3,
  gib: 1024 ** 3,
};

/** Reads "256 MiB", "64MiB", "1g" or a plain number of bytes; NaN where it is none of these. Units are binary. */
export function parseBytes(size: number | string): number {
  if (typeof size === "number") return size;
  const match = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(size);
  const factor = match && SIZE_UNITS[(match[2] ?? "").toLowerCase()];
  return match && factor ? Math.round(Number(match[1]) * factor) : Number.NaN;
}

/** What follows each other in a list of whole numbers. */
export function runsOf(numbers: readonly number[]): { readonly first: number; readonly end: number }[] {
  const runs: { first: number; end: number }[] = [];
  for (const number of numbers) {
    const last = runs.at(-1);
    if (last?.end === number) last.end++;
    else runs.push({ first: number, end: number + 1 });
  }
  return runs;
}
