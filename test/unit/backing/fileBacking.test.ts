import { chmodSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { fileBacking } from "../../../src/backing/index.ts";
import {
  anonymous,
  attachTo,
  expectBytes,
  makeRig,
  PAGE,
  pattern,
  tempFile,
  thrown,
  verify,
} from "../../lib/mm.ts";

describe("fileBacking", () => {
  test("takes the size when it is opened, and resolves the path", () => {
    const path = tempFile(pattern(1234));
    const backing = fileBacking(path);
    expect(backing.size).toBe(1234);
    writeFileSync(path, "");
    expect(backing.size).toBe(1234);
    expect(backing.descriptor).toEqual({ kind: "file", data: JSON.stringify({ path, writable: false }) });
    expect(backing.writeSync).toBeUndefined();
    expect(backing.write).toBeUndefined();
    backing.close!();
  });

  test("errors say what is wrong with the path", () => {
    const path = tempFile(new Uint8Array(1));
    const folder = dirname(path);
    expect(thrown(() => fileBacking(join(folder, "nothing")))).toMatchObject({
      code: "ENOENT",
      operation: "fileBacking",
      message: expect.stringContaining(join(folder, "nothing")),
    });
    expect(thrown(() => fileBacking(folder))?.code).toBe("EISDIR");
    expect(thrown(() => fileBacking(folder, { writable: true }))?.code).toBe("EISDIR");
    expect(thrown(() => fileBacking(join(path, "below")))?.code).toBe("ENOENT");
    expect(thrown(() => fileBacking("/dev/null"))?.code).toBe("EINVAL");
    const loop = join(folder, "loop");
    symlinkSync(loop, loop);
    expect(thrown(() => fileBacking(loop))?.code).toBe("EINVAL");
    mkdirSync(join(folder, "inner"));
    if (process.getuid?.() !== 0) {
      chmodSync(path, 0);
      expect(thrown(() => fileBacking(path))?.code).toBe("EACCES");
    }
  });

  test("reads end at the end of the file, whole or not, and never extend it", async () => {
    const bytes = pattern(PAGE + 100);
    const path = tempFile(bytes);
    const backing = fileBacking(path, { writable: true });
    const into = new Uint8Array(PAGE);
    expect(backing.readSync!(PAGE, into)).toBe(100);
    expect(into.subarray(0, 100)).toEqual(bytes.subarray(PAGE));
    expect(backing.readSync!(3 * PAGE, into)).toBe(0);
    expect(await backing.read(PAGE + 50, into)).toBe(50);
    expect(await backing.read(3 * PAGE, into)).toBe(0);
    backing.writeSync!(PAGE, Uint8Array.of(1, 2, 3));
    await backing.write!(PAGE + 3, Uint8Array.of(4));
    expect([...readFileSync(path).subarray(PAGE, PAGE + 5)]).toEqual([1, 2, 3, 4, bytes[PAGE + 4]]);
    expect(statSync(path).size).toBe(PAGE + 100);
    backing.close!();
  });

  test("a closed one fails as a backing fails: BusError with the cause", async () => {
    const { memory, raw } = await makeRig();
    const path = tempFile(pattern(PAGE));
    const backing = fileBacking(path);
    const file = memory.sync.openFile(backing);
    const a = raw.sync.mmap(anonymous(1, { prot: "r", file }));
    backing.close!();
    expect(thrown(() => raw.getUint8(a))).toMatchObject({ name: "BusError", cause: { code: "EBADF" } });
    backing.close = () => {};
    verify(memory);
  });

  test("every agent has a descriptor of its own, closed when the file goes or the agent leaves", async () => {
    const { memory, raw } = await makeRig(64);
    const before = openDescriptors();
    const bytes = pattern(PAGE * 20);
    const path = tempFile(bytes);
    const file = memory.sync.openFile(fileBacking(path, { writable: true }), { writable: true });
    expect(openDescriptors()).toBe(before + 1);
    const other = await attachTo(memory);
    const there = other.space(raw.id);
    const a = there.sync.mmap(anonymous(20, { share: "shared", file: other.file(file.id) }));
    const all = new Uint8Array(PAGE * 20);
    there.sync.read(a, all);
    expectBytes(all, bytes);
    expect(openDescriptors()).toBe(before + 2);
    there.setUint8(a, 1);
    await Promise.resolve();
    other.sync.sync(other.file(file.id));
    expect(readFileSync(path)[0]).toBe(1);
    other.detach();
    expect(openDescriptors()).toBe(before + 1);
    raw.sync.munmap(a, PAGE * 20);
    await file.close();
    expect(openDescriptors()).toBe(before);
    verify(memory);
  });
});

/** Descriptors that this process has open. */
function openDescriptors(): number {
  let count = 0;
  for (let fd = 3; fd < 256; fd++) {
    try {
      statSync(`/proc/self/fd/${fd}`);
      count++;
    } catch {
      // not open
    }
  }
  return count;
}
