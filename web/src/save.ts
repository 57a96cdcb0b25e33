/* Figures as files: SVG with every style written into it, and CSV. */

export type Cell = string | number | null | undefined;
export type Rows = Cell[][];

export function save(file: string, kind: string, content: string | Blob): void {
  const url = URL.createObjectURL(new Blob([content], { type: kind }));
  const link = document.createElement("a");
  link.href = url;
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function csv(rows: Rows): string {
  return `${rows.map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}

function cell(value: Cell): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  // A spreadsheet would run text that begins like a formula; a quote before it keeps it text.
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const STYLES = [
  "fill",
  "fill-opacity",
  "stroke",
  "stroke-opacity",
  "stroke-width",
  "stroke-dasharray",
  "stroke-linejoin",
  "opacity",
  "font-family",
  "font-size",
  "font-weight",
  "font-variant-numeric",
  "text-anchor",
  "paint-order",
];

/** A drawing that stands alone: styles of its own, on a background of its own. */
export function standalone(svg: SVGSVGElement, background: string): string {
  const copy = svg.cloneNode(true) as SVGSVGElement;
  const from = [svg, ...svg.querySelectorAll("*")];
  const to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((one, i) => {
    const computed = getComputedStyle(one);
    const target = to[i];
    if (!target) return;
    for (const style of STYLES) {
      const value = computed.getPropertyValue(style);
      if (value) target.setAttribute(style, value.replaceAll('"', "'"));
    }
    target.removeAttribute("style");
    target.removeAttribute("class");
  });
  for (const style of copy.querySelectorAll("style")) style.remove();
  const box = svg.viewBox.baseVal;
  const { x, y, width, height } = box?.width ? box : { x: 0, y: 0, ...size(svg) };
  const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, value] of Object.entries({ x, y, width, height, fill: background })) {
    paper.setAttribute(key, String(value));
  }
  copy.insertBefore(paper, copy.firstChild);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return new XMLSerializer().serializeToString(copy);
}

function size(svg: SVGSVGElement): { width: number; height: number } {
  const { width, height } = svg.getBoundingClientRect();
  return { width, height };
}
