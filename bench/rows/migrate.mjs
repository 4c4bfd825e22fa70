/** Pages that go to a device in plain memory and come back, by calls and by accesses. */
import {
  createDeviceMemory,
  makeDeviceExclusive,
  migrateToDevice,
  migrateToMemory,
} from "../../.test-build/testing.js";
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { filledMapping, MIB, openMemory, PAGE } from "../lib/memory.mjs";

const BYTES = 16 * MIB;
const PAGES = BYTES / PAGE;
/** Pages that are made exclusive. */
const FEW = 1024;

export default {
  measures:
    "16 MiB of private memory moved to a device in plain memory and back, a page, against copying 4 KiB between typed arrays",
  async run({ repetitions }) {
    const { memory, space } = await openMemory((2 * BYTES) / MIB + 32);
    const store = new Uint8Array(BYTES);
    const device = createDeviceMemory(memory, {
      bytes: BYTES,
      copyInSync: (list) => {
        for (const { page, bytes } of list) store.set(bytes, page * PAGE);
      },
      copyOutSync: (list) => {
        for (const { page, bytes } of list) bytes.set(store.subarray(page * PAGE, (page + 1) * PAGE));
      },
    });
    const start = filledMapping(space, BYTES, "private");
    const range = { start, length: BYTES };
    const there = () =>
      nsPerOperation(PAGES, () => {
        if (migrateToDevice.sync(device, space, range).length !== PAGES)
          throw new Error("not all pages moved");
      });
    const back = () => nsPerOperation(PAGES, () => keep(migrateToMemory.sync(device, space, range)));
    const touch = () =>
      nsPerOperation(PAGES, () => {
        for (let n = 0; n < PAGES; n++) keep(space.getUint32(start + n * PAGE));
      });
    const both = (then) => () => {
      const first = there();
      const second = then();
      return { first, second };
    };
    const exclusive = () => {
      const taken = nsPerOperation(FEW, () => {
        for (let n = 0; n < FEW; n++)
          makeDeviceExclusive.sync({ memory, space, address: start + n * PAGE }).release();
      });
      const given = nsPerOperation(FEW, () => {
        for (let n = 0; n < FEW; n++) keep(space.getUint32(start + n * PAGE));
      });
      return { first: taken, second: given };
    };
    const from = new Uint8Array(BYTES).fill(1);
    const to = new Uint8Array(BYTES).fill(2);
    const copy = () =>
      nsPerOperation(PAGES, () => {
        for (let at = 0; at < BYTES; at += PAGE) to.set(from.subarray(at, at + PAGE), at);
        keep(to[1]);
      });
    const samples = await interleave(
      { called: both(back), copied: copy, touched: both(touch), exclusive },
      { repetitions },
    );
    await memory.close();
    const alternative = { name: "copy", samples: samples.copied };
    const line = (what, measured, part) =>
      lineOf({ what, unit: "ns", bifolio: measured.map((pair) => pair[part]), alternative });
    return {
      lines: [
        line("to the device", samples.called, "first"),
        line("back by a call", samples.called, "second"),
        line("back by an access, page by page", samples.touched, "second"),
        line("made a device's own", samples.exclusive, "first"),
        line("taken back by an access", samples.exclusive, "second"),
      ],
    };
  },
};
