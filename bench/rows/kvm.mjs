/**
 * One notifier of the real kernel against one of ours. KVM registers a list notifier for a process that has a virtual
 * machine, and looks in a tree of its own whether the machine's memory is concerned: what an interval does here.
 */
import { interleave, lineOf } from "../lib/interleave.mjs";
import { invalidations, listNotifiers, spreadIntervals } from "../lib/invalidations.mjs";
import { nativeProgram } from "../lib/nativeProgram.mjs";
import { median } from "../lib/statistics.mjs";
import { significant } from "../lib/table.mjs";

const ROUNDS = 20_000;

/** The kernel's measurements as variants, or why there are none. */
function kernel() {
  if (process.platform !== "linux") return { why: `this is ${process.platform}, not Linux` };
  const program = nativeProgram("kvmNotifier");
  if (program.why) return program;
  const variant = (what) => () => Number(program.run(what));
  try {
    // Needs /dev/kvm, and the right to use it.
    variant("covering")();
  } catch (error) {
    return { why: error.message };
  }
  return { none: variant("none"), elsewhere: variant("elsewhere"), covering: variant("covering") };
}

export default {
  measures:
    "begin and end of an invalidation of one page with one subscriber, against what a KVM virtual machine adds to a madvise dontneed of an untouched page",
  async run({ repetitions }) {
    const { why, ...variants } = kernel();
    if (why) return { notes: [`not measured: ${why}`], lines: [] };
    const listed = await listNotifiers(1);
    const spread = await spreadIntervals(1);
    const heard = invalidations(listed, listed.uncovered, ROUNDS);
    const missed = invalidations(spread, spread.uncovered, ROUNDS);
    const hit = invalidations(spread, spread.covered, ROUNDS);
    const samples = await interleave(
      {
        ...variants,
        heardInner: heard.inner,
        heardPublic: heard.public,
        missedInner: missed.inner,
        missedPublic: missed.public,
        hitInner: hit.inner,
        hitPublic: hit.public,
      },
      { repetitions },
    );
    await listed.memory.close();
    await spread.memory.close();

    const added = (to) => samples[to].map((ns, n) => ns - samples.none[n]);
    const pair = (what, name, alternative, samplesAlternative) =>
      ["Inner", "Public"].map((form) =>
        lineOf({
          what: `${what}, ${form.toLowerCase()}`,
          unit: "ns",
          bifolio: samples[`${name}${form}`],
          alternative: { name: alternative, samples: samplesAlternative },
        }),
      );
    const elsewhere = added("elsewhere");
    const covering = added("covering");
    return {
      notes: [
        "inner: from inside an operation that runs already, as the kernel's is from inside madvise; public: notifiers.sync",
        `the whole madvise without a notifier takes the kernel ${significant(median(samples.none))} ns`,
      ],
      lines: [
        ...pair("one list notifier that hears of it", "heard", "KVM, memory elsewhere", elsewhere),
        ...pair("one interval that is not hit", "missed", "KVM, memory elsewhere", elsewhere),
        ...pair("one interval that is hit", "hit", "KVM, memory over the page", covering),
      ],
    };
  },
};
