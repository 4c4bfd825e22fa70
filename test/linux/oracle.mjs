#!/usr/bin/env node
// Runs mm programs on the real kernel through ./oracle and writes results (see FORMAT.md).
//
//   node oracle.mjs PROGRAM.jsonl...                    results to stdout
//   node oracle.mjs PROGRAM.jsonl... --out DIR          DIR/NAME.expected.jsonl for every program
//   node oracle.mjs PROGRAM.jsonl... --beside           next to every program
//   node oracle.mjs PROGRAM.jsonl... --check            runs and compares with the recorded result beside it
// Options: --repeat N (run each program N times; all runs must agree), --file-dir DIR (where "disk" files
// are created; default the system's temporary directory), --frames (add the kernel call chain to events),
// --cpu N.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { release, tmpdir } from "node:os";

const HERE = dirname(fileURLToPath(import.meta.url));
export const BASE = 0x600000000000n;
const PAGE = 4096n;
const MASK = (1n << 64n) - 1n;

// Which enum mmu_notifier_event the caller of mmu_notifier_invalidate_range_start() passes to
// mmu_notifier_range_init(). The names are what the stack shows on this kernel (static functions are
// often inlined into their callers, hence several spellings of one site).
export const CALLERS = {
  unmap_vmas: "UNMAP", // munmap, MAP_FIXED over something, mremap source/shrink
  move_page_tables: "UNMAP", // mremap move
  change_protection: "PROTECTION_VMA", // mprotect (change_pud_range(), inlined)
  change_protection_range: "PROTECTION_VMA",
  change_pud_range: "PROTECTION_VMA",
  zap_page_range_single: "CLEAR", // guard install, truncation, hole punching
  zap_page_range_single_batched: "CLEAR", // the same, and MADV_DONTNEED directly
  madvise_free_single_vma: "CLEAR", // MADV_FREE
  wp_page_copy: "CLEAR", // copy on write
  do_wp_page: "CLEAR", // wp_page_copy() inlined: do_wp_page() has no range of its own
  copy_page_range: "PROTECTION_PAGE", // fork
  page_vma_mkclean_one: "PROTECTION_PAGE", // writeback write-protecting shared file pages
  page_mkclean_one: "PROTECTION_PAGE",
  try_to_unmap_one: "CLEAR", // reclaim
  try_to_migrate_one: "CLEAR",
  clear_refs_write: "SOFT_DIRTY", // /proc/PID/clear_refs
};
const ERRNO = {
  1: "EPERM",
  2: "ENOENT",
  3: "ESRCH",
  4: "EINTR",
  5: "EIO",
  9: "EBADF",
  11: "EAGAIN",
  12: "ENOMEM",
  13: "EACCES",
  14: "EFAULT",
  16: "EBUSY",
  17: "EEXIST",
  19: "ENODEV",
  22: "EINVAL",
  26: "ETXTBSY",
  27: "EFBIG",
  28: "ENOSPC",
  29: "ESPIPE",
  38: "ENOSYS",
  75: "EOVERFLOW",
  95: "EOPNOTSUPP",
};
const SIG = { 7: "SIGBUS", 11: "SIGSEGV" };
const SIGCODE = {
  SIGSEGV1: "SEGV_MAPERR",
  SIGSEGV2: "SEGV_ACCERR",
  SIGSEGV3: "SEGV_BNDERR",
  SIGSEGV4: "SEGV_PKUERR",
  SIGBUS1: "BUS_ADRALN",
  SIGBUS2: "BUS_ADRERR",
  SIGBUS3: "BUS_OBJERR",
};
const ADVICE = {
  NORMAL: 0,
  RANDOM: 1,
  SEQUENTIAL: 2,
  WILLNEED: 3,
  DONTNEED: 4,
  FREE: 8,
  REMOVE: 9,
  DONTFORK: 10,
  DOFORK: 11,
  MERGEABLE: 12,
  UNMERGEABLE: 13,
  HUGEPAGE: 14,
  NOHUGEPAGE: 15,
  DONTDUMP: 16,
  DODUMP: 17,
  WIPEONFORK: 18,
  KEEPONFORK: 19,
  COLD: 20,
  PAGEOUT: 21,
  POPULATE_READ: 22,
  POPULATE_WRITE: 23,
  DONTNEED_LOCKED: 24,
  COLLAPSE: 25,
  GUARD_INSTALL: 102,
  GUARD_REMOVE: 103,
};
const MAPFLAG = { noreserve: 0x4000, populate: 0x8000, locked: 0x2000, nonblock: 0x10000, stack: 0x20000 };
const SHARE = { shared: 1, private: 2, shared_validate: 3, neither: 0 };
const CODE = {
  mmap: 1,
  munmap: 2,
  mprotect: 3,
  mremap: 4,
  madvise: 5,
  store: 6,
  load: 7,
  fill: 8,
  scan: 9,
  fork: 10,
  exit: 11,
  pwrite: 12,
  pread: 13,
  ftruncate: 14,
  punch: 15,
  allocate: 15,
  fsync: 16,
  msync: 17,
  mlock: 18,
  munlock: 19,
  mincore: 20,
  clear_refs: 21,
  pagemap: 22,
};

