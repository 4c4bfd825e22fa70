/** Entry `bifolio/node`: what needs Node. Import it in every agent that uses files. */
export { fileBacking } from "./backing/index.ts";
