/* What removing a head does, beside its controls: points with their intervals. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { Theme } from "./colours";
import type { Estimate, HeadVerdict } from "./data";
import { Drawn, Figure, useWidth } from "./figure";
import { interval, signed, tick } from "./text";
import { Word } from "./words";

export interface Row {
  label: string;
  main: boolean;
  value: Estimate;
}

export function Effects({ head, id, theme }: { head: HeadVerdict; id: string; theme: Theme }): JSX.Element {
  const rows: Row[] = [];
  const add = (label: string, value: Estimate | null | undefined, main = false) => {
    if (value) rows.push({ label, main, value });
  };
  add(head.exact ? "second copy" : "second copy, an estimate", head.delta_loss_nats, true);
  add("first copy (control)", head.first_copy);
  add("beyond other heads", head.over_random);
  add("restored, others ablated", head.put_back?.delta_loss_nats);
  add("on your text", head.natural);
  if (!rows.length) return <p class="soft">Its removal was not tried.</p>;
  return (
    <Figure
      id={`effects-${id}`}
      title={`Loss without ${id}, minus with it`}
      theme={theme}
      rows={() => [
        ["measured", "mean_nats", "low", "high"],
        ...rows.map((row) => [row.label, row.value.mean, row.value.ci95?.[0], row.value.ci95?.[1]]),
      ]}
      caption={
        <>
          <Word of="nats">Nats</Word> per token, mean and 95% <Word of="interval" /> over held-out prompts. Right of 0:
          the head helped. First copy: the <Word of="control" />. Beyond other heads: what it changes the second copy
          more than the first, less the same for the other heads of its layer without a stripe.{" "}
          <Word of="restored">Restored</Word>: what it recovers while all other heads with a stripe are ablated.
          {head.q_value !== null && (
            <>
              {" "}
              <Word of="q" /> = {head.q_value < 0.001 ? "below 0.001" : head.q_value.toFixed(3)}.
            </>
          )}
        </>
      }
    >
      {/* Never narrower than the rule's 0.01 nats, so that nothing looks like something. */}
      <Points rows={rows} least={[-0.002, 0.01]} theme={theme} />
    </Figure>
  );
}

/** Means with their intervals, a line for each label; rows of one label share its line. */
export function Points(props: { rows: Row[]; least: [number, number]; theme: Theme }): JSX.Element {
  const { rows, least, theme } = props;
  const [block, room, measured] = useWidth(560);
  const width = Math.max(300, Math.min(room, 720));
  const narrow = width < 460;
  const labels = [...new Set(rows.map((row) => row.label))];
  const low = (row: Row) => row.value.ci95?.[0] ?? row.value.mean;
  const high = (row: Row) => row.value.ci95?.[1] ?? row.value.mean;
  const alone = rows.filter((row) => rows.filter((other) => other.label === row.label).length === 1);
  const ink = (row: Row) => (row.main ? theme.clean : theme.soft);
  return (
    <div ref={block}>
      <Drawn
        ready={measured}
        deps={[rows.map((row) => [row.label, row.value.mean]).join(), theme, width]}
        make={() =>
          Plot.plot({
            width,
            height: 34 * labels.length + 44,
            marginLeft: 164,
            marginRight: narrow ? 20 : 190,
            marginBottom: 34,
            style: { fontFamily: "inherit", fontSize: "12px", background: "transparent", color: theme.ink },
            x: {
              label: null,
              ticks: 5,
              tickFormat: tick,
              nice: true,
              insetLeft: 8,
              insetRight: 8,
              domain: [Math.min(least[0], ...rows.map(low)), Math.max(least[1], ...rows.map(high))],
            },
            y: { type: "band", domain: labels, label: null, tickSize: 0 },
            marks: [
              Plot.gridX({ stroke: theme.line, strokeOpacity: 1, ticks: 5 }),
              Plot.ruleX([0], { stroke: theme.soft }),
              Plot.ruleY(alone, { y: "label", x1: low, x2: high, stroke: ink, strokeWidth: 3 }),
              Plot.dot(rows, {
                y: "label",
                x: (row: Row) => row.value.mean,
                r: 5,
                fill: ink,
                fillOpacity: (row: Row) => (alone.includes(row) ? 1 : 0.45),
              }),
              narrow
                ? null
                : Plot.text(alone, {
                    y: "label",
                    frameAnchor: "right",
                    textAnchor: "start",
                    dx: 10,
                    fill: theme.soft,
                    fontVariant: "tabular-nums",
                    text: (row: Row) => interval(row.value, 3, signed),
                  }),
            ],
          })
        }
      />
    </div>
  );
}
