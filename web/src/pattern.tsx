/* One head's attention on some tokens: the matrix on a canvas of its own, with tokens along its sides, a colour bar, and
   the prompt coloured by one query's row or one key's column. */

import type { ComponentChildren, JSX } from "preact";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { css, onTop, palette, shade, type Theme } from "./colours";
import { type Cursor, type Place, resolved, usePlace, type Way } from "./cursor";
import { type Heads, place, type Report, type Token } from "./data";
import { Figure, useWidth } from "./figure";
import { outline, patternRows, patternSvg, steps } from "./patternfile";
import { fixed, shown } from "./text";

/** The keys that an induction head looks at: the token after the earlier copy. */
export function stripe(example: Report["example"]): Place[] {
  const [start, end] = example.second;
  const back = start - example.first[0];
  const places: Place[] = [];
  for (let query = start; query < end; query++) places.push([query, query - back + 1]);
  return places;
}

/** The same of any prompt: from each token those after its earlier copies. */
export function repeats(tokens: Token[]): Place[] {
  return tokens.flatMap((token, query) =>
    tokens.slice(0, query).flatMap((earlier, key): Place[] => (earlier.id === token.id ? [[query, key + 1]] : [])),
  );
}

/** The report's own prompt, with one head's attention and the tokens coloured by it. */
export function Pattern(props: {
  report: Report;
  heads: Heads;
  head: string;
  theme: Theme;
  cursor: Cursor;
  way: Way;
}): JSX.Element {
  const { report, head, theme, cursor, way } = props;
  const { example } = report;
  const bytes = props.heads.pattern(head);
  const places = useMemo(() => stripe(example), [example]);
  if (!bytes) return <LeftOut head={head} report={report} />;
  return (
    <Matrix
      id={head}
      title={`What ${head} attends to, on one prompt`}
      head={head}
      tokens={example.tokens}
      bytes={bytes}
      targets={places}
      theme={theme}
      cursor={cursor}
      way={way}
    >
      <Chips
        tokens={example.tokens}
        copies={[example.first, example.second]}
        bytes={bytes}
        theme={theme}
        cursor={cursor}
        way={way}
      />
    </Matrix>
  );
}

export function LeftOut({ head, report }: { head: string; report: Report }): JSX.Element {
  return (
    <p class="soft">
      The pattern of {head} is not in this file: for want of room, {report.example.left_out} heads without a role are
      left out.
    </p>
  );
}

function Chips(props: {
  tokens: Token[];
  copies: [number, number][];
  bytes: Uint8Array;
  theme: Theme;
  cursor: Cursor;
  way: Way;
}): JSX.Element {
  const { tokens, bytes, theme, cursor, way } = props;
  const at = resolved((q, k) => bytes[place(q, k)] ?? 0, tokens.length, usePlace(cursor), way);
  const chosen = way === "from" ? at[0] : at[1];
  const open = (i: number): Place => (way === "from" ? [i, -1] : [-1, i]);
  return (
    <p class="prompt" role="group" aria-label="The prompt, coloured by the attention of the chosen token">
      {tokens.map((token, i) => (
        <span
          class={`chip${i === chosen ? " query" : ""}${props.copies.some(([start, end]) => i >= start && i < end) ? " copy" : ""}`}
          style={tint(bytes, chosen, i, theme, way)}
          onPointerEnter={() => cursor.hover(open(i))}
          onClick={() => cursor.hold(open(i))}
        >
          <bdi>{shown(token)}</bdi>
        </span>
      ))}
    </p>
  );
}

/** The colours of a token that a query looks at, or that looks to a key; none where neither can be. */
export function tint(
  bytes: Uint8Array,
  chosen: number,
  other: number,
  theme: Theme,
  way: Way = "from",
): { background?: string; color?: string } {
  const [query, key] = way === "from" ? [chosen, other] : [other, chosen];
  if (key > query) return {};
  const colour = shade((bytes[place(query, key)] ?? 0) / 255, theme);
  return { background: css(colour), color: onTop(colour) };
}

