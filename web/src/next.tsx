/* What may come after a token: probabilities with all heads and without those switched off. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { Theme } from "./colours";
import type { Token } from "./data";
import { Drawn, Figure, useWidth } from "./figure";
import type { Option, Reading } from "./live";
import { Keys } from "./loss";
import { chance, fixed, shown, signed } from "./text";

const LISTED = 8;

export function Next(props: {
  reading: Reading;
  at: number;
  without: string | null;
  theme: Theme;
  id?: string;
  title?: string;
}): JSX.Element {
  const { reading, at, without, theme } = props;
  const [block, room, measured] = useWidth(560);
  const comes = reading.tokens[at + 1] as Token | undefined;
  const options = listed(reading.next[at] ?? [], comes);
  const width = Math.max(300, Math.min(room, 640));
  const most = Math.max(0.25, ...options.map(weight));
  const name = (id: string) =>
    shown(options.find((one) => String(one.id) === id) ?? { text: null, id: Number(id) }, true, 14);
  const row = without === null ? 26 : 34;
  return (
    <Figure
      id={props.id ?? "next"}
      title={props.title ?? "What comes next, by probability"}
      theme={theme}
      rows={() => [
        ["position", "token", "next_token", "comes_next", "probability", "probability_without"],
        ...(reading.next[at] ?? []).map((one) => [
          at,
          shown(reading.tokens[at] as Token),
          shown(one),
          one.id === comes?.id ? 1 : 0,
          one.clean,
          one.ablated,
        ]),
      ]}
      caption={
        <>
          After <bdi class="token">{shown(reading.tokens[at] as Token, true)}</bdi> at {at}.{" "}
          <Keys theme={theme} without={without} />.
          {comes && (
            <>
              {" "}
              The text goes on with <bdi class="token own">{shown(comes, true)}</bdi>, in bold: loss{" "}
              {fixed(reading.clean[at] ?? Number.NaN, 2)} nats
              {reading.ablated && `, without ${fixed(reading.ablated[at] ?? Number.NaN, 2)}`}.
            </>
          )}
        </>
      }
    >
      <div ref={block}>
        <Drawn
          ready={measured}
          deps={[reading, at, theme, width]}
          make={() =>
            Plot.plot({
              width,
              height: row * options.length + 12,
              marginLeft: 120,
              marginRight: 56,
              marginTop: 4,
              marginBottom: 4,
              style: { fontFamily: "inherit", fontSize: "12px", background: "transparent", color: theme.ink },
              x: { domain: [0, most], axis: null },
              y: { domain: options.map((one) => String(one.id)), label: null, axis: null, padding: 0.25 },
              marks: [
                Plot.axisY({
                  tickSize: 0,
                  tickPadding: 8,
                  label: null,
                  fontSize: 12.5,
                  tickFormat: (id: string) => (Number(id) === comes?.id ? "" : name(id)),
                }),
                Plot.axisY(comes ? [String(comes.id)] : [], {
                  tickSize: 0,
                  tickPadding: 8,
                  label: null,
                  fontSize: 12.5,
                  fontWeight: 700,
                  tickFormat: name,
                }),
                ...bar(options, "clean", theme.clean, without === null ? 0 : 1),
                ...(without === null ? [] : bar(options, "ablated", theme.ablated, -1)),
                Plot.ruleX([0], { stroke: theme.line }),
              ],
            })
          }
        />
      </div>
    </Figure>
  );
}

/** Bars over the upper half of each row (1), the lower (-1), or all of it (0). */
function bar(options: Option[], which: "clean" | "ablated", fill: string, half: number): Plot.Markish[] {
  const inset = half ? { [half > 0 ? "insetBottom" : "insetTop"]: 13 } : {};
  return [
    Plot.barX(options, { x: which, y: (one: Option) => String(one.id), fill, rx: 1.5, ...inset }),
    Plot.text(options, {
      x: which,
      y: (one: Option) => String(one.id),
      text: (one: Option) => chance(one[which] ?? 0),
      dx: 5,
      dy: -6.5 * half,
      textAnchor: "start",
      fontSize: 11,
    }),
  ];
}

/** The most probable with or without the heads, and the one that comes. */
function listed(options: Option[], comes: Token | undefined): Option[] {
  const kept = new Set([...options].sort((a, b) => weight(b) - weight(a)).slice(0, LISTED));
  return options.filter((one) => kept.has(one) || one.id === comes?.id);
}

function weight(one: Option): number {
  return Math.max(one.clean, one.ablated ?? 0);
}

/** What switching off does to the loss of the whole text, as a sentence. */
export function LossChange({ reading, without }: { reading: Reading; without: string | null }): JSX.Element {
  const { mean_clean: clean, delta_loss_nats: delta } = reading;
  if (clean === null) return <p>One token: nothing is predictable.</p>;
  return (
    <p>
      Loss of the text: {fixed(clean, 2)} nats a token
      {delta !== null && (
        <>
          ; without {without} {fixed(clean + delta, 2)}, a change of{" "}
          <strong id="loss-change">{signed(delta, 2)}</strong>
        </>
      )}
      .
    </p>
  );
}
