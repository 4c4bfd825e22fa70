/**
 * Which anon_vma a vma has. Linux: mm/rmap.c, anon_vma_prepare(), anon_vma_fork(). What one is: anonTree.ts.
 *
 * It also decides whether mappings merge, and whether fork copies and tells of a mapping at all.
 *
 *   none    -> own     the first private page or guard: a new one, or that of a neighbour it could merge with
 *   own     -> own     split, move, merge: the parts keep it
 *   own     -> child's fork: a new one below it, with VM_FORK_CHILD
 *   own     -> none    a move that leaves the mapping behind, empty
 */
import { itPredecessor, itSuccessor } from "../memory/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import { createAnon, homeOf, linkAnonLocked, lockFamily, unlockFamily } from "./anonTree.ts";
import {
  type AnonVma,
  AV_USES,
  MM_LOCK,
  VM_EXEC,
  VM_FORK_CHILD,
  VM_MAYBE_GUARD,
  VM_READ,
  VM_WRITE,
  type Vma,
  VMA_ANON,
  VMA_PGOFF,
} from "./layout.ts";
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

function neighbours(space: SpaceCore, vma: Vma): AnonVma {
  const { agent } = space;
  const next = itSuccessor(agent, vma) as Vma;
  const previous = itPredecessor(agent, vma) as Vma;
  const lends = (near: Vma): boolean =>
    vmaAnon(space, near) !== 0 && (vmaFlags(space, near) & VM_FORK_CHILD) === 0;
  if (next !== 0 && lends(next) && compatible(space, vma, next)) return vmaAnon(space, next);
  if (previous !== 0 && lends(previous) && compatible(space, previous, vma)) return vmaAnon(space, previous);
  return 0 as AnonVma;
}

/**
 * Gives a vma its anon_vma, before its first private page; returns what such a page is to name, or 0 if the arena is full.
 * Preconditions: mmapLock, for reading at least.
 */
export function prepareAnon(space: SpaceCore, vma: Vma): AnonVma {
  const anon = space.agent.words[vma + VMA_ANON]! as AnonVma; // plain: set once while mmapLock is held
  return anon === 0 ? prepareFirst(space, vma) : homeOf(space.mm, anon);
}

function prepareFirst(space: SpaceCore, vma: Vma): AnonVma {
  const { agent, mm } = space;
  const w = agent.words;
  // Others under mmapLock do the same: for this vma, or for a neighbour that looks at this one.
  lockSpin(agent, mm.header + MM_LOCK);
  let anon = vmaAnon(space, vma);
  if (anon === 0) {
    const lent = neighbours(space, vma);
    anon = lent === 0 ? createAnon(mm, lent) : lent;
    if (anon !== 0) {
      const pages = (vmaEnd(space, vma) - vmaStart(space, vma)) / mm.pageSize;
      lockFamily(mm, anon);
      linkAnonLocked(mm, vma, anon, Atomics.load(w, vma + VMA_PGOFF), pages);
      unlockFamily(mm, anon);
      Atomics.store(w, vma + VMA_ANON, anon);
      if (lent === 0) Atomics.sub(w, anon + AV_USES, 1); // the vma's is the one that stays
    }
  }
  unlockSpin(agent, mm.header + MM_LOCK);
  return anon === 0 ? anon : homeOf(mm, anon);
}
