/** What the agents of a run must know, and how each finds it: a plan travels as workerData. */
import type { MemoryHandle } from "../memory/index.ts";
import type { AddressSpace, PhysicalMemory } from "../mm/index.ts";
import type { SpaceId } from "../notifier/index.ts";
import { Board, boardBytes, type BoardShape } from "./board.ts";

export interface Plan {
  readonly handle: MemoryHandle;
  readonly spaceId: SpaceId;
  /** Byte of segment 0 at which the board lies. */
  readonly boardAt: number;
  readonly boardShape: BoardShape;
  readonly file: {
    readonly path: string;
    readonly id: number;
    readonly bytes: number;
    /** Where it is mapped. */
    readonly address: number;
  };
  /** What only churn needs; undefined without it. */
  readonly churn: ChurnPlan | undefined;
  readonly windowPages: number;
  readonly fillBytes: number;
  readonly passes: number;
}

export interface ChurnPlan {
  readonly operationsPerSecond: number;
  readonly seed: number;
  /** A file of stamps that takes the place of windows. */
  readonly foreign: { readonly id: number; readonly pages: number };
  /** A file that is rewritten: twice as long as its mapping, so that each page has two places. */
  readonly scratch: {
    readonly id: number;
    readonly pages: number;
    /** The mapping that is mirrored, private. */
    readonly address: number;
    /** A shared mapping of the whole file, to write through. */
    readonly alias: number;
  };
}

/** An agent's way to what the plan names. */
export interface Surroundings {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  readonly board: Board;
}

export function surroundingsOf(memory: PhysicalMemory, plan: Plan): Surroundings {
  const { buffer } = memory.handle.memories[0]!;
  const words = new Int32Array(buffer, plan.boardAt, boardBytes(plan.boardShape) / 4);
  return { memory, space: memory.space(plan.spaceId), board: new Board(words, plan.boardShape) };
}

/** What a worker is to do. */
export type Role = { readonly kind: "hasher"; readonly index: number } | { readonly kind: "churn" };

export interface WorkerTask {
  readonly plan: Plan;
  readonly role: Role;
}
