/** Beginning to track anew. Linux: /proc/PID/clear_refs. */
import { MmError } from "../errors.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { ADDRESS_END } from "../units.ts";
import { ownTables } from "./pageTables.ts";
import { PTE_SOFT_DIRTY, PTE_WRITE } from "./pte.ts";
import { close, openOp, readingPlainOp, writingOp } from "./ranges.ts";
import { LAST_VPN, type SpaceCore } from "./spaceCore.ts";
import { changeRangeOp, forgetAccesses } from "./zap.ts";

export type Refs = "referenced" | "soft-dirty";

export function* clearRefsOp(space: SpaceCore, what: Refs): Op<void> {
  if (what === "referenced") {
    yield* readingPlainOp(space, "clearRefs", () => {
      ownTables(space, "clearRefs", 0, LAST_VPN);
      forgetAccesses(space, 0, LAST_VPN);
    });
    return;
  }
  if (what !== "soft-dirty")
    throw new MmError(
      "EINVAL",
      "clearRefs",
      `what must be "referenced" or "soft-dirty", not ${String(what)}`,
    );
  yield* writingOp(space, "clearRefs", function* () {
    ownTables(space, "clearRefs", 0, LAST_VPN);
    const range = yield* openOp(space, 0, ADDRESS_END, MmuNotifierEvent.SoftDirty);
    try {
      // Not writable either: the next store comes to a fault, which sets the bit.
      yield* changeRangeOp(space, 0, LAST_VPN, PTE_SOFT_DIRTY | PTE_WRITE, 0, true);
    } finally {
      close(space, range);
    }
  });
}
