/**
 * The fifteen classic mistakes, one worked example each: the broken model breaks the rule that it should, and its
 * repaired twin, explored to the end, breaks none.
 */
import { describe, expect, test } from "vitest";
import { explore, replay, type Rule, RULES, type Scenario } from "../../src/check/index.ts";
import * as c01 from "./models/c01FillWithoutRetry.ts";
import * as c02 from "./models/c02CheckApart.ts";
import * as c03 from "./models/c03SideCache.ts";
import * as c04 from "./models/c04WrongSide.ts";
import * as c05 from "./models/c05SilentChange.ts";
import * as c06 from "./models/c06ScopeTooSmall.ts";
import * as c07 from "./models/c07NotDrained.ts";
import * as c08 from "./models/c08SleepsWhereNotAllowed.ts";
import * as c09 from "./models/c09StartWithoutEnd.ts";
import * as c10 from "./models/c10WaitsInACircle.ts";
import * as c11 from "./models/c11BeyondTheGuarantee.ts";
import * as c12 from "./models/c12Lifetime.ts";
import * as c13 from "./models/c13WrongAge.ts";
import * as c14 from "./models/c14WrongFilter.ts";
import * as c15 from "./models/c15NoProgress.ts";

const CLASSES: readonly [name: string, rule: Rule, broken: Scenario, fixed: Scenario][] = [
  ["C01 fill without retry", "use-after-free", c01.broken, c01.fixed],
  ["C02 check apart from the install", "use-after-free", c02.broken, c02.fixed],
  ["C03 a second cache", "stale-write", c03.broken, c03.fixed],
  ["C04 the wrong side of the change", "stale-read", c04.broken, c04.fixed],
  ["C05 a change without a word", "use-after-free", c05.broken, c05.fixed],
  ["C06 too small a range", "stale-write", c06.broken, c06.fixed],
  ["C07 dropped, but still in use", "use-after-free", c07.broken, c07.fixed],
  ["C08 waiting where it may not", "sleep-where-not-allowed", c08.broken, c08.fixed],
  ["C09 start without end", "unbalanced-start-end", c09.broken, c09.fixed],
  ["C10 waiting in a circle", "deadlock", c10.broken, c10.fixed],
  ["C11 beyond the guarantee", "use-after-free", c11.broken, c11.fixed],
  ["C12 freed too early", "use-after-free", c12.broken, c12.fixed],
  ["C13 wrong age", "wrong-age", c13.broken, c13.fixed],
  ["C13 lost dirty bit", "lost-dirty", c13.brokenDirty, c13.fixedDirty],
  ["C14 the wrong filter", "stale-write", c14.broken, c14.fixed],
  ["C15 no progress", "no-progress", c15.broken, c15.fixed],
];

describe.each(CLASSES)("%s", (_, rule, broken, fixed) => {
  test("the broken model is found, and its schedule replays", async () => {
    const { violations } = await explore(broken);
    const found = violations.find((violation) => violation.rule === rule);
    expect(found, `found: ${violations.map((v) => v.rule).join(", ")}`).toBeDefined();
    expect(found!.title).toBe(RULES[rule].title);
    const again = await replay(broken, found!.schedule);
    expect(again.violations.map((v) => v.rule)).toContain(rule);
  });

  test("the repaired twin is explored to its end, and nothing is found", async () => {
    const { violations, complete } = await explore(fixed, { schedules: 100_000 });
    expect(violations.map((v) => `${v.rule}: ${v.message}`)).toEqual([]);
    expect(complete).toBe(true);
  });
});
