/** Working on the files behind a range, without mmapLock: it is held only to look what comes next. */
import type { Op } from "../sched/index.ts";
import { unuseFile, useFile } from "./files.ts";
import type { File } from "./layout.ts";
import { type FileCore, fileAt } from "./pageCache.ts";
import { firstPart, notMapped, type Part, readingPlainOp } from "./ranges.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { fileIndexOf } from "./vma.ts";

/**
 * Does `body` with the pages of the file that `choose` names for each mapped part, 0 for none. A hole is skipped, and
 * ENOMEM at the end; what `choose` throws ends it at once. Preconditions: a use of the space.
 */
export function* eachFilePartOp(
  space: SpaceCore,
  operation: string,
  start: number,
  end: number,
  choose: (part: Part) => File,
  body: (file: FileCore, index: number, pages: number) => Op<void>,
): Op<void> {
  const { mm } = space;
  let hole = false;
  for (let at = start; at < end;) {
    const found = yield* readingPlainOp(space, operation, () => {
      const part = firstPart(space, at, end);
      if (!part) return undefined;
      const file = choose(part);
      // Kept by a use of its own once the lock is given back.
      if (file !== 0) useFile(mm, file);
      return { part, file, index: fileIndexOf(space, part.vma, part.start / mm.pageSize) };
    });
    if (!found) {
      hole = true;
      break;
    }
    const { part, file, index } = found;
    hole ||= part.start > at;
    at = part.end;
    if (file === 0) continue;
    try {
      yield* body(fileAt(mm, file), index, (part.end - part.start) / mm.pageSize);
    } finally {
      unuseFile(mm, file);
    }
  }
  if (hole) throw notMapped(operation, start, end);
}
