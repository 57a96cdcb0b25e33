/* The layer x head map: by verdict, by effect of removal, or by what each head attends to. */

import type { JSX } from "preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { css, onTop, rgb, shade, type Theme, verdictColour } from "./colours";
import type { Heads, Report } from "./data";
import { Figure, useWidth } from "./figure";
import type { Rows } from "./save";
import { fixed, interval, signed, words } from "./text";

interface Cell {
  name: string;
  layer: number;
  head: number;
  colour: [number, number, number];
  letter: string;
  note: string;
}

const LEFT = 34;
const TOP = 4;
const BOTTOM = 24;
/** Least side of a cell that holds its letter. */
const LETTERED = 16;
/** Scores all below this are shown on a scale of their own. */
const SMALL = 0.2;

export function HeadMap(props: {
  report: Report;
  heads: Heads;
  theme: Theme;
  selected: string;
  mode: string;
  onMode: (mode: string) => void;
  onOpen: (head: string) => void;
}): JSX.Element {
  const { report, heads, theme, onMode: setMode } = props;
  const roles = report.scan.detectors.map((one) => one.name);
  const mode = ["verdict", "effect", ...roles].includes(props.mode) ? props.mode : "verdict";
  const [active, setActive] = useState<string | null>(null);
  const [block, width, measured] = useWidth(640);
  const drawing = useRef<HTMLDivElement>(null);
  const cells = useMemo(() => cellsOf(report, heads, mode, theme), [report, mode, theme]);
  const columns = report.model.n_heads;
  const rows = report.model.n_layers;
  const size = Math.max(9, Math.min(46, Math.floor((width - LEFT - 2) / columns)));

  useLayoutEffect(() => {
    if (!measured) return;
    drawing.current?.querySelector("svg")?.remove();
    drawing.current?.prepend(drawn(cells, rows, columns, size));
  }, [cells, size, measured]);

  useLayoutEffect(() => {
    const svg = drawing.current;
    if (!svg) return;
    for (const rect of svg.querySelectorAll(".active, .selected")) rect.classList.remove("active", "selected");
    svg.querySelector(`[data-head="${props.selected}"]`)?.classList.add("selected");
    if (active) svg.querySelector(`[data-head="${active}"]`)?.classList.add("active");
  }, [active, props.selected, cells, size, measured]);

  const under = (event: Event): string | null =>
    (event.target as Element).closest?.("[data-head]")?.getAttribute("data-head") ?? null;
  const grid = useMemo(() => new Map(cells.map((one) => [one.name, one])), [cells]);
  const current = grid.get(active ?? props.selected);
  const move = (event: KeyboardEvent) => {
    const from = grid.get(active ?? props.selected) ?? cells[0];
    if (!from) return;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      const [down = 0, right = 0] = step;
      for (let n = 1; n <= Math.max(rows, columns); n++) {
        const to = cells.find((one) => one.layer === from.layer + n * down && one.head === from.head + n * right);
        if (to) {
          setActive(to.name);
          break;
        }
      }
    } else if (event.key === "Enter" || event.key === " ") props.onOpen(from.name);
    else return;
    event.preventDefault();
  };

  return (
    <Figure
      id="head-map"
      title={`Every head by ${mode === "verdict" ? "verdict" : mode === "effect" ? "effect of its removal" : `attention: ${words(mode)}`}`}
      theme={theme}
      rows={() => mapRows(report, heads)}
    >
      <fieldset class="modes">
        <legend>Show</legend>
        {["verdict", "effect", ...roles].map((one) => (
          <label class={one === mode ? "on" : ""}>
            <input type="radio" name="mode" value={one} checked={one === mode} onChange={() => setMode(one)} />
            {one === "effect" ? "loss without it" : words(one)}
          </label>
        ))}
      </fieldset>
      <div ref={block}>
        <div
          ref={drawing}
          class="map"
          role="application"
          tabIndex={0}
          aria-label="Layer by head map: arrow keys move, Enter opens a head's card"
          aria-describedby="map-note"
          onKeyDown={move}
          onBlur={() => setActive(null)}
          onPointerMove={(event) => setActive(under(event))}
          onPointerLeave={() => setActive(null)}
          onClick={(event) => {
            const head = under(event);
            if (head) props.onOpen(head);
          }}
        />
      </div>
      <p id="map-note" class="note" aria-live="polite">
        {current?.note ?? ""}
      </p>
      <Legend mode={mode} report={report} theme={theme} />
    </Figure>
  );
}

