/** What functions that run in a page or in its workers see. */
import * as bifolio from "../../../src/index.ts";
import * as notifier from "../../../src/notifier/index.ts";
import * as sync from "../../../src/syncEntry.ts";
import * as webgpu from "../../../src/webgpuEntry.ts";
import type * as agents from "./agents.ts";
import * as backings from "./backings.ts";
import * as roles from "./roles.ts";

interface Everywhere {
  /** The entries of the package, as built. */
  readonly bifolio: typeof bifolio;
  readonly notifier: typeof notifier;
  readonly sync: typeof sync;
  readonly webgpu: typeof webgpu;
  readonly roles: typeof roles;
  readonly backings: typeof backings;
}

declare global {
  var bifolio: Everywhere["bifolio"];
  var notifier: Everywhere["notifier"];
  var sync: Everywhere["sync"];
  var webgpu: Everywhere["webgpu"];
  var roles: Everywhere["roles"];
  var backings: Everywhere["backings"];
  /** In pages only. */
  var startAgent: typeof agents.startAgent;
}

export function setGlobals(more: object): void {
  const everywhere: Everywhere = { bifolio, notifier, sync, webgpu, roles, backings };
  Object.assign(globalThis, more, everywhere);
}
