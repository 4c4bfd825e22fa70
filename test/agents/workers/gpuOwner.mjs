// Has a page away, as the owner of a mirror has, and waits for its end.
import { parentPort, workerData } from "node:worker_threads";
import { attach, WriteTracker } from "../../../.test-build/testing.js";

const { handle, spaceId, base } = workerData;
const memory = await attach(handle, { mayBlock: false });
const space = memory.space(spaceId);
const tracker = await WriteTracker.create(space, base, memory.pageSize);
space.notifiers.sync.insert({ invalidate: () => true }, base, memory.pageSize);
await tracker.sendAway([0], () => {});
parentPort.postMessage("away");
setInterval(() => {}, 1000);
