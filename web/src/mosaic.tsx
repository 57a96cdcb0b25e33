/* The mosaic: the layer x head map of one role for every model, side by side on one scale. */

import type { JSX } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import { css, shade, type Theme, useTheme } from "./colours";
import { type Mosaic, name, type Tile } from "./data";
import { Figure } from "./figure";
import { fixed, interval, tidy, words } from "./text";

type Order = "family" | "size";

const WIDTH = 176;
const CELL = 14;
const HIGHEST = 240;
const DEPTH = 132;
const SHADES = 50;
const COLUMNS = 6;

export function MosaicPage({ mosaic }: { mosaic: Mosaic }): JSX.Element {
  const theme = useTheme();
  const all = useMemo(() => [mosaic, ...mosaic.others], [mosaic]);
  const [role, setRole] = useState(mosaic.detector);
  const [order, setOrder] = useState<Order>("family");
  const [byDepth, setByDepth] = useState(mosaic.by_depth);
  const [filter, setFilter] = useState("");
  const note = useRef<HTMLParagraphElement>(null);
  const chosen = all.find((one) => one.detector === role) ?? mosaic;
  const tiles = useMemo(
    () =>
      sorted(
        chosen.tiles.filter((one) => matches(one, filter)),
        order,
      ),
    [chosen, filter, order],
  );
  const say = (text: string) => {
    if (note.current) note.current.textContent = text;
  };
  const groups = order === "family" ? byFamily(tiles) : ([["", tiles]] as [string, Tile[]][]);
  const probes = new Set(chosen.tiles.map((one) => JSON.stringify(one.probe))).size;
  return (
    <>
      <header class="top">
        <a class="skip" href="#mosaic">
          To the content
        </a>
        <p class="brand">headscope</p>
        <p class="soft">
          {chosen.tiles.length} model{chosen.tiles.length === 1 ? "" : "s"}
        </p>
      </header>
      <main>
        <section>
          <Figure
            id="mosaic"
            title={`Every head of every model: ${words(role)}`}
            theme={theme}
            rows={() => rowsOf(tiles, role)}
            svg={() => drawing(groups, role, byDepth, theme)}
            caption={
              <>
                Mean score of each head: {byDepth ? "layers by relative depth" : "layers downward, the first on top"},
                heads across; under each name its size, layers x heads, and its best head. One scale for all maps.
              </>
            }
          >
            <div class="tools">
              <Choice
                name="role"
                legend="Role"
                options={all.map((one) => one.detector)}
                chosen={role}
                onChoose={setRole}
              />
              <Choice
                name="order"
                legend="Order"
                options={["family", "size"]}
                chosen={order}
                onChoose={(one) => setOrder(one as Order)}
                say={(one) => `by ${one}`}
              />
              <Choice
                name="rows"
                legend="Rows"
                options={["layer", "depth"]}
                chosen={byDepth ? "depth" : "layer"}
                onChoose={(one) => setByDepth(one === "depth")}
                say={(one) => (one === "depth" ? "share of depth" : "layers")}
              />
              <label class="filter">
                <span class="soft">Models named</span>{" "}
                <input type="search" value={filter} onInput={(event) => setFilter(event.currentTarget.value)} />
              </label>
              <p class="legend">
                <span>0</span>
                <span
                  class="ramp"
                  style={{ background: `linear-gradient(to right, ${css(shade(0, theme))}, ${css(shade(1, theme))})` }}
                />
                <span>1</span>
              </p>
              <p id="mosaic-note" class="note" aria-live="polite" ref={note} />
            </div>
            {groups.map(([family, some]) => (
              <section class="family">
                {family && (
                  <h3>
                    <bdi>{tidy(family)}</bdi>{" "}
                    <span class="soft">
                      {some.length} model{some.length === 1 ? "" : "s"}
                    </span>
                  </h3>
                )}
                <ul class="tiles">
                  {some.map((tile) => (
                    <TileMap key={full(tile)} tile={tile} role={role} byDepth={byDepth} theme={theme} onNote={say} />
                  ))}
                </ul>
              </section>
            ))}
            {!tiles.length && <p class="soft">No model has such a name.</p>}
          </Figure>
          {probes > 1 && (
            <p class="warn">These scans read {probes} different probes; scores compare on the same probe only.</p>
          )}
          {chosen.failed.length > 0 && (
            <p class="warn">
              Not shown, since their scan failed:{" "}
              {chosen.failed.map((one, i) => (
                <>
                  {i > 0 && ", "}
                  <bdi>{tidy(one)}</bdi>
                </>
              ))}
            </p>
          )}
        </section>
      </main>
    </>
  );
}

