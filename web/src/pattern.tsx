/* One head's attention on the example: the matrix on a canvas of its own, and the prompt coloured by one query's row. */

import type { ComponentChildren, JSX } from "preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { css, onTop, shade, type Theme } from "./colours";
import { type Heads, place, type Report, type Token } from "./data";
import { Figure, useWidth } from "./figure";
import type { Rows } from "./save";
import { fixed, shown } from "./text";

type Place = [number, number];

/** The keys that an induction head looks at: the token after the earlier copy. */
export function stripe(example: Report["example"]): Place[] {
  const [start, end] = example.second;
  const back = start - example.first[0];
  const places: Place[] = [];
  for (let query = start; query < end; query++) places.push([query, query - back + 1]);
  return places;
}

/** The report's own prompt, with one head's attention and the tokens coloured by it. */
export function Pattern(props: { report: Report; heads: Heads; head: string; theme: Theme }): JSX.Element {
  const { report, head, theme } = props;
  const { example } = report;
  const bytes = props.heads.pattern(head);
  const [start, end] = example.second;
  const [at, setAt] = useState<Place>([start + Math.floor((end - start) / 2), -1]);
  const places = useMemo(() => stripe(example), [example]);
  if (!bytes) {
    return (
      <p class="soft">
        The pattern of {head} is not in this file: for want of room, {example.left_out} heads without a role are left
        out.
      </p>
    );
  }
  return (
    <Matrix
      id={head}
      title={`What ${head} attends to, on one prompt`}
      head={head}
      tokens={example.tokens}
      bytes={bytes}
      stripe={places}
      theme={theme}
      at={at}
      onAt={setAt}
    >
      <p class="prompt" role="group" aria-label="The prompt, coloured by the attention of the chosen token">
        {example.tokens.map((token, i) => (
          <span
            class={`chip${i === at[0] ? " query" : ""}${within(i, example.first) || within(i, example.second) ? " copy" : ""}`}
            style={tint(bytes, at[0], i, theme)}
            onPointerEnter={() => setAt([i, -1])}
          >
            <bdi>{shown(token)}</bdi>
          </span>
        ))}
      </p>
    </Matrix>
  );
}

/** The colours of a token that a query looks at; none for those that come after it. */
export function tint(bytes: Uint8Array, query: number, key: number, theme: Theme): { background?: string; color?: string } {
  if (key > query) return {};
  const colour = shade((bytes[place(query, key)] ?? 0) / 255, theme);
  return { background: css(colour), color: onTop(colour) };
}

