/** Entry of the workers of `bifolio mirror`: a hasher, or the churn agent. */
import { parentPort, workerData } from "node:worker_threads";
import { attach } from "../mm/index.ts";
import { HasherAgent } from "./agent.ts";
import { Churn } from "./churn.ts";
import { driveBlocking } from "./drive.ts";
import { failureOf, type WorkerMessage } from "./messages.ts";
import { surroundingsOf, type WorkerTask } from "./plan.ts";

const tell = (message: WorkerMessage): void => parentPort!.postMessage(message);

async function work({ plan, role }: WorkerTask): Promise<void> {
  const memory = await attach(plan.handle);
  const at = surroundingsOf(memory, plan);
  const awaitGo = (): void => {
    tell({ kind: "ready" });
    while (!at.board.gone) memory.sync.wait(at.board.words, at.board.goIndex, 0);
  };
  if (role.kind === "churn") {
    const churn = new Churn(at, plan, plan.churn!);
    awaitGo();
    churn.run();
    tell({ kind: "done", report: undefined });
  } else {
    const agent = new HasherAgent(at, plan, role.index);
    awaitGo();
    const report = agent.report(driveBlocking(at, agent.run()));
    await agent.close();
    tell({ kind: "done", report });
  }
  memory.detach();
}

try {
  await work(workerData as WorkerTask);
} catch (error) {
  tell({ kind: "failed", failure: failureOf(error) });
  // What this agent still has is given back by whoever adopted the worker.
  process.exit(1);
}
