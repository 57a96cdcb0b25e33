/* How it emerged: measures over the steps of training, of one run or of several over each other. */

import * as Plot from "@observablehq/plot";
import type { ComponentChildren, JSX } from "preact";
import { useState } from "preact/hooks";
import type { Theme } from "./colours";
import type { At, Run } from "./data";
import { Drawn, Figure, useWidth } from "./figure";
import { fixed, interval, tidy, words } from "./text";

interface Point extends At {
  run: number;
  label: string;
  low: number;
  high: number;
}
interface Line {
  run: number;
  label: string;
  dashed: boolean;
  points: Point[];
}
/** A measure that a panel draws; where it draws two, the second is dashed. */
interface Measure {
  key: string;
  label: string;
}

const DOTTED = 40;
const COLOURS = {
  light: ["#0b62a4", "#c04a00", "#007a5a", "#9a3f77"],
  dark: ["#6cb8ff", "#ffa35c", "#45d6a8", "#f0a3cf"],
};

export function Emergence({ runs, theme }: { runs: Run[]; theme: Theme }): JSX.Element {
  const steps = [
    ...new Set(runs.flatMap((run) => Object.values(run.curves).flatMap((curve) => curve.map((one) => one.step)))),
  ];
  steps.sort((a, b) => a - b);
  const [log, setLog] = useState(mostAreEarly(steps));
  const panel = { runs, theme, log, steps };
  const control = runs.some((run) => run.model.n_layers === 1) && runs.some((run) => run.model.n_layers > 1);
  return (
    <>
      <h2>How it emerged</h2>
      <fieldset class="modes">
        <legend>Steps</legend>
        {[false, true].map((one) => (
          <label class={one === log ? "on" : ""}>
            <input
              type="radio"
              name="steps"
              value={one ? "log" : "linear"}
              checked={one === log}
              onChange={() => setLog(one)}
            />
            {one ? "log steps" : "linear steps"}
          </label>
        ))}
      </fieldset>
      <div class="columns curves">
        <Panel
          {...panel}
          id="emergence-induction"
          title="Induction: the strongest head's stripe"
          unit="attention on the token after the earlier copy"
          measures={[{ key: "induction", label: "stripe" }]}
          share
        />
        <Panel
          {...panel}
          id="emergence-previous-token"
          title="Previous token: the strongest head"
          unit="attention on the token before"
          measures={[{ key: "previous_token", label: "score" }]}
          share
        />
        <Panel
          {...panel}
          id="emergence-loss"
          title="Loss on repeated random tokens"
          unit="nats per token; solid: second copy, dashed: first copy"
          measures={[
            { key: "second_copy_loss_nats", label: "second copy" },
            { key: "first_copy_loss_nats", label: "first copy" },
          ]}
        />
        <div class="runs">
          {runs.map((run, i) => (
            <Said run={run} colour={colour(i, theme)} />
          ))}
          {control && <Argument />}
        </div>
      </div>
    </>
  );
}

/** What was found of one run, in its own words. */
function Said({ run, colour }: { run: Run; colour: string }): JSX.Element {
  const steps = (run.curves["induction"] ?? []).map((one) => one.step);
  const unread = Object.entries(run.unread);
  return (
    <section>
      <h3>
        <span class="key" style={{ background: colour }} /> <bdi>{tidy(run.source)}</bdi>{" "}
        <span class="soft">
          {run.model.n_layers} layer{run.model.n_layers === 1 ? "" : "s"} of {run.model.n_heads} heads
        </span>
      </h3>
      <p class="soft">
        {steps.length} checkpoints, step {steps[0]} to {steps.at(-1)}; each reads the same{" "}
        {String(run.settings["n_prompts"])} prompts.
      </p>
      <ul class="reasons">
        {Object.entries(run.changes).map(([role, change]) => (
          <li>
            {words(role)}:{" "}
            {change.found
              ? `step ${interval(change.found.step, 0)}, over ${interval(change.found.width, 0)} steps; `
              : "no phase change; "}
            {tidy(change.reason)}
          </li>
        ))}
        {unread.map(([name, why]) => (
          <li>
            not measured: <bdi>{tidy(name)}</bdi>, {tidy(why)}
          </li>
        ))}
      </ul>
    </section>
  );
}

