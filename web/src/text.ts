/* Tokens and numbers as text. Tokens are data: what would not show, or would turn the line around, is spelled out. */

import type { Estimate, Token } from "./data";

const MARKS: Record<string, string> = { "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\u007f": "\u2421" };
const SUBSCRIPTS = [..."\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"];
const HIDDEN = /[\u0080-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/;

/** A token so that it can be seen, in at most `limit` characters; `spaces` marks a leading space and counts runs of them. */
export function shown(
  token: Pick<Token, "text" | "part"> & { id?: number; token?: number },
  spaces = false,
  limit = 24,
): string {
  if (token.text === null) return `#${token.id ?? token.token}`;
  if (token.text === "") return "\u2205";
  if (token.part) return `${tidy(token.text)}${SUBSCRIPTS[token.part[0]] ?? ""}`;
  let text = token.text;
  if (!spaces && text.trim() !== "" && text.startsWith(" ")) text = text.slice(1);
  if (spaces) text = text.replaceAll(/ {2,}/g, (run) => `\u2423\u00d7${run.length}`);
  let out = "";
  let count = 0;
  for (const one of text) {
    if (count++ >= limit) return `${out}\u2026`;
    out += visible(one, out === "");
  }
  return out;
}

/** A name or a sentence so that all of it shows, in its own order. */
export function tidy(text: string): string {
  return Array.from(text, (one) => visible(one, false)).join("");
}

function visible(one: string, first: boolean): string {
  const code = one.codePointAt(0) ?? 0;
  if (MARKS[one]) return MARKS[one];
  if (one === " ") return first ? "\u2423" : " ";
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code >= 0xd800 && code <= 0xdfff) return "\ufffd"; // half of a surrogate pair
  if (HIDDEN.test(one)) return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  return one;
}

export function fixed(value: number, digits = 2): string {
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "\u2212");
}

export function signed(value: number, digits = 3): string {
  const text = fixed(value, digits);
  return text.startsWith("\u2212") || Number(text) === 0 ? text : `+${text}`;
}

/** A number beside an axis. Without it the plotting library asks the browser's tables of languages, which takes 40 ms. */
export function tick(value: number): string {
  return String(Number(value.toPrecision(6))).replace("-", "\u2212");
}

export function percent(value: number): string {
  return `${fixed(100 * value, 0)}%`;
}

/** A probability, with more digits where it is small. */
export function chance(value: number): string {
  if (value > 0 && value < 0.0005) return "<0.1%";
  return `${fixed(100 * value, value < 0.0995 ? 1 : 0)}%`;
}

export function interval(
  estimate: Estimate,
  digits = 3,
  format: (value: number, digits: number) => string = fixed,
): string {
  const range = estimate.ci95 ? ` [${format(estimate.ci95[0], digits)}, ${format(estimate.ci95[1], digits)}]` : "";
  return format(estimate.mean, digits) + range;
}

export function words(role: string): string {
  return role.replaceAll("_", " ");
}
