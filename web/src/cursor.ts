/* The query and key that are read out, shared by all patterns of one prompt. A click holds them; hovering then changes nothing. */

import { useEffect, useState } from "preact/hooks";

/** Query and key; -1 for the one that the head itself picks. */
export type Place = [number, number];
/** Where a query looks from, or who looks to a key. */
export type Way = "from" | "to";

export class Cursor {
  private hovered: Place | null = null;
  private readonly followers = new Set<() => void>();

  constructor(
    private readonly start: Place,
    public held: Place | null,
    private readonly onHold: (held: Place | null) => void,
  ) {}

  get at(): Place {
    return this.held ?? this.hovered ?? this.start;
  }

  hover(place: Place): void {
    if (this.held) return;
    this.hovered = place;
    this.told();
  }

  /** Hold a place; the same one again lets go of it. */
  hold(place: Place | null): void {
    const again = place !== null && this.held !== null && place[0] === this.held[0] && place[1] === this.held[1];
    this.hovered = place;
    this.held = again ? null : place;
    this.onHold(this.held);
    this.told();
  }

  follow(follower: () => void): () => void {
    this.followers.add(follower);
    return () => this.followers.delete(follower);
  }

  private told(): void {
    for (const follower of this.followers) follower();
  }
}

/** The place of a cursor, followed as it changes. */
export function usePlace(cursor: Cursor): Place {
  const [, draw] = useState(0);
  useEffect(() => cursor.follow(() => draw((n) => n + 1)) as () => void, [cursor]);
  return cursor.at;
}

/** What a place means for one head's attention: the query and the key, the open one the strongest. */
export function resolved(bytes: (q: number, k: number) => number, n: number, [query, key]: Place, way: Way): Place {
  if (way === "from") {
    const q = Math.min(n - 1, query >= 0 ? query : Math.max(0, key));
    return [q, key >= 0 && key <= q && query >= 0 ? key : strongest(q + 1, (k) => bytes(q, k))];
  }
  const k = Math.min(n - 1, key >= 0 ? key : Math.max(0, query));
  return [query >= k && key >= 0 ? Math.min(n - 1, query) : k + strongest(n - k, (more) => bytes(k + more, k)), k];
}

function strongest(n: number, value: (i: number) => number): number {
  let found = 0;
  for (let i = 1; i < n; i++) if (value(i) > value(found)) found = i;
  return found;
}
