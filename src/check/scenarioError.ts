/** A scenario that cannot be explored, and why, in one sentence. */
export class ScenarioError extends Error {
  override readonly name: string = "ScenarioError";
}
