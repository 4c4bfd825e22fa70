/** Entry `bifolio/program`: runs mm programs, the format in which Bifolio is compared with Linux. Needs Node. */
export {
  parseProgram,
  type ProcessOperation,
  type Program,
  ProgramError,
  type ProgramHeader,
  type ProgramOperation,
} from "./cli/program/parse.ts";
export { LocalProcess, type Outcome, type ProgramProcess } from "./cli/program/process.ts";
export {
  type ProcessPlace,
  ProgramFailure,
  runProgram,
  type RunProgramOptions,
} from "./cli/program/runProgram.ts";
