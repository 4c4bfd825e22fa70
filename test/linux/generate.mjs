#!/usr/bin/env node
// Seeded random mm programs (see FORMAT.md). The same arguments always give the same files.
//
//   node generate.mjs SEED COUNT --ops N|MIN-MAX --out DIR [--profile basic|fork|file|madvise|errors|all] [--pages N]
//
// `all` mixes every kind of operation in one program. A rough model of what is mapped steers the choices,
// so that most operations hit something, boundaries are crossed, and ranges collide. Behaviour that Linux
// does not promise to repeat is never generated (FORMAT.md, "Left out").
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const PROFILES = ["basic", "fork", "file", "madvise", "errors", "all"];

export function rng(text) {
  let h = 0x9e3779b9;
  for (const c of text) h = Math.imul(h ^ c.charCodeAt(0), 0x85ebca6b) ^ (h >>> 13);
  let a = h >>> 0,
    b = (h ^ 0xdeadbeef) >>> 0,
    c = Math.imul(h, 0x27d4eb2f) >>> 0,
    d = 1;
  const next = () => {
    // sfc32
    a >>>= 0;
    b >>>= 0;
    c >>>= 0;
    d >>>= 0;
    let t = (a + b) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    d = (d + 1) | 0;
    t = (t + d) | 0;
    c = (c + t) | 0;
    return (t >>> 0) / 4294967296;
  };
  for (let i = 0; i < 12; i++) next();
  const r = {
    next,
    int: (n) => Math.floor(next() * n),
    chance: (p) => next() < p,
    pick: (list) => list[Math.floor(next() * list.length)],
  };
  r.range = (lo, hi) => lo + r.int(hi - lo + 1);
  r.weighted = (pairs) => {
    let t = 0;
    for (const [, w] of pairs) t += w;
    let x = next() * t;
    for (const [v, w] of pairs) {
      x -= w;
      if (x < 0) return v;
    }
    return pairs[pairs.length - 1][0];
  };
  return r;
}

const WEIGHTS = {
  basic: {
    mmap: 14,
    munmap: 8,
    mprotect: 14,
    mremap: 7,
    store: 14,
    load: 8,
    fill: 14,
    scan: 6,
    dontneed: 4,
    mlock: 2,
    munlock: 1,
    mincore: 2,
    pagemap: 2,
  },
  fork: {
    mmap: 8,
    munmap: 4,
    mprotect: 8,
    mremap: 4,
    store: 22,
    load: 6,
    fill: 10,
    scan: 5,
    fork: 7,
    exit: 1.2,
    forkAdvice: 4,
    dontneed: 4,
    free: 1,
    mlock: 1,
    pagemap: 3,
    clear_refs: 0.5,
  },
  file: {
    mmap: 14,
    munmap: 5,
    mprotect: 7,
    mremap: 5,
    store: 13,
    load: 8,
    fill: 8,
    scan: 9,
    pwrite: 5,
    pread: 3,
    ftruncate: 6,
    punch: 5,
    allocate: 1,
    fsync: 4,
    msync: 3,
    mincore: 3,
    dontneed: 5,
    remove: 3,
    fork: 0.8,
    pagemap: 2,
    populate: 3,
    mlock: 1,
  },
  madvise: {
    mmap: 12,
    munmap: 3,
    mprotect: 6,
    mremap: 3,
    store: 10,
    load: 5,
    fill: 12,
    scan: 5,
    dontneed: 9,
    free: 7,
    guard: 10,
    populate: 8,
    remove: 4,
    cold: 2,
    pageout: 4,
    willneed: 2,
    hints: 5,
    forkAdvice: 4,
    dontneedLocked: 2,
    mlock: 3,
    munlock: 2,
    mincore: 3,
    fork: 1,
    pagemap: 3,
    ftruncate: 1,
    punch: 1,
  },
  errors: {
    mmap: 10,
    munmap: 4,
    mprotect: 5,
    store: 4,
    load: 4,
    fill: 8,
    badMmap: 8,
    badMunmap: 5,
    badMprotect: 7,
    badMremap: 9,
    badMadvise: 10,
    badMlock: 5,
    badMsync: 4,
    badMincore: 4,
    badFile: 5,
    wildAccess: 5,
    mlock: 1,
    fork: 0.3,
    dontneed: 2,
  },
};
WEIGHTS.all = {
  mmap: 14,
  munmap: 6,
  mprotect: 10,
  mremap: 7,
  store: 16,
  load: 7,
  fill: 11,
  scan: 6,
  fork: 3.5,
  exit: 0.6,
  forkAdvice: 2,
  dontneed: 5,
  dontneedLocked: 0.7,
  free: 3,
  guard: 4,
  populate: 4,
  remove: 2,
  cold: 0.7,
  pageout: 1.5,
  willneed: 0.7,
  hints: 2,
  mlock: 2,
  munlock: 1.5,
  mincore: 2,
  pagemap: 2,
  clear_refs: 0.5,
  pwrite: 3,
  pread: 1.5,
  ftruncate: 3,
  punch: 3,
  allocate: 0.5,
  fsync: 2,
  msync: 1.5,
  badMmap: 0.7,
  badMprotect: 0.5,
  badMremap: 1,
  badMadvise: 0.7,
  wildAccess: 0.7,
};