function Choice(props: {
  name: string;
  legend: string;
  options: string[];
  chosen: string;
  onChoose: (option: string) => void;
  say?: (option: string) => string;
}): JSX.Element {
  return (
    <fieldset class="modes">
      <legend>{props.legend}</legend>
      {props.options.map((one) => (
        <label class={one === props.chosen ? "on" : ""}>
          <input
            type="radio"
            name={props.name}
            value={one}
            checked={one === props.chosen}
            onChange={() => props.onChoose(one)}
          />
          {(props.say ?? words)(one)}
        </label>
      ))}
    </fieldset>
  );
}

/** One model's map: pointing at a head, or the arrow keys, say its score. */
function TileMap(props: {
  tile: Tile;
  role: string;
  byDepth: boolean;
  theme: Theme;
  onNote: (text: string) => void;
}): JSX.Element {
  const { tile, role, byDepth, theme } = props;
  const [at, setAt] = useState<[number, number] | null>(null);
  const [cell, row] = sizes(tile, byDepth);
  const paths = useMemo(() => shaded(tile, cell, row, theme), [tile, byDepth, theme]);
  const go = (layer: number, head: number) => {
    const value = tile.values[layer]?.[head];
    if (value === undefined || value === null) return;
    setAt([layer, head]);
    props.onNote(
      `${tidy(full(tile))} L${layer}H${head} ${words(role)}: ${interval({ mean: value, ci95: tile.ci95[layer]?.[head] ?? null })}`,
    );
  };
  const point = (event: PointerEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    go(
      Math.floor(((event.clientY - box.top) / box.height) * tile.n_layers),
      Math.floor(((event.clientX - box.left) / box.width) * tile.n_heads),
    );
  };
  const move = (event: KeyboardEvent) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !at) return;
    event.preventDefault();
    let [layer, head] = at;
    do [layer, head] = [layer + (step[0] ?? 0), head + (step[1] ?? 0)];
    while (tile.values[layer]?.[head] === null);
    go(layer, head);
  };
  return (
    <li>
      <p class="name">
        <bdi title={tidy(full(tile))}>{tidy(short(tile))}</bdi>
      </p>
      <p class="soft">{about(tile)}</p>
      <svg
        width={cell * tile.n_heads}
        height={row * tile.n_layers}
        role="application"
        tabIndex={0}
        aria-label={`${tidy(full(tile))}: arrow keys move from head to head`}
        aria-describedby="mosaic-note"
        onFocus={() => at ?? (tile.best && go(tile.best.layer, tile.best.head))}
        onBlur={() => setAt(null)}
        onKeyDown={move}
        onPointerMove={point}
        onPointerLeave={() => setAt(null)}
      >
        {paths.map(([fill, d]) => (
          <path fill={fill} d={d} />
        ))}
        {at && (
          <rect
            class="active"
            x={at[1] * cell}
            y={at[0] * row}
            width={cell}
            height={row}
            fill="none"
            stroke={theme.mark}
            stroke-width={2}
          />
        )}
      </svg>
    </li>
  );
}

/** Width and height of a cell: square unless the map would be too high; by depth all maps are equally high. */
function sizes(tile: Tile, byDepth: boolean): [number, number] {
  const width = Math.min(CELL, WIDTH / Math.max(1, tile.n_heads));
  const layers = Math.max(1, tile.n_layers);
  return [width, byDepth ? DEPTH / layers : Math.min(width, HIGHEST / layers)];
}

/** The cells of each shade as one path. */
function shaded(tile: Tile, cell: number, row: number, theme: Theme): [string, string][] {
  const gap = Math.min(cell, row) >= 6 ? 1 : 0;
  const found = new Map<string, string>();
  tile.values.forEach((values, layer) =>
    values.forEach((value, head) => {
      if (value === null) return;
      const fill = css(shade(Math.round(value * SHADES) / SHADES, theme));
      const [w, h] = [places(cell - gap), places(row - gap)];
      found.set(fill, `${found.get(fill) ?? ""}M${places(head * cell)} ${places(layer * row)}h${w}v${h}h-${w}z`);
    }),
  );
  return [...found];
}

