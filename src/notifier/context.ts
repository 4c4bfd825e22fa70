/** What the calls of this row have in common: an agent's way to one space's subscribers, and a range on its way. */
import type { Message } from "../sched/index.ts";
import type { MmuNotifierEvent, MmuNotifierRange, NotifierSpace, OwnerId } from "./events.ts";
import type { IntervalNotifier } from "./intervalNotifier.ts";
import type { ListNotifier, Subs } from "./layout.ts";
import type { MmuNotifier } from "./mmuNotifier.ts";
import type { SubsContext } from "./subscriptions.ts";

/** Objects by small numbers: a record in the arena can name one. Numbers are used again. */
export class Registry<T> {
  readonly #items: (T | undefined)[] = [];
  readonly #free: number[] = [];

  add(item: T): number {
    const index = this.#free.pop() ?? this.#items.length;
    this.#items[index] = item;
    return index;
  }

  get(index: number): T | undefined {
    return this.#items[index];
  }

  delete(index: number): void {
    this.#items[index] = undefined;
    this.#free.push(index);
  }
}

/** What one agent knows of its own subscriptions, of all spaces. */
export interface LocalSubscribers {
  /** By IV_LOCAL. */
  readonly intervals: Registry<IntervalNotifier>;
  readonly list: Map<ListNotifier, MmuNotifier>;
  readonly spaces: Map<Subs, DeliveryContext>;
  /** Callbacks that have refused a start although they have an end. */
  readonly refusedWithEnd: WeakSet<object>;
}

export interface DeliveryContext extends SubsContext {
  readonly space: NotifierSpace;
  readonly local: LocalSubscribers;
}

/** A range between its start and its end. */
export interface OpenRange extends MmuNotifierRange {
  readonly owner?: OwnerId;
  /** Messages for the ends of other agents' list notifiers, each already addressed. */
  reserved: { readonly owner: number; readonly message: Message }[] | undefined;
  /** Where a range was started that may not wait; in debug mode only. */
  started?: Error;
  /** Whose invalidateRangeStart() opened it and has not had its end; undefined for the rows above. */
  opener: object | undefined;
}

/** A range as callbacks see it. */
export function makeRange(
  space: NotifierSpace,
  start_: number,
  end: number,
  event: MmuNotifierEvent,
  blockable: boolean,
  owner?: OwnerId,
): OpenRange {
  const range: OpenRange = {
    space,
    start: start_,
    end,
    event,
    blockable,
    reserved: undefined,
    opener: undefined,
  };
  return owner === undefined ? range : { ...range, owner };
}
