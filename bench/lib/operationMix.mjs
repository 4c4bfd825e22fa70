/**
 * Fifty operations in a window of 64 pages, as a program at work has them, for Bifolio and for mmuOperations.c: each is
 * [name, first page, pages, for "move" also the page where it goes].
 */
import { keep } from "./interleave.mjs";
import { PAGE } from "./memory.mjs";

const WINDOW = 2 ** 30;

export const OPERATIONS = [
  ["map", 0, 16],
  ["store", 0, 16],
  ["map", 24, 8],
  ["store", 24, 2],
  ["load", 26, 4],
  ["readonly", 4, 4],
  ["load", 4, 4],
  ["dontneed", 0, 2],
  ["load", 0, 1],
  ["store", 1, 1],
  ["writable", 4, 4],
  ["store", 6, 1],
  ["move", 24, 8, 40],
  ["load", 40, 2],
  ["store", 44, 4],
  ["map", 20, 4],
  ["store", 20, 4],
  ["giveup", 20, 2],
  ["load", 21, 1],
  ["store", 20, 1],
  ["unmap", 10, 2],
  ["map", 10, 2],
  ["store", 10, 1],
  ["readonly", 0, 16],
  ["load", 15, 1],
  ["dontneed", 8, 8],
  ["writable", 0, 8],
  ["nofork", 12, 4],
  ["store", 7, 1],
  ["move", 40, 4, 48],
  ["store", 50, 2],
  ["map", 56, 8],
  ["store", 56, 8],
  ["unmap", 58, 1],
  ["dontneed", 59, 4],
  ["load", 60, 2],
  ["readonly", 56, 2],
  ["writable", 57, 1],
  ["store", 57, 1],
  ["map", 58, 1],
  ["store", 58, 1],
  ["unmap", 20, 4],
  ["dontneed", 44, 4],
  ["store", 46, 1],
  ["load", 45, 1],
  ["giveup", 48, 4],
  ["store", 49, 1],
  ["unmap", 40, 12],
  ["unmap", 0, 16],
  ["unmap", 56, 8],
];

/** The same with a fork in the place of one, whose child ends at once. */
export const OPERATIONS_WITH_FORK = OPERATIONS.with(27, ["fork", 0, 0]);

/** For mmuOperations.c. */
export const listOf = (operations) =>
  operations.map(([name, at, pages, to = 0]) => `${name}:${at}:${pages}:${to}`).join(";");

const ACTIONS = {
  map: (space, address, length) =>
    space.sync.mmap({ address, length, fixed: true, prot: "rw", share: "private" }),
  unmap: (space, address, length) => space.sync.munmap(address, length),
  readonly: (space, address, length) => space.sync.mprotect(address, length, "r"),
  writable: (space, address, length) => space.sync.mprotect(address, length, "rw"),
  dontneed: (space, address, length) => space.sync.madvise(address, length, "dontneed"),
  giveup: (space, address, length) => space.sync.madvise(address, length, "free"),
  nofork: (space, address, length) => space.sync.madvise(address, length, "dontfork"),
  move: (space, address, length, to) => space.sync.mremap(address, length, length, { mayMove: true, to }),
  store(space, address, length) {
    for (let at = address; at < address + length; at += PAGE) space.setUint8(at, 1);
  },
  load(space, address, length) {
    for (let at = address; at < address + length; at += PAGE) keep(space.getUint8(at));
  },
  fork: (space) => space.sync.fork().sync.exit(),
};

/** A function that performs all of them in a space, whose window is empty before and after. */
export function performerOf(space, operations) {
  const steps = operations.map(([name, at, pages, to = 0]) => ({
    act: ACTIONS[name],
    address: WINDOW + at * PAGE,
    length: pages * PAGE,
    to: WINDOW + to * PAGE,
  }));
  return () => {
    for (const { act, address, length, to } of steps) act(space, address, length, to);
  };
}
