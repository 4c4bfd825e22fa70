/** backing/: where file pages come from. Node's files here; memory lies in mm/. */
export { fileBacking } from "./fileBacking.ts";