const u64 = (x) => x & MASK;
const span = (pages, bytes) => u64(BigInt(pages ?? 0) * PAGE + BigInt(bytes ?? 0));
const addr = (pages, bytes) => u64(BASE + span(pages, bytes));
const prot = (s) => {
  if (typeof s === "number") return BigInt(s);
  if (s === "none") return 0n;
  let v = 0n;
  for (const c of s) {
    const b = { r: 1n, w: 2n, x: 4n }[c];
    if (!b) throw new Error(`bad prot ${s}`);
    v |= b;
  }
  return v;
};
const bits = (list, table) =>
  (list ?? []).reduce((v, f) => {
    if (!(f in table)) throw new Error(`unknown flag ${f}`);
    return v | BigInt(table[f]);
  }, 0n);

export function parseProgram(text) {
  const lines = text
    .split("\n")
    .filter((l) => l.trim() && !l.trim().startsWith("//"))
    .map((l) => JSON.parse(l));
  const header = lines.shift();
  if (!header || header.format !== "mm-program" || header.version !== 1)
    throw new Error("not an mm-program version 1");
  if (!(Number.isInteger(header.pages) && header.pages > 0 && header.pages <= 512))
    throw new Error("pages must be 1..512");
  return { header, ops: lines };
}

function translate(program, fileDir) {
  const { header, ops } = program;
  const procs = ["p0"],
    files = [];
  const lines = [];
  let seenOther = false;
  const proc = (name) => {
    const k = procs.indexOf(name);
    if (k < 0) throw new Error(`unknown process ${name}`);
    return k;
  };
  const file = (name) => {
    const k = files.indexOf(name);
    if (k < 0) throw new Error(`unknown file ${name}`);
    return BigInt(k);
  };
  ops.forEach((o, i) => {
    if (o.op === "file") {
      if (seenOther) throw new Error("file operations come first");
      if (files.length >= 8 || files.includes(o.name)) throw new Error("too many files");
      files.push(o.name);
      const kind = { memfd: 0, disk: 1 }[o.kind ?? "memfd"];
      const fill = o.fill === null ? -1 : (o.fill ?? 1);
      if (kind === undefined || (kind === 1 && fill < 0)) throw new Error("bad file");
      lines.push(`FILE ${files.length - 1} ${kind} ${o.pages} ${fill} ${o.mode === "ro" ? 1 : 0}`);
      return;
    }
    seenOther = true;
    if (!(o.op in CODE)) throw new Error(`unknown op ${o.op}`);
    const slot = proc(o.in ?? "p0"),
      A = addr(o.at, o.atBytes),
      L = span(o.len, o.lenBytes);
    let a = [];
    switch (o.op) {
      case "mmap": {
        const anon = o.file === undefined;
        let flags =
          BigInt(SHARE[o.share ?? "private"]) |
          bits(
            (o.flags ?? []).filter((f) => f !== "noreplace"),
            MAPFLAG,
          );
        flags |= (o.flags ?? []).includes("noreplace") ? 0x100000n : 0x10n;
        if (anon) flags |= 0x20n;
        a = [A, L, prot(o.prot), flags, anon ? MASK : file(o.file), span(o.offset, o.offsetBytes)];
        break;
      }
      case "munmap":
      case "munlock":
      case "mincore":
        a = [A, L];
        break;
      case "mprotect":
        a = [A, L, prot(o.prot)];
        break;
      case "mremap":
        a = [
          A,
          L,
          span(o.newLen, o.newLenBytes),
          bits(o.flags, { maymove: 1, fixed: 2, dontunmap: 4 }),
          o.to === undefined ? 0n : addr(o.to, o.toBytes),
        ];
        break;
      case "madvise": {
        const v = typeof o.advice === "number" ? o.advice : ADVICE[o.advice];
        if (v === undefined) throw new Error(`unknown advice ${o.advice}`);
        a = [A, L, BigInt(v)];
        break;
      }
      case "store":
        a = [addr(o.at, o.off), BigInt(o.value >>> 0)];
        break;
      case "load":
        a = [addr(o.at, o.off)];
        break;
      case "fill":
        a = [A, BigInt(o.len), BigInt(o.value >>> 0)];
        break;
      case "scan":
        a = [A, BigInt(o.len)];
        break;
      case "fork":
        if (procs.includes(o.as) || procs.length >= 8) throw new Error("bad fork");
        procs.push(o.as);
        a = [BigInt(procs.length - 1)];
        break;
      case "exit":
        a = [];
        break;
      case "pwrite":
        a = [file(o.file), span(o.at, o.off), BigInt(o.value >>> 0)];
        break;
      case "pread":
        a = [file(o.file), span(o.at, o.off)];
        break;
      case "ftruncate":
        a = [file(o.file), L];
        break;
      case "punch":
        a = [file(o.file), 3n, span(o.at, o.atBytes), L];
        break;
      case "allocate":
        a = [file(o.file), o.keepSize ? 1n : 0n, span(o.at, o.atBytes), L];
        break;
      case "fsync":
        a = [file(o.file)];
        break;
      case "msync":
        a = [A, L, bits(o.flags, { async: 1, invalidate: 2, sync: 4 })];
        break;
      case "mlock":
        a = [A, L, bits(o.flags, { onfault: 1 })];
        break;
      case "clear_refs":
        a = [BigInt(o.value)];
        break;
      case "pagemap":
        a = [BigInt(o.at), BigInt(o.len)];
        break;
    }
    while (a.length < 6) a.push(0n);
    lines.push(`OP ${i} ${slot} ${CODE[o.op]} ${a.map((x) => u64(x).toString(16)).join(" ")}`);
  });
  const warm = header.pagetable === "cold" ? 0 : 1;
  // One run per process: only that process registers a notifier, so its events are attributed surely.
  return {
    procs,
    files,
    runs: procs.map((_, k) => [`RUN ${header.pages} ${k} ${warm} ${fileDir}`, ...lines, "END"].join("\n")),
  };
}

