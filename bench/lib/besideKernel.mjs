/** What an address space does here, beside what it costs the kernel: bench/native/mmuOperations.c. */
import { MmuNotifier } from "../../.test-build/testing.js";
import { interleave, lineOf } from "./interleave.mjs";
import { nativeProgram } from "./nativeProgram.mjs";

const NANOSECONDS = { ns: 1, us: 1e3, ms: 1e6 };

/**
 * The kernel's measurements: { measure(arguments of the program), name, note }, or { why } where there are none. Where
 * the machine lends no virtual machine the kernel is measured without a notifier.
 */
function kernel() {
  if (process.platform !== "linux") return { why: `this is ${process.platform}, not Linux` };
  const program = nativeProgram("mmuOperations");
  if (program.why) return program;
  const measureWith = (notifier) => (args) =>
    program
      .run(notifier, ...args.map(String))
      .trim()
      .split(" ")
      .map(Number);
  const attempt = (notifier) => {
    const measure = measureWith(notifier);
    measure(["remap"]);
    return measure;
  };
  try {
    // Needs /dev/kvm, and the right to use it.
    const note = "the kernel's notifier: a KVM virtual machine whose memory is all that is touched";
    return { measure: attempt("covering"), name: "Linux, KVM", note };
  } catch (refused) {
    try {
      const note = `the kernel has no notifier: ${refused.message}`;
      return { measure: attempt("none"), name: "Linux, no notifier", note };
    } catch (error) {
      return { why: error.message };
    }
  }
}

/** A list notifier, which hears of every range: its callbacks do the least that they can. */
export async function overlap(space) {
  await space.notifiers.register(
    new MmuNotifier({ invalidateRangeStart: () => true, invalidateRangeEnd() {} }),
  );
}

/**
 * Measures cases interleaved with their counterparts and returns what a row does: { notes, lines }.
 *   run     measures Bifolio: nanoseconds, one figure for each line
 *   native  arguments of the program, which prints as many figures; without them the case stands alone
 *   lines   { what, unit ("ns", "us", "ms"), goal } each
 */
export async function besideKernel(cases, { repetitions }) {
  const { measure, name, note, why } = kernel();
  const variants = {};
  for (const [n, { run, native }] of cases.entries()) {
    variants[`${n}`] = run;
    if (measure && native) variants[`${n} native`] = () => measure(native);
  }
  const samples = await interleave(variants, { repetitions });
  const figures = (variant, k, unit) => samples[variant].map((sample) => sample[k] / NANOSECONDS[unit]);
  return {
    notes: [
      "one notifier hears of everything: a list notifier with start and end",
      why ? `the kernel is not measured: ${why}` : note,
    ],
    lines: cases.flatMap(({ lines }, n) =>
      lines.map(({ what, unit = "ns", goal }, k) => {
        const native = samples[`${n} native`] && figures(`${n} native`, k, unit);
        return lineOf({
          what,
          unit,
          bifolio: figures(`${n}`, k, unit),
          goal,
          alternative: native && { name, samples: native },
        });
      }),
    ),
  };
}
