/** Asking another agent to do something with pages that only it can do, and waiting for its answer. */
import { MmError } from "../errors.ts";
import {
  MSG_ARG0,
  MSG_ARG1,
  MSG_ARG2,
  MSG_ARG3,
  MSG_POSTED,
  MSG_RESULT,
  MSG_TEXT_LENGTH,
  type Op,
  ownerGone,
  slotOfOwner,
  waitOp,
} from "../sched/index.ts";
import type { Mm } from "./mm.ts";

export interface Question {
  /** Owner id of the agent. */
  readonly owner: number;
  /** MESSAGE_*. */
  readonly kind: number;
  readonly args: readonly [number, number, number, number];
  /** What is waited for, and why the agent is asked. */
  readonly what: string;
  readonly because: string;
}

/**
 * Returns what the agent answers. It cannot be told to stop once it is asked, so a driver that may not wait does not ask.
 * Errors: EAGAIN; EIO if the agent is gone, with because, or says that it failed.
 */
export function* askOp(mm: Mm, { owner, kind, args, what, because }: Question): Op<number> {
  const { agent } = mm;
  const w = agent.words;
  if (agent.current?.mode === "try") {
    throw new MmError(
      "EAGAIN",
      "try",
      `would have to wait for agent ${slotOfOwner(owner)}, which ${because}`,
    );
  }
  const gone = (): MmError =>
    new MmError("EIO", "access", `agent ${slotOfOwner(owner)}, which ${because}, is gone`);
  if (ownerGone(w, owner)) throw gone();
  let m = agent.tryReserveMessage(kind);
  if (m === 0) yield* waitOp(0, () => (m = agent.tryReserveMessage(kind)) !== 0, "a free message");
  Atomics.store(w, m + MSG_ARG0, args[0]);
  Atomics.store(w, m + MSG_ARG1, args[1]);
  Atomics.store(w, m + MSG_ARG2, args[2]);
  Atomics.store(w, m + MSG_ARG3, args[3]);
  agent.send(slotOfOwner(owner), m, false);
  try {
    yield* waitOp(
      0,
      () => agent.messageDone(m) || ownerGone(w, owner),
      what,
      () => owner,
    );
  } catch (error) {
    // Nobody waits any more: whoever answers it frees it.
    Atomics.store(w, m + MSG_POSTED, 1);
    if (agent.messageDone(m)) agent.freeMessage(m);
    throw error;
  }
  const text = Atomics.load(w, m + MSG_TEXT_LENGTH) > 0 ? agent.messageText(m) : "";
  const result = Atomics.load(w, m + MSG_RESULT);
  const done = agent.messageDone(m);
  agent.freeMessage(m);
  if (!done) throw gone();
  if (text !== "") throw new MmError("EIO", "access", text);
  return result;
}
