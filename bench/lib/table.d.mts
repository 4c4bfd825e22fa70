export function significant(n: number): string;
export function alignColumns(lines: readonly (readonly string[])[]): string[];
