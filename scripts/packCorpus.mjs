// node scripts/packCorpus.mjs FOLDER FILE.jsonl.gz: packs the programs of a folder (NAME.jsonl with NAME.expected.jsonl)
// into one file, one line each: {"name","program","expected"}. With --unpack: the other way.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";

const BEST = 9;

function pack(folder, file) {
  const names = readdirSync(folder)
    .filter((f) => f.endsWith(".jsonl") && !f.endsWith(".expected.jsonl"))
    .map((f) => f.slice(0, -".jsonl".length))
    .sort();
  const lines = names.map((name) => {
    const [program, expected] = [".jsonl", ".expected.jsonl"].map((end) =>
      readFileSync(join(folder, name + end), "utf8"),
    );
    return JSON.stringify({ name, program, expected });
  });
  writeFileSync(file, gzipSync(`${lines.join("\n")}\n`, { level: BEST }));
  return names.length;
}

function unpack(file, folder) {
  mkdirSync(folder, { recursive: true });
  const lines = gunzipSync(readFileSync(file)).toString("utf8").trimEnd().split("\n");
  for (const line of lines) {
    const { name, program, expected } = JSON.parse(line);
    writeFileSync(join(folder, `${name}.jsonl`), program);
    writeFileSync(join(folder, `${name}.expected.jsonl`), expected);
  }
  return lines.length;
}

const args = process.argv.slice(2).filter((a) => a !== "--unpack");
if (args.length !== 2) {
  console.error("packCorpus: needs FOLDER FILE.jsonl.gz, or --unpack FILE.jsonl.gz FOLDER");
  process.exit(2);
}
const [from, to] = args;
console.log(`${process.argv.includes("--unpack") ? unpack(from, to) : pack(from, to)} programs`);
