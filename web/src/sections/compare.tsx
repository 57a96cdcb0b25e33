/* What changed between models: the finding, two maps and their difference, two patterns of one head, and a table of what
   changed. */

import type { JSX } from "preact";
import { useMemo, useState } from "preact/hooks";
import { css, shade, type Theme } from "../colours";
import { Cursor, type Way } from "../cursor";
import { decoded, type HeadRef, type Model, name, type Result } from "../data";
import { Matrix, MatrixCaption, repeats } from "../pattern";
import type { Comparison, HeadChange, PairChange, PairPatterns, RoleChange, Side } from "../records";
import type { Section } from "../section";
import { fixed, interval, percent, signed, tidy, words } from "../text";

interface Cell extends HeadRef {
  value: number;
  says: string;
}

const LARGEST = 18;
const WIDEST = 300;

interface Shown {
  found: Comparison;
  theme: Theme;
  way: Way;
  open: (head: string) => void;
}

function Compared(props: Shown): JSX.Element {
  return (
    <>
      <h2>What changed</h2>
      {props.found.pairs.map((pair) => (
        <Pair key={pair.b} {...props} pair={pair} />
      ))}
    </>
  );
}

function Pair(props: Shown & { pair: PairChange }): JSX.Element {
  const { found, pair, theme, open } = props;
  const roles = [...new Set(pair.heads.flatMap((one) => one.roles.map((role) => role.role)))];
  const largest = changes(pair).sort((one, two) => size(two.role) - size(one.role))[0]?.role.role ?? roles[0] ?? "";
  const [role, setRole] = useState(largest);
  const sides = [pair.a, pair.b].map((label) => found.sides.find((one) => one.label === label));
  const [a, b] = sides;
  if (!a || !b) return <p class="warn">The comparison lacks one of its models.</p>;
  return (
    <>
      <p>{tidy(pair.finding)}</p>
      <p class="soft">
        {sides.map((one) => one && `${one.label} is ${tidy(one.model.id)}, ${one.provenance.dtype}`).join("; ")}.{" "}
        {pair.paired ? "Paired by prompt" : "Not paired"}: {pair.why}.
      </p>
      {roles.length > 0 && (
        <>
          <label>
            Role{" "}
            <select value={role} onChange={(event) => setRole((event.target as HTMLSelectElement).value)}>
              {roles.map((one) => (
                <option key={one} value={one}>
                  {words(one)}
                </option>
              ))}
            </select>
          </label>
          <div style={{ display: "flex", flexWrap: "wrap", gap: "1.5rem" }}>
            <Grid title={pair.a} cells={scored(a, role)} model={a.model} theme={theme} open={open} />
            <Grid title={pair.b} cells={scored(b, role)} model={b.model} theme={theme} />
            <Grid
              title={`${pair.b} minus ${pair.a}, by heads of ${pair.a}`}
              cells={apart(pair, role)}
              model={a.model}
              theme={theme}
              open={open}
            />
          </div>
        </>
      )}
      <Changes pair={pair} open={open} />
      {pair.patterns && <Patterns pair={pair} patterns={pair.patterns} theme={theme} way={props.way} />}
      <Further pair={pair} />
    </>
  );
}

function Grid(props: {
  title: string;
  cells: Cell[];
  model: Model;
  theme: Theme;
  open?: (head: string) => void;
}): JSX.Element {
  const { title, cells, model, theme, open } = props;
  const size = Math.max(3, Math.min(LARGEST, Math.floor(WIDEST / model.n_heads)));
  const [width, height] = [model.n_heads * size, model.n_layers * size];
  return (
    <figure style={{ margin: 0 }}>
      <svg
        width={width}
        height={height}
        role="img"
        aria-label={`${title}: one row for each layer, one column for each head`}
      >
        {cells.map((cell) => (
          <rect
            key={name(cell)}
            x={cell.head * size}
            y={cell.layer * size}
            width={size - 1}
            height={size - 1}
            fill={css(shade(cell.value, theme))}
            style={open && { cursor: "pointer" }}
            onClick={open && (() => open(name(cell)))}
          >
            <title>{cell.says}</title>
          </rect>
        ))}
      </svg>
      <figcaption class="soft">{title}</figcaption>
    </figure>
  );
}

