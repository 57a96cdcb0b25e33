/* Who tells whom where to look: heads in rows by layer, the last on top, arrows as wide as what they carry. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Theme } from "./colours";
import { type Edge, type HeadRef, name, type Report } from "./data";
import { Figure, useWidth } from "./figure";
import { fixed, interval, percent, signed, words } from "./text";

const BOX_W = 116;
const BOX_H = 44;
const LEFT = 64;
const TOP = 16;
const LABELLED = 24;
const TALL = 3;

export function CircuitGraph(props: {
  report: Report;
  theme: Theme;
  onOpen: (head: string) => void;
}): JSX.Element {
  const { theme } = props;
  const { circuit } = props.report;
  const [said, setSaid] = useState<Edge | null>(null);
  const [block, room] = useWidth(760);
  if (!circuit) return <p>The circuit could not be traced: {props.report.circuit_reason}</p>;
  if (!circuit.receivers.length) return <p>No head is called induction, so there is no path to trace.</p>;
  const nodes = new Map<string, { head: HeadRef; note: string }>();
  for (const edge of circuit.edges) nodes.set(name(edge.sender), { head: edge.sender, note: "sender" });
  for (const one of circuit.receivers) nodes.set(name(one), { head: one, note: words(one.verdict ?? "") });
  const layers = [...new Set([...nodes.values()].map((one) => one.head.layer))].sort((a, b) => b - a);
  const rows = layers.map((layer) =>
    [...nodes.entries()].filter(([, one]) => one.head.layer === layer).sort((a, b) => a[1].head.head - b[1].head.head),
  );
  const tall = layers.length > TALL;
  const ROW = tall ? 88 : 136;
  const width = Math.max(room, 520, ...rows.map((row) => LEFT + row.length * (BOX_W + 16) + 16));
  const height = TOP + layers.length * ROW - (ROW - BOX_H) + 16;
  const at = new Map<string, [number, number]>();
  rows.forEach((row, r) => {
    const step = (width - LEFT - 16) / row.length;
    // In a tall drawing a head stands where its number puts it, so that arrows seldom pass behind other heads.
    const last = Math.max(1, props.report.model.n_heads - 1);
    const spots = tall
      ? spread(row.map(([, one]) => LEFT + BOX_W / 2 + (one.head.head / last) * (width - LEFT - BOX_W - 16)), width - 16)
      : row.map((_, i) => LEFT + step * (i + 0.5));
    row.forEach(([id], i) => at.set(id, [spots[i] ?? 0, TOP + r * ROW + BOX_H / 2]));
  });
  const strong = circuit.edges[0];
  const edge = said ?? strong;
  return (
    <Figure
      id="circuit"
      title="Who tells them where to look"
      theme={theme}
      rows={() => [
        ["sender", "receiver", "input", "share", "effect", "low", "high", "q_value", "mlps_held", "query_effect",
          "loss_k_nats", "loss_q_nats", "loss_v_nats", "sender_previous_token", "k_composition", "k_composition_z"],
        ...circuit.edges.map((one) => [
          name(one.sender), name(one.receiver), one.input, one.share, one.effect.mean, one.effect.ci95?.[0],
          one.effect.ci95?.[1], one.q_value, one.mlps_held?.mean, one.query_effect.mean, one.loss_nats["k"]?.mean,
          one.loss_nats["q"]?.mean, one.loss_nats["v"]?.mean, one.previous_token, one.weights?.score, one.weights?.z,
        ]),
      ]}
      caption="Each arrow is a path into a head's key: the share of its attention to the right token that is lost when the sender's words are those of another prompt. Exact path patching; a head opens its card."
    >
      <div class="scroll" ref={block} tabIndex={0} role="region" aria-label="The circuit">
        <svg viewBox={`0 0 ${width} ${height}`} width={width} height={height} class="circuit" font-family="inherit">
          {layers.map((layer, r) => (
            <text x={8} y={TOP + r * ROW + BOX_H / 2 + 4} font-size="12" fill={theme.soft}>
              layer {layer}
            </text>
          ))}
          {[...circuit.edges]
            .sort((a, b) => a.share - b.share)
            .map((one) => {
              const [x0, y0] = at.get(name(one.sender)) ?? [0, 0];
              const [x1, y1] = at.get(name(one.receiver)) ?? [0, 0];
              const thick = 1 + 5 * Math.max(0, Math.min(1, one.share));
              const tip = 6 + thick;
              const from = y0 - BOX_H / 2;
              const to = y1 + BOX_H / 2 + tip;
              const half = (from - to) / 2;
              const says = `${name(one.sender)} to the key of ${name(one.receiver)}: ${percent(one.share)}`;
              return (
                <g
                  class={`edge${one === edge ? " on" : ""}`}
                  tabIndex={circuit.edges.length <= LABELLED ? 0 : undefined}
                  role="img"
                  aria-label={says}
                  onPointerEnter={() => setSaid(one)}
                  onFocus={() => setSaid(one)}
                >
                  <path
                    d={`M${x0} ${from}C${x0} ${from - half} ${x1} ${to + half} ${x1} ${to}`}
                    fill="none"
                    stroke={theme.clean}
                    stroke-opacity="0.75"
                    stroke-width={thick}
                  />
                  <path d={`M${x1} ${to - tip + 1}l${tip / 2} ${tip}h${-tip}z`} fill={theme.clean} />
                  {circuit.edges.length <= LABELLED && (
                    <text
                      x={x1 + beside(circuit.edges, one, (edge) => (at.get(name(edge.sender)) ?? [0])[0])}
                      y={to + 24}
                      font-size="12"
                      font-weight="600"
                      text-anchor="middle"
                      fill={theme.ink}
                      stroke={theme.paper}
                      stroke-width="4"
                      paint-order="stroke"
                    >
                      {percent(one.share)}
                    </text>
                  )}
                </g>
              );
            })}
          {[...nodes.entries()].map(([id, { note }]) => {
            const [x, y] = at.get(id) ?? [0, 0];
            return (
              <g
                class="node"
                tabIndex={0}
                role="button"
                aria-label={`${id}, ${note}: open its card`}
                onClick={() => props.onOpen(id)}
                onKeyDown={(event) => {
                  if (event.key === "Enter" || event.key === " ") {
                    event.preventDefault();
                    props.onOpen(id);
                  }
                }}
              >
                <rect
                  x={x - BOX_W / 2}
                  y={y - BOX_H / 2}
                  width={BOX_W}
                  height={BOX_H}
                  rx="7"
                  fill={theme.box}
                  stroke={theme.soft}
                  stroke-width="0.8"
                />
                <text x={x} y={note ? y - 3 : y + 5} font-size="14" font-weight="600" text-anchor="middle" fill={theme.ink}>
                  {id}
                </text>
                <text x={x} y={y + 13} font-size="11" text-anchor="middle" fill={theme.soft}>
                  {note}
                </text>
              </g>
            );
          })}
        </svg>
      </div>
      <p class="note" aria-live="polite">
        {edge ? <EdgeText edge={edge} /> : "No sender carries a tenth of it: nothing found."}
      </p>
    </Figure>
  );
}

/** Places in one row moved apart until no two boxes meet. */
function spread(wanted: number[], right: number): number[] {
  const gap = BOX_W + 10;
  const places = [...wanted];
  for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i] ?? 0, (places[i - 1] ?? 0) + gap);
  for (let i = places.length - 1, edge = right - BOX_W / 2; i >= 0; i--, edge = (places[i + 1] ?? 0) - gap) {
    places[i] = Math.min(places[i] ?? 0, edge);
  }
  return places;
}

