/* Who tells whom where to look: heads in rows by layer, the last on top, arrows as wide as what they carry. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Theme } from "./colours";
import { type Edge, type HeadRef, name, type Receiver, type Report, type SenderSet } from "./data";
import { Figure, Scroll, useWidth } from "./figure";
import type { Rows } from "./save";
import { fixed, interval, percent, signed, words } from "./text";
import { Word } from "./words";

const BOX_W = 116;
const BOX_H = 44;
const LEFT = 64;
const TOP = 16;
const LABELLED = 24;
const TALL = 3;
const LISTED = 12;
/** Least share that is worth a word, as the circuit's own rule has it. */
const LEAST = 0.1;
const INPUTS: Record<string, string> = { k: "key", q: "query", v: "value" };
const CHANGES: Record<string, string> = {
  before_key: "the token before the key",
  two_before_key: "the token two before the key",
  before_query: "the token before the query",
};

export function CircuitGraph(props: { report: Report; theme: Theme; onOpen: (head: string) => void }): JSX.Element {
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
      ? spread(
          row.map(([, one]) => LEFT + BOX_W / 2 + (one.head.head / last) * (width - LEFT - BOX_W - 16)),
          width - 16,
        )
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
      rows={() => edgeRows([...circuit.edges, ...circuit.context])}
      caption="Each arrow is a path into a head's key or query: the share of its attention to the right token that is lost when the sender writes what it writes in a corrupt prompt. Dashed: it is lost only without all of a set. Exact path patching; a head opens its card."
    >
      <div ref={block} />
      <Scroll label="The circuit">
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
              const [middle, y1] = at.get(name(one.receiver)) ?? [0, 0];
              const x1 = middle + (one.input === "q" ? BOX_W / 4 : 0);
              const thick = 1 + 5 * Math.max(0, Math.min(1, one.share));
              const tip = 6 + thick;
              const from = y0 - BOX_H / 2;
              const to = y1 + BOX_H / 2 + tip;
              const half = (from - to) / 2;
              const colour = one.input === "q" ? theme.ablated : theme.clean;
              return (
                <g
                  class={`edge${one === edge ? " on" : ""}`}
                  tabIndex={circuit.edges.length <= LABELLED ? 0 : undefined}
                  role="img"
                  aria-label={`${name(one.sender)} to the ${route(one)} of ${name(one.receiver)}: ${percent(one.share)}${together(one)}`}
                  onPointerEnter={() => setSaid(one)}
                  onFocus={() => setSaid(one)}
                >
                  <path
                    d={`M${x0} ${from}C${x0} ${from - half} ${x1} ${to + half} ${x1} ${to}`}
                    fill="none"
                    stroke={colour}
                    stroke-opacity="0.75"
                    stroke-width={thick}
                    stroke-dasharray={one.any_of.length ? "6 4" : undefined}
                  />
                  <path d={`M${x1} ${to - tip + 1}l${tip / 2} ${tip}h${-tip}z`} fill={colour} />
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
                      {one.input === "k" ? "" : ` ${one.input}`}
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
                aria-label={`${id} ${note}: open its card`}
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
                <text
                  x={x}
                  y={note ? y - 3 : y + 5}
                  font-size="14"
                  font-weight="600"
                  text-anchor="middle"
                  fill={theme.ink}
                >
                  {id}
                </text>
                <text x={x} y={y + 13} font-size="11" text-anchor="middle" fill={theme.soft}>
                  {note}
                </text>
              </g>
            );
          })}
        </svg>
      </Scroll>
      <p class="note" aria-live="polite">
        {edge ? <EdgeText edge={edge} /> : "No sender carries a tenth of it: nothing found."}
      </p>
      <Receivers report={props.report} onOpen={props.onOpen} />
    </Figure>
  );
}

