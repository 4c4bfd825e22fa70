/** The two drivers of a hasher: blocking, for workers, and with promises, for the main thread. */
import type { Need, Work } from "./hasher.ts";
import type { Surroundings } from "./plan.ts";

/** Waits end after this, so that the board's stop is seen. */
const WAIT_MS = 20;
/** The main thread gives its event loop a turn this often: signals, the progress bar, messages of workers. */
const TURN_MS = 4;

export function driveBlocking<T>({ memory, board }: Surroundings, work: Work<T>): T {
  const meet = (need: Need): void => {
    if (need.kind === "poll") memory.poll();
    else if (need.kind === "fill") need.mirror.fillSync(need.page);
    else if (need.kind === "tryFill") need.mirror.tryFill(need.page);
    else memory.sync.wait(board.words, need.index, need.value, WAIT_MS);
  };
  for (let step = work.next(); ;) {
    if (step.done === true) return step.value;
    let failure: { readonly error: unknown } | undefined;
    try {
      meet(step.value);
    } catch (error) {
      failure = { error };
    }
    step = failure ? work.throw(failure.error) : work.next();
  }
}

export async function driveAsync<T>({ memory, board }: Surroundings, work: Work<T>): Promise<T> {
  /** What may take long; a promise costs more than the rest does. */
  const meetLater = async (need: Extract<Need, { kind: "fill" | "wait" }>): Promise<unknown> =>
    need.kind === "fill"
      ? need.mirror.fill(need.page)
      : memory.wait(board.words, need.index, need.value, WAIT_MS);
  let turnAt = performance.now();
  for (let step = work.next(); ;) {
    if (step.done === true) return step.value;
    let failure: { readonly error: unknown } | undefined;
    try {
      const need = step.value;
      if (need.kind === "poll") memory.poll();
      else if (need.kind === "tryFill") need.mirror.tryFill(need.page);
      else await meetLater(need);
    } catch (error) {
      failure = { error };
    }
    if (performance.now() - turnAt > TURN_MS) {
      await new Promise((resolve) => setImmediate(resolve));
      turnAt = performance.now();
    }
    step = failure ? work.throw(failure.error) : work.next();
  }
}
