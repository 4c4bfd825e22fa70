/**
 * Runs one row in a process of its own, so that rows share neither type feedback nor memory, and one that fails stops
 * no other. Started by run.mjs, which hears the result over IPC.
 */
const [, , name, repetitions] = process.argv;

// run.mjs is gone: nobody would hear the result.
process.once("disconnect", () => process.exit(1));

function tell(result) {
  process.send(result, () => process.exit(0));
}

try {
  const { default: row } = await import(new URL(`../rows/${name}.mjs`, import.meta.url));
  const { measures } = row;
  try {
    const { lines, notes = [] } = await row.run({ repetitions: Number(repetitions) });
    tell({ name, measures, notes, lines });
  } catch (error) {
    console.error(error);
    tell({ name, measures, error: error instanceof Error ? error.message : String(error) });
  }
} catch (error) {
  console.error(error);
  tell({ name, error: error instanceof Error ? error.message : String(error) });
}