function Changes({ pair, open }: { pair: PairChange; open: (head: string) => void }): JSX.Element | null {
  const rows = changes(pair);
  if (rows.length === 0) return null;
  return (
    <table>
      <thead>
        <tr>
          <th>head</th>
          <th>role</th>
          <th>what</th>
          <th>before</th>
          <th>after</th>
          <th>difference, 95% interval</th>
          <th>q</th>
        </tr>
      </thead>
      <tbody>
        {rows.map(({ head, role }) => (
          <tr key={`${name(head)} ${role.role}`}>
            <td>
              <button type="button" class="link" onClick={() => open(name(head))}>
                {name(head)}
              </button>
              {head.counterpart && name(head.counterpart) !== name(head) && ` = ${name(head.counterpart)}`}
            </td>
            <td>{words(role.role)}</td>
            <td>
              {["gained", "lost"].includes(role.status) ? role.status : role.difference.mean > 0 ? "more" : "less"}
            </td>
            <td>{fixed(role.a)}</td>
            <td>{fixed(role.b)}</td>
            <td>{interval(role.difference, 3, signed)}</td>
            <td>{role.q_value.toPrecision(1)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** One head in both models, under one cursor. */
function Patterns(props: { pair: PairChange; patterns: PairPatterns; theme: Theme; way: Way }): JSX.Element | null {
  const { pair, patterns, theme, way } = props;
  const { tokens, heads } = patterns;
  const [chosen, setChosen] = useState(0);
  const cursor = useMemo(() => new Cursor([tokens.length - 1, -1], null, () => {}), [tokens]);
  const targets = useMemo(() => repeats(tokens), [tokens]);
  const one = heads[chosen];
  const sides = useMemo(
    () =>
      one && [
        { label: pair.a, head: name(one), bytes: decoded(one.a) },
        { label: pair.b, head: name(one.counterpart), bytes: decoded(one.b) },
      ],
    [one, pair],
  );
  if (!one || !sides) return null;
  return (
    <figure class="both" style={{ margin: 0 }}>
      <p role="group" aria-label="Heads that look elsewhere">
        {heads.map((each, i) => (
          <button type="button" key={name(each)} aria-pressed={i === chosen} onClick={() => setChosen(i)}>
            {name(each)}
          </button>
        ))}
      </p>
      <div class="beside">
        {sides.map(({ label, head, bytes }) => (
          <div key={label}>
            <p class="soft">
              {head} of {label}
            </p>
            <Matrix
              id={`compare-${pair.a}-${pair.b}-${label}`}
              title={`${head} of ${label} on one prompt`}
              head={`${head} of ${label}`}
              tokens={tokens}
              bytes={bytes}
              targets={targets}
              theme={theme}
              cursor={cursor}
              way={way}
              small
            />
          </div>
        ))}
      </div>
      <figcaption class="soft">
        One prompt that both models read, and at most four heads that look elsewhere, earliest layer first.{" "}
        <MatrixCaption marked={targets.length > 0} theme={theme} />
      </figcaption>
    </figure>
  );
}

function Further({ pair }: { pair: PairChange }): JSX.Element {
  const verdicts = (pair.verdicts ?? []).filter((one) => one.changed);
  const edges = (pair.edges ?? []).filter((one) => one.status !== "kept");
  const outcomes = (pair.outcomes ?? []).filter((one) => one.status !== "kept");
  const sources = pair.swap?.sources;
  const random = (pair.swap?.random ?? []).map((one) => one.restores.mean);
  return (
    <ul>
      {verdicts.map((one) => (
        <li key={name(one)} title={one.reasons_b.join("; ")}>
          {name(one)}: {words(one.a)}, now {words(one.b)}
          {one.apart ? "" : " (the intervals of both effects meet)"}
        </li>
      ))}
      {edges.map((one) => (
        <li key={`${name(one.sender)} ${name(one.receiver)} ${one.input}`}>
          {name(one.sender)} to the {one.input === "k" ? "key" : "query"} of {name(one.receiver)}: {one.status}
        </li>
      ))}
      {outcomes.map((one) => (
        <li key={`${name(one)} ${one.role}`}>
          {name(one)} {one.status} {words(one.role)} in the atlas: {one.a ?? "not tried"}, now {one.b ?? "not tried"}
          {one.apart ? "" : " (the intervals of both scores meet)"}
        </li>
      ))}
      {sources && (
        <li>
          Swapping {sources.heads.map(name).join(", ")} restores {percent(sources.restores.mean)} of the difference in
          loss and transfers {percent(sources.transfers.mean)}
          {random.length > 0 && `; random heads restore at most ${percent(Math.max(0, ...random))}`}.
        </li>
      )}
    </ul>
  );
}

/** What changed, earliest layer first, in a layer the largest difference first. */
function changes(pair: PairChange): { head: HeadChange; role: RoleChange }[] {
  return pair.heads
    .map((head) => ({
      head,
      roles: head.roles.filter((role) => role.changed).sort((one, two) => size(two) - size(one)),
    }))
    .sort((one, two) => depth(one.head) - depth(two.head) || most(two.roles) - most(one.roles))
    .flatMap(({ head, roles }) => roles.map((role) => ({ head, role })));
}

function size(role: RoleChange): number {
  return Math.abs(role.difference.mean);
}

function most(roles: RoleChange[]): number {
  return Math.max(0, ...roles.map(size));
}

/** Where a head stands in a pass: calls of a looped model follow each other, then layers. */
function depth(head: HeadRef): number {
  return (head.call ?? 0) * 10_000 + head.layer;
}

function scored(side: Side, role: string): Cell[] {
  return side.heads.map((one) => {
    const value = one.scores[role] ?? 0;
    return { layer: one.layer, head: one.head, value, says: `${name(one)} ${words(role)} ${fixed(value)}` };
  });
}

function apart(pair: PairChange, role: string): Cell[] {
  return pair.heads.flatMap((one) => {
    const found = one.roles.find((each) => each.role === role);
    if (!found) return [];
    const other = one.counterpart ? name(one.counterpart) : "";
    const says = `${name(one)} to ${other}: ${signed(found.difference.mean)}, q ${found.q_value.toPrecision(1)}`;
    return [{ layer: one.layer, head: one.head, value: found.difference.mean, says }];
  });
}

const section: Section = {
  kind: "compare",
  title: "What changed",
  draw: (result, { theme, view, open }) => (
    <Compared found={result as Result & Comparison} theme={theme} way={view.way} open={open} />
  ),
};

export default section;