/** One head's attention on some tokens as a figure. */
export function Matrix(props: {
  id: string;
  title: string;
  head: string;
  tokens: Token[];
  bytes: Uint8Array;
  /** Where an induction head would look. */
  targets: Place[];
  theme: Theme;
  cursor: Cursor;
  way: Way;
  /** Whether it is one of several side by side, and its caption is theirs. */
  small?: boolean;
  children?: ComponentChildren;
}): JSX.Element {
  const { head, tokens, bytes, theme, cursor, way, targets, small } = props;
  const n = tokens.length;
  const [block, room, measured] = useWidth(480);
  const canvas = useRef<HTMLCanvasElement>(null);
  const image = useMemo(() => matrix(bytes, n, theme), [bytes, n, theme]);
  const margin = room < 380 ? 58 : 82;
  const cell = Math.min(40, Math.max(1, Math.floor(Math.min(room - margin, small ? 400 : 520) / n)));
  const side = cell * n;
  const value = (q: number, k: number) => (k <= q ? (bytes[place(q, k)] ?? 0) / 255 : 0);
  const [query, key] = resolved(value, n, usePlace(cursor), way);

  useLayoutEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!measured || !context || !canvas.current) return;
    const scale = devicePixelRatio || 1;
    canvas.current.width = canvas.current.height = Math.round(side * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, side, side);
    // The stripe is marked beside, not upon, so that what lies on it stays visible.
    context.strokeStyle = theme.mark;
    context.lineWidth = cell < 5 ? 0.75 : 1.5;
    context.beginPath();
    for (const line of outline(targets)) {
      line.forEach(([x, y], i) => (i ? context.lineTo(x * cell, y * cell) : context.moveTo(x * cell, y * cell)));
    }
    context.stroke();
    context.strokeStyle = theme.ink;
    context.globalAlpha = 0.5;
    context.lineWidth = 1;
    if (way === "from") context.strokeRect(0.5, query * cell + 0.5, (query + 1) * cell - 1, cell - 1);
    else context.strokeRect(key * cell + 0.5, key * cell + 0.5, cell - 1, (n - key) * cell - 1);
    context.globalAlpha = 1;
  }, [image, side, measured, query, key, way, targets, theme]);

  const move = (event: KeyboardEvent) => {
    if (event.key === "Enter" || event.key === " ") cursor.hold([query, key]);
    else if (event.key === "Escape") cursor.hold(null);
    else {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      const [down = 0, right = 0] = step;
      const q = Math.max(0, Math.min(n - 1, query + down));
      const k = Math.max(0, Math.min(n - 1, key + right));
      if (cursor.held) cursor.hold(null);
      if (way === "from") cursor.hover(right ? [q, Math.min(k, q)] : [q, -1]);
      else cursor.hover(down ? [Math.max(q, k), k] : [-1, k]);
    }
    event.preventDefault();
  };
  const under = (event: { offsetX: number; offsetY: number }): Place | null => {
    const [q, k] = [Math.floor(event.offsetY / cell), Math.floor(event.offsetX / cell)];
    return q >= 0 && q < n && k >= 0 && k < n ? (k <= q ? [q, k] : way === "from" ? [q, -1] : [-1, k]) : null;
  };
  const word = (i: number) => <bdi class="token">{shown(tokens[i] as Token)}</bdi>;
  return (
    <Figure
      id={`pattern-${props.id}`}
      title={props.title}
      theme={theme}
      rows={() => patternRows(tokens, targets, value)}
      svg={() => patternSvg(props.title, tokens, targets, value, theme)}
      caption={!small && <MatrixCaption marked={targets.length > 0} theme={theme} />}
    >
      <div ref={block}>
        <div class="axes" style={{ gridTemplateColumns: `${margin}px ${side}px` }}>
          <Axis tokens={tokens} cell={cell} at={query} margin={margin} side={side} theme={theme} />
          <canvas
            ref={canvas}
            class="pattern"
            style={{ width: `${side}px`, height: `${side}px` }}
            tabIndex={0}
            role="application"
            aria-label={`Attention of ${head}; arrow keys choose query and key, Enter holds them`}
            aria-describedby={`note-${props.id}`}
            onKeyDown={move}
            onPointerMove={(event) => {
              const found = under(event);
              if (found) cursor.hover(found);
            }}
            onClick={(event) => {
              const found = under(event);
              if (found) cursor.hold(found);
            }}
          />
          <span class="corner soft" aria-hidden="true">
            query ↑<br />
            key →
          </span>
          <Axis tokens={tokens} cell={cell} at={key} margin={margin} side={side} theme={theme} across />
        </div>
      </div>
      <p class="note" id={`note-${props.id}`} aria-live="polite">
        {way === "from" ? (
          <>
            Reading {word(query)} at {query}, it puts {fixed(value(query, key), 2)} on {word(key)} at {key}.
          </>
        ) : (
          <>
            To {word(key)} at {key} it looks most from {word(query)} at {query}: {fixed(value(query, key), 2)}.
          </>
        )}
      </p>
      {!small && <ColourBar theme={theme} />}
      {props.children}
    </Figure>
  );
}

