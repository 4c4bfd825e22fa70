/** Runs an mm program in a memory of its own, through nothing but the public interface, and says what happened. */
import {
  type AddressSpace,
  createMemory,
  type MappedFile,
  type MmError,
  type PhysicalMemory,
} from "../../index.ts";
import { MmuNotifier, MmuNotifierEvent } from "../../notifierEntry.ts";
import { ProgramFiles } from "./files.ts";
import { parseProgram, type ProcessOperation, type Program, type ProgramOperation } from "./parse.ts";
import { LocalProcess, type Outcome, type ProgramProcess } from "./process.ts";
import { fileAt, type FileState, fileState, spaceState, type SpaceState } from "./state.ts";
import { addressOf, clip, PAGE_BYTES, WARM_PAGE } from "./window.ts";

/** Where a process's operations are to run. */
export interface ProcessPlace {
  readonly name: string;
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  /** By name; another agent has them through their ids. */
  readonly files: ReadonlyMap<string, MappedFile>;
}

export interface RunProgramOptions {
  /** Lock-order checks, poisoned free frames, invariant checks in the memory; default false. */
  readonly debug?: boolean;
  /** Verify every invariant of the memory after each operation; default false. */
  readonly check?: boolean;
  /** What the result calls a program whose header has no name. */
  readonly name?: string;
  /** Makes what runs the operations of a process, such as a worker of its own; default: a LocalProcess in this agent. */
  readonly spaceIn?: (place: ProcessPlace) => ProgramProcess | Promise<ProgramProcess>;
}

/** Something went wrong that no program can be blamed for. */
export class ProgramFailure extends Error {
  override readonly name: string = "ProgramFailure";
  /** Index of the operation, as in the result; undefined: before the first, or after the last. */
  readonly index: number | undefined;

  constructor(index: number | undefined, what: string, sentence: string, cause?: unknown) {
    super(
      `${index === undefined ? what : `operation ${index} (${what})`}: ${sentence}`,
      cause === undefined ? undefined : { cause },
    );
    this.index = index;
  }
}

interface ResultEvent {
  readonly in: string;
  readonly event: string;
  readonly start: number;
  readonly end: number;
}

/** Linux's name, without MMU_NOTIFY_, of each event. */
const EVENT_NAMES: readonly string[] = Object.keys(MmuNotifierEvent).map((name) =>
  name.replace(/(?<!^)([A-Z])/g, "_$1").toUpperCase(),
);

/** Hears of the invalidations in every space, by process. */
class Recorder {
  readonly #pages: number;
  readonly #heard = new Map<string, ResultEvent[]>();

  constructor(pages: number) {
    this.#pages = pages;
  }

