/* The patterns of a report: all heads small, and up to four of them large, side by side, under one cursor. */

import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type { Theme } from "./colours";
import type { Cursor, Way } from "./cursor";
import type { Heads, Report } from "./data";
import { ColourBar, LeftOut, Matrix, MatrixCaption, stripe } from "./pattern";
import { Thumbs } from "./thumbs";
import { Word } from "./words";

export const MOST_PINS = 4;

/** Pins after a head was chosen: without it where it was there, else with it, the oldest leaving. */
export function repinned(pins: string[], head: string): string[] {
  return pins.includes(head) ? pins.filter((one) => one !== head) : [...pins, head].slice(-MOST_PINS);
}

export function Glance(props: {
  report: Report;
  heads: Heads;
  theme: Theme;
  pins: string[];
  way: Way;
  cursor: Cursor;
  onPins: (pins: string[]) => void;
  onWay: (way: Way) => void;
  onOpen: (head: string) => void;
}): JSX.Element {
  const { report, heads, theme, pins, way, cursor, onPins } = props;
  const { tokens } = report.example;
  const targets = useMemo(() => stripe(report.example), [report]);
  const thumbs = useMemo(
    () =>
      heads.names.map((name) => {
        const verdict = heads.verdicts.get(name);
        const score = heads.scores.get(name)?.["induction"];
        const known = heads.has(name) ? "" : "; its pattern is not in this file";
        return {
          name,
          layer: heads.refs.get(name)?.layer ?? 0,
          bytes: () => heads.pattern(name),
          note: `${name} ${verdict ? heads.meaning(verdict.verdict).label : "not judged"}${score ? `; stripe ${score.mean.toFixed(2)}` : ""}${known}`,
        };
      }),
    [heads],
  );
  // Drawn again only for what it shows: a report of 1,024 heads changes its card more often than its pins.
  return useMemo(
    () => (
      <>
        <h2>Patterns</h2>
        <p class="soft">
          Where each head looks on one prompt of random words that repeats: a bright line beside the diagonal is the{" "}
          <Word of="stripe" />. A click puts a head beside the others, at most four.
        </p>
        <Thumbs
          id="thumbs"
          label="Patterns of all heads"
          thumbs={thumbs}
          n={tokens.length}
          theme={theme}
          pins={pins}
          onPin={(head) => onPins(repinned(pins, head))}
        />
        <WaySwitch way={way} onWay={props.onWay} />
        <div class="beside">
          {pins
            .filter((head) => heads.refs.has(head))
            .map((head) => {
              const bytes = heads.pattern(head);
              return (
                <div key={head}>
                  <PinHead
                    head={head}
                    label={`Card of ${head}`}
                    onOpen={props.onOpen}
                    onPins={() => onPins(repinned(pins, head))}
                  />
                  {bytes ? (
                    <Matrix
                      id={`pin-${head}`}
                      title={`${head} on this prompt`}
                      head={head}
                      tokens={tokens}
                      bytes={bytes}
                      targets={targets}
                      theme={theme}
                      cursor={cursor}
                      way={way}
                      small
                    />
                  ) : (
                    <LeftOut head={head} report={report} />
                  )}
                </div>
              );
            })}
        </div>
        <ColourBar theme={theme} />
        <p class="note">
          <MatrixCaption marked theme={theme} />
        </p>
      </>
    ),
    [report, heads, theme, way, cursor, pins.join(" ")],
  );
}

export function PinHead(props: {
  head: string;
  label: string;
  onOpen: (head: string) => void;
  onPins: () => void;
}): JSX.Element {
  const { head, label, onOpen, onPins } = props;
  return (
    <p class="files pin">
      <button type="button" onClick={() => onOpen(head)}>
        {label}
      </button>
      <button type="button" onClick={onPins} aria-label={`Take ${head} away`}>
        ×
      </button>
    </p>
  );
}

/** From a query to what it attends to, or to a key from what attends to it. */
export function WaySwitch({
  way,
  onWay,
  name = "way",
}: {
  way: Way;
  onWay: (way: Way) => void;
  name?: string;
}): JSX.Element {
  return (
    <fieldset class="modes">
      <legend>A token</legend>
      {(["from", "to"] as const).map((one) => (
        <label class={one === way ? "on" : ""}>
          <input type="radio" name={name} value={one} checked={one === way} onChange={() => onWay(one)} />
          {one === "from" ? "attends to ..." : "is attended to by ..."}
        </label>
      ))}
    </fieldset>
  );
}
