/**
 * What the host and the shaders of a GPU MMU agree on: where things lie in its buffers, and the WGSL module that
 * translates.
 *
 *   table    two words an entry, read by shaders: key (page + 1, 0 = none), slot | TABLE_WRITE. Open addressing: the
 *            entry of a page is the first of its key from its hash on. Written by the host between dispatches only.
 *   control  counters | misses | state | parameters | finished
 *     counters    see CT_*
 *     misses      a set of keys with flags (MISS_*), two words an entry, open addressing: it drops repetitions itself
 *     state       a word for each page of the pool: STATE_ACCESSED, STATE_DIRTY
 *     parameters  see PM_*; written by the host before each dispatch
 *     finished    a bit for each invocation that is done, for a whole run
 *   pool     the bytes of the pages
 *
 * Counters, misses and state are cleared before each dispatch and read back after it.
 */

/** A buffer binding each; the order of the entries in the bind group. */
export const BINDING_TABLE = 0;
export const BINDING_CONTROL = 1;
export const BINDING_POOL = 2;

/** In the second word of an entry of the table; the rest is the number of the pool page. */
export const TABLE_WRITE = 0x80000000;
export const TABLE_SLOT = 0x7fffffff;

export const CT_MISSED = 0; //    1: an invocation missed a page
export const CT_OVERFLOW = 1; //  1: the set of misses is full
export const CT_FINISHED = 2; //  invocations that finished
export const CT_POSTPONED = 3; // 1: an invocation was told to wait for a later round
export const CT_BEGUN = 4; //     1: the kernel calls bifolio_begin()
export const CT_LOWEST = 5; //    0xffffffff less the lowest invocation that had not finished when the round began
export const COUNTER_WORDS = 8;

export const PM_FIRST = 0; //       invocations from here …
export const PM_END = 1; //         … to here run in this round
export const PM_INVOCATIONS = 2; // invocations of the run
export const PARAMETER_WORDS = 4;

/** The invocation had not missed before: the address is the one that it really wants. */
export const MISS_FIRM = 0x1;
/** So is that it wants to store. */
export const MISS_FIRM_WRITE = 0x2;
/** A store to what may be a wrong address. */
export const MISS_GUESSED_WRITE = 0x4;
/** The key of an address that no page has. */
export const MISS_NOWHERE = 0xffffffff;
/** Entries of the set that are tried before a miss counts as overflow. */
const MISS_PROBES = 16;

export const STATE_ACCESSED = 0x1;
export const STATE_DIRTY = 0x2;

/** Knuth's multiplicative hash: neighbours land far from each other. */
export const HASH_FACTOR = 0x9e3779b1;

/** Where things lie, in words. */
export interface MmuLayout {
  readonly pageShift: number;
  /** Pages of the pool. */
  readonly pages: number;
  /** log2 of the entries. */
  readonly tableShift: number;
  readonly missShift: number;
  readonly missesAt: number;
  readonly stateAt: number;
  readonly parametersAt: number;
  readonly finishedAt: number;
}

const MIN_TABLE_SHIFT = 6;
/** Pages that one round records, at most. */
const MOST_MISSES = 65536;

/** At least twice as many entries as there are pages, so that searches stay short. */
const shiftFor = (pages: number): number => Math.max(MIN_TABLE_SHIFT, Math.ceil(Math.log2(pages * 2)));

export function makeLayout(pageSize: number, pages: number): MmuLayout {
  const missShift = shiftFor(Math.min(pages, MOST_MISSES));
  const missesAt = COUNTER_WORDS;
  const stateAt = missesAt + 2 * 2 ** missShift;
  const parametersAt = stateAt + pages;
  return {
    pageShift: Math.log2(pageSize),
    pages,
    tableShift: shiftFor(pages),
    missShift,
    missesAt,
    stateAt,
    parametersAt,
    finishedAt: parametersAt + PARAMETER_WORDS,
  };
}

/** Loads and stores of one type: its name in WGSL and in our functions, and how its words become a value. */
interface Access {
  readonly name: string;
  readonly type: string;
  readonly words: number;
  readonly load: string;
  /** Words of `value`, by number. */
  readonly store: (word: number) => string;
}

const COMPONENTS = ["x", "y", "z", "w"] as const;
const vector = (words: number, of: "u32" | "f32"): Access => ({
  name: `vec${words}${of[0]!}`,
  type: `vec${words}<${of}>`,
  words,
  load: of === "u32" ? "word" : `bitcast<vec${words}<f32>>(word)`,
  store: (k) => (of === "u32" ? `value.${COMPONENTS[k]!}` : `bitcast<u32>(value.${COMPONENTS[k]!})`),
});
const scalar = (type: "u32" | "i32" | "f32"): Access => ({
  name: type,
  type,
  words: 1,
  load: type === "u32" ? "word" : `bitcast<${type}>(word)`,
  store: () => (type === "u32" ? "value" : "bitcast<u32>(value)"),
});
const ACCESSES: readonly Access[] = [
  scalar("u32"),
  scalar("i32"),
  scalar("f32"),
  vector(2, "u32"),
  vector(4, "u32"),
  vector(2, "f32"),
  vector(4, "f32"),
];