const PROTS = [
  ["rw", 50],
  ["r", 22],
  ["none", 12],
  ["rx", 5],
  ["rwx", 5],
];

export function generate(seed, index, { profile = "all", ops = [30, 60], pages } = {}) {
  const r = rng(`${seed}/${index}/${profile}`);
  const N = pages ?? r.pick([32, 32, 48, 64]);
  const out = [];
  const usesFiles =
    profile === "file" ||
    profile === "all" ||
    profile === "errors" ||
    (profile === "madvise" && r.chance(0.8)) ||
    (profile === "fork" && r.chance(0.5));
  const files = [];
  if (usesFiles) {
    const count = profile === "file" ? r.range(1, 3) : r.range(1, 2);
    for (let k = 0; k < count; k++) {
      const kind = r.chance(profile === "file" ? 0.35 : 0.2) ? "disk" : "memfd";
      const f = {
        op: "file",
        name: `f${k}`,
        pages: r.range(4, kind === "disk" ? 16 : 24),
        kind,
        fill: (k + 1) * 1000,
      };
      if (kind === "memfd" && r.chance(0.25)) f.fill = null;
      if (r.chance(0.1)) f.mode = "ro";
      files.push({ ...f, bytes: f.pages * 4096 });
      out.push(f);
    }
  }
  // cell: { prot, share, file (index or -1), off }
  const procs = [{ name: "p0", map: Array.from({ length: N }, () => null), alive: true }];
  let forks = 0,
    value = 1;
  const maxForks = profile === "fork" ? r.range(1, 3) : r.range(0, 2);
  const edge = (m) => {
    const e = [];
    for (let i = 1; i < N; i++)
      if (
        !!m[i] !== !!m[i - 1] ||
        (m[i] &&
          (m[i].prot !== m[i - 1].prot || m[i].share !== m[i - 1].share || m[i].file !== m[i - 1].file))
      )
        e.push(i);
    return e;
  };
  const mappedPages = (m, test = () => true) => {
    const l = [];
    m.forEach((c, i) => {
      if (c && test(c)) l.push(i);
    });
    return l;
  };
  const size = () =>
    r.weighted([
      [1, 18],
      [2, 18],
      [3, 12],
      [4, 14],
      [6, 8],
      [8, 12],
      [12, 6],
      [16, 5],
    ]);
  // A range that usually starts on or near something interesting.
  const range = (m, { mapped = 0.85 } = {}) => {
    let at = r.int(N),
      len = size();
    const list = mappedPages(m),
      edges = edge(m);
    if (list.length && r.chance(mapped)) at = r.pick(list);
    if (edges.length && r.chance(0.3)) {
      const e = r.pick(edges);
      at = Math.max(0, e - r.range(0, 3));
    }
    if (edges.length && r.chance(0.12)) {
      const a = r.pick(edges),
        b = r.pick(edges);
      if (a !== b) {
        at = Math.min(a, b);
        len = Math.abs(a - b);
      }
    }
    if (m[at] && r.chance(0.6)) {
      let end = at;
      while (end < N && m[end]) end++;
      len = Math.min(len, end - at);
    }
    if (r.chance(0.05)) len = N - at;
    return [at, Math.max(1, Math.min(len, N - at))];
  };
  const onDisk = (m, at, len) =>
    m.slice(at, at + len).some((c) => c && c.file >= 0 && files[c.file].kind === "disk");
  const emit = (p, o) => {
    out.push(p.name === "p0" ? o : { ...o, in: p.name });
  };
  const protOf = () => r.weighted(PROTS);

  const action = {
    mmap(p) {
      let [at, len] = range(p.map, { mapped: 0.4 });
      len = Math.min(N - at, Math.max(len, r.range(1, 8)));
      const o = {
        op: "mmap",
        at,
        len,
        prot: r.chance(0.75) ? "rw" : protOf(),
        share: r.chance(0.7) ? "private" : "shared",
      };
      const flags = [];
      if (files.length && r.chance(profile === "file" ? 0.75 : profile === "errors" ? 0.3 : 0.4)) {
        const k = r.int(files.length),
          f = files[k];
        o.file = f.name;
        o.offset = r.chance(0.5) ? 0 : r.int(Math.max(1, f.pages));
        o.share = r.chance(0.5) ? "private" : "shared";
        if (f.mode === "ro" && o.share === "shared" && r.chance(0.7)) o.prot = "r";
        if (r.chance(0.75)) o.len = len = Math.max(1, Math.min(len, f.pages - o.offset));
      }
      if (r.chance(0.1)) flags.push("noreplace");
      if (r.chance(0.08)) flags.push("populate");
      if (r.chance(0.04)) flags.push("noreserve");
      if (r.chance(0.02)) flags.push("locked");
      if (flags.length) o.flags = flags;
      emit(p, o);
      const k = o.file === undefined ? -1 : +o.file.slice(1);
      if (flags.includes("noreplace") && p.map.slice(at, at + len).some(Boolean)) return;
      if (k >= 0 && files[k].mode === "ro" && o.share === "shared" && o.prot.includes("w")) return;
      for (let i = 0; i < len; i++)
        p.map[at + i] = { prot: o.prot, share: o.share, file: k, off: (o.offset ?? 0) + i };
    },
    munmap(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "munmap", at, len });
      for (let i = at; i < at + len; i++) p.map[i] = null;
    },
    mprotect(p) {
      const [at, len] = range(p.map),
        prot = protOf();
      emit(p, { op: "mprotect", at, len, prot });
      for (let i = at; i < at + len && p.map[i]; i++) p.map[i] = { ...p.map[i], prot };
    },
    mremap(p) {
      const list = mappedPages(p.map);
      if (!list.length) return;
      let at = r.pick(list),
        end = at;
      const c0 = p.map[at];
      while (
        end < N &&
        p.map[end] &&
        (r.chance(0.15) ||
          (p.map[end].share === c0.share && p.map[end].file === c0.file && p.map[end].prot === c0.prot))
      )
        end++;
      if (r.chance(0.4))
        while (
          at > 0 &&
          p.map[at - 1] &&
          p.map[at - 1].share === c0.share &&
          p.map[at - 1].file === c0.file &&
          p.map[at - 1].prot === c0.prot
        )
          at--;
      const len = r.chance(0.6) ? end - at : r.range(1, end - at);
      const kind = r.weighted([
        ["move", 40],
        ["shrink", 18],
        ["grow", 18],
        ["dontunmap", 14],
        ["moveShrink", 7],
        ["moveGrow", 7],
        ["same", 3],
        ["dup", 3],
      ]);
      const cells = p.map.slice(at, at + len);
      const moveTo = (to, newLen, keep) => {
        const moved = Array.from(
          { length: newLen },
          (_, i) =>
            cells[i] ?? (cells[cells.length - 1] && { ...cells[cells.length - 1], off: cells[0].off + i }),
        );
        if (!keep) for (let i = at; i < at + len; i++) p.map[i] = null;
        for (let i = 0; i < newLen; i++) p.map[to + i] = moved[i];
      };
      const target = (n) => {
        for (let k = 0; k < 8; k++) {
          const to = r.int(N - n + 1);
          if (to + n <= at || to >= at + len) return to;
        }
        return -1;
      };
      if (kind === "shrink" && len > 1) {
        const newLen = r.range(1, len - 1);
        emit(p, { op: "mremap", at, len, newLen, flags: r.chance(0.5) ? ["maymove"] : [] });
        for (let i = at + newLen; i < at + len; i++) p.map[i] = null;
      } else if (kind === "grow") {
        const newLen = Math.min(N - at, len + r.range(1, 6));
        if (newLen <= len) return;
        emit(p, { op: "mremap", at, len, newLen, flags: [] });
        let free = at + len === end;
        for (let i = end; i < at + newLen; i++) if (p.map[i]) free = false;
        if (free)
          for (let i = end; i < at + newLen; i++)
            p.map[i] = { ...p.map[end - 1], off: p.map[end - 1].off + i - end + 1 };
      } else if (kind === "same")
        emit(p, { op: "mremap", at, len, newLen: len, flags: r.chance(0.5) ? ["maymove"] : [] });
      else {
        const newLen =
          kind === "moveShrink" && len > 1
            ? r.range(1, len - 1)
            : kind === "moveGrow"
              ? Math.min(N, len + r.range(1, 4))
              : len;
        const to = target(newLen);
        if (to < 0) return;
        const flags = ["maymove", "fixed"];
        if (kind === "dontunmap") flags.push("dontunmap");
        if (kind === "dup") {
          if (c0.share !== "shared") return;
          emit(p, { op: "mremap", at, len: 0, newLen, to, flags });
          moveTo(to, newLen, true);
          return;
        }
        emit(p, { op: "mremap", at, len, newLen, to, flags });
        moveTo(to, newLen, kind === "dontunmap");
      }
    },
    store(p) {
      const l = mappedPages(p.map, (c) => c.prot.includes("w") || r.chance(0.2)),
        at = l.length && r.chance(0.96) ? r.pick(l) : r.int(N);
      emit(p, { op: "store", at, off: r.chance(0.7) ? 0 : 4 * r.int(1024), value: value++ });
    },
    load(p) {
      const l = mappedPages(p.map),
        at = l.length && r.chance(0.95) ? r.pick(l) : r.int(N);
      emit(p, { op: "load", at, off: r.chance(0.8) ? 0 : 4 * r.int(1024) });
    },
    fill(p) {
      const l = mappedPages(p.map, (c) => c.prot.includes("w"));
      const at = l.length ? r.pick(l) : r.int(N);
      let e = at;
      while (e < N && p.map[e]?.prot.includes("w") && e - at < 12) e++;
      const len = Math.max(1, r.chance(0.15) ? Math.min(N - at, e - at + 1) : e - at);
      emit(p, { op: "fill", at, len, value: 100000 + 100 * value++ });
    },
    scan(p) {
      const l = mappedPages(p.map, (c) => c.prot !== "none");
      const at = l.length ? r.pick(l) : r.int(N);
      let e = at;
      while (e < N && p.map[e] && p.map[e].prot !== "none" && e - at < 10) e++;
      emit(p, { op: "scan", at, len: Math.max(1, e - at) });
    },
    fork(p) {
      if (forks >= maxForks || forks >= 4) return;
      const name = `p${++forks}`;
      emit(p, { op: "fork", as: name });
      procs.push({ name, map: p.map.map((c) => c && (c.dontfork ? null : { ...c })), alive: true });
    },
    exit() {
      const l = procs.filter((q) => q.alive && q.name !== "p0");
      if (!l.length) return;
      const q = r.pick(l);
      q.alive = false;
      out.push({ op: "exit", in: q.name });
    },
    dontneed(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "madvise", at, len, advice: "DONTNEED" });
    },
    dontneedLocked(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "madvise", at, len, advice: "DONTNEED_LOCKED" });
    },
    free(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "madvise", at, len, advice: "FREE" });
    },
    guard(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "madvise", at, len, advice: r.chance(0.6) ? "GUARD_INSTALL" : "GUARD_REMOVE" });
    },
    populate(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "madvise", at, len, advice: r.chance(0.5) ? "POPULATE_READ" : "POPULATE_WRITE" });
    },
    remove(p) {
      const [at, len] = range(p.map);
      if (onDisk(p.map, at, len)) return;
      emit(p, { op: "madvise", at, len, advice: "REMOVE" });
    },
    cold(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "madvise", at, len, advice: "COLD" });
    },
    pageout(p) {
      const [at, len] = range(p.map);
      if (onDisk(p.map, at, len)) return;
      emit(p, { op: "madvise", at, len, advice: "PAGEOUT" });
    },
    willneed(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "madvise", at, len, advice: "WILLNEED" });
    },
    hints(p) {
      const [at, len] = range(p.map);
      emit(p, {
        op: "madvise",
        at,
        len,
        advice: r.pick(["SEQUENTIAL", "RANDOM", "NORMAL", "DONTDUMP", "DODUMP"]),
      });
    },
    forkAdvice(p) {
      const [at, len] = range(p.map),
        advice = r.pick(["DONTFORK", "DOFORK", "WIPEONFORK", "WIPEONFORK", "KEEPONFORK"]);
      emit(p, { op: "madvise", at, len, advice });
      if (advice === "DONTFORK" || advice === "DOFORK")
        for (let i = at; i < at + len; i++)
          if (p.map[i]) p.map[i] = { ...p.map[i], dontfork: advice === "DONTFORK" };
    },
    mlock(p) {
      const [at, len] = range(p.map);
      const o = { op: "mlock", at, len };
      if (r.chance(0.25)) o.flags = ["onfault"];
      emit(p, o);
    },
    munlock(p) {
      const [at, len] = range(p.map);
      emit(p, { op: "munlock", at, len });
    },
    mincore(p) {
      const [at, len] = range(p.map, { mapped: 0.97 });
      emit(p, { op: "mincore", at, len });
    },
    pagemap(p) {
      emit(p, { op: "pagemap", at: 0, len: N });
    },
    clear_refs(p) {
      emit(p, {
        op: "clear_refs",
        value: r.weighted([
          [4, 6],
          [1, 1],
          [2, 1],
          [3, 1],
        ]),
      });
    },
    pwrite(p) {
      if (!files.length) return;
      const f = r.pick(files);
      const limit = f.kind === "disk" ? Math.ceil(f.bytes / 4096) : f.pages + 4;
      if (limit < 1) return;
      const at = r.int(limit);
      let off = r.chance(0.7) ? 0 : 4 * r.int(1024);
      if (f.kind === "disk" && at * 4096 + off + 4 > f.bytes) return;
      emit(p, { op: "pwrite", file: f.name, at, off, value: 700000 + value++ });
      if (f.mode !== "ro") f.bytes = Math.max(f.bytes, at * 4096 + off + 4);
    },
    pread(p) {
      if (!files.length) return;
      const f = r.pick(files);
      emit(p, {
        op: "pread",
        file: f.name,
        at: r.int(f.pages + 2),
        off: r.chance(0.7) ? 0 : 4 * r.int(1024),
      });
    },
    ftruncate(p) {
      if (!files.length) return;
      const f = r.pick(files),
        now = Math.ceil(f.bytes / 4096);
      let bytes = r.int(f.kind === "disk" ? now + 1 : f.pages + 6) * 4096;
      if (r.chance(0.25)) bytes += 4 * r.int(1024);
      if (f.kind === "disk" && bytes > f.bytes) return;
      const o = { op: "ftruncate", file: f.name, len: Math.floor(bytes / 4096) };
      if (bytes % 4096) o.lenBytes = bytes % 4096;
      emit(p, o);
      if (f.mode !== "ro") f.bytes = bytes;
    },
    punch(p) {
      const l = files.filter((f) => f.kind === "memfd");
      if (!l.length) return;
      const f = r.pick(l);
      const at = r.int(f.pages),
        o = { op: "punch", file: f.name, at, len: r.range(1, 6) };
      if (r.chance(0.12)) o.atBytes = 4 * r.int(1024);
      if (r.chance(0.12)) o.lenBytes = 4 * r.int(1024);
      emit(p, o);
    },
    allocate(p) {
      const l = files.filter((f) => f.kind === "memfd");
      if (!l.length) return;
      const f = r.pick(l);
      const at = r.int(f.pages),
        len = r.range(1, 4);
      const o = { op: "allocate", file: f.name, at, len };
      if (r.chance(0.5)) o.keepSize = true;
      else if (f.mode !== "ro") f.bytes = Math.max(f.bytes, (at + len) * 4096);
      emit(p, o);
    },
    fsync(p) {
      if (!files.length) return;
      const d = files.filter((f) => f.kind === "disk");
      const f = d.length && r.chance(0.8) ? r.pick(d) : r.pick(files);
      emit(p, { op: "fsync", file: f.name });
    },
    msync(p) {
      const [at, len] = range(p.map);
      emit(p, {
        op: "msync",
        at,
        len,
        flags: r.weighted([
          [["sync"], 6],
          [["async"], 2],
          [["sync", "invalidate"], 2],
          [["invalidate"], 1],
        ]),
      });
    },

    badMmap(p) {
      const [at, len] = range(p.map);
      const base = { op: "mmap", at, len, prot: "rw", share: "private" };
      emit(
        p,
        r.pick([
          { ...base, atBytes: 4 * r.range(1, 1023) },
          { ...base, len: 0 },
          { ...base, len: -1 },
          { ...base, len: 0, lenBytes: -1 },
          { ...base, len: 34359738368 },
          { ...base, share: "neither" },
          { ...base, at: 34359738368 - len },
          { ...base, share: "shared_validate" },
          ...(files.length
            ? [
                { ...base, file: files[0].name, offset: 0, offsetBytes: 512 },
                { ...base, file: files[0].name, share: "shared", offset: -1 },
                { ...base, file: files[0].name, share: "neither", offset: 0 },
              ]
            : []),
          { ...base, flags: ["noreplace"] },
        ]),
      );
      // what the accepted ones change is not modelled; the next operations just see surprises
    },
    badMunmap(p) {
      const [at, len] = range(p.map);
      emit(
        p,
        r.pick([
          { op: "munmap", at, atBytes: 8 * r.range(1, 500), len },
          { op: "munmap", at, len: 0 },
          { op: "munmap", at, len: -1 },
          { op: "munmap", at, len: 34359738368 },
          { op: "munmap", at, len: 0, lenBytes: r.range(1, 4095) },
          { op: "munmap", at: 34359738368, len: 1 },
        ]),
      );
    },
    badMprotect(p) {
      const [at, len] = range(p.map);
      emit(
        p,
        r.pick([
          { op: "mprotect", at, atBytes: 4 * r.range(1, 1000), len, prot: "r" },
          { op: "mprotect", at, len: 0, prot: "r" },
          { op: "mprotect", at, len: -1, prot: "r" },
          { op: "mprotect", at, len, prot: 64 },
          { op: "mprotect", at, len: 0, lenBytes: r.range(1, 4095), prot: "r" },
          {
            op: "mprotect",
            at: Math.max(0, at - 3),
            len: Math.min(N, len + 8),
            prot: r.pick(["r", "rw", "none"]),
          },
          { op: "mprotect", at, len, prot: 0x3000000 + 1 },
        ]),
      );
    },
    badMremap(p) {
      const [at, len] = range(p.map);
      const to = r.int(Math.max(1, N - len));
      emit(
        p,
        r.pick([
          { op: "mremap", at, atBytes: 4, len, newLen: len, flags: [] },
          { op: "mremap", at, len, newLen: 0, flags: [] },
          { op: "mremap", at, len, newLen: len, to, flags: ["fixed"] },
          {
            op: "mremap",
            at,
            len,
            newLen: len,
            to: Math.min(N - len, Math.max(0, at + r.range(-1, 1))),
            flags: ["maymove", "fixed"],
          },
          { op: "mremap", at, len, newLen: len, to, toBytes: 4, flags: ["maymove", "fixed"] },
          { op: "mremap", at, len, newLen: len, to, flags: ["dontunmap"] },
          {
            op: "mremap",
            at,
            len,
            newLen: Math.min(N - to, len + 1),
            to,
            flags: ["maymove", "fixed", "dontunmap"],
          },
          { op: "mremap", at, len: 0, newLen: 1, flags: [] },
          { op: "mremap", at, len, newLen: 34359738368, flags: [] },
          { op: "mremap", at, len: Math.min(N - at, len + 6), newLen: 1, to: 0, flags: ["maymove", "fixed"] },
          { op: "mremap", at, len: Math.min(N - at, len + 5), newLen: Math.min(N - at, len + 7), flags: [] },
          { op: "mremap", at, len: 0, newLen: Math.min(len, N - to), to, flags: ["maymove", "fixed"] },
        ]),
      );
    },
    badMadvise(p) {
      const [at, len] = range(p.map);
      emit(
        p,
        r.pick([
          { op: "madvise", at, atBytes: 4 * r.range(1, 1000), len, advice: "DONTNEED" },
          { op: "madvise", at, len: 0, advice: "DONTNEED" },
          { op: "madvise", at, len: 0, advice: "FREE" },
          { op: "madvise", at, len, advice: 999 },
          { op: "madvise", at, len: -1, advice: "DONTNEED" },
          { op: "madvise", at, len: 0, lenBytes: -1, advice: "DONTNEED" },
          {
            op: "madvise",
            at,
            len: Math.min(N - at, len + 9),
            advice: r.pick([
              "DONTNEED",
              "FREE",
              "WILLNEED",
              "COLD",
              "GUARD_INSTALL",
              "GUARD_REMOVE",
              "POPULATE_READ",
              "POPULATE_WRITE",
              "WIPEONFORK",
              "DONTFORK",
              "SEQUENTIAL",
            ]),
          },
          { op: "madvise", at, len: 0, lenBytes: r.range(1, 4095), advice: "DONTNEED" },
          ...(onDisk(p.map, at, len) ? [] : [{ op: "madvise", at, len, advice: "REMOVE" }]),
        ]),
      );
    },
    badMlock(p) {
      const [at, len] = range(p.map);
      emit(
        p,
        r.pick([
          { op: "mlock", at, len: Math.min(N - at, len + 8) },
          { op: "mlock", at, atBytes: 100, len: 1 },
          { op: "mlock", at, len: 0 },
          { op: "munlock", at, len: Math.min(N - at, len + 8) },
          { op: "mlock", at, len: -1 },
          { op: "munlock", at, atBytes: 4, len: 0 },
        ]),
      );
    },
    badMsync(p) {
      const [at, len] = range(p.map);
      emit(
        p,
        r.pick([
          { op: "msync", at, len, flags: ["sync", "async"] },
          { op: "msync", at, len: Math.min(N - at, len + 7), flags: ["sync"] },
          { op: "msync", at, atBytes: 8, len, flags: ["sync"] },
          { op: "msync", at, len: 0, flags: ["async"] },
          { op: "msync", at, len, flags: [] },
          { op: "msync", at, len, flags: ["invalidate", "async"] },
        ]),
      );
    },
    badMincore(p) {
      const [at, len] = range(p.map);
      emit(
        p,
        r.pick([
          { op: "mincore", at, atBytes: 4, len },
          { op: "mincore", at, len: 0 },
          { op: "mincore", at, len: Math.min(N - at, len + 8) },
          { op: "mincore", at, len: -1 },
        ]),
      );
    },
    badFile(p) {
      if (!files.length) return;
      const f = r.pick(files.filter((x) => x.kind === "memfd")) ?? null;
      if (!f) return;
      emit(
        p,
        r.pick([
          { op: "ftruncate", file: f.name, len: -1 },
          { op: "punch", file: f.name, at: 0, len: 0 },
          { op: "punch", file: f.name, at: -1, len: 1 },
          { op: "pread", file: f.name, at: f.pages + 40, off: 0 },
          { op: "allocate", file: f.name, at: 0, len: 0 },
          { op: "pwrite", file: f.name, at: -1, off: 0, value: 1 },
        ]),
      );
    },
    wildAccess(p) {
      const at = r.int(N);
      emit(
        p,
        r.chance(0.5)
          ? { op: "store", at, off: 0, value: value++ }
          : { op: "load", at, off: r.chance(0.3) && at + 1 < N ? 4094 : 0 },
      );
    },
  };
  const weights = Object.entries(WEIGHTS[profile]);
  const total = Array.isArray(ops) ? r.range(ops[0], ops[1]) : ops;
  const first = out.length;
  for (let k = 0; k < 2; k++) action.mmap(procs[0]);
  action.fill(procs[0]);
  for (let guard = 0; out.length - first < total && guard < total * 20; guard++) {
    const alive = procs.filter((q) => q.alive);
    const p = alive.length > 1 && r.chance(0.6) ? r.pick(alive) : alive[0];
    if (!p.map.some(Boolean) && r.chance(0.7)) {
      action.mmap(p);
      continue;
    }
    if (profile === "fork" && !forks && out.length - first > total * 0.3) {
      action.fork(p);
      continue;
    }
    action[r.weighted(weights)](p);
  }
  const header = {
    format: "mm-program",
    version: 1,
    pages: N,
    name: `${profile}-${seed}-${index}`,
    profile,
    seed: String(seed),
  };
  return { header, ops: out, text: [header, ...out].map((x) => JSON.stringify(x)).join("\n") + "\n" };
}

function main() {
  const argv = process.argv.slice(2),
    pos = [],
    o = { profile: "all", ops: [30, 60] };
  for (let i = 0; i < argv.length; i++) {
    if (argv[i] === "--ops") {
      const m = argv[++i].split("-").map(Number);
      o.ops = m.length > 1 ? m : [m[0], m[0]];
    } else if (argv[i] === "--out") o.out = argv[++i];
    else if (argv[i] === "--profile") o.profile = argv[++i];
    else if (argv[i] === "--pages") o.pages = +argv[++i];
    else pos.push(argv[i]);
  }
  if (pos.length !== 2 || !o.out || !(o.profile in WEIGHTS)) {
    console.error(
      "usage: node generate.mjs SEED COUNT --ops N|MIN-MAX --out DIR [--profile basic|fork|file|madvise|errors|all] [--pages N]",
    );
    process.exit(64);
  }
  mkdirSync(o.out, { recursive: true });
  for (let k = 0; k < +pos[1]; k++) {
    const index = String(k).padStart(3, "0"),
      p = generate(pos[0], index, o);
    writeFileSync(join(o.out, `${p.header.name}.jsonl`), p.text);
  }
}
if (process.argv[1] && fileURLToPath(import.meta.url) === process.argv[1]) main();