/** For each receiver: what was asked, who carries it, and what is left. */
function Receivers({ report, onOpen }: { report: Report; onOpen: (head: string) => void }): JSX.Element {
  const { circuit } = report;
  const [all, setAll] = useState(false);
  const receivers = circuit?.receivers ?? [];
  return (
    <>
      <Scroll label="What each head is told">
        <table class="receivers">
          <thead>
            <tr>
              <th scope="col">head</th>
              <th scope="col">told by, with the share of its stripe</th>
              <th scope="col">
                <Word of="stripe" />
              </th>
              <th scope="col">with another token</th>
              <th scope="col">they restore</th>
              <th scope="col">unexplained</th>
            </tr>
          </thead>
          <tbody>
            {receivers.map((one, i) => (
              <tr class={i < LISTED || all ? "" : "more"}>
                <th scope="row">
                  <button type="button" class="link" onClick={() => onOpen(name(one))}>
                    {name(one)}
                  </button>
                </th>
                <td class="told">
                  <Told report={report} receiver={one} />
                </td>
                <td>{interval(one.stripe)}</td>
                <td>{interval(one.corrupt)}</td>
                <td>{one.restored ? interval(one.restored, 2) : ""}</td>
                <td>{one.unexplained === null ? "not asked" : signed(one.unexplained, 2)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
      {receivers.length > LISTED && (
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "Fewer" : `${receivers.length - LISTED} more`}
        </button>
      )}
    </>
  );
}

/** Who tells a head where to look, and what could not be asked. */
export function Told({ report, receiver }: { report: Report; receiver: Receiver }): JSX.Element {
  const here = <T extends { receiver: HeadRef }>(all: T[]) =>
    all.filter((one) => name(one.receiver) === name(receiver));
  const circuit = report.circuit;
  const alone = here(circuit?.edges ?? []).filter((one) => !one.any_of.length);
  const lines = [
    ...alone.map(
      (one) => `${name(one.sender)} through its ${route(one)}: ${percent(one.share)}${range(one.share_ci95)}`,
    ),
    ...here(circuit?.sets ?? []).map(setText),
    ...here(circuit?.context ?? []).map(
      (one) =>
        `where ${CHANGES[one.changed] ?? words(one.changed)} differs, ${name(one.sender)} through its ${route(one)}: ${percent(one.share)}`,
    ),
    ...Object.entries(receiver.context ?? {})
      .filter(([, share]) => share.mean >= LEAST)
      .map(
        ([change, share]) =>
          `it also compares ${CHANGES[change] ?? words(change)}: another one takes ${interval(share, 2)} of its stripe`,
      ),
  ];
  if (!receiver.asked) lines.push(NOT_ASKED);
  else if (!lines.length) lines.push("no sender was found: none carries a tenth of it, alone or in a set");
  if (receiver.offset) lines.push(`traced to the key ${receiver.offset} after its stripe's`);
  return (
    <>
      {lines.map((one) => (
        <div>{one}</div>
      ))}
    </>
  );
}

export const NOT_ASKED =
  "not asked: another token before the key takes less than a tenth of its stripe, or nothing significant";

/** What a set of senders does, as a sentence. */
export function setText(one: SenderSet): string {
  const names = one.senders.map(name);
  const claim = one.any_one_is_enough
    ? `any of ${listed(names, "or")} is enough`
    : `several of ${listed(names, "and")} are needed`;
  const each = one.senders.map((head, i) => `${name(head)} ${fixed(one.alone[i]?.mean ?? Number.NaN, 2)}`).join(", ");
  return (
    `${claim}, through its ${INPUTS[one.input] ?? one.input}: without all of them ${percent(one.share)} is lost, without each ` +
    `alone ${percent(one.singles)} in all; each alone restores ${each}`
  );
}

/** Through what a sender tells: in words. */
export function route(edge: Edge): string {
  return INPUTS[edge.input] ?? edge.input;
}

/** With whom a sender shares what it carries; empty for one that is needed by itself. */
export function together(edge: Edge): string {
  return edge.any_of.length ? `, lost only without all of ${listed(edge.any_of.map(name), "and")}` : "";
}

function listed(names: string[], last: string): string {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} ${last} ${names.at(-1)}`;
}

function range(ends: [number, number] | null): string {
  return ends ? ` [${percent(ends[0])}, ${percent(ends[1])}]` : "";
}

function margin(edge: Edge): string {
  const of = edge.weights?.margin;
  return of === null || of === undefined
    ? ""
    : `; its weights compose ${fixed(of, 2)} times as much as the best other head's`;
}

function edgeRows(edges: Edge[]): Rows {
  return [
    [
      "sender",
      "receiver",
      "input",
      "changed",
      "any_of",
      "share",
      "share_low",
      "share_high",
      "effect",
      "low",
      "high",
      "q_value",
      "mlps_held",
      "query_effect",
      "loss_k_nats",
      "loss_q_nats",
      "loss_v_nats",
      "sender_previous_token",
      "composition",
      "composition_z",
      "composition_rank",
      "composition_margin",
    ],
    ...edges.map((one) => [
      name(one.sender),
      name(one.receiver),
      one.input,
      one.changed,
      one.any_of.map(name).join(" "),
      one.share,
      one.share_ci95?.[0],
      one.share_ci95?.[1],
      one.effect.mean,
      one.effect.ci95?.[0],
      one.effect.ci95?.[1],
      one.q_value,
      one.mlps_held?.mean,
      one.query_effect.mean,
      one.loss_nats["k"]?.mean,
      one.loss_nats["q"]?.mean,
      one.loss_nats["v"]?.mean,
      one.previous_token,
      one.weights?.score,
      one.weights?.z,
      one.weights?.rank,
      one.weights?.margin,
    ]),
  ];
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
        {name(edge.sender)} → {route(edge)} of {name(edge.receiver)}
      </strong>
      : {edge.any_of.length ? "shares in" : "carries"} {percent(edge.share)} of its stripe{together(edge)} (
      {edge.any_of.length ? "they lose" : "loses"} {interval(edge.effect)}
      {edge.mlps_held && `, MLPs held ${fixed(edge.mlps_held.mean, 3)}`})
      {edge.input !== "q" && `; through the query instead ${signed(edge.query_effect.mean)}`}. Loss by way of key{" "}
      {signed(loss["k"]?.mean ?? 0)}, query {signed(loss["q"]?.mean ?? 0)}, value {signed(loss["v"]?.mean ?? 0)} nats.
      {edge.weights &&
        ` By weights alone it ranks ${edge.weights.rank} of ${edge.weights.of}${z === null || z === undefined ? "" : `, ${fixed(z, 0)} standard deviations from chance`}${margin(edge)}.`}
    </>
  );
}
