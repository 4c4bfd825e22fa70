// Another agent of the process tests: takes its steps in whatever the processes are like just then. Most of what it asks for
// is refused, in one of the documented ways; anything else is reported.
import { parentPort, workerData } from "node:worker_threads";
import { attach, isMmError } from "../../../.test-build/testing.js";

const { handle, table: tableOffset, fileIds, steps, agents, mode, firstPage, prots } = workerData;
const memory = await attach(handle, { mayBlock: mode !== "async" });
/** Ids of the processes, 0 where there is none. */
const table = new Int32Array(handle.memories[0].buffer, tableOffset, 16);
const PROCESSES = 4;
/** Word of the table: how many agents are there. */
const READY = 8;
const PAGE = memory.pageSize;
const files = fileIds.map((id) => memory.file(id));

/** What an operation may say, the access errors aside. EAGAIN only where nobody may wait. */
const DOCUMENTED = new Set(["EINVAL", "ENOMEM", "EACCES", "EEXIST", "EFAULT", "ESRCH", "ENOTSUP"]);

const outcomes = {};
let current = "";

function note(error) {
  const expected =
    isMmError(error) &&
    (DOCUMENTED.has(error.code) ||
      error.name === "SegvError" ||
      error.name === "BusError" ||
      (error.code === "EAGAIN" && current.startsWith("try")));
  if (!expected) throw error;
  outcomes[error.code] = (outcomes[error.code] ?? 0) + 1;
}

/** The operation in the form of this agent: blocking, not waiting, or a promise. */
function call(target, step, name, ...args) {
  if (mode === "async") return target[name](...args);
  if (step.value % 4 !== 0) return target.sync[name](...args);
  current = `try ${current}`;
  return target.try[name](...args);
}

const access = (space, fn) => (mode === "async" ? space.run(fn) : fn());

/** Puts a new space into the table, or ends it where somebody was faster. */
function enter(slot, space) {
  if (Atomics.compareExchange(table, slot, 0, space.id) === 0) return undefined;
  return mode === "async" ? space.exit() : space.sync.exit();
}

/** Pins that are held, the oldest first; those that are left when the agent leaves go with it. */
const pins = [];
function keep(pin) {
  if (pin.spans.reduce((sum, span) => sum + span.length, 0) % PAGE !== 0)
    throw new Error("a pin of part of a page");
  pins.push(pin);
  if (pins.length > 2) pins.shift().unpin();
}

const chain = (result, next) => (result instanceof Promise ? result.then(next) : next(result));

function mmap(space, step, address) {
  const file = files[step.file];
  return call(space, step, "mmap", {
    length: step.pages * PAGE,
    prot: prots[step.prot],
    share: step.shared ? "shared" : "private",
    populate: step.form === 3,
    ...(step.form === 2 ? {} : { address, fixed: step.form === 1 ? "noreplace" : true }),
    ...(file ? { file, offset: step.index * PAGE } : {}),
  });
}

function mremap(space, step, address) {
  const dontUnmap = step.form === 5 || step.form === 6;
  const old = step.value % 8 === 1 ? 0 : step.pages;
  const to = (firstPage + step.to) * PAGE;
  return call(
    space,
    step,
    "mremap",
    address,
    old * PAGE,
    (step.form === 4 || dontUnmap ? step.pages : step.toPages) * PAGE,
    {
      mayMove: step.form !== 0,
      dontUnmap,
      ...([3, 4, 6].includes(step.form) ? { to } : {}),
    },
  );
}

const fileSteps = {
  "file.read": (step, file, offset, bytes) => onFile(step, file, "read", offset, bytes),
  "file.write": (step, file, offset, bytes) => onFile(step, file, "write", offset, bytes.fill(step.value)),
  sync: (step, file) => onFile(step, file, "sync"),
  truncate: (_step, file, offset) => file.truncate(offset),
  punchHole: (_step, file, offset, bytes) => file.punchHole(offset, bytes.length),
  allocate: (step, file, offset, bytes) => file.allocate(offset, bytes.length, { keepSize: step.write }),
};

const onFile = (step, file, name, ...args) =>
  mode === "async" ? file[name](...args) : call(memory, step, name, file, ...args);

function exec(step) {
  current = step.op;
  const bytes = new Uint8Array(step.pages * PAGE - step.offset);
  const onFiles = fileSteps[step.op];
  if (onFiles) {
    const offset = step.index * PAGE + (step.shared ? step.offset : 0);
    return step.file < 0 ? undefined : onFiles(step, files[step.file], offset, bytes);
  }
  if (step.op === "reclaim") return call(memory, step, "reclaim", step.pages * 4 * PAGE);
  const slot = step.process % PROCESSES;
  const id = Atomics.load(table, slot);
  if (id === 0) return chain(call(memory, { value: 1 }, "createSpace"), (space) => enter(slot, space));
  const space = memory.space(id);
  const address = (firstPage + step.page) * PAGE;
  const length = step.pages * PAGE;
  const word = address + (step.offset & ~3);
  switch (step.op) {
    case "fork":
      return chain(call(space, step, "fork"), (child) => enter(step.to % PROCESSES, child));
    case "exit":
      if (step.write || Atomics.compareExchange(table, slot, id, 0) !== id) return undefined;
      return call(space, step, "exit");
    case "mmap":
      return mmap(space, step, address);
    case "mremap":
      return mremap(space, step, address);
    case "munmap":
    case "munlock":
      return call(space, step, step.op, address, length);
    case "mprotect":
      return call(space, step, "mprotect", address, length, prots[step.prot]);
    case "mlock":
      return call(space, step, "mlock", address, length, { onFault: step.form === 0 });
    case "clearRefs":
      return call(space, step, "clearRefs", step.write ? "soft-dirty" : "referenced");
    case "look":
      space.vmas();
      space.pagemap(address, length);
      return void space.mincore(address, length);
    case "load":
      return access(space, () => space.getUint32(word));
    case "store":
      return access(space, () => space.setUint32(word, step.value));
    case "straddle":
      return access(space, () => space.setUint32(address + PAGE - 2, step.value));
    case "read":
    case "write":
      return call(space, step, step.op, address + step.offset, bytes);
    case "pin":
      return chain(call(space, step, "pin", address, length, step.write ? "rw" : "r"), keep);
    default:
      return call(space, step, "madvise", address, length, step.op);
  }
}

try {
  Atomics.add(table, READY, 1);
  Atomics.notify(table, READY);
  for (let ready = Atomics.load(table, READY); ready < agents; ready = Atomics.load(table, READY))
    await memory.wait(table, READY, ready);
  for (const step of steps) {
    try {
      const result = exec(step);
      if (result instanceof Promise) await result;
    } catch (error) {
      note(error);
    }
    if (step.form === 7) memory.poll();
  }
  // What is being closed is this agent's task: it leaves when that is done.
  for (let round = 0; ; round++) {
    try {
      memory.detach();
      break;
    } catch (error) {
      if (!isMmError(error, "EBUSY") || round === 1000) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
  parentPort.postMessage({ outcomes });
} catch (error) {
  parentPort.postMessage({ error: `${current}: ${error.stack}\n${error.cause?.stack ?? ""}` });
}
