// npm run conformance: runs mm programs in Bifolio and compares with Linux. See docs/conformance.md.
//
//   (nothing)                  the recorded corpus: agreement per aspect, and the most frequent first differences
//   NAME...                    these programs of the corpus, every difference in full
//   --seed S --count N         N fresh programs, run by the kernel of this machine too (root, /dev/kvm, tracefs)
//     [--profile P]            basic, fork, file, madvise, errors or all
//   --check                    verifies every invariant after each operation, which is slow
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { build } from "rolldown";
import { generate, PROFILES } from "../test/linux/generate.mjs";

const MOST_SHOWN = 40;
const DEFAULT_COUNT = 100;
const root = fileURLToPath(new URL("..", import.meta.url));

function refuse(sentence, exitCode = 2) {
  console.error(`conformance: ${sentence}`);
  process.exit(exitCode);
}

function readOptions() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        check: { type: "boolean", default: false },
        seed: { type: "string" },
        count: { type: "string", default: String(DEFAULT_COUNT) },
        profile: { type: "string", default: "all" },
      },
    });
    return { ...values, names: positionals };
  } catch (error) {
    return refuse(error.message);
  }
}

/** The sources as they are now, in a bundle of their own: no build is needed, and none is disturbed. */
async function load() {
  await import("./buildWasm.mjs");
  const folder = mkdtempSync(join(tmpdir(), "bifolio-conformance-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  await build({
    cwd: root,
    input: "test/linux/conformance.ts",
    platform: "node",
    logLevel: "silent",
    output: {
      dir: folder,
      format: "esm",
      entryFileNames: "[name].mjs",
      chunkFileNames: "[name].mjs",
      sourcemap: true,
    },
  });
  return await import(pathToFileURL(join(folder, "conformance.mjs")).href);
}

/** Programs nobody has seen before, with what this machine's kernel makes of them. */
async function fresh({ seed, count, profile }) {
  const programs = Number(count);
  if (!(Number.isInteger(programs) && programs > 0)) refuse("--count must be a whole number above 0");
  if (!PROFILES.includes(profile)) refuse(`--profile must be one of ${PROFILES.join(", ")}`);
  if (process.platform !== "linux") refuse("fresh programs need Linux", 1);
  if (process.getuid() !== 0) refuse("fresh programs need root, for tracefs and clear_refs", 1);
  if (!existsSync("/dev/kvm"))
    refuse("fresh programs need /dev/kvm, by which the kernel's notifications are seen", 1);
  const items = Array.from({ length: programs }, (_, k) => {
    const { header, text } = generate(seed, String(k).padStart(3, "0"), { profile });
    return { name: header.name, text };
  });
  const { runAll } = await import("../test/linux/oracle.mjs");
  let results;
  try {
    results = runAll(items);
  } catch (error) {
    return refuse(error.message, 1);
  }
  // A stray event of the machine's: once more.
  return results.flatMap(({ text, errors }, k) => {
    const { name, text: program } = items[k];
    const again = errors.length > 0 ? runAll([items[k]])[0] : { text, errors };
    if (again.errors.length === 0) return [{ name, program, expected: again.text }];
    console.error(`conformance: ${name} is left out: ${again.errors[0]}`);
    return [];
  });
}

const options = readOptions();
const began = performance.now();
const tools = await load().catch((error) => refuse(`the sources do not build: ${error.message}`, 1));
const corpus = options.seed === undefined ? tools.readCorpus(root) : await fresh(options);
const unknown = options.names.filter((name) => !corpus.some((c) => c.name === name));
if (unknown.length > 0) refuse(`there is no program called ${unknown.join(", ")}`);
const chosen = corpus.filter((c) => options.names.length === 0 || options.names.includes(c.name));

const all = [];
for (const c of chosen) all.push(await tools.compare(c, { debug: true, check: options.check }));

if (options.names.length > 0) for (const c of all) console.log(tools.details(c));
else {
  console.log(tools.summary(all));
  const first = tools.firstDifferences(all, MOST_SHOWN);
  if (first !== "") console.log(`first differences, ${MOST_SHOWN} most frequent kinds:\n${first}`);
  console.log(`${chosen.length} programs in ${((performance.now() - began) / 1000).toFixed(1)} s`);
}
const everything = all.every(tools.agrees);
process.exit(everything ? 0 : 1);
