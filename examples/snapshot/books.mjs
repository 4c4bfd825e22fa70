/** Where the books lie: the balances, employers first, and behind them the number of payments. */
const WORD = 4;

export const ACCOUNTS = 65_536;
export const EMPLOYERS = ACCOUNTS / 2;
/** Of each account at the beginning. */
export const BALANCE = 100_000;

export const BYTES = (ACCOUNTS + 1) * WORD;
export const accountAt = (base, account) => base + account * WORD;
export const paymentsAt = (base) => base + ACCOUNTS * WORD;
