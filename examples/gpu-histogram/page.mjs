/** The page: the same as run.mjs, with data that is made as it is read, or a file of the user's. */
import { createMemory, registerBacking } from "bifolio";
import { DEMO, demoBacking, makeBytes, PAGE, widthOf } from "./data.mjs";
import { countBytes, histogramOf } from "./histogram.mjs";

const BUDGET = 64 * 1024 ** 2;
const PIECE = 1024 ** 2;
const PRIVATE = 4 * PIECE;

registerBacking(DEMO, demoBacking);

const find = (selector) => document.querySelector(selector);
const say = (text) => (find("#status").textContent = text);

/** A file of the user's, whole pages of it; this page reads it for the worker, too. */
const fileBacking = (file) => ({
  size: Math.floor(file.size / PAGE) * PAGE,
  async read(offset, into) {
    const bytes = new Uint8Array(await file.slice(offset, offset + into.length).arrayBuffer());
    into.set(bytes);
    return bytes.length;
  },
});

async function findDevice() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error("This browser gives no WebGPU adapter.");
  return adapter.requestDevice();
}

/** By the CPU, from the same source, without the memory. */
async function count(file, pages) {
  const histogram = new Uint32Array(256);
  const picture = new Uint32Array(pages);
  for (let at = 0; at < pages * PAGE; at += PIECE) {
    const length = Math.min(PIECE, pages * PAGE - at);
    let bytes = new Uint8Array(length);
    if (file) bytes = new Uint8Array(await file.slice(at, at + length).arrayBuffer());
    else makeBytes(bytes, at, pages);
    countBytes(bytes, PAGE, histogram, picture, at / PAGE);
  }
  return { histogram, picture };
}

function drawPicture(picture) {
  const width = widthOf(picture.length);
  const height = Math.ceil(picture.length / width);
  const canvas = find("#picture");
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  picture.forEach((grey, k) => image.data.set([grey, grey, grey, 255], 4 * k));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function drawHistogram(histogram) {
  const canvas = find("#histogram");
  const context = canvas.getContext("2d");
  const most = Math.max(...histogram);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#2f6db3";
  histogram.forEach((of, byte) => {
    const height = (of / most) * canvas.height;
    context.fillRect(byte, canvas.height - height, 1, height);
  });
}

function show(facts) {
  const list = find("#facts");
  list.replaceChildren();
  for (const [name, value, wrong] of facts) {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    dt.textContent = name;
    dd.textContent = value;
    if (wrong) dd.className = "wrong";
    list.append(dt, dd);
  }
}

const same = (a, b) => a.length === b.length && a.every((word, k) => word === b[k]);

async function work(file, sizeMiB) {
  const backing = file ? fileBacking(file) : demoBacking((sizeMiB * 1024 ** 2) / PAGE);
  const pages = backing.size / PAGE;
  if (pages < 1) throw new Error("The file has less than a page of 4 KiB.");
  const device = await findDevice();
  const memory = await createMemory({ budget: BUDGET });
  const space = await memory.createSpace();
  const mapped = await memory.openFile(backing);
  const start = await space.mmap({ length: pages * PAGE, prot: "r", share: "private", file: mapped });
  const own = await space.mmap({ length: PRIVATE, prot: "rw", share: "private" });
  const half = Math.min(PRIVATE / 2, pages * PAGE);
  await space.mmap({ address: own, length: half, fixed: true, prot: "rw", share: "private", file: mapped });

  const stop = memory.allocShared(4);
  const worker = new Worker("writerWorker.mjs", { type: "module" });
  const written = new Promise((resolve, reject) => {
    worker.onerror = (event) => reject(new Error(event.message));
    worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.result));
  });
  worker.postMessage({
    ...{ handle: memory.handle, spaceId: space.id, stop: stop.byteOffset },
    ...{ start: own, length: PRIVATE, pageSize: PAGE },
  });

  const began = performance.now();
  const length = pages * PAGE;
  const gpu = await histogramOf(device, { space, pageSize: PAGE, start, length, budget: BUDGET });
  const seconds = (performance.now() - began) / 1000;
  Atomics.store(stop, 0, 1);
  const { rounds, wrong } = await written;
  worker.terminate();
  say("Counting on the CPU, to compare …");
  const cpu = await count(file, pages);
  const { peak, total } = memory.stats().frames;
  await mapped.close();
  await memory.close();
  device.destroy();

  const equal = same(gpu.histogram, cpu.histogram) && same(gpu.picture, cpu.picture);
  drawPicture(gpu.picture);
  drawHistogram(gpu.histogram);
  show([
    ["Pages", pages.toLocaleString("en")],
    ["The CPU's answer", equal ? "the same" : "DIFFERENT", !equal],
    ["Time on the GPU", `${seconds.toFixed(1)} s`],
    ["Rounds", gpu.run.rounds],
    ["Pages uploaded", gpu.run.pages.toLocaleString("en")],
    ["Memory at most", `${((peak * PAGE) / 1024 ** 2).toFixed(0)} of ${(total * PAGE) / 1024 ** 2} MiB`],
    ["The worker's words", `${wrong === 0 ? "right" : `${wrong} WRONG`} in ${rounds} rounds`, wrong > 0],
  ]);
  find(".results").hidden = false;
  return { pages, equal, wrong, rounds: gpu.run.rounds, uploaded: gpu.run.pages, peak, total, seconds };
}

async function submitted() {
  const button = find("button");
  button.disabled = true;
  say("The GPU counts …");
  try {
    globalThis.outcome = await work(find("#file").files[0], find("#size").valueAsNumber);
    say("Done.");
  } catch (error) {
    globalThis.outcome = { error: error.message };
    say(error.message);
  } finally {
    button.disabled = false;
  }
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  void submitted();
});
