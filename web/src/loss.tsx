/* The loss of each token of a prompt, as the model is and without some heads. */

import * as Plot from "@observablehq/plot";
import type { ComponentChildren, JSX } from "preact";
import type { Theme } from "./colours";
import { name, type Report, type Token } from "./data";
import { Drawn, Figure, useWidth } from "./figure";
import { fixed, shown, tick } from "./text";

interface Point {
  at: number;
  token: string;
  clean: number;
  ablated: number | null;
}

interface Band {
  from: number;
  to: number;
  label: string;
}

/** The losses of the report's own prompt. */
export function TokenLoss({ report, theme }: { report: Report; theme: Theme }): JSX.Element {
  const { loss, tokens, first, second } = report.example;
  return (
    <Losses
      id="token-loss"
      title="Loss of each token, on one prompt"
      tokens={tokens}
      clean={loss.clean}
      ablated={loss.ablated}
      without="the_set"
      bands={[
        { from: first[0], to: first[1] - 1, label: "first copy" },
        { from: second[0], to: second[1] - 1, label: "second copy" },
      ]}
      theme={theme}
      caption={
        <>
          <Keys
            theme={theme}
            without={
              loss.ablated
                ? `${loss.without.map(name).join(", ")} (${report.verify.ablation["method"]} ablation)`
                : null
            }
          />
          {!loss.ablated && "; no head is called induction, so there is no set to take out"}. Nats. The first token of
          the second copy cannot be predicted from context. One prompt, to look at; the finding rests on{" "}
          {report.verify.controls.held_out_prompts} others.
        </>
      }
    />
  );
}

/** Which line is which. */
export function Keys({ theme, without }: { theme: Theme; without: string | null }): JSX.Element {
  return (
    <>
      <span class="key" style={{ background: theme.clean }} /> the model as it is
      {without !== null && (
        <>
          {" "}
          <span class="key dashed" style={{ borderColor: theme.ablated }} /> without {without}
        </>
      )}
    </>
  );
}

export function Losses(props: {
  id: string;
  title: string;
  tokens: Token[];
  clean: number[];
  ablated: number[] | null;
  without: string;
  bands: Band[];
  theme: Theme;
  caption: ComponentChildren;
}): JSX.Element {
  const { tokens, clean, ablated, bands, theme } = props;
  const [block, room, measured] = useWidth(1100);
  const points: Point[] = clean.map((one, i) => ({
    at: i + 1,
    token: shown(tokens[i + 1] as Token, false, 12),
    clean: one,
    ablated: ablated?.[i] ?? null,
  }));
  const width = Math.max(320, room);
  const labelled = width / tokens.length >= 12;
  const label = Math.max(1, ...points.map((point) => [...point.token].length));
  const marked = bands.length > 0;
  return (
    <Figure
      id={props.id}
      title={props.title}
      theme={theme}
      rows={() => [
        ["position", "token", ...(marked ? ["copy"] : []), "loss_nats", `loss_nats_without_${props.without}`],
        ...points.map((point) => [
          point.at,
          point.token,
          ...(marked ? [bands.find((one) => point.at >= one.from && point.at <= one.to)?.label ?? ""] : []),
          point.clean,
          point.ablated,
        ]),
      ]}
      caption={props.caption}
    >
      <div ref={block}>
        <Drawn
          ready={measured}
          deps={[tokens, clean, ablated, theme, width]}
          make={() =>
            Plot.plot({
              width,
              height: 300 + (labelled ? Math.min(90, 6 * label) : 0),
              marginLeft: 36,
              marginRight: 16,
              marginTop: 24,
              marginBottom: labelled ? 18 + Math.min(90, 6 * label) : 30,
              style: { fontFamily: "inherit", fontSize: "12px", background: "transparent", color: theme.ink },
              x: { domain: [0, tokens.length], label: null },
              y: { label: null, tickFormat: tick, grid: false, nice: true, zero: true },
              marks: [
                Plot.rectX(bands, {
                  x1: (one) => one.from - 0.5,
                  x2: (one) => one.to + 0.5,
                  fill: theme.dark ? "#27313f" : "#eef2f7",
                }),
                Plot.text(bands, {
                  x: (one) => (one.from + one.to) / 2,
                  text: "label",
                  frameAnchor: "top",
                  dy: -16,
                  fontWeight: 600,
                  fill: theme.soft,
                }),
                Plot.gridY({ stroke: theme.line, strokeOpacity: 1 }),
                labelled
                  ? Plot.axisX(range(tokens.length), {
                      tickFormat: (at: number) => shown(tokens[at] as Token, false, 12),
                      tickRotate: -60,
                      tickSize: 3,
                      fontSize: 10.5,
                      color: theme.soft,
                      label: null,
                    })
                  : Plot.axisX({ color: theme.soft, label: null, tickFormat: tick }),
                ablated
                  ? Plot.line(points, {
                      x: "at",
                      y: "ablated",
                      stroke: theme.ablated,
                      strokeWidth: 1.8,
                      strokeDasharray: "5 3",
                    })
                  : null,
                ablated ? Plot.dot(points, { x: "at", y: "ablated", r: 2, fill: theme.ablated }) : null,
                Plot.line(points, { x: "at", y: "clean", stroke: theme.clean, strokeWidth: 2 }),
                Plot.dot(points, { x: "at", y: "clean", r: 2, fill: theme.clean }),
                Plot.tip(
                  points,
                  Plot.pointerX({
                    x: "at",
                    y: "clean",
                    fill: theme.paper,
                    stroke: theme.line,
                    lineHeight: 1.25,
                    title: (one: Point) =>
                      `${one.at}  ${one.token}\nloss ${fixed(one.clean, 3)}` +
                      (one.ablated === null ? "" : `\nwithout ${fixed(one.ablated, 3)}`),
                  }),
                ),
              ],
            })
          }
        />
      </div>
    </Figure>
  );
}

function range(n: number): number[] {
  return [...Array(n).keys()];
}
