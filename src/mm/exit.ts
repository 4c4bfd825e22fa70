/** The end of a space: release, unmap, wait. Linux: exit_mmap(). */
import { isMmError, MmError } from "../errors.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import { type Op, start } from "../sched/index.ts";
import { LockRank, lockWriteOp, unlockWrite } from "../sync/index.ts";
import { ADDRESS_END } from "../units.ts";
import { batchLocked, drainBatches } from "./batches.ts";
import { unuseFile } from "./files.ts";
import { type File, SP_MMAP_LOCK, SP_STATE, SPACE_EXITED, SPACE_EXITING, SPACE_LIVE } from "./layout.ts";
import { freeIfUnused } from "./lifetime.ts";
import { INDEX_END } from "./radix.ts";
import { detachTables, reattachTables, releaseTables } from "./pageTables.ts";
import { close, openOp } from "./ranges.ts";
import { awaitAcksOp, markRange } from "./shootdown.ts";
import { LAST_VPN, type SpaceCore } from "./spaceCore.ts";
import { allVmas, changeVmas, removeVma } from "./vma.ts";
import { zapRangeOp } from "./zap.ts";

/**
 * Linux: exit_mmap(). Notifiers get release first; then everything is unmapped, of which only interval notifiers still
 * hear. Once: later calls return at once. It cannot be taken back: where this driver may not wait, the rest runs by itself.
 */
export function* exitOp(space: SpaceCore): Op<void> {
  const { agent, mm, slot } = space;
  agent.checkUsable("exit");
  mm.protect(slot);
  const mine =
    space.live &&
    Atomics.compareExchange(agent.words, slot + SP_STATE, SPACE_LIVE, SPACE_EXITING) === SPACE_LIVE;
  mm.unprotect();
  if (!mine) return;
  try {
    if (agent.current?.mode !== "try") {
      yield* finishExitOp(space);
      return;
    }
  } catch (error) {
    if (!isMmError(error, "EDEADLK")) throw error;
  }
  start(agent, finishExitOp(space), (outcome) => {
    if ("error" in outcome)
      agent.report(new MmError("ECALLBACK", "exit", "a space could not be ended", { cause: outcome.error }));
  });
}

/** Empties the page table. What other spaces have, too, is given up as it is. */
function* zapAllOp(space: SpaceCore): Op<void> {
  const shared = detachTables(space);
  try {
    const own = yield* zapRangeOp(space, 0, LAST_VPN);
    if (shared.length > 0 && !own) yield* awaitAcksOp(space, markRange(space, 0, LAST_VPN));
  } catch (error) {
    reattachTables(space, shared);
    throw error;
  }
  releaseTables(space, shared);
}

/** Preconditions: the space is exiting, on behalf of this agent. Can be begun again. */
function* finishExitOp(space: SpaceCore): Op<void> {
  const { agent, mm } = space;
  const w = agent.words;
  yield* space.notifiers.releaseOp();
  const lock = space.slot + SP_MMAP_LOCK;
  yield* lockWriteOp(agent, lock, LockRank.mmapLock, "mmapLock");
  const files: File[] = [];
  try {
    const vmas = allVmas(space);
    drainBatches(mm);
    batchLocked(space, 0, LAST_VPN * mm.pageSize);
    if (vmas.length > 0) {
      const range = yield* openOp(space, 0, ADDRESS_END, MmuNotifierEvent.Unmap, true);
      try {
        yield* zapAllOp(space);
        changeVmas(space, () => {
          for (const vma of vmas) {
            const file = removeVma(space, vma);
            if (file !== 0) files.push(file);
          }
        });
      } finally {
        close(space, range);
      }
    }
  } finally {
    unlockWrite(agent, lock, LockRank.mmapLock);
  }
  for (const slot of files) unuseFile(mm, slot);
  // No valid entry is left, so no agent makes a TLB entry any more; let each forget its table.
  mm.awaitUnprotected(space.slot);
  yield* awaitAcksOp(space, markRange(space, 0, INDEX_END - 1));
  Atomics.store(w, space.slot + SP_STATE, SPACE_EXITED);
  freeIfUnused(space);
}
