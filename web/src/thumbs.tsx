/* Every head's pattern at a glance: a small picture each, a row for each layer, and heads found by name. */

import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { palette, type Theme, usePrinting } from "./colours";
import { place } from "./data";
import { Scroll, useWidth } from "./figure";

export interface Thumb {
  name: string;
  layer: number;
  /** Lower triangle; null where it is not known. */
  bytes: () => Uint8Array | null;
  /** What is said of it, and by what words it is found. */
  note: string;
}

const LABEL = 34;
const GAP = 3;

export function Thumbs(props: {
  id: string;
  /** What it shows, unlike any other's on the page. */
  label: string;
  thumbs: Thumb[];
  /** Tokens of each pattern. */
  n: number;
  theme: Theme;
  pins: string[];
  onPin: (head: string) => void;
}): JSX.Element {
  const { id, label, thumbs, n, theme, pins, onPin } = props;
  const [block, room] = useWidth(900);
  const [active, setActive] = useState<string | null>(null);
  const [sought, setSought] = useState("");
  const rows = useMemo(() => {
    const layers = new Map<number, Thumb[]>();
    for (const one of thumbs) layers.set(one.layer, [...(layers.get(one.layer) ?? []), one]);
    return [...layers.entries()];
  }, [thumbs]);
  const columns = Math.max(1, ...rows.map(([, row]) => row.length));
  const size = Math.max(24, Math.min(84, Math.floor((room - LABEL - 8) / columns) - GAP));
  const found = sought.trim() ? thumbs.filter((one) => matches(one, sought)) : null;
  const lit = found && new Set(found.map((one) => one.name));
  const current = thumbs.find((one) => one.name === (active ?? found?.[0]?.name ?? pins[0]));
  const move = (event: KeyboardEvent) => {
    const at = rows.findIndex(([layer]) => layer === current?.layer);
    const row = rows[at]?.[1];
    if (!current || !row) return;
    const column = row.indexOf(current);
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      const to = rows[Math.max(0, Math.min(rows.length - 1, at + (step[0] ?? 0)))]?.[1];
      setActive(to?.[Math.max(0, Math.min(to.length - 1, column + (step[1] ?? 0)))]?.name ?? null);
    } else if (event.key === "Enter" || event.key === " ") onPin(current.name);
    else return;
    event.preventDefault();
  };
  return (
    <div class="glance">
      <label class="filter">
        Find a head{" "}
        <input
          type="search"
          placeholder="L1H4, or a role"
          value={sought}
          onInput={(event) => {
            setSought(event.currentTarget.value);
            setActive(null);
          }}
          onKeyDown={(event) => {
            if (event.key === "Enter" && found?.[0]) onPin(found[0].name);
          }}
        />{" "}
        <span class="soft" role="status">
          {found &&
            (found.length ? `${found.length} found; Enter puts ${found[0]?.name} beside the others` : "none found")}
        </span>
      </label>
      <div ref={block}>
        <Scroll label={label}>
          <div
            class="thumbs"
            role="application"
            tabIndex={0}
            aria-label={`${label}: arrow keys move, Enter puts one beside the others`}
            aria-describedby={`${id}-note`}
            onKeyDown={move}
            onPointerLeave={() => setActive(null)}
          >
            {rows.map(([layer, row]) => (
              <Row
                layer={layer}
                row={row}
                n={n}
                size={size}
                theme={theme}
                active={active}
                pins={pins}
                lit={lit}
                onActive={setActive}
                onPin={onPin}
              />
            ))}
          </div>
        </Scroll>
      </div>
      <p id={`${id}-note`} class="note" aria-live="polite">
        {current?.note}
      </p>
    </div>
  );
}

