/** What the checker looks for: one entry a rule, each with the part of docs/notifiers.md that states it. */

interface RuleText {
  readonly title: string;
  /** A heading of docs/notifiers.md or docs/checking.md. */
  readonly link: string;
}

const notifiers = (heading: string): string => `docs/notifiers.md#${heading}`;
const checking = (heading: string): string => `docs/checking.md#${heading}`;

export type Rule =
  | "use-after-free"
  | "stale-read"
  | "stale-write"
  | "use-while-open"
  | "install-while-open"
  | "stale-install"
  | "retry-ignored"
  | "check-apart-from-install"
  | "set-seq-missing"
  | "lost-dirty"
  | "wrong-age"
  | "sleep-where-not-allowed"
  | "waiting-call-in-callback"
  | "blockable-start-refused"
  | "refusal-without-overlap"
  | "refuses-with-end"
  | "unbalanced-start-end"
  | "callback-after-remove"
  | "callback-threw"
  | "double-release"
  | "leak"
  | "lock-cycle"
  | "deadlock"
  | "no-progress"
  | "core"
  | "invariant"
  | "final"
  | "threw";

export const RULES: Readonly<Record<Rule, RuleText>> = {
  "use-after-free": {
    title: "use after free: a frame, or an object, was used that is free or somebody else's",
    link: notifiers("drop-before-returning"),
  },
  "stale-read": {
    title: "stale read: through a translation that the primary MMU no longer has",
    link: notifiers("drop-before-returning"),
  },
  "stale-write": {
    title: "stale write: through a translation that the primary MMU no longer has, or no longer writable",
    link: notifiers("downgrades-count"),
  },
  "use-while-open": {
    title: "a translation was used after its invalidation had started and before it ended",
    link: notifiers("drop-before-returning"),
  },
  "install-while-open": {
    title: "a translation was made between the start and the end of an invalidation",
    link: notifiers("make-nothing-while-a-range-is-open"),
  },
  "stale-install": {
    title: "a translation was installed that the primary MMU no longer had",
    link: notifiers("check-then-install-under-the-lock"),
  },
  "retry-ignored": {
    title: "readRetry() said that the fill was overtaken, and the translation was installed all the same",
    link: notifiers("check-then-install-under-the-lock"),
  },
  "check-apart-from-install": {
    title: "readRetry() and the install are not under one hold of a lock",
    link: notifiers("check-then-install-under-the-lock"),
  },
  "set-seq-missing": {
    title: "invalidate() returned without setSeq()",
    link: notifiers("always-set-the-sequence"),
  },
  "lost-dirty": {
    title: "lost dirty bit: what the device wrote was not handed over before the page went",
    link: notifiers("hand-over-dirty-data"),
  },
  "wrong-age": {
    title: "wrong age: a page was reported old that the device had used",
    link: notifiers("aging-is-not-invalidation"),
  },
  "sleep-where-not-allowed": {
    title: "a callback waits where its range is not blockable",
    link: notifiers("refuse-without-side-effects"),
  },
  "waiting-call-in-callback": {
    title: "a callback calls an operation, or faults",
    link: notifiers("no-waiting-calls-in-a-callback"),
  },
  "blockable-start-refused": {
    title: "a start was refused although its range is blockable",
    link: notifiers("a-blockable-start-succeeds"),
  },
  "refusal-without-overlap": {
    title: "a start was refused that concerns nothing of the subscriber's",
    link: notifiers("non-blocking-starts"),
  },
  "refuses-with-end": {
    title: "a start that can refuse has an end",
    link: notifiers("refuse-or-have-an-end"),
  },
  "unbalanced-start-end": {
    title: "unbalanced start and end",
    link: notifiers("pair-starts-and-ends"),
  },
  "callback-after-remove": {
    title: "a callback after remove(), unregister() or release",
    link: notifiers("free-after-removal"),
  },
  "callback-threw": {
    title: "a callback threw",
    link: notifiers("what-a-throw-does"),
  },
  "double-release": {
    title: "something was freed, removed or put twice",
    link: notifiers("registration-and-lifetime"),
  },
  leak: {
    title: "a reference was kept past the release of its space",
    link: notifiers("do-not-pin"),
  },
  "lock-cycle": {
    title: "a callback takes a lock that is also held around an operation of the same space",
    link: notifiers("no-waiting-calls-in-a-callback"),
  },
  deadlock: {
    title: "deadlock",
    link: notifiers("no-waiting-calls-in-a-callback"),
  },
  "no-progress": {
    title: "no progress: with everybody running in turn it does not end",
    link: notifiers("bound-the-loop"),
  },
  core: {
    title: "an invariant of the notifier core is broken",
    link: notifiers("the-interval-protocol"),
  },
  invariant: {
    title: "the scenario's own invariant is broken",
    link: checking("a-scenario"),
  },
  final: {
    title: "the scenario's own final check failed",
    link: checking("a-scenario"),
  },
  threw: {
    title: "an agent of the scenario threw",
    link: checking("a-scenario"),
  },
};