/** How far an arrow's label stands from the middle of its receiver: labels of one receiver stand in a row. */
function beside(edges: Edge[], edge: Edge, x: (edge: Edge) => number): number {
  const same = edges.filter((one) => name(one.receiver) === name(edge.receiver)).sort((a, b) => x(a) - x(b));
  return 38 * (same.indexOf(edge) - (same.length - 1) / 2);
}

export function EdgeText({ edge }: { edge: Edge }): JSX.Element {
  const loss = edge.loss_nats;
  const z = edge.weights?.z;
  return (
    <>
      <strong>
        {name(edge.sender)} → key of {name(edge.receiver)}
      </strong>
      : carries {percent(edge.share)} of its stripe (loses {interval(edge.effect)}
      {edge.mlps_held && `, MLPs held ${fixed(edge.mlps_held.mean, 3)}`}); through the query instead{" "}
      {signed(edge.query_effect.mean)}. Loss by way of key {signed(loss["k"]?.mean ?? 0)}, query{" "}
      {signed(loss["q"]?.mean ?? 0)}, value {signed(loss["v"]?.mean ?? 0)} nats.
      {edge.weights &&
        ` By weights alone it ranks ${edge.weights.rank} of ${edge.weights.of}${z === null || z === undefined ? "" : `, ${fixed(z, 0)} standard deviations from chance`}.`}
    </>
  );
}