function Row(props: {
  layer: number;
  row: Thumb[];
  n: number;
  size: number;
  theme: Theme;
  active: string | null;
  pins: string[];
  lit: Set<string> | null;
  onActive: (head: string) => void;
  onPin: (head: string) => void;
}): JSX.Element {
  const { row, n, size, theme } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const seen = useSeen(canvas);
  const step = size + GAP;
  useLayoutEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!seen || !context || !canvas.current) return;
    const scale = Math.min(2, devicePixelRatio || 1);
    const dots = Math.round(size * scale);
    canvas.current.width = Math.round(row.length * step * scale);
    canvas.current.height = dots;
    row.forEach((one, i) => {
      const bytes = one.bytes();
      const x = Math.round(i * step * scale);
      if (bytes) context.putImageData(pooled(bytes, n, dots, theme), x, 0);
      else {
        context.fillStyle = theme.empty;
        context.fillRect(x, 0, dots, dots);
      }
    });
  }, [seen, row, n, size, theme]);
  const under = (event: { offsetX: number }): Thumb | undefined => row[Math.floor(event.offsetX / step)];
  return (
    <div class="thumb-row">
      <span class="soft">L{props.layer}</span>
      <div class="thumb-line" style={{ width: `${row.length * step}px`, height: `${size}px` }}>
        <canvas
          ref={canvas}
          style={{ width: `${row.length * step}px`, height: `${size}px` }}
          onPointerMove={(event) => {
            const one = under(event);
            if (one && one.name !== props.active) props.onActive(one.name);
          }}
          onClick={(event) => {
            const one = under(event);
            if (one) props.onPin(one.name);
          }}
        />
        {row.map((one, i) => {
          const pinned = props.pins.includes(one.name);
          const dim = props.lit !== null && !props.lit.has(one.name);
          if (!pinned && !dim && one.name !== props.active) return null;
          const kind = `ring${pinned ? " pinned" : ""}${dim ? " dim" : ""}${one.name === props.active ? " active" : ""}`;
          return (
            <span
              class={kind}
              data-thumb={one.name}
              style={{ left: `${i * step}px`, width: `${size}px`, height: `${size}px` }}
            />
          );
        })}
      </div>
    </div>
  );
}

/** Whether an element was ever near the window, or is printed. */
function useSeen(element: { current: Element | null }): boolean {
  const printing = usePrinting();
  const [seen, set] = useState(false);
  useEffect(() => {
    if (!element.current) return;
    const watch = new IntersectionObserver((entries) => entries.some((one) => one.isIntersecting) && set(true), {
      rootMargin: "200px",
    });
    watch.observe(element.current);
    return () => watch.disconnect();
  }, []);
  return seen || printing;
}

/** A pattern in so many dots: each the largest of the places beneath it, so that a thin line stays visible. */
function pooled(bytes: Uint8Array, n: number, dots: number, theme: Theme): ImageData {
  const image = new ImageData(dots, dots);
  const colours = palette(theme);
  const ends = [...Array(dots).keys()].map((one): [number, number] => {
    const from = Math.floor((one * n) / dots);
    return [from, Math.max(from + 1, Math.floor(((one + 1) * n) / dots))];
  });
  ends.forEach(([top, bottom], y) => {
    ends.forEach(([left, right], x) => {
      if (left >= bottom) return;
      let most = 0;
      for (let q = top; q < bottom; q++)
        for (let k = left; k < right && k <= q; k++) most = Math.max(most, bytes[place(q, k)] ?? 0);
      const [r, g, b] = colours[most] ?? [0, 0, 0];
      const at = 4 * (y * dots + x);
      image.data[at] = r;
      image.data[at + 1] = g;
      image.data[at + 2] = b;
      image.data[at + 3] = 255;
    });
  });
  return image;
}

/** L1H4, 1.4, L1, or words of what is said of it. */
function matches(thumb: Thumb, sought: string): boolean {
  const text = sought.trim().toLowerCase();
  const dotted = /^l?(\d+)[.h](\d+)$/.exec(text);
  if (dotted) return thumb.name.toLowerCase().split("#")[0] === `l${dotted[1]}h${dotted[2]}`;
  const layer = /^l(\d+)h?$/.exec(text);
  if (layer) return thumb.layer === Number(layer[1]);
  return thumb.note.toLowerCase().includes(text);
}
