/* What a page shows, as the fragment of its address: to reload, to bookmark, to share. */

import type { Place, Way } from "./cursor";
import type { Method } from "./live";

/** What a report shows. */
export interface View {
  head: string;
  /** What the map is coloured by. */
  role: string;
  /** Heads whose patterns are side by side; null for those that the page chooses. */
  pins: string[] | null;
  way: Way;
  /** Query and key held in the report's prompt. */
  on: Place | null;
}

/** What a live page shows. */
export interface State extends View {
  text: string;
  off: string[];
  method: Method;
  /** Tokens picked, at most two: the later one looks at the earlier. */
  picked: number[];
}

export const VIEW: View = { head: "", role: "verdict", pins: null, way: "from", on: null };

export function writtenView(view: View): string {
  const parts = new URLSearchParams({ head: view.head });
  if (view.role !== VIEW.role) parts.set("role", view.role);
  if (view.pins) parts.set("pins", view.pins.join(" "));
  if (view.way !== VIEW.way) parts.set("way", view.way);
  if (view.on) parts.set("on", view.on.join(" "));
  return `#${parts}`;
}

export function readView(fragment: string, before: View): View {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  const rest = parts.has("head") ? VIEW : before; // a view that was written leaves out what is usual
  const on = numbers(parts.get("on"));
  return {
    head: parts.get("head") || before.head,
    role: parts.get("role") || rest.role,
    pins: parts.has("pins") ? list(parts.get("pins")).slice(0, 4) : rest.pins,
    way: parts.get("way") === "to" ? "to" : rest.way,
    on: on.length === 2 ? (on as Place) : rest.on,
  };
}

export function written(state: State): string {
  const parts = new URLSearchParams({ text: state.text });
  for (const [name, value] of new URLSearchParams(writtenView(state).slice(1))) parts.set(name, value);
  if (state.off.length) parts.set("off", state.off.join(" "));
  if (state.method !== "mean") parts.set("method", state.method);
  if (state.picked.length) parts.set("at", state.picked.join(" "));
  return `#${parts}`;
}

/** What a fragment says; the rest is as it was. */
export function read(fragment: string, before: State): State {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!parts.has("text")) return before;
  return {
    ...readView(fragment, before),
    text: parts.get("text") ?? before.text,
    off: list(parts.get("off")),
    method: parts.get("method") === "zero" ? "zero" : "mean",
    picked: numbers(parts.get("at")).slice(0, 2),
  };
}

function list(text: string | null): string[] {
  return (text ?? "").split(" ").filter(Boolean);
}

function numbers(text: string | null): number[] {
  return list(text).map(Number).filter(Number.isInteger);
}
