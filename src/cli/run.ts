/**
 * One run of `bifolio mirror`: makes the memory and the mappings, starts the workers, is a hasher itself, and gathers
 * what all found. Nothing here prints.
 *
 * Ends with the results, or with the Failure that was the cause of all others. Either way all workers are gone then.
 */
import { type ResourceLimits, Worker } from "node:worker_threads";
import { fileBacking } from "../backing/index.ts";
import { AGENT_LIMIT } from "../sched/index.ts";
import { type AddressSpace, createMemory, type MemoryStats, type PhysicalMemory } from "../mm/index.ts";
import { HasherAgent, type HasherReport, hasherName } from "./agent.ts";
import { boardBytes, type BoardShape } from "./board.ts";
import { driveAsync } from "./drive.ts";
import { type Failure, failureOf, STOPPED, type WorkerMessage } from "./messages.ts";
import {
  type ChurnPlan,
  type Plan,
  type Role,
  type Surroundings,
  surroundingsOf,
  type WorkerTask,
} from "./plan.ts";
import { makeScratchFiles } from "./scratchFiles.ts";

export interface RunOptions {
  readonly path: string;
  readonly budgetBytes: number;
  readonly agents: number;
  readonly passes: number;
  /** Operations a second; 0 for none. */
  readonly churn: number;
  readonly seed: number;
  /** Creates the memory with all checks on. */
  readonly debug: boolean;
  /** Where the worker's script lies. */
  readonly workerUrl: URL;
  /** Hears now and then how many bytes have been hashed, of `total`. */
  readonly progress: (hashed: number, total: number) => void;
}

export interface RunResults {
  readonly reports: readonly HasherReport[];
  readonly seconds: number;
  readonly stats: MemoryStats;
  readonly churnOperations: number;
}

/** The run failed; see `failure`. */
export class RunFailed extends Error {
  override readonly name: string = "RunFailed";
  readonly failure: Failure;

  constructor(failure: Failure) {
    super(failure.message);
    this.failure = failure;
  }
}

/** Each hasher and the churn agent needs a slot. */
export const MOST_AGENTS: number = AGENT_LIMIT - 1;

const KIB = 1024;
const MIB = 1024 ** 2;
/** A window is what churn changes at once: a part of the budget, so that several are resident at the same time. */
const WINDOW_BYTES = { least: 64 * KIB, most: MIB };
const WINDOW_SHARE = 16;
/** Fills of all agents at the same time take this part of the budget, or little. */
const FILL_BYTES = { least: 4 * KIB, most: 256 * KIB };
const FILLS_SHARE = 4;
/** Where mappings change, at most what one read brings in: little is lost when a fill is overtaken. */
const CHURN_FILL_BYTES = { least: 4 * KIB, most: 64 * KIB };
/** All scratch pages may be private copies, which cannot be reclaimed. */
const SCRATCH_PAGES = { least: 2, most: 64 };
const SCRATCH_SHARE = 32;
/** Small heaps: what is large lies outside them, and there may be many. */
export const SMALL_HEAP: ResourceLimits = { maxOldGenerationSizeMb: 96, maxYoungGenerationSizeMb: 8 };
const PROGRESS_MS = 100;
const SETTLE_MS = 100;
/** Failure.name of a worker that ended without a word. */
const DIED = "Died";