  async listen(name: string, space: AddressSpace): Promise<void> {
    const events: ResultEvent[] = [];
    this.#heard.set(name, events);
    const notifier = new MmuNotifier({
      invalidateRangeStart: (_notifier, range) => {
        const inside = clip(this.#pages, range.start, range.end);
        if (inside) events.push({ in: name, event: EVENT_NAMES[range.event]!, ...inside });
        return true;
      },
    });
    await space.notifiers.register(notifier);
  }

  /** What was heard since the last time, process by process. */
  take(): ResultEvent[] {
    return [...this.#heard.values()].flatMap((events) => events.splice(0));
  }
}

interface Process {
  readonly space: AddressSpace;
  readonly runner: ProgramProcess;
}

/** Frames besides those of the program: zero page, page tables' worth of slack. */
const SPARE_FRAMES = 1024;
const ARENA_BYTES = 8 * 1024 ** 2;
const READ_AHEAD_BYTES = 8 * 1024 ** 2;

/** Bytes of frames that no program of this shape can use up. */
function budgetFor({ header, operations }: Program): number {
  const { pages } = header;
  let frames = SPARE_FRAMES + pages;
  for (const o of operations) {
    if (o.op === "fork") frames += pages;
    else if (o.op === "file") frames += 2 * (o.pages + pages);
    // Each has a file of its own, which stays as long as any of it is mapped.
    else if (o.op === "mmap" && o.file === undefined && o.share === "shared") frames += pages;
    else if (o.op === "allocate" || o.op === "pwrite")
      frames += Math.min(pages, o.op === "allocate" ? (o.len ?? 0) : 1);
  }
  return frames * PAGE_BYTES;
}

class Run {
  readonly #program: Program;
  readonly #options: RunProgramOptions;
  readonly #memory: PhysicalMemory;
  readonly #files: ProgramFiles;
  readonly #recorder: Recorder;
  readonly #processes = new Map<string, Process>();
  /** By id. */
  readonly #fileNames = new Map<number, string>();
  readonly #reported: MmError[] = [];

  constructor(program: Program, options: RunProgramOptions, memory: PhysicalMemory, files: ProgramFiles) {
    this.#program = program;
    this.#options = options;
    this.#memory = memory;
    this.#files = files;
    this.#recorder = new Recorder(program.header.pages);
    memory.onError = (error) => this.#reported.push(error);
  }

  async run(): Promise<string[]> {
    const { header, operations } = this.#program;
    const first = {
      format: "mm-result",
      version: 1,
      program: header.name ?? this.#options.name ?? "",
      pages: header.pages,
      recordedOn: "bifolio",
    };
    const lines = [JSON.stringify(first)];
    await this.#during(undefined, "start", () => this.#start());
    for (const [i, operation] of operations.entries()) {
      const outcome = await this.#during(i, operation.op, () => this.#perform(operation, i));
      lines.push(JSON.stringify({ i, ...outcome, events: this.#recorder.take() }));
    }
    lines.push(JSON.stringify(await this.#during(undefined, "final state", () => this.#final())));
    return lines;
  }

  /** Whatever goes wrong names the operation. */
  async #during<T>(index: number | undefined, what: string, body: () => Promise<T>): Promise<T> {
    const fail = (sentence: string, cause?: unknown): ProgramFailure =>
      new ProgramFailure(index, what, sentence, cause);
    let result: T;
    try {
      result = await body();
    } catch (cause) {
      throw fail(cause instanceof Error ? cause.message : String(cause), cause);
    }
    const [reported] = this.#reported;
    if (reported) throw fail(reported.message, reported);
    const wrong = this.#options.check === true ? this.#memory.check() : undefined;
    if (wrong !== undefined) throw fail(wrong);
    return result;
  }

  async #start(): Promise<void> {
    const space = await this.#memory.createSpace();
    if (this.#program.header.pagetable === "warm") {
      const address = addressOf(WARM_PAGE);
      await space.mmap({ address, length: PAGE_BYTES, fixed: true, prot: "rw", share: "private" });
      await space.run(() => space.setUint32(address, 1));
    }
    await this.#add("p0", space);
  }

  async #add(name: string, space: AddressSpace): Promise<void> {
    await this.#recorder.listen(name, space);
    const place: ProcessPlace = { name, memory: this.#memory, space, files: this.#files.byName };
    const { spaceIn } = this.#options;
    const runner = spaceIn ? await spaceIn(place) : new LocalProcess(space, place.files);
    this.#processes.set(name, { space, runner });
  }

  async #perform(operation: ProgramOperation, index: number): Promise<Outcome> {
    if (operation.op === "file") {
      const file = await this.#files.open(operation);
      this.#fileNames.set(file.id, operation.name);
      return { result: 0 };
    }
    return await this.#performIn(operation.in ?? "p0", operation, index);
  }

  async #performIn(name: string, operation: ProcessOperation, index: number): Promise<Outcome> {
    const process = this.#processes.get(name);
    // A child whose fork failed.
    if (!process) return { result: "-ESRCH" };
    const { child, ...outcome } = await process.runner.perform(operation);
    if (child !== undefined && operation.op === "fork")
      await this.#add(operation.as, this.#memory.space(child));
    if (operation.op === "exit") {
      this.#processes.delete(name);
      await process.runner.end?.();
    }
    if (operation.op === "mmap" && typeof outcome.result === "number" && operation.file === undefined) {
      const file = fileAt(process.space, addressOf(outcome.result));
      if (file !== undefined) this.#fileNames.set(file, `shm@${index}`);
    }
    return outcome;
  }

  async #final(): Promise<{ final: Record<string, SpaceState>; files: Record<string, FileState> }> {
    const final: Record<string, SpaceState> = {};
    for (const [name, { space }] of this.#processes)
      final[name] = await spaceState(space, this.#program.header.pages, this.#fileNames);
    const files: Record<string, FileState> = {};
    for (const [name, file] of this.#files.byName) files[name] = await fileState(file);
    return { final, files };
  }

  async end(): Promise<void> {
    for (const { runner } of this.#processes.values()) await runner.end?.();
  }
}

async function memoryFor(program: Program, options: RunProgramOptions): Promise<PhysicalMemory> {
  const budget = budgetFor(program);
  try {
    return await createMemory({
      budget,
      pageSize: PAGE_BYTES,
      arena: ARENA_BYTES,
      // As the corpus was recorded: a page a folio, and a read that brings in all of these small files.
      folio: PAGE_BYTES,
      readAhead: READ_AHEAD_BYTES,
      debug: options.debug ?? false,
    });
  } catch (cause) {
    throw new ProgramFailure(
      undefined,
      "start",
      cause instanceof Error ? cause.message : String(cause),
      cause,
    );
  }
}

/**
 * Runs a program, its text or its lines, and returns the lines of its result. The memory is made for it alone.
 * Errors: ProgramError where it is no program; ProgramFailure, which names the operation, where Bifolio failed.
 */
export async function runProgram(
  program: string | Iterable<string>,
  options: RunProgramOptions = {},
): Promise<string[]> {
  const parsed = parseProgram(program);
  const memory = await memoryFor(parsed, options);
  const files = new ProgramFiles(memory);
  const run = new Run(parsed, options, memory, files);
  let closed = false;
  try {
    const lines = await run.run();
    await run.end();
    closed = true;
    await memory.close();
    return lines;
  } finally {
    // After a failure what is left may not come apart either; the failure is what counts.
    if (!closed) await memory.close().catch(() => {});
    files.remove();
  }
}