/** What the colours of attention mean. */
export function ColourBar({ theme }: { theme: Theme }): JSX.Element {
  const ends = [0, 1].map((one) => css(shade(one, theme))).join(", ");
  return (
    <p class="legend">
      <span>attention: 0</span>
      <span class="ramp" style={{ background: `linear-gradient(to right, ${ends})` }} />
      <span>1, all of it</span>
    </p>
  );
}

export function MatrixCaption({ marked, theme }: { marked: boolean; theme: Theme }): JSX.Element {
  return (
    <>
      Rows are queries, columns keys, both in reading order; a click holds a place, a second one lets go.
      {marked && (
        <>
          {" "}
          The <span style={{ color: theme.ablated }}>coloured lines</span> mark the induction stripe: the token after an
          earlier copy of the present one.
        </>
      )}
    </>
  );
}

/** Tokens along one side; where there is no room for all, every second, third, ... and the chosen one. */
function Axis(props: {
  tokens: Token[];
  cell: number;
  at: number;
  margin: number;
  side: number;
  theme: Theme;
  across?: boolean;
}): JSX.Element {
  const { tokens, cell, at, margin, side, theme, across } = props;
  const every = steps(cell);
  const letters = margin < 70 ? 7 : 10;
  return (
    <svg
      class="axis"
      aria-hidden="true"
      width={across ? side : margin}
      height={across ? margin - 10 : side}
      font-size={Math.min(11.5, Math.max(9, cell - 1))}
    >
      {tokens.map((token, i) => {
        const near = i !== at && Math.abs(i - at) * cell < 9;
        if (near || (i % every && i !== at)) return null;
        const middle = (i + 0.5) * cell;
        return (
          <text
            transform={across ? `translate(${middle} 4) rotate(-90)` : `translate(${margin - 5} ${middle})`}
            text-anchor="end"
            dominant-baseline="central"
            fill={i === at ? theme.ablated : theme.soft}
            font-weight={i === at ? 700 : 400}
          >
            {shown(token, false, letters)}
          </text>
        );
      })}
    </svg>
  );
}

/** The matrix, one pixel for each place. */
function matrix(bytes: Uint8Array, n: number, theme: Theme): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d");
  if (!context) return canvas;
  const image = context.createImageData(n, n);
  const colours = palette(theme);
  for (let query = 0; query < n; query++) {
    for (let key = 0; key <= query; key++) {
      const [r, g, b] = colours[bytes[place(query, key)] ?? 0] ?? [0, 0, 0];
      const at = 4 * (query * n + key);
      image.data[at] = r;
      image.data[at + 1] = g;
      image.data[at + 2] = b;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