/** All maps shown as one drawing that stands alone. */
function drawing(groups: [string, Tile[]][], role: string, byDepth: boolean, theme: Theme): string {
  const parts: string[] = [];
  const text = (x: number, y: number, said: string, size: number, fill: string, weight = 400) =>
    parts.push(
      `<text x="${x}" y="${y}" font-size="${size}" font-weight="${weight}" fill="${fill}">${escaped(said)}</text>`,
    );
  const wide = COLUMNS * (WIDTH + 22) + 26;
  let y = 36;
  text(24, y, `${words(role)}, mean score of each head`, 18, theme.ink, 600);
  for (const [family, tiles] of groups) {
    y += 34;
    if (family) text(24, y, tidy(family), 13, theme.ink, 600);
    for (let start = 0; start < tiles.length; start += COLUMNS) {
      const line = tiles.slice(start, start + COLUMNS);
      line.forEach((tile, i) => {
        const x = 24 + i * (WIDTH + 22);
        const [cell, row] = sizes(tile, byDepth);
        text(x, y + 22, cut(tidy(short(tile)), 26), 11.5, theme.ink, 600);
        text(x, y + 37, about(tile), 10.5, theme.soft);
        const paths = shaded(tile, cell, row, theme).map(([fill, d]) => `<path fill="${fill}" d="${d}"/>`);
        parts.push(`<g transform="translate(${x},${y + 46})">${paths.join("")}</g>`);
      });
      y += 62 + Math.max(...line.map((tile) => sizes(tile, byDepth)[1] * tile.n_layers));
    }
  }
  const high = Math.ceil(y + 12);
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${wide} ${high}" width="${wide}" height="${high}" font-family="system-ui,sans-serif">` +
    `<rect width="${wide}" height="${high}" fill="${theme.paper}"/>${parts.join("")}</svg>`
  );
}

function rowsOf(tiles: Tile[], role: string): (string | number | null | undefined)[][] {
  return [
    ["model", "revision", "family", "n_parameters", "layer", "head", "role", "mean", "low", "high"],
    ...tiles.flatMap((tile) =>
      tile.values.flatMap((values, layer) =>
        values.flatMap((value, head) => {
          const ci95 = tile.ci95[layer]?.[head];
          const about = [tile.model, tile.revision, tile.family, tile.n_parameters];
          return value === null ? [] : [[...about, layer, head, role, value, ci95?.[0], ci95?.[1]]];
        }),
      ),
    ),
  ];
}

function matches(tile: Tile, filter: string): boolean {
  const text = `${full(tile)} ${tile.family}`.toLowerCase();
  return filter
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

/** As the document has them, by family; or by size alone. */
function sorted(tiles: Tile[], order: Order): Tile[] {
  return order === "family" ? tiles : [...tiles].sort((a, b) => a.n_parameters - b.n_parameters);
}

function byFamily(tiles: Tile[]): [string, Tile[]][] {
  const found = new Map<string, Tile[]>();
  for (const tile of tiles) found.set(tile.family, [...(found.get(tile.family) ?? []), tile]);
  return [...found];
}

function full(tile: Tile): string {
  return tile.revision ? `${tile.model}@${tile.revision}` : tile.model;
}

function short(tile: Tile): string {
  const last = tile.model.replace(/\/+$/, "").split("/").at(-1) ?? tile.model;
  return tile.revision ? `${last} @${tile.revision}` : last;
}

function about(tile: Tile): string {
  const best = tile.best
    ? ` \u00b7 ${name(tile.best)} ${fixed(tile.values[tile.best.layer]?.[tile.best.head] ?? Number.NaN, 2)}`
    : "";
  return `${size(tile.n_parameters)} \u00b7 ${tile.n_layers}\u00d7${tile.n_heads}${best}`;
}

function size(count: number): string {
  for (const [unit, letter] of [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const) {
    if (count >= unit) return `${Number((count / unit).toPrecision(3))}${letter}`;
  }
  return String(count);
}

function cut(text: string, limit: number): string {
  const all = [...text];
  return all.length > limit ? `${all.slice(0, limit - 1).join("")}\u2026` : text;
}

function places(value: number): number {
  return Number(value.toFixed(2));
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
