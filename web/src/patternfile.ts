/* A pattern as files: its numbers, and a drawing with its title, its tokens and its colour bar. */

import { css, shade, type Theme } from "./colours";
import type { Place } from "./cursor";
import type { Token } from "./data";
import type { Rows } from "./save";
import { shown } from "./text";

type Value = (q: number, k: number) => number;

const CELL = 10;
const LEFT = 96;
const TOP = 34;
const BOTTOM = 104;

/** Of how many tokens one is labelled. */
export function steps(cell: number): number {
  return Math.max(1, Math.ceil(9.5 / cell));
}

/** Lines around places: one on each side of a diagonal run of them, and a box around what stands alone. */
export function outline(places: Place[]): Place[][] {
  const lines: Place[][] = [];
  const runs = new Map<number, Place[]>();
  const close = (run: Place[]) => {
    const left = run.flatMap(([q, k]): Place[] => [
      [k, q],
      [k, q + 1],
    ]);
    const right = run.flatMap(([q, k]): Place[] => [
      [k + 1, q],
      [k + 1, q + 1],
    ]);
    if (run.length > 1) lines.push(left, right);
    else lines.push([...left, ...right.reverse(), left[0] as Place]);
  };
  for (const [q, k] of places) {
    const run = runs.get(q - k);
    if (run && run[run.length - 1]?.[0] === q - 1) run.push([q, k]);
    else {
      if (run) close(run);
      runs.set(q - k, [[q, k]]);
    }
  }
  for (const run of runs.values()) close(run);
  return lines;
}

export function patternRows(tokens: Token[], places: Place[], value: Value): Rows {
  const rows: Rows = [["query", "key", "query_token", "key_token", "attention", "stripe"]];
  const marked = new Set(places.map(([q, k]) => `${q},${k}`));
  tokens.forEach((token, q) => {
    for (let k = 0; k <= q; k++) {
      const target = marked.has(`${q},${k}`) ? 1 : 0;
      rows.push([q, k, shown(token), shown(tokens[k] as Token), Number(value(q, k).toFixed(4)), target]);
    }
  });
  return rows;
}

export function patternSvg(title: string, tokens: Token[], places: Place[], value: Value, theme: Theme): string {
  const n = tokens.length;
  const side = n * CELL;
  const [width, height] = [Math.max(LEFT + side + 12, 320), TOP + side + BOTTOM];
  const parts: string[] = [];
  for (let q = 0; q < n; q++) {
    for (let k = 0; k <= q; k++) {
      parts.push(
        `<rect x="${k * CELL}" y="${q * CELL}" width="${CELL}" height="${CELL}" fill="${css(shade(value(q, k), theme))}"/>`,
      );
    }
  }
  for (const line of outline(places)) {
    const points = line.map(([x, y]) => `${x * CELL},${y * CELL}`).join(" ");
    parts.push(`<polyline points="${points}" fill="none" stroke="${theme.mark}" stroke-width="1.5"/>`);
  }
  tokens.forEach((token, i) => {
    const [word, at] = [escaped(shown(token, false, 12)), (i + 0.5) * CELL + 3];
    parts.push(`<text x="-5" y="${at}" text-anchor="end">${word}</text>`);
    parts.push(`<text transform="translate(${at} ${side + 5}) rotate(-90)" text-anchor="end">${word}</text>`);
  });
  const y = side + BOTTOM - 16;
  parts.push(
    `<text x="-5" y="-6" text-anchor="end" font-style="italic">query ↓</text><text x="${side}" y="${side + 84}" text-anchor="end" font-style="italic">key →</text>`,
    `<rect x="0" y="${y - 8}" width="120" height="9" fill="url(#ramp)"/>`,
    `<text x="-5" y="${y}" text-anchor="end">attention 0</text><text x="125" y="${y}">1</text>`,
  );
  const stops = [0, 1].map((one) => `<stop offset="${one}" stop-color="${css(shade(one, theme))}"/>`).join("");
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"` +
    ` font-family="sans-serif" font-size="8.5" fill="${theme.ink}">` +
    `<title>${escaped(title)}: rows are queries, columns keys</title><defs><linearGradient id="ramp">${stops}</linearGradient></defs>` +
    `<rect width="${width}" height="${height}" fill="${theme.paper}"/>` +
    `<text x="8" y="17" font-size="13" font-weight="600">${escaped(title)}</text>` +
    `<g transform="translate(${LEFT} ${TOP})">${parts.join("")}</g></svg>`
  );
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