/** The cells with the numbers of layers and heads beside them, made at once: 1,024 heads are drawn in one frame. */
function drawn(cells: Cell[], rows: number, columns: number, size: number): SVGElement {
  const width = LEFT + columns * size + 2;
  const height = TOP + rows * size + BOTTOM;
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const every = Math.max(1, Math.ceil(18 / size));
  const numbers = element("g", { fill: "currentColor", "font-size": 11 });
  for (let layer = 0; layer < rows; layer += every) {
    const at = { x: LEFT - 7, y: TOP + (layer + 0.5) * size, "text-anchor": "end", "dominant-baseline": "central" };
    numbers.append(element("text", at, `L${layer}`));
  }
  for (let head = 0; head < columns; head += every) {
    const at = { x: LEFT + (head + 0.5) * size, y: TOP + rows * size + 14, "text-anchor": "middle" };
    numbers.append(element("text", at, String(head)));
  }
  const gap = size > 16 ? 0.08 * size : 0.06 * size;
  const squares = element("g", {});
  const letters = element("g", {
    "font-size": Math.min(13, size * 0.55),
    "font-weight": 600,
    "text-anchor": "middle",
    "dominant-baseline": "central",
    "pointer-events": "none",
  });
  for (const cell of cells) {
    const [x, y] = [LEFT + cell.head * size, TOP + cell.layer * size];
    const side = size - gap;
    const place = { x: x + gap / 2, y: y + gap / 2, width: side, height: side, rx: 2 };
    squares.append(element("rect", { ...place, fill: css(cell.colour), "data-head": cell.name }));
    if (size >= LETTERED && cell.letter)
      letters.append(element("text", { x: x + size / 2, y: y + size / 2, fill: onTop(cell.colour) }, cell.letter));
  }
  svg.append(numbers, squares, letters);
  return svg;
}

function element(tag: string, attributes: Record<string, string | number>, text?: string): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

function Legend({ mode, report, theme }: { mode: string; report: Report; theme: Theme }): JSX.Element {
  if (mode === "verdict") {
    const counts = new Map<string, number>();
    for (const head of report.verify.heads) counts.set(head.verdict, (counts.get(head.verdict) ?? 0) + 1);
    return (
      <ul class="legend">
        {report.verify.head_types
          .filter((one) => counts.has(one.name))
          .map((one) => {
            const colour = verdictColour(one, theme);
            return (
              <li title={one.sentence}>
                <span class="swatch" style={{ background: colour, color: onTop(rgb(colour)) }}>
                  {one.letter}
                </span>
                {one.label} <span class="soft">{counts.get(one.name)}</span>
              </li>
            );
          })}
      </ul>
    );
  }
  const most = mode === "effect" ? mostEffect(report) : mostScore(report, mode);
  const stops = (from: number, to: number) =>
    `linear-gradient(to right, ${css(shade(from, theme))}, ${css(shade(to, theme))})`;
  return (
    <p class="legend">
      <span>{mode === "effect" ? "0 nats" : "0"}</span>
      <span class="ramp" style={{ background: stops(0, 1) }} />
      <span>
        {mode === "effect"
          ? `+${fixed(most, 2)}`
          : most < 1
            ? `${fixed(most, 2)}, the largest`
            : "1, all of its attention"}
      </span>
      {mode === "effect" && (
        <>
          <span class="ramp short" style={{ background: stops(0, -1) }} />
          <span>better without it</span>
        </>
      )}
    </p>
  );
}

function mostEffect(report: Report): number {
  return Math.max(0.01, ...report.verify.heads.map((one) => Math.abs(one.delta_loss_nats?.mean ?? 0)));
}

