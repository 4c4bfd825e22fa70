/** The memory under test, as an agent of the benchmark wants it: it may block, so that sync forms wait. */
import { createMemory } from "../../.test-build/testing.js";

export const MIB = 1024 ** 2;
export const PAGE = 4096;

export async function openMemory(budgetMiB, options = {}) {
  const memory = await createMemory({ budget: budgetMiB * MIB, mayBlock: true, ...options });
  const space = await memory.createSpace();
  return { memory, space };
}

/** Anonymous memory that every access finds resident, with contents that are not zero. */
export function filledMapping(space, bytes, share = "shared") {
  const address = space.sync.mmap({ length: bytes, prot: "rw", share });
  const chunk = Uint8Array.from({ length: Math.min(bytes, MIB) }, (_, n) => (n * 167) & 0xff);
  for (let at = 0; at < bytes; at += chunk.length) space.sync.write(address + at, chunk);
  return address;
}