/** One head's attention on some tokens as a figure; `at` is the query and the key that are read out, -1 for the best. */
export function Matrix(props: {
  id: string;
  title: string;
  head: string;
  tokens: Token[];
  bytes: Uint8Array;
  stripe: Place[];
  theme: Theme;
  at: Place;
  onAt: (at: Place) => void;
  children?: ComponentChildren;
}): JSX.Element {
  const { head, tokens, bytes, theme } = props;
  const n = tokens.length;
  const [block, room] = useWidth(480);
  const canvas = useRef<HTMLCanvasElement>(null);
  const image = useMemo(() => matrix(bytes, n, theme), [bytes, n, theme]);
  const cell = Math.min(40, Math.max(1, Math.floor(Math.min(room, 520) / n)));
  const side = cell * n;
  const [query, key] = props.at;

  useLayoutEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context || !canvas.current) return;
    const scale = devicePixelRatio || 1;
    canvas.current.width = canvas.current.height = Math.round(side * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, side, side);
    // The stripe is marked beside, not upon, so that what lies on it stays visible.
    context.strokeStyle = theme.mark;
    context.lineWidth = 1.5;
    context.beginPath();
    for (const line of outline(props.stripe)) {
      line.forEach(([x, y], i) => (i ? context.lineTo(x * cell, y * cell) : context.moveTo(x * cell, y * cell)));
    }
    context.stroke();
    context.strokeStyle = theme.ink;
    context.globalAlpha = 0.5;
    context.lineWidth = 1;
    context.strokeRect(0.5, query * cell + 0.5, (query + 1) * cell - 1, cell - 1);
    context.globalAlpha = 1;
  }, [image, side, query, props.stripe, theme]);

  const value = (q: number, k: number) => (k <= q ? (bytes[place(q, k)] ?? 0) / 255 : 0);
  const strongest = best(bytes, query);
  const shownKey = key >= 0 && key <= query ? key : strongest;
  const move = (event: KeyboardEvent) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [down = 0, right = 0] = step;
    const to = Math.max(0, Math.min(n - 1, query + down));
    props.onAt([to, right ? Math.max(0, Math.min(to, shownKey + right)) : -1]);
  };
  const text = (i: number) => shown(tokens[i] as Token);
  return (
    <Figure
      id={`pattern-${props.id}`}
      title={props.title}
      theme={theme}
      rows={() => patternRows(tokens, props.stripe, value)}
      svg={() => patternSvg(n, props.stripe, value, theme, head)}
      caption={
        <>
          Rows are queries, columns keys, both in reading order.
          {props.stripe.length > 0 && (
            <>
              {" "}
              Between the <span style={{ color: theme.ablated }}>coloured lines</span> lies the induction stripe: the token
              after the earlier copy of the present one.
            </>
          )}
        </>
      }
    >
      <div ref={block}>
        <canvas
          ref={canvas}
          class="pattern"
          style={{ width: `${side}px`, height: `${side}px` }}
          tabIndex={0}
          role="application"
          aria-label={`Attention of ${head}; arrow keys choose query and key`}
          aria-describedby={`note-${props.id}`}
          onKeyDown={move}
          onPointerMove={(event) => {
            const q = Math.floor(event.offsetY / cell);
            const k = Math.floor(event.offsetX / cell);
            if (q >= 0 && q < n) props.onAt([q, k]);
          }}
        />
      </div>
      <p class="note" id={`note-${props.id}`} aria-live="polite">
        Reading <bdi class="token">{text(query)}</bdi> at {query}, it puts {fixed(value(query, shownKey), 2)} on{" "}
        <bdi class="token">{text(shownKey)}</bdi> at {shownKey}.
      </p>
      {props.children}
    </Figure>
  );
}

function within(i: number, [start, end]: [number, number]): boolean {
  return i >= start && i < end;
}

function best(bytes: Uint8Array, query: number): number {
  let found = 0;
  for (let key = 1; key <= query; key++) {
    if ((bytes[place(query, key)] ?? 0) > (bytes[place(query, found)] ?? 0)) found = key;
  }
  return found;
}

/** The matrix, one pixel for each place. */
function matrix(bytes: Uint8Array, n: number, theme: Theme): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d");
  if (!context) return canvas;
  const image = context.createImageData(n, n);
  const colours = [...Array(256).keys()].map((one) => shade(one / 255, theme));
  for (let query = 0; query < n; query++) {
    for (let key = 0; key <= query; key++) {
      const [r, g, b] = colours[bytes[place(query, key)] ?? 0] ?? [0, 0, 0];
      image.data.set([r, g, b, 255], 4 * (query * n + key));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Two staircases, one on each side of the stripe, in cells. */
function outline(places: Place[]): Place[][] {
  const left: Place[] = [];
  const right: Place[] = [];
  for (const [query, key] of places) {
    left.push([key, query], [key, query + 1]);
    right.push([key + 1, query], [key + 1, query + 1]);
  }
  return [left, right];
}

function patternRows(tokens: Token[], places: Place[], value: (q: number, k: number) => number): Rows {
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

function patternSvg(
  n: number,
  places: Place[],
  value: (q: number, k: number) => number,
  theme: Theme,
  head: string,
): string {
  const size = 8;
  const parts: string[] = [];
  for (let q = 0; q < n; q++) {
    for (let k = 0; k <= q; k++) {
      const colour = css(shade(value(q, k), theme));
      parts.push(`<rect x="${k * size}" y="${q * size}" width="${size}" height="${size}" fill="${colour}"/>`);
    }
  }
  for (const line of outline(places)) {
    const points = line.map(([x, y]) => `${x * size},${y * size}`).join(" ");
    parts.push(`<polyline points="${points}" fill="none" stroke="${theme.mark}" stroke-width="1.5"/>`);
  }
  const side = n * size;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${side} ${side}" width="${side}" height="${side}">` +
    `<title>${head}: rows are queries, columns keys</title>` +
    `<rect width="${side}" height="${side}" fill="${theme.paper}"/>${parts.join("")}</svg>`
  );
}
