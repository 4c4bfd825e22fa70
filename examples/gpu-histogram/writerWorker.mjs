/** writer.mjs as a worker of a page. */
import { registerBacking } from "bifolio";
import { DEMO, demoBacking } from "./data.mjs";
import { write } from "./writer.mjs";

registerBacking(DEMO, demoBacking);

onmessage = ({ data }) => {
  write(data).then(
    (result) => postMessage({ result }),
    (error) => postMessage({ error: error.message }),
  );
};
