/** What follows each other in an ascending list. */
export function runsOf(pages: readonly number[]): { readonly first: number; readonly end: number }[] {
  const runs: { first: number; end: number }[] = [];
  for (const page of pages) {
    const last = runs.at(-1);
    if (last?.end === page) last.end++;
    else runs.push({ first: page, end: page + 1 });
  }
  return runs;
}

/** Pages `[first, end)`. */
export const pagesFrom: (first: number, end: number) => number[] = (first, end) =>
  Array.from({ length: end - first }, (_, k) => first + k);