function classify(frames) {
  const k = frames.indexOf("__mmu_notifier_invalidate_range_start");
  const caller = frames[k + 1]?.replace(/\.(constprop|isra|part|cold)\b.*$/, "");
  if (k < 0 || !caller) return `UNKNOWN:${frames.join("<")}`;
  if (CALLERS[caller]) return CALLERS[caller];
  return `UNKNOWN:${frames.slice(k + 1, k + 4).join("<")}`;
}

const toPage = (a, pages) => {
  const d = a - BASE;
  return d < 0n ? 0 : d > BigInt(pages) * PAGE ? pages : Number(d / PAGE);
};

// Parses the output of one RUN into { results, finals, errors }.
function parseRun(lines, pos, program, plan, only, frames) {
  const { header, ops } = program;
  const out = { results: [], finals: {}, files: {}, errors: [] };
  const byIndex = new Map();
  let cur = null,
    proc = null;
  const name = (n) =>
    n === "-" ? null : n[0] === "F" ? plan.files[+n.slice(1)] : n[0] === "S" ? `shm@${n.slice(1)}` : n;
  for (; pos < lines.length; pos++) {
    const f = lines[pos].split(" ");
    if (f[0] === "DONE") {
      pos++;
      break;
    }
    if (f[0] === "ERR") out.errors.push(lines[pos].slice(4));
    else if (f[0] === "R") {
      const i = +f[1],
        o = ops[i],
        err = +f[3],
        sig = +f[4],
        r = { i };
      if (err) r.result = `-${ERRNO[err] ?? err}`;
      else if (o.op === "mmap" || o.op === "mremap") {
        const d = BigInt(f[2]) - BASE;
        r.result = Number(d / PAGE);
      } else r.result = Number(f[2]);
      const vals = f.slice(7, 7 + +f[6]).map((x) => Number(BigInt("0x" + x)));
      if (o.op === "load") {
        if (sig) r.result = "fault";
        else r.value = vals[0];
      } else if (o.op === "store") {
        if (sig) r.result = "fault";
      } else if (o.op === "scan") r.values = vals;
      else if (o.op === "pread" && !err) {
        if (r.result === 4) r.value = vals[0];
      } else if (o.op === "mincore" && !err) r.value = vals.join("");
      if (sig) {
        r.signal = SIG[sig];
        r.code = SIGCODE[SIG[sig] + f[5]] ?? +f[5];
      }
      r.events = [];
      cur = r;
      byIndex.set(i, r);
    } else if (f[0] === "M") cur.value = f[1] ?? "";
    else if (f[0] === "E") {
      const s = BigInt("0x" + f[2]),
        e = BigInt("0x" + f[3]),
        chain = f.slice(4);
      const ev = {
        in: plan.procs[only],
        event: classify(chain),
        start: toPage(s, header.pages),
        end: toPage(e, header.pages),
      };
      if (ev.event.startsWith("UNKNOWN")) out.errors.push(`unclassified event ${ev.event}`);
      if (frames)
        ev.frames = chain.slice(chain.indexOf("__mmu_notifier_invalidate_range_start") + 1).join("<");
      if (ev.start < ev.end) (cur ? cur.events : (out.errors.push("event before any op"), [])).push(ev);
    } else if (f[0] === "FINAL") {
      proc = plan.procs[+f[1]];
      out.finals[proc] = { vmas: [], merged: [], ptes: "", contents: [], zero: [], faults: [] };
    } else if (f[0] === "V") {
      const flags = f
        .slice(6)
        .filter((x) => ["ac", "nr", "lo", "lf", "sr", "rr", "dc", "wf"].includes(x))
        .sort();
      const n = name(f[5]);
      out.finals[proc].vmas.push({
        start: toPage(BigInt("0x" + f[1]), header.pages),
        end: toPage(BigInt("0x" + f[2]), header.pages),
        perms: f[3],
        file: n,
        offset: n === null ? 0 : Number(BigInt("0x" + f[4]) / PAGE),
        flags,
      });
    } else if (f[0] === "P") out.finals[proc].ptes = f[1] ?? "";
    else if (f[0] === "C") {
      const t = out.finals[plan.procs[+f[1]]],
        cells = f.slice(2).map((c) => c.split(":"));
      const readable = Array.from({ length: header.pages }, () => false);
      for (const v of t.vmas)
        if (v.perms[0] === "r") for (let p = v.start; p < v.end; p++) readable[p] = true;
      const push = (list, p, extra) => {
        const last = list[list.length - 1];
        if (last && last[1] === p && last[2] === extra) last[1] = p + 1;
        else list.push(extra === undefined ? [p, p + 1] : [p, p + 1, extra]);
      };
      cells.forEach(([st, first, hash], p) => {
        if (!readable[p]) return;
        if (st !== "0") push(t.faults, p, st === "2" ? "SIGBUS" : "SIGSEGV");
        else if (hash === ZERO_HASH) push(t.zero, p);
        else t.contents.push([p, parseInt(first, 16), hash]);
      });
    } else if (f[0] === "S")
      out.files[plan.files[+f[1]]] = {
        size: parseInt(f[2], 16),
        contents: f.slice(3).map((c) => {
          const [k, a, h] = c.split(":");
          return [parseInt(k, 16), parseInt(a, 16), h];
        }),
      };
  }
  for (const t of Object.values(out.finals)) t.merged = mergeVmas(t.vmas);
  for (let i = 0; i < ops.length; i++)
    out.results.push(
      ops[i].op === "file"
        ? { i, result: 0, events: [] }
        : (byIndex.get(i) ?? { i, result: "missing", events: [] }),
    );
  return [out, pos];
}

