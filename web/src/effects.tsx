/* What removing a head does, beside its controls: points with their intervals. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { Theme } from "./colours";
import type { Estimate, HeadVerdict } from "./data";
import { Drawn, Figure, useWidth } from "./figure";
import { interval, signed } from "./text";

interface Row {
  label: string;
  mean: number;
  low: number;
  high: number;
  main: boolean;
  value: Estimate;
}

export function Effects({ head, id, theme }: { head: HeadVerdict; id: string; theme: Theme }): JSX.Element {
  const [block, room] = useWidth(560);
  const rows: Row[] = [];
  const add = (label: string, value: Estimate | null | undefined, main = false) => {
    if (!value) return;
    const [low, high] = value.ci95 ?? [value.mean, value.mean];
    rows.push({ label, mean: value.mean, low, high, main, value });
  };
  add(head.exact ? "second copy" : "second copy, an estimate", head.delta_loss_nats, true);
  add("first copy (control)", head.first_copy);
  add("more than random heads", head.over_random);
  add("put back, others gone", head.put_back?.delta_loss_nats);
  add("on your text", head.natural);
  if (!rows.length) return <p class="soft">Its removal was not tried.</p>;
  const width = Math.max(300, Math.min(room, 720));
  const narrow = width < 460;
  return (
    <Figure
      id={`effects-${id}`}
      title={`Loss without ${id}, minus with it`}
      theme={theme}
      rows={() => [
        ["measured", "mean_nats", "low", "high"],
        ...rows.map((row) => [row.label, row.mean, row.value.ci95?.[0], row.value.ci95?.[1]]),
      ]}
      caption="Nats per token, mean and 95% interval over held-out prompts. Right of 0: the head helped. Put back: what it restores when all heads with a stripe are gone."
    >
      <div ref={block}>
        <Drawn
          deps={[head, theme, width]}
          make={() =>
            Plot.plot({
              width,
              height: 34 * rows.length + 44,
              marginLeft: 164,
              marginRight: narrow ? 20 : 190,
              marginBottom: 34,
              style: { fontFamily: "inherit", fontSize: "12px", background: "transparent", color: theme.ink },
              // Never narrower than the rule's 0.01 nats, so that nothing looks like something.
              x: {
                label: null,
                ticks: 5,
                nice: true,
                insetLeft: 8,
                insetRight: 8,
                domain: [Math.min(-0.002, ...rows.map((row) => row.low)), Math.max(0.01, ...rows.map((row) => row.high))],
              },
              y: { type: "band", domain: rows.map((row) => row.label), label: null, tickSize: 0 },
              marks: [
                Plot.gridX({ stroke: theme.line, strokeOpacity: 1, ticks: 5 }),
                Plot.ruleX([0], { stroke: theme.soft }),
                Plot.ruleY(rows, {
                  y: "label",
                  x1: "low",
                  x2: "high",
                  stroke: (row: Row) => (row.main ? theme.clean : theme.soft),
                  strokeWidth: 3,
                }),
                Plot.dot(rows, {
                  y: "label",
                  x: "mean",
                  r: 5,
                  fill: (row: Row) => (row.main ? theme.clean : theme.soft),
                }),
                narrow
                  ? null
                  : Plot.text(rows, {
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
    </Figure>
  );
}
