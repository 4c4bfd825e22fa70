/**
 * The other user of the space: a worker that writes to private pages without a break, and looks that nobody else does. Half
 * of them are anonymous, half are its own copies of pages of the file. Works in Node and in browsers.
 */
import { attach } from "bifolio";

const WORD = 1024;

/** Runs until `stop[0]` is not 0; returns how often it went round, and how many words were not what it had written. */
export async function write({ handle, spaceId, stop, start, length, pageSize }) {
  const memory = await attach(handle);
  const space = memory.space(spaceId);
  const words = new Int32Array(handle.memories[0].buffer, stop, 1);
  let rounds = 0;
  let wrong = 0;
  for (; rounds === 0 || Atomics.load(words, 0) === 0; rounds++) {
    for (let at = start; at < start + length; at += pageSize) {
      if (rounds > 0 && space.getUint32(at + WORD) !== at + rounds - 1) wrong++;
      space.setUint32(at + WORD, at + rounds);
      memory.poll();
    }
    // Gives every second page back now and then, while the GPU works: unmapping and faults go on beside it.
    if (rounds % 8 === 7) {
      for (let at = start; at < start + length; at += 2 * pageSize) {
        space.sync.madvise(at, pageSize, "dontneed");
        space.setUint32(at + WORD, at + rounds);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  memory.detach();
  return { rounds, wrong };
}