export function fnv1a(bytes) {
  let h = 0x811c9dc5;
  for (const b of bytes) h = Math.imul(h ^ b, 0x01000193) >>> 0;
  return h.toString(16).padStart(8, "0");
}
const ZERO_HASH = fnv1a(new Uint8Array(4096));

export function mergeVmas(vmas) {
  const out = [];
  for (const v of vmas) {
    const flags = v.flags.filter((f) => f !== "ac" && f !== "nr"),
      last = out[out.length - 1];
    if (
      last &&
      last.end === v.start &&
      last.perms === v.perms &&
      last.file === v.file &&
      (v.file === null || last.offset + last.end - last.start === v.offset) &&
      last.flags.join() === flags.join()
    )
      last.end = v.end;
    else out.push({ ...v, flags });
  }
  return out;
}

const strip = (out) => JSON.stringify([out.results.map((r) => ({ ...r, events: 0 })), out.finals, out.files]);

function combine(outs) {
  const errors = outs.flatMap((o) => o.errors);
  const first = strip(outs[0]);
  outs.forEach((o, k) => {
    if (strip(o) !== first) errors.push(`run observing process ${k} differs from the run observing p0`);
  });
  const merged = outs[0];
  for (let k = 1; k < outs.length; k++)
    outs[k].results.forEach((r, i) => merged.results[i].events.push(...r.events));
  return { ...merged, errors };
}

