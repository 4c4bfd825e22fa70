/**
 * anon_vma: what groups the private pages of a mapping. Linux: mm/rmap.c, anon_vma_prepare(), anon_vma_fork().
 *
 * Here it is a number, and there is no list behind it: anonymous pages are never looked up from their frames. What it is
 * for is what can be seen of it: whether mappings merge, and whether fork copies and tells of a mapping at all.
 *
 *   none    -> own     the first private page or guard: a new number, or that of a neighbour it could merge with
 *   own     -> own     split, move, merge: the parts keep it
 *   own     -> child's fork: a new number, with VM_FORK_CHILD
 */
import { itPredecessor, itSuccessor } from "../memory/index.ts";
import { VM_EXEC, VM_FORK_CHILD, VM_MAYBE_GUARD, VM_READ, VM_WRITE, type Vma, VMA_ANON } from "./layout.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { fileIndexOf, vmaAnon, vmaEnd, vmaFile, vmaFlags, vmaStart } from "./vma.ts";

const ACCESS: number = VM_READ | VM_WRITE | VM_EXEC | VM_FORK_CHILD | VM_MAYBE_GUARD;

/** True if `low`, which ends where `high` begins, could be one vma with it, but for what accesses are allowed. */
function compatible(space: SpaceCore, low: Vma, high: Vma): boolean {
  const { pageSize } = space.mm;
  return (
    vmaEnd(space, low) === vmaStart(space, high) &&
    vmaFile(space, low) === vmaFile(space, high) &&
    ((vmaFlags(space, low) ^ vmaFlags(space, high)) & ~ACCESS) === 0 &&
    fileIndexOf(space, low, vmaEnd(space, low) / pageSize) ===
      fileIndexOf(space, high, vmaStart(space, high) / pageSize)
  );
}

function neighbours(space: SpaceCore, vma: Vma): number {
  const { agent } = space;
  const next = itSuccessor(agent, vma) as Vma;
  const previous = itPredecessor(agent, vma) as Vma;
  const lends = (near: Vma): boolean =>
    vmaAnon(space, near) !== 0 && (vmaFlags(space, near) & VM_FORK_CHILD) === 0;
  if (next !== 0 && lends(next) && compatible(space, vma, next)) return vmaAnon(space, next);
  if (previous !== 0 && lends(previous) && compatible(space, previous, vma)) return vmaAnon(space, previous);
  return 0;
}

/** Gives a vma its anon_vma, before its first private page. Preconditions: mmapLock, for reading at least. */
export function prepareAnon(space: SpaceCore, vma: Vma): void {
  const w = space.agent.words;
  if (w[vma + VMA_ANON] !== 0) return;
  Atomics.compareExchange(w, vma + VMA_ANON, 0, neighbours(space, vma) || space.mm.nextId());
}