/** Runs it. Throws RunFailed, and what createMemory() and fileBacking() throw. */
export async function run(options: RunOptions): Promise<RunResults> {
  const memory = await createMemory({ budget: options.budgetBytes, debug: options.debug });
  const plan = await makePlan(memory, options);
  const at = surroundingsOf(memory, plan);
  const failures: Failure[] = [];
  let reject: (error: Error) => void = () => {};
  const givenUp = new Promise<never>((_, rejected) => (reject = rejected));
  const fail = (failure: Failure): void => {
    failures.push(failure);
    at.board.stop();
    // One failure brings others about; the first to be heard of need not be the cause.
    setTimeout(() => reject(new RunFailed(causeOf(failures))), SETTLE_MS);
  };
  const colleagues = rolesOf(plan).map(
    (role) => new Colleague(memory, { plan, role }, options.workerUrl, fail),
  );
  const timer = setInterval(() => tellProgress(at, plan, options), PROGRESS_MS);
  try {
    const results = await Promise.race([work(at, plan, colleagues, fail), givenUp]);
    const broken = options.debug ? memory.check() : undefined;
    if (broken !== undefined) throw new RunFailed({ code: "", name: "InvariantError", message: broken });
    await memory.close();
    return results;
  } finally {
    clearInterval(timer);
    await Promise.all(colleagues.map((colleague) => colleague.end()));
  }
}

/** The part in which everybody takes part. Never returns once somebody has failed: see run(). */
async function work(
  at: Surroundings,
  plan: Plan,
  colleagues: readonly Colleague[],
  fail: (failure: Failure) => void,
): Promise<RunResults> {
  const { board, memory } = at;
  await Promise.all(colleagues.map((colleague) => colleague.ready));
  const agent = new HasherAgent(at, plan, 0);
  const begin = performance.now();
  board.go();
  const own = async (): Promise<HasherReport> => {
    try {
      const report = agent.report(await driveAsync(at, agent.run()));
      await agent.close();
      return report;
    } catch (error) {
      fail(failureOf(error));
      return new Promise(() => {});
    }
  };
  const hashers = colleagues.filter((colleague) => colleague.role.kind === "hasher");
  const reports = await Promise.all([own(), ...hashers.map((colleague) => colleague.done)]);
  const seconds = (performance.now() - begin) / 1000;
  board.endChurn();
  await Promise.all(colleagues.map((colleague) => colleague.gone));
  return {
    reports: reports.filter((report) => report !== undefined),
    seconds,
    stats: memory.stats(),
    churnOperations: board.churnOperations,
  };
}

function tellProgress({ board, memory }: Surroundings, plan: Plan, options: RunOptions): void {
  const filePages = Math.ceil(plan.file.bytes / memory.pageSize);
  let pages = 0;
  for (let k = 0; k < options.agents; k++) pages += board.progress(k);
  options.progress((pages / filePages) * plan.file.bytes, plan.file.bytes * plan.passes * options.agents);
}

/** Which of several failures to tell of: a death rather than what it left behind, anything rather than "given up". */
function causeOf(failures: readonly Failure[]): Failure {
  return (
    failures.find((failure) => failure.name === DIED) ??
    failures.find(
      (failure) => failure !== STOPPED && failure.name !== STOPPED.name && failure.code !== "EOWNERDEAD",
    ) ??
    failures[0]!
  );
}

// ---- what is mapped ------------------------------------------------------------------------------------------------

/** The largest power of two not above `n`, within limits. */
function powerWithin(limits: { readonly least: number; readonly most: number }, n: number): number {
  return Math.min(limits.most, Math.max(limits.least, 2 ** Math.floor(Math.log2(Math.max(1, n)))));
}

async function makePlan(memory: PhysicalMemory, options: RunOptions): Promise<Plan> {
  const { pageSize } = memory;
  const { agents, budgetBytes, passes, churn, seed, path } = options;
  const space = await memory.createSpace();
  const backing = fileBacking(path);
  const file = await memory.openFile(backing, { name: path });
  const address = await space.mmap({ length: backing.size, prot: "rw", share: "private", file });
  const windowPages = powerWithin(WINDOW_BYTES, budgetBytes / WINDOW_SHARE) / pageSize;
  const churnPlan =
    churn === 0
      ? undefined
      : await makeChurnPlan(memory, space, windowPages, budgetBytes, { operationsPerSecond: churn, seed });
  const boardShape: BoardShape = {
    hashers: agents,
    windows: Math.ceil(backing.size / (windowPages * pageSize)),
    scratchPages: churnPlan?.scratch.pages ?? 0,
  };
  return {
    handle: memory.handle,
    spaceId: space.id,
    boardAt: memory.allocShared(boardBytes(boardShape)).byteOffset,
    boardShape,
    file: { path, id: file.id, bytes: backing.size, address },
    churn: churnPlan,
    windowPages,
    fillBytes: powerWithin(churnPlan ? CHURN_FILL_BYTES : FILL_BYTES, budgetBytes / FILLS_SHARE / agents),
    passes,
  };
}