export function render(program, name, out) {
  const lines = [
    {
      format: "mm-result",
      version: 1,
      program: name,
      pages: program.header.pages,
      recordedOn: `linux ${release().replace(/-.*/, "")}`,
    },
    ...out.results,
    { final: out.finals, files: out.files },
  ];
  return lines.map((l) => JSON.stringify(l)).join("\n") + "\n";
}

function build() {
  const stale =
    !existsSync(join(HERE, "oracle")) ||
    statSync(join(HERE, "oracle")).mtimeMs < statSync(join(HERE, "oracle.c")).mtimeMs;
  if (!stale) return;
  const r = spawnSync("make", ["-s", "-C", HERE, "oracle"], { encoding: "utf8" });
  if (r.error || r.status !== 0)
    throw new Error(`cannot build oracle.c with make: ${r.error?.message ?? r.stderr}`);
}

// Runs many programs ([{ name, text }]); returns [{ name, text | errors }].
export function runAll(items, { fileDir = tmpdir(), frames = false, cpu } = {}) {
  const results = [];
  build();
  const jobs = items.map((it) => {
    try {
      const program = parseProgram(it.text);
      return { ...it, program, plan: translate(program, fileDir) };
    } catch (e) {
      return { ...it, bad: String(e.message ?? e) };
    }
  });
  for (let at = 0; at < jobs.length; at += 64) {
    const chunk = jobs.slice(at, at + 64),
      good = chunk.filter((j) => !j.bad);
    const input = good.flatMap((j) => j.plan.runs).join("\n") + "\n";
    let lines = [];
    if (good.length) {
      const r = spawnSync(join(HERE, "oracle"), cpu === undefined ? [] : ["--cpu", String(cpu)], {
        input,
        maxBuffer: 1 << 30,
        encoding: "utf8",
      });
      if (r.error)
        throw new Error(`cannot run ${join(HERE, "oracle")} (build it with make): ${r.error.message}`);
      if (r.status !== 0) {
        const e = new Error(r.stderr.trim() || `oracle ended with status ${r.status} signal ${r.signal}`);
        e.code = r.status ?? 5;
        throw e;
      }
      lines = r.stdout.split("\n");
    }
    let pos = 0;
    for (const j of chunk) {
      if (j.bad) {
        results.push({ name: j.name, path: j.path, errors: [j.bad] });
        continue;
      }
      const outs = [];
      for (let k = 0; k < j.plan.runs.length; k++) {
        while (pos < lines.length && lines[pos] !== "BEGIN") pos++;
        let out;
        [out, pos] = parseRun(lines, pos + 1, j.program, j.plan, k, frames);
        outs.push(out);
      }
      const all = combine(outs);
      results.push({ name: j.name, path: j.path, text: render(j.program, j.name, all), errors: all.errors });
    }
  }
  return results;
}

