/* What a live page shows, as the fragment of its address: to reload, to bookmark, to share on the same machine. */

import type { Method } from "./live";

export interface State {
  text: string;
  /** The head whose looks are shown. */
  head: string;
  off: string[];
  method: Method;
  /** Tokens picked, at most two: the later one looks at the earlier. */
  picked: number[];
}

export function written(state: State): string {
  const parts = new URLSearchParams({ text: state.text, head: state.head });
  if (state.off.length) parts.set("off", state.off.join(" "));
  if (state.method !== "mean") parts.set("method", state.method);
  if (state.picked.length) parts.set("at", state.picked.join(" "));
  return `#${parts}`;
}

/** What a fragment says; the rest is as it was. */
export function read(fragment: string, before: State): State {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!parts.has("text")) return before;
  const list = (name: string) => (parts.get(name) ?? "").split(" ").filter(Boolean);
  return {
    text: parts.get("text") ?? before.text,
    head: parts.get("head") || before.head,
    off: list("off"),
    method: parts.get("method") === "zero" ? "zero" : "mean",
    picked: list("at").map(Number).filter(Number.isInteger).slice(0, 2),
  };
}
