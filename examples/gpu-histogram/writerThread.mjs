/** writer.mjs as a worker thread of Node. */
import { parentPort, workerData } from "node:worker_threads";
import "bifolio/node"; // half of the pages are read from a file
import { write } from "./writer.mjs";

parentPort.postMessage(await write(workerData));
