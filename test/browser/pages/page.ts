/** The script of the page. */
import { startAgent } from "./agents.ts";
import { setGlobals } from "./globals.ts";

setGlobals({ startAgent });