async function makeChurnPlan(
  memory: PhysicalMemory,
  space: AddressSpace,
  windowPages: number,
  budgetBytes: number,
  rest: { readonly operationsPerSecond: number; readonly seed: number },
): Promise<ChurnPlan> {
  const { pageSize } = memory;
  const pages = powerWithin(SCRATCH_PAGES, budgetBytes / SCRATCH_SHARE / pageSize);
  const foreignPages = 2 * windowPages;
  const paths = makeScratchFiles(pageSize, foreignPages, pages);
  const foreign = await memory.openFile(fileBacking(paths.foreign));
  const scratch = await memory.openFile(fileBacking(paths.scratch, { writable: true }), { writable: true });
  const length = pages * pageSize;
  const address = await space.mmap({ length, prot: "rw", share: "private", file: scratch });
  const alias = await space.mmap({ length: 2 * length, prot: "rw", share: "shared", file: scratch });
  return {
    ...rest,
    foreign: { id: foreign.id, pages: foreignPages },
    scratch: { id: scratch.id, pages, address, alias },
  };
}

// ---- workers -----------------------------------------------------------------------------------------------------------

function rolesOf({ boardShape, churn }: Plan): Role[] {
  const roles: Role[] = [];
  for (let index = 1; index < boardShape.hashers; index++) roles.push({ kind: "hasher", index });
  if (churn) roles.push({ kind: "churn" });
  return roles;
}

/** A worker, as the main thread sees it. Its promises stay open where it fails; `fail` hears of that. */
class Colleague {
  readonly role: Role;
  readonly #ready = deferred<void>();
  readonly #done = deferred<HasherReport | undefined>();
  readonly #gone = deferred<void>();
  readonly #worker: Worker;
  /** It has said its last word, or is to be terminated: its end is no surprise. */
  #finished = false;

  constructor(memory: PhysicalMemory, task: WorkerTask, url: URL, fail: (failure: Failure) => void) {
    const { role } = task;
    this.role = role;
    const name = role.kind === "churn" ? "the churn agent" : hasherName(role.index);
    const worker = new Worker(url, { workerData: task, resourceLimits: SMALL_HEAP });
    this.#worker = worker;
    memory.adopt(worker);
    const died = (how: string): void => {
      if (!this.#finished) fail({ code: "", name: DIED, message: `${name} died: ${how}` });
      this.#finished = true;
    };
    worker.on("message", (message: WorkerMessage) => {
      if (message.kind === "ready") {
        this.#ready.resolve();
        return;
      }
      this.#finished = true;
      if (message.kind === "done") this.#done.resolve(message.report);
      else fail(message.failure);
    });
    worker.once("error", (error) => died(error.message));
    worker.once("exit", (code) => {
      died(`its thread ended with exit code ${code}`);
      this.#gone.resolve();
    });
  }

  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** What it reports: a hasher its findings. */
  get done(): Promise<HasherReport | undefined> {
    return this.#done.promise;
  }

  /** Its thread has ended. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }

  async end(): Promise<void> {
    this.#finished = true;
    await this.#worker.terminate();
  }
}

function deferred<T>(): { readonly promise: Promise<T>; readonly resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => {};
  const promise = new Promise<T>((settle) => (resolve = settle));
  return { promise, resolve };
}