function Argument(): JSX.Element {
  return (
    <section class="argument">
      <h3>Why one layer cannot</h3>
      <p>
        In a first layer, how much one place attends to another depends on the two tokens and their places, and on
        nothing else. An induction head must pick the place whose <em>predecessor</em> equals the present token, and
        that predecessor is in neither its query nor its key, so no weights can do it. With a second layer they can: a
        head of the first writes each place's predecessor there, and a key of the second reads it.
      </p>
    </section>
  );
}

function Panel(props: {
  id: string;
  title: string;
  unit: string;
  measures: Measure[];
  share?: boolean;
  runs: Run[];
  steps: number[];
  log: boolean;
  theme: Theme;
}): JSX.Element | null {
  const { runs, measures, theme, log, steps } = props;
  const [block, room, measured] = useWidth(560);
  const lines = runs.flatMap((run, i) =>
    measures.map(({ key, label }, n): Line => {
      const points = (run.curves[key] ?? []).map((one) => ({
        ...one,
        run: i,
        label: `${short(run)}, ${label}`,
        low: one.ci95?.[0] ?? one.mean,
        high: one.ci95?.[1] ?? one.mean,
      }));
      return { run: i, label: short(run), dashed: n > 0, points };
    }),
  );
  const points = lines.flatMap((line) => line.points);
  if (!points.length) return null;
  const changes = measures.flatMap(({ key }) =>
    runs.flatMap((run, i) => {
      const found = run.changes[key]?.found;
      return found ? [{ run: i, step: found.step, width: found.width }] : [];
    }),
  );
  const width = Math.max(300, room);
  const named = runs.length > 1 ? runs.length : 0;
  const ink = (one: { run: number }) => colour(one.run, theme);
  const last = steps.at(-1) ?? 1;
  const place = across(steps, log);
  return (
    <Figure
      id={props.id}
      title={props.title}
      theme={theme}
      rows={() => [
        ["run", "layers", "measure", "step", "mean", "low", "high"],
        ...runs.flatMap((run) =>
          measures.flatMap(({ key }) =>
            (run.curves[key] ?? []).map((one) => [
              run.source,
              run.model.n_layers,
              key,
              one.step,
              one.mean,
              one.ci95?.[0],
              one.ci95?.[1],
            ]),
          ),
        ),
      ]}
      caption={
        <Caption unit={props.unit}>
          {changes.length > 0 && " Dashed upright: the phase change, on its 95% interval."}
        </Caption>
      }
    >
      <div ref={block}>
        <Drawn
          ready={measured}
          deps={[runs, theme, width, log]}
          make={() =>
            Plot.plot({
              width,
              height: 240 + 16 * named,
              marginLeft: 38,
              marginRight: 14,
              marginTop: 12 + 16 * named + (changes.length ? 16 * changes.length : 0),
              marginBottom: 34,
              style: {
                fontFamily: "inherit",
                fontSize: "12px",
                background: "transparent",
                color: theme.ink,
                overflow: "visible",
              },
              x: { ...place.scale, label: null },
              y: { label: null, zero: true, nice: true, ticks: 5, ...(props.share ? { domain: [0, 1] } : {}) },
              marks: [
                Plot.gridY({ stroke: theme.line, strokeOpacity: 1, ticks: 5 }),
                Plot.axisX(place.ticks, {
                  color: theme.soft,
                  tickFormat: thousands,
                  tickSize: 3,
                  label: "step",
                  labelAnchor: "center",
                  labelArrow: "none",
                }),
                Plot.rectX(changes, {
                  x1: (one) => one.step.ci95?.[0] ?? one.step.mean,
                  x2: (one) => one.step.ci95?.[1] ?? one.step.mean,
                  fill: ink,
                  fillOpacity: 0.16,
                }),
                Plot.ruleX(changes, {
                  x: (one) => one.step.mean,
                  stroke: ink,
                  strokeDasharray: "4 3",
                  strokeWidth: 1.4,
                }),
                ...changes.map((one, i) =>
                  Plot.text([one], {
                    x: (given: typeof one) => given.step.mean,
                    frameAnchor: "top",
                    textAnchor: place.share(one.step.mean, last) > 0.5 ? "end" : "start",
                    dx: place.share(one.step.mean, last) > 0.5 ? 4 : -4,
                    dy: -6 - 16 * i,
                    lineAnchor: "bottom",
                    fill: ink,
                    fontWeight: 600,
                    text: () => `step ${interval(one.step, 0)}`,
                  }),
                ),
                ...lines.flatMap((line) => [
                  line.points.some((one) => one.ci95)
                    ? Plot.areaY(line.points, {
                        x: "step",
                        y1: "low",
                        y2: "high",
                        fill: colour(line.run, theme),
                        fillOpacity: 0.14,
                      })
                    : null,
                  Plot.line(line.points, {
                    x: "step",
                    y: "mean",
                    stroke: colour(line.run, theme),
                    strokeWidth: 2,
                    ...(line.dashed ? { strokeDasharray: "5 3" } : {}),
                  }),
                  line.points.length <= DOTTED
                    ? Plot.dot(line.points, {
                        x: "step",
                        y: "mean",
                        r: 2.6,
                        fill: colour(line.run, theme),
                        symbol: line.run % 2 ? "square" : "circle",
                      })
                    : null,
                ]),
                // Whose colour is whose, so that a saved figure says it too.
                ...(named
                  ? runs.map((run, i) =>
                      Plot.text([{ run: i }], {
                        frameAnchor: "top-left",
                        textAnchor: "start",
                        lineAnchor: "bottom",
                        dy: -6 - 16 * (changes.length + named - 1 - i),
                        fill: ink,
                        fontWeight: 600,
                        text: () => `${i % 2 ? "\u25a0" : "\u25cf"} ${short(run)}`,
                      }),
                    )
                  : []),
                Plot.tip(
                  points,
                  Plot.pointer({
                    x: "step",
                    y: "mean",
                    fill: theme.paper,
                    stroke: theme.line,
                    lineHeight: 1.25,
                    title: (one: Point) => `${one.label}\nstep ${one.step}: ${interval(one, 3)}`,
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

function Caption({ unit, children }: { unit: string; children: ComponentChildren }): JSX.Element {
  return (
    <>
      {unit[0]?.toUpperCase()}
      {unit.slice(1)}, over steps of training; mean, and as a band its 95% interval.{children}
    </>
  );
}

function colour(run: number, theme: Theme): string {
  const some = theme.dark ? COLOURS.dark : COLOURS.light;
  return some[run % some.length] ?? theme.ink;
}

function short(run: Run): string {
  const name = [...tidy(run.source.replace(/\/+$/, "").split("/").at(-1) ?? "")];
  const cut = name.length > 28 ? `${name.slice(0, 27).join("")}\u2026` : name.join("");
  return `${cut}, ${run.model.n_layers} layer${run.model.n_layers === 1 ? "" : "s"}`;
}

/** Where most checkpoints lie in the first tenth of the run, a linear axis would hide them. */
function mostAreEarly(steps: number[]): boolean {
  const above = steps.filter((one) => one > 0);
  return above.length > 2 && (above[above.length >> 1] ?? 0) < (above.at(-1) ?? 0) / 10;
}

/** The scale of steps, the steps that it names, and how far along it a step stands. Step 0 has its place on a log scale too. */
function across(
  steps: number[],
  log: boolean,
): { scale: Plot.ScaleOptions; ticks: number[]; share: (step: number, last: number) => number } {
  const first = steps[0] ?? 0;
  const last = Math.max(first + 1, steps.at(-1) ?? 1);
  const domain = [first, last];
  if (!log) {
    const size = 10 ** Math.floor(Math.log10((last - first) / 4));
    const step = [1, 2, 5, 10].map((one) => one * size).find((one) => (last - first) / one <= 6) ?? size;
    const ticks = range(Math.ceil(first / step), Math.floor(last / step)).map((one) => one * step);
    return { scale: { type: "linear", domain }, ticks, share: (one) => (one - first) / (last - first) };
  }
  const least = steps.find((one) => one > 0) ?? 1;
  const powers = range(Math.floor(Math.log10(least)), Math.ceil(Math.log10(last))).map((one) => 10 ** one);
  const few = powers.filter((one) => one >= least && one <= last).length < 3;
  const ticks = powers
    .flatMap((one) => (few ? [one, 2 * one, 5 * one] : [one]))
    .filter((one) => one >= least && one <= last);
  const symlog = (one: number) => Math.log1p(one / least);
  return {
    scale: { type: "symlog", constant: least, domain },
    ticks: first === 0 ? [0, ...ticks] : ticks,
    share: (one) => (symlog(one) - symlog(first)) / (symlog(last) - symlog(first)),
  };
}

function thousands(step: number): string {
  return step >= 1000 ? `${fixed(step / 1000, step % 1000 === 0 ? 0 : 1)}k` : String(step);
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, i) => from + i);
}