/** The forms of an address: its name in functions, its type, its key and its low bits. */
const ADDRESSES = [
  { suffix: "", type: "u32", key: "(address >> BIFOLIO_PAGE_SHIFT) + 1u", low: "address" },
  { suffix: "_at", type: "vec2<u32>", key: "bifolio_key(address)", low: "address.x" },
] as const;

function wordsOf(access: Access): { read: string; write: string } {
  const { words } = access;
  const at = (k: number): string => (k === 0 ? "bifolio_pool[at]" : `bifolio_pool[at + ${k}u]`);
  const list = Array.from({ length: words }, (_, k) => at(k)).join(", ");
  return {
    read: words === 1 ? list : `vec${words}<u32>(${list})`,
    write: Array.from({ length: words }, (_, k) => `  ${at(k)} = ${access.store(k)};`).join("\n"),
  };
}

function accessFunctions(): string {
  const out: string[] = [];
  for (const { suffix, type, key, low } of ADDRESSES) {
    for (const access of ACCESSES) {
      const { read, write } = wordsOf(access);
      const inPage = `((${low} & BIFOLIO_PAGE_MASK & ~${access.words * 4 - 1}u) >> 2u)`;
      out.push(`
fn bifolio_load_${access.name}${suffix}(address: ${type}) -> ${access.type} {
  let page = bifolio_translate(${key}, false);
  if (page == BIFOLIO_NONE) { return ${access.type}(); }
  let at = page + ${inPage};
  let word = ${read};
  return ${access.load};
}
fn bifolio_store_${access.name}${suffix}(address: ${type}, value: ${access.type}) {
  let page = bifolio_translate(${key}, true);
  if (page == BIFOLIO_NONE || bifolio_miss) { return; }
  let at = page + ${inPage};
${write}
}`);
    }
    out.push(`
fn bifolio_load_u8${suffix}(address: ${type}) -> u32 {
  return (bifolio_load_u32${suffix}(address) >> ((${low} & 3u) * 8u)) & 0xffu;
}
fn bifolio_load_u16${suffix}(address: ${type}) -> u32 {
  return (bifolio_load_u32${suffix}(address) >> ((${low} & 2u) * 8u)) & 0xffffu;
}
fn bifolio_prepare_store${suffix}(address: ${type}) -> bool {
  return bifolio_translate(${key}, true) != BIFOLIO_NONE;
}`);
  }
  return out.join("");
}