function main() {
  const argv = process.argv.slice(2),
    files = [],
    opt = { repeat: 1 };
  for (let i = 0; i < argv.length; i++) {
    const a = argv[i];
    if (a === "--out") opt.out = argv[++i];
    else if (a === "--beside") opt.beside = true;
    else if (a === "--check") opt.check = true;
    else if (a === "--repeat") opt.repeat = +argv[++i];
    else if (a === "--file-dir") opt.fileDir = argv[++i];
    else if (a === "--frames") opt.frames = true;
    else if (a === "--cpu") opt.cpu = +argv[++i];
    else if (a.startsWith("--")) {
      console.error(`unknown option ${a}`);
      process.exit(64);
    } else if (!a.endsWith(".expected.jsonl")) files.push(a);
  }
  if (!files.length) {
    console.error(
      "usage: node oracle.mjs PROGRAM.jsonl... [--out DIR | --beside | --check] [--repeat N] [--file-dir DIR] [--frames] [--cpu N]",
    );
    process.exit(64);
  }
  const items = files.map((path) => ({
    name: basename(path, ".jsonl"),
    path,
    text: readFileSync(path, "utf8"),
  }));
  let failed = 0;
  try {
    let results = runAll(items, opt);
    for (let k = 1; k < opt.repeat; k++)
      runAll(items, opt).forEach((r, i) => {
        if (r.text !== results[i].text) results[i].errors.push("not deterministic: two runs differ");
        results[i].errors.push(...r.errors);
      });
    const retry = results
      .map((r, i) =>
        r.errors.length &&
        r.errors.every((e) => e.startsWith("stray") || e.startsWith("trace events were lost"))
          ? i
          : -1,
      )
      .filter((i) => i >= 0);
    if (retry.length)
      runAll(
        retry.map((i) => items[i]),
        opt,
      ).forEach((r, k) => {
        results[retry[k]] = r;
      });
    if (opt.out) mkdirSync(opt.out, { recursive: true });
    for (const r of results) {
      const stem = r.path.replace(/\.jsonl$/, ""),
        beside = `${stem}.expected.jsonl`;
      if (r.errors.length) {
        failed++;
        console.error(`${r.name}: ${[...new Set(r.errors)].join("; ")}`);
      }
      if (!r.text) continue;
      if (opt.check) {
        if (!existsSync(beside)) {
          failed++;
          console.error(`${r.name}: no recorded result`);
        } else if (body(readFileSync(beside, "utf8")) !== body(r.text)) {
          failed++;
          console.error(`${r.name}: differs from the recorded result`);
        }
      } else if (opt.out) writeFileSync(join(opt.out, `${r.name}.expected.jsonl`), r.text);
      else if (opt.beside) writeFileSync(beside, r.text);
      else process.stdout.write(r.text);
    }
  } catch (e) {
    console.error(String(e.message ?? e));
    process.exit(e.code && Number.isInteger(e.code) ? e.code : 5);
  }
  if (files.length > 1 || opt.check) console.error(`${files.length} programs, ${failed} with problems`);
  process.exit(failed ? 1 : 0);
}
const body = (t) => t.slice(t.indexOf("\n"));
if (process.argv[1] && fileURLToPath(import.meta.url) === process.argv[1]) main();
