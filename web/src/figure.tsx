/* The frame of a figure: a title, the drawing, its numbers as a table, and both as files. */

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { isPrinting, type Theme } from "./colours";
import { csv, type Rows, save, standalone } from "./save";

const LISTED = 400;

/** The figures on the page, by their names: what each gives as files. */
const FIGURES = new Map<string, { svg: () => string | null; rows: () => Rows }>();

/** Every figure on the page as files, by their names. */
export function figureFiles(): Record<string, string> {
  const files: Record<string, string> = {};
  for (const [id, figure] of FIGURES) {
    files[`${id}.csv`] = csv(figure.rows());
    const svg = figure.svg();
    if (svg !== null) files[`${id}.svg`] = svg;
  }
  return files;
}

export function Figure(props: {
  id: string;
  title: string;
  theme: Theme;
  rows: () => Rows;
  svg?: () => string;
  /** Whether what it shows is a table, so that there is nothing to save as a drawing. */
  table?: boolean;
  caption?: ComponentChildren;
  children: ComponentChildren;
}): JSX.Element {
  const drawing = useRef<HTMLDivElement>(null);
  const [open, setOpen] = useState(false);
  const drawn = () => {
    if (props.table) return null;
    const svg = drawing.current?.querySelector("svg");
    return props.svg ? props.svg() : svg ? standalone(svg, props.theme.paper) : null;
  };
  useEffect(() => {
    const mine = { svg: drawn, rows: props.rows };
    FIGURES.set(props.id, mine);
    return () => void (FIGURES.get(props.id) === mine && FIGURES.delete(props.id));
  });
  const saveSvg = () => {
    const text = drawn();
    if (text !== null) save(`${props.id}.svg`, "image/svg+xml", text);
  };
  return (
    <figure id={props.id}>
      <div class="figure-head">
        <h3>{props.title}</h3>
        <span class="files">
          {!props.table && (
            <button type="button" onClick={saveSvg} aria-label={`${props.title}: save as SVG`}>
              SVG
            </button>
          )}
          <button
            type="button"
            onClick={() => save(`${props.id}.csv`, "text/csv", csv(props.rows()))}
            aria-label={`${props.title}: save as CSV`}
          >
            CSV
          </button>
        </span>
      </div>
      <div ref={drawing}>{props.children}</div>
      {props.caption && <figcaption>{props.caption}</figcaption>}
      <details onToggle={(event) => setOpen((event.target as HTMLDetailsElement).open)}>
        <summary>The numbers</summary>
        {open && <Numbers rows={props.rows()} />}
      </details>
    </figure>
  );
}

function Numbers({ rows }: { rows: Rows }): JSX.Element {
  const [head, ...body] = rows;
  return (
    <Scroll label="The numbers">
      <table class="numbers">
        <thead>
          <tr>
            {head?.map((one) => (
              <th scope="col">{one}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {body.slice(0, LISTED).map((row) => (
            <tr>
              {row.map((one) => (
                <td>
                  <bdi>{typeof one === "number" && !Number.isInteger(one) ? one.toPrecision(4) : one}</bdi>
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {body.length > LISTED && <p class="soft">{body.length - LISTED} more rows in the CSV.</p>}
    </Scroll>
  );
}

/** A block that scrolls sideways where it is too wide, and says so where it does. */
export function Scroll(props: { label: string; children: ComponentChildren; class?: string }): JSX.Element {
  const ref = useRef<HTMLDivElement>(null);
  const [wide, setWide] = useState(false);
  useEffect(() => {
    const block = ref.current;
    if (!block) return;
    const watch = new ResizeObserver(() => setWide(block.scrollWidth > block.clientWidth + 1));
    watch.observe(block);
    for (const inner of block.children) watch.observe(inner);
    return () => watch.disconnect();
  }, []);
  return (
    <>
      <div class={`scroll ${props.class ?? ""}`} ref={ref} tabIndex={0} role="region" aria-label={props.label}>
        {props.children}
      </div>
      {wide && <p class="scrolls soft">Scrolls sideways {"\u2194"}</p>}
    </>
  );
}

/** The width that a block has, followed as it changes; `start` and false until it is measured, before the first frame. */
export function useWidth(start: number): [{ current: HTMLDivElement | null }, number, boolean] {
  const ref = useRef<HTMLDivElement>(null);
  const [width, set] = useState<number | null>(null);
  useLayoutEffect(() => {
    const block = ref.current;
    if (!block) return;
    // Followed, not asked: the browser lays the page out once, when it comes to it. Paper does not wait for that.
    const measure = () => set(Math.floor(block.clientWidth));
    if (isPrinting()) measure();
    const watch = new ResizeObserver(measure);
    watch.observe(block);
    return () => watch.disconnect();
  }, []);
  return [ref, width ?? start, width !== null];
}

/** A drawing that a plotting library made, once its width is known. */
export function Drawn(props: { ready: boolean; make: () => Element; deps: unknown[] }): JSX.Element {
  const { ready, make, deps } = props;
  const ref = useRef<HTMLDivElement>(null);
  // Before the next frame, so that what is printed is drawn for paper.
  useLayoutEffect(() => {
    const block = ref.current;
    if (!block || !ready) return;
    const drawing = make();
    drawing.setAttribute("aria-hidden", "true");
    block.replaceChildren(drawing);
    const title = block.closest("figure")?.querySelector("h3")?.textContent;
    block.setAttribute("aria-label", `${title ?? "A drawing"}, drawn; the numbers follow`);
  }, [ready, ...deps]);
  return <div ref={ref} class="drawn" role="img" />;
}
