/**
 * The app: pays without a break, and now and then has a snapshot audited: node examples/snapshot/run.mjs
 *
 * In the repository it needs a build (npm run build makes one).
 */
import { once } from "node:events";
import { setImmediate as turn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { createMemory } from "bifolio";
import { accountAt, ACCOUNTS, BALANCE, BYTES, EMPLOYERS, paymentsAt } from "./books.mjs";

const AUDITS = 10;
const TOTAL = ACCOUNTS * BALANCE;
const PAYMENTS_PER_TURN = 200;

const memory = await createMemory({ budget: "4 MiB" });
const space = await memory.createSpace();
const base = await space.mmap({ length: BYTES, prot: "rw", share: "private" });
await space.write(base, new Uint8Array(new Uint32Array(ACCOUNTS).fill(BALANCE).buffer));

const auditor = new Worker(new URL("auditor.mjs", import.meta.url), {
  workerData: { handle: memory.handle, live: space.id, base },
});
memory.adopt(auditor);

const anyOf = (n) => Math.floor(Math.random() * n);
let payments = 0;

/** From an employer to an employee. */
async function pay() {
  const from = accountAt(base, anyOf(EMPLOYERS));
  const to = accountAt(base, EMPLOYERS + anyOf(ACCOUNTS - EMPLOYERS));
  const [payer, payee] = await space.run(() => [space.getUint32(from), space.getUint32(to)]);
  const amount = Math.min(1 + anyOf(100), payer);
  payments++;
  // Where a page has to be copied first, run() calls it again: so it stores what does not depend on what it has stored.
  await space.run(() => {
    space.setUint32(from, payer - amount);
    space.setUint32(to, payee + amount);
    space.setUint32(paymentsAt(base), payments);
  });
}

/** Has the books audited as they are now; `audited` is told what was found, and how many payments there were. */
async function beginAudit(audited) {
  const snapshot = await space.fork();
  const expected = payments;
  auditor.once("message", (found) => audited(found, expected));
  auditor.postMessage(snapshot.id);
}

const wrong = { live: 0, snapshot: 0 };
let audits = 0;
let underWay = false;

function audited({ sums, payments: seen }, expected) {
  if (sums.live !== TOTAL) wrong.live++;
  if (sums.snapshot !== TOTAL || seen !== expected) wrong.snapshot++;
  audits++;
  underWay = false;
}

while (audits < AUDITS) {
  // Between two payments the books balance: the time for a fork.
  if (!underWay) {
    underWay = true;
    await beginAudit(audited);
  }
  for (let n = 0; n < PAYMENTS_PER_TURN; n++) await pay();
  await turn();
}

auditor.postMessage(undefined);
await once(auditor, "exit");
await memory.close();

console.log(`${AUDITS} audits of ${ACCOUNTS} accounts with ${TOTAL} in all, while payments go on:`);
console.log(`live:     ${wrong.live} of ${AUDITS} sums are wrong`);
console.log(`snapshot: ${wrong.snapshot} of ${AUDITS} sums are wrong`);
if (wrong.snapshot > 0) process.exitCode = 1;
