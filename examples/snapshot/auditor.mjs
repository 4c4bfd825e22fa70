/** The worker: adds all accounts up, in the space that the app writes to and in a snapshot of it. */
import { setTimeout as delay } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import { attach } from "bifolio";
import { accountAt, ACCOUNTS, EMPLOYERS, paymentsAt } from "./books.mjs";

const { handle, live: liveId, base } = workerData;
const memory = await attach(handle);
const live = memory.space(liveId);

/** The sum of the accounts `first` up to before `end`. */
async function sumOf(space, first, end) {
  const [from, to] = [accountAt(base, first), accountAt(base, end)];
  let sum = 0;
  await space.forEachSpan(from, to - from, "r", (bytes) => {
    for (const balance of new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)) sum += balance;
  });
  return sum;
}

/** What takes longer than this example gives the app time for anyway. */
async function untilPayments() {
  const before = live.getUint32(paymentsAt(base));
  while (live.getUint32(paymentsAt(base)) === before) await delay(1);
}

async function audit(snapshot) {
  const sums = { live: await sumOf(live, 0, EMPLOYERS), snapshot: await sumOf(snapshot, 0, EMPLOYERS) };
  await untilPayments();
  sums.live += await sumOf(live, EMPLOYERS, ACCOUNTS);
  sums.snapshot += await sumOf(snapshot, EMPLOYERS, ACCOUNTS);
  return { sums, payments: snapshot.getUint32(paymentsAt(base)) };
}

parentPort.on("message", async (snapshotId) => {
  if (snapshotId === undefined) {
    parentPort.close();
    memory.detach();
    return;
  }
  const snapshot = memory.space(snapshotId);
  const found = await audit(snapshot);
  await snapshot.exit(); // its pages are free again
  parentPort.postMessage(found);
});
