/** Having a page for a device alone. Linux: make_device_exclusive(). */
import { MmError } from "../errors.ts";
import {
  type AddressSpace,
  faultOp,
  loadPte,
  isValid,
  type PhysicalMemory,
  pfnOfPte,
  PTE_WRITE,
  readingOp,
  releaseExclusive,
  takeExclusiveOp,
  waitMovedOp,
} from "../mm/index.ts";
import type { OwnerId } from "../notifier/index.ts";
import { type Op, runAsync, runBlocking, runTry } from "../sched/index.ts";

/** A page that a device has for its own, still locked: nobody takes it back. */
export class ExclusivePage implements Disposable {
  readonly #memory: PhysicalMemory;
  /** The frame of the page. */
  readonly pfn: number;
  #released = false;

  /** @internal */
  constructor(memory: PhysicalMemory, pfn: number) {
    this.#memory = memory;
    this.pfn = pfn;
  }

  /**
   * The device is set up: from now on the next access by an agent takes the page back, after the device's notifier has heard of
   * it. Soon, and by the agent that took it; until then whoever accesses the page waits. Once: later calls do nothing. Linux:
   * folio_unlock(), folio_put().
   */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    releaseExclusive(this.#memory.mm, this.pfn);
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

export interface MakeExclusive {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  /** Bytes, page aligned. */
  readonly address: number;
  /** In the event. */
  readonly owner?: OwnerId;
}

function* makeDeviceExclusiveOp({ memory, space, address, owner }: MakeExclusive): Op<ExclusivePage> {
  const { pageSize, mm } = memory;
  if (!Number.isSafeInteger(address) || address < 0 || address % pageSize !== 0) {
    throw new MmError(
      "EINVAL",
      "makeDeviceExclusive",
      `address must be a multiple of the page size (${pageSize}), not ${address}`,
    );
  }
  const vpn = address / pageSize;
  for (;;) {
    const pfn = yield* readingOp(space, "makeDeviceExclusive", () => takeExclusiveOp(space, vpn, owner));
    if (pfn !== 0) return new ExclusivePage(memory, pfn);
    const pte = loadPte(space, vpn);
    if (!isValid(pte) || (pte & PTE_WRITE) === 0) yield* faultOp(space, vpn, true);
    else yield* waitMovedOp(mm, pfnOfPte(pte), () => !mm.frames.isLocked(pfnOfPte(pte)));
  }
}

/** One variant for each driver, as everywhere. */
export interface MakeExclusiveVariants {
  (page: MakeExclusive): Promise<ExclusivePage>;
  sync(page: MakeExclusive): ExclusivePage;
  try(page: MakeExclusive): ExclusivePage;
}

/**
 * Takes a page from all page tables for a device: until the next access by an agent, only the device uses it. Raises an
 * EXCLUSIVE event. The caller begins with readBegin(), sets its device up under the lock that its invalidate() takes unless
 * readRetry() says no, and then calls release(). May wait. Errors: ENOTSUP unless the page is private and anonymous, those
 * of a write access, EINVAL. Views and pins taken before are not kept out.
 */
export const makeDeviceExclusive: MakeExclusiveVariants = Object.assign(
  (page: MakeExclusive): Promise<ExclusivePage> => runAsync(page.memory.agent, makeDeviceExclusiveOp(page)),
  {
    sync: (page: MakeExclusive): ExclusivePage => runBlocking(page.memory.agent, makeDeviceExclusiveOp(page)),
    try: (page: MakeExclusive): ExclusivePage => runTry(page.memory.agent, makeDeviceExclusiveOp(page)),
  },
);