/** The end of a role's scale: 1, or the largest score where all are so small that the map would be blank. */
function mostScore(report: Report, role: string): number {
  const largest = Math.max(0, ...report.scan.heads.map((one) => one.scores[role]?.mean ?? 0));
  return largest > 0 && largest < SMALL ? largest : 1;
}

function cellsOf(report: Report, heads: Heads, mode: string, theme: Theme): Cell[] {
  const most = mode === "effect" ? mostEffect(report) : mostScore(report, mode);
  // In looped models a head has several calls; the map shows the one that says most, as scan's own map does.
  const best = new Map<string, { cell: Cell; weight: number }>();
  for (const name of heads.names) {
    const ref = heads.refs.get(name);
    if (!ref) continue;
    const found = cellOf(heads, name, mode, theme, most);
    if (!found) continue;
    const at = `${ref.layer}.${ref.head}`;
    const known = best.get(at);
    if (!known || found.weight > known.weight) {
      best.set(at, { cell: { ...found.cell, name, layer: ref.layer, head: ref.head }, weight: found.weight });
    }
  }
  return [...best.values()].map((one) => one.cell);
}

type Look = Omit<Cell, "name" | "layer" | "head">;

function cellOf(
  heads: Heads,
  name: string,
  mode: string,
  theme: Theme,
  most: number,
): { cell: Look; weight: number } | null {
  const verdict = heads.verdicts.get(name);
  if (mode === "verdict") {
    if (!verdict)
      return { cell: { colour: rgb(theme.empty), letter: "", note: `${name}: not judged` }, weight: -Infinity };
    const meaning = heads.meaning(verdict.verdict);
    const delta = verdict.delta_loss_nats;
    const note = `${name} ${meaning.label}${delta ? `; loss without it ${interval(delta, 3, signed)} nats` : ""}`;
    const weight = -meaning.order;
    return { cell: { colour: rgb(verdictColour(meaning, theme)), letter: meaning.letter, note }, weight };
  }
  if (mode === "effect") {
    const delta = verdict?.delta_loss_nats;
    if (!delta) return { cell: { colour: rgb(theme.empty), letter: "", note: `${name}: not removed` }, weight: -1 };
    const kind = verdict.exact ? "" : ", an estimate";
    return {
      cell: {
        colour: shade(delta.mean / most, theme),
        letter: "",
        note: `${name}: loss on the second copy without it ${interval(delta, 3, signed)} nats${kind}`,
      },
      weight: delta.mean,
    };
  }
  const score = heads.scores.get(name)?.[mode];
  if (!score) return null;
  const control = score.control === null ? "" : `, on the control ${fixed(score.control, 3)}`;
  return {
    cell: {
      colour: shade(score.mean / most, theme),
      letter: "",
      note: `${name} ${words(mode)}: ${interval(score)}, by chance ${fixed(score.chance, 3)}${control}`,
    },
    weight: score.mean,
  };
}

function mapRows(report: Report, heads: Heads): Rows {
  const roles = report.scan.detectors.map((one) => one.name);
  const columns = roles.flatMap((one) => [one, `${one}_low`, `${one}_high`, `${one}_chance`, `${one}_control`]);
  return [
    ["head", "layer", "index", "verdict", "delta_loss_nats", "delta_low", "delta_high", "exact", ...columns],
    ...heads.names.map((name) => {
      const ref = heads.refs.get(name);
      const verdict = heads.verdicts.get(name);
      const delta = verdict?.delta_loss_nats;
      return [
        name,
        ref?.layer,
        ref?.head,
        verdict?.verdict,
        delta?.mean,
        delta?.ci95?.[0],
        delta?.ci95?.[1],
        verdict ? String(verdict.exact) : null,
        ...roles.flatMap((role) => {
          const score = heads.scores.get(name)?.[role];
          return [score?.mean, score?.ci95?.[0], score?.ci95?.[1], score?.chance, score?.control];
        }),
      ];
    }),
  ];
}