/** The module that shaders include: see docs/gpu-mmu.md for what its functions promise. */
export function makeWgsl(layout: MmuLayout, group: number): string {
  return `// Bifolio: loads and stores by address of an address space. Names that begin with bifolio_ are taken.
const BIFOLIO_PAGE_SHIFT = ${layout.pageShift}u;
const BIFOLIO_PAGE_MASK = ${2 ** layout.pageShift - 1}u;
const BIFOLIO_NONE = 0xffffffffu;
@group(${group}) @binding(${BINDING_TABLE}) var<storage, read> bifolio_table: array<vec2<u32>>;
@group(${group}) @binding(${BINDING_CONTROL}) var<storage, read_write> bifolio_control: array<atomic<u32>>;
@group(${group}) @binding(${BINDING_POOL}) var<storage, read_write> bifolio_pool: array<u32>;

var<private> bifolio_miss: bool = false;
var<private> bifolio_invocation: u32 = 0u;
// The last translation: key, first word of the page in the pool, and whether stores are allowed and marked.
var<private> bifolio_last: u32 = 0u;
var<private> bifolio_last_page: u32 = 0u;
var<private> bifolio_last_write: bool = false;
// The last miss: key, and whether it was a store.
var<private> bifolio_last_missed: u32 = 0u;
var<private> bifolio_last_missed_write: bool = false;

fn bifolio_hash(key: u32) -> u32 { return key * ${HASH_FACTOR}u; }

fn bifolio_key(address: vec2<u32>) -> u32 {
  if ((address.y >> (BIFOLIO_PAGE_SHIFT - 1u)) != 0u) { return ${MISS_NOWHERE}u; }
  return ((address.y << (32u - BIFOLIO_PAGE_SHIFT)) | (address.x >> BIFOLIO_PAGE_SHIFT)) + 1u;
}

fn bifolio_record(key: u32, write: bool) {
  if (key == bifolio_last_missed && (bifolio_last_missed_write || !write)) { return; }
  bifolio_last_missed = key;
  bifolio_last_missed_write = write;
  if (atomicLoad(&bifolio_control[${CT_MISSED}]) == 0u) { atomicStore(&bifolio_control[${CT_MISSED}], 1u); }
  // The set is full: there is more to bring in than a round can.
  if (atomicLoad(&bifolio_control[${CT_OVERFLOW}]) != 0u) { return; }
  var flags = select(${MISS_FIRM}u, 0u, bifolio_miss);
  if (write) { flags |= select(${MISS_FIRM_WRITE}u, ${MISS_GUESSED_WRITE}u, bifolio_miss); }
  var at = bifolio_hash(key) >> ${32 - layout.missShift}u;
  for (var probes = 0u; probes < ${MISS_PROBES}u;) {
    let word = ${layout.missesAt}u + at * 2u;
    var seen = atomicLoad(&bifolio_control[word]);
    if (seen == 0u) {
      let taken = atomicCompareExchangeWeak(&bifolio_control[word], 0u, key);
      if (taken.exchanged) { seen = key; } else { seen = taken.old_value; }
      if (seen == 0u) { continue; }
    }
    if (seen == key) {
      if ((atomicLoad(&bifolio_control[word + 1u]) & flags) != flags) {
        atomicOr(&bifolio_control[word + 1u], flags);
      }
      return;
    }
    at = (at + 1u) & ${2 ** layout.missShift - 1}u;
    probes++;
  }
  atomicStore(&bifolio_control[${CT_OVERFLOW}], 1u);
}

// First word of the page in the pool, or BIFOLIO_NONE after a miss.
fn bifolio_translate(key: u32, write: bool) -> u32 {
  if (key == bifolio_last && (bifolio_last_write || !write)) { return bifolio_last_page; }
  var at = bifolio_hash(key) >> ${32 - layout.tableShift}u;
  loop {
    let entry = bifolio_table[at];
    if (entry.x == key) {
      if (write && (entry.y & ${TABLE_WRITE}u) == 0u) { break; }
      let slot = entry.y & ${TABLE_SLOT}u;
      if (!bifolio_miss) {
        let marks = select(${STATE_ACCESSED}u, ${STATE_ACCESSED | STATE_DIRTY}u, write);
        let word = ${layout.stateAt}u + slot;
        if ((atomicLoad(&bifolio_control[word]) & marks) != marks) { atomicOr(&bifolio_control[word], marks); }
      }
      bifolio_last = key;
      bifolio_last_page = slot << (BIFOLIO_PAGE_SHIFT - 2u);
      bifolio_last_write = write;
      return bifolio_last_page;
    }
    if (entry.x == 0u) { break; }
    at = (at + 1u) & ${2 ** layout.tableShift - 1}u;
  }
  bifolio_record(key, write);
  bifolio_miss = true;
  return BIFOLIO_NONE;
}

fn bifolio_begin(invocation: u32) -> bool {
  bifolio_miss = false;
  bifolio_last = 0u;
  bifolio_last_missed = 0u;
  bifolio_invocation = invocation;
  if (atomicLoad(&bifolio_control[${CT_BEGUN}]) == 0u) { atomicStore(&bifolio_control[${CT_BEGUN}], 1u); }
  if (invocation >= atomicLoad(&bifolio_control[${layout.parametersAt + PM_INVOCATIONS}])) { return false; }
  let word = atomicLoad(&bifolio_control[${layout.finishedAt}u + (invocation >> 5u)]);
  if ((word & (1u << (invocation & 31u))) != 0u) { return false; }
  let lowest = 0xffffffffu - invocation;
  if (atomicLoad(&bifolio_control[${CT_LOWEST}]) < lowest) { atomicMax(&bifolio_control[${CT_LOWEST}], lowest); }
  if (invocation < atomicLoad(&bifolio_control[${layout.parametersAt + PM_FIRST}]) ||
      invocation >= atomicLoad(&bifolio_control[${layout.parametersAt + PM_END}])) {
    atomicStore(&bifolio_control[${CT_POSTPONED}], 1u);
    return false;
  }
  return true;
}

fn bifolio_missed() -> bool { return bifolio_miss; }

fn bifolio_finish() -> bool {
  if (bifolio_miss) { return false; }
  atomicOr(&bifolio_control[${layout.finishedAt}u + (bifolio_invocation >> 5u)], 1u << (bifolio_invocation & 31u));
  atomicAdd(&bifolio_control[${CT_FINISHED}], 1u);
  return true;
}

fn bifolio_add(address: vec2<u32>, bytes: u32) -> vec2<u32> {
  let low = address.x + bytes;
  return vec2<u32>(low, address.y + select(0u, 1u, low < address.x));
}

// address + index * stride, for arrays beyond 4 GiB.
fn bifolio_element(address: vec2<u32>, index: u32, stride: u32) -> vec2<u32> {
  let a = index & 0xffffu;
  let b = index >> 16u;
  let c = stride & 0xffffu;
  let d = stride >> 16u;
  let middle = b * c + ((a * c) >> 16u);
  let cross = a * d + (middle & 0xffffu);
  let product = vec2<u32>(index * stride, b * d + (middle >> 16u) + (cross >> 16u));
  let sum = bifolio_add(address, product.x);
  return vec2<u32>(sum.x, sum.y + product.y);
}
${accessFunctions()}
`;
}
