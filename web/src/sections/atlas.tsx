/* The atlas: the map of heads by role, any two measures of them, a table with filters, and a head with all its roles. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import { useMemo, useState } from "preact/hooks";
import { onTop, rgb, type Theme } from "../colours";
import { type HeadRef, name, type Result } from "../data";
import { Drawn, Figure, Scroll, useWidth } from "../figure";
import type {
  Atlas,
  RoleFinding as Finding,
  KnownHead as Known,
  RoleMeaning as Role,
  HeadSummary as Summary,
} from "../records";
import type { Rows } from "../save";
import type { Section } from "../section";
import { fixed, interval, percent, signed, tidy, words } from "../text";

const LISTED = 30;
const LARGEST = 30;
const LEFT = 30;
const STATUS: Record<string, string> = {
  unexplained: "unexplained: it matters, and no role says what it does",
  held: "holds a role",
  idle: "no role, no effect found",
  not_tested: "not tested",
};

/** The atlas with what each head has at hand. */
class Heads {
  readonly of = new Map<string, Finding[]>();
  readonly role = new Map<string, Role>();
  readonly known = new Map<string, Known[]>();

  constructor(readonly atlas: Atlas) {
    for (const one of atlas.roles) this.role.set(one.name, one);
    for (const one of atlas.findings) this.of.set(name(one), [...(this.of.get(name(one)) ?? []), one]);
    for (const one of atlas.known ?? []) this.known.set(name(one), [...(this.known.get(name(one)) ?? []), one]);
  }

  findings(head: HeadRef): Finding[] {
    return this.of.get(name(head)) ?? [];
  }

  /** The role that a map shows: the strongest that it holds; where nothing was tested, the one with the best score. */
  shown(head: Summary): Role | undefined {
    const best = this.atlas.quick
      ? this.findings(head)
          .filter((one) => one.has_score)
          .sort((one, two) => two.score.mean - one.score.mean)[0]?.role
      : head.strongest;
    return best ? this.role.get(best) : undefined;
  }

  says(head: Summary): string {
    const roles = this.findings(head)
      .filter((one) => one.has_score)
      .map((one) => `${words(one.role)} ${fixed(one.score.mean)}`);
    const loss = head.removed ? `; loss without it ${signed(head.removed.estimate.mean)}` : "";
    const known = (this.known.get(name(head)) ?? []).map((one) => one.called).join(", ");
    return `${name(head)}: ${roles.join(", ") || "no role's score"}; ${head.status}${loss}${known ? `; known as ${known}` : ""}`;
  }
}

function Drawing({ found, theme, open }: { found: Atlas; theme: Theme; open: (head: string) => void }): JSX.Element {
  const heads = useMemo(() => new Heads(found), [found]);
  const [picked, pick] = useState(found.heads[0] ? name(found.heads[0]) : "");
  const head = found.heads.find((one) => name(one) === picked);
  const count = (status: string) => found.heads.filter((one) => one.status === status).length;
  return (
    <>
      <h2>Every head's roles</h2>
      <p>
        {found.roles.length} roles asked of {found.heads.length} heads.{" "}
        {found.quick
          ? "Quick: attention and weights only, so no role is confirmed and the map shows each head's best score."
          : `${count("held")} hold a role, ${count("unexplained")} matter without one.`}
      </p>
      <RoleMap heads={heads} theme={theme} picked={picked} pick={pick} />
      {head && <Card heads={heads} head={head} open={open} />}
      <HeadTable heads={heads} pick={pick} />
      <Scatter heads={heads} theme={theme} />
      {(found.known ?? []).length > 0 && <KnownTable known={found.known ?? []} pick={pick} />}
      {Object.entries(found.not_asked).length > 0 && (
        <p class="soft">
          Not asked:{" "}
          {Object.entries(found.not_asked)
            .map(([role, why]) => `${words(role)} (${tidy(why)})`)
            .join("; ")}
          .
        </p>
      )}
    </>
  );
}

function RoleMap(props: { heads: Heads; theme: Theme; picked: string; pick: (head: string) => void }): JSX.Element {
  const { heads, theme, picked, pick } = props;
  const { atlas } = heads;
  const [block, width] = useWidth(640);
  const [columns, rows] = [atlas.model.n_heads, atlas.model.n_layers];
  const size = Math.max(6, Math.min(LARGEST, Math.floor((width - LEFT) / Math.max(1, columns))));
  const used = atlas.roles.filter((role) => atlas.heads.some((one) => heads.shown(one) === role));
  return (
    <Figure
      id="atlas-map"
      title={atlas.quick ? "Heads by best score" : "Heads by strongest role"}
      theme={theme}
      rows={() => table(heads, atlas.heads)}
    >
      <div ref={block} class="map">
        <svg
          width={LEFT + columns * size}
          height={rows * size + 18}
          role="img"
          aria-label="One row for each layer, one column for each head; the table below has the same heads"
        >
          {Array.from({ length: rows }, (_, layer) => (
            <text key={layer} x={0} y={layer * size + size * 0.7} fill={theme.soft} font-size={Math.min(11, size)}>
              {size >= 10 || layer % 4 === 0 ? `L${layer}` : ""}
            </text>
          ))}
          {atlas.heads.map((one) => {
            const role = heads.shown(one);
            const [x, y] = [LEFT + one.head * size, one.layer * size];
            const unexplained = one.status === "unexplained";
            const fill = role ? role.colour : unexplained ? theme.mark : theme.empty;
            return (
              <g key={name(one)} onClick={() => pick(name(one))}>
                <rect
                  x={x}
                  y={y}
                  width={size - 1}
                  height={size - 1}
                  rx={2}
                  fill={fill}
                  data-head={name(one)}
                  class={name(one) === picked ? "selected" : ""}
                >
                  <title>{heads.says(one)}</title>
                </rect>
                {size >= 14 && (role || unexplained) && (
                  <text
                    x={x + size / 2 - 0.5}
                    y={y + size * 0.68}
                    text-anchor="middle"
                    font-size={size * 0.5}
                    font-weight={600}
                    fill={onTop(rgb(fill))}
                    pointer-events="none"
                  >
                    {role && !unexplained ? role.letter : "?"}
                  </text>
                )}
              </g>
            );
          })}
        </svg>
      </div>
      <ul class="legend">
        {used.map((role) => (
          <li key={role.name} title={role.sentence}>
            <span class="swatch" style={{ background: role.colour, color: onTop(rgb(role.colour)) }}>
              {role.letter}
            </span>
            {role.label} <span class="soft">{atlas.heads.filter((one) => heads.shown(one) === role).length}</span>
          </li>
        ))}
        {atlas.heads.some((one) => one.status === "unexplained") && (
          <li>
            <span class="swatch" style={{ background: theme.mark, color: onTop(rgb(theme.mark)) }}>
              ?
            </span>
            unexplained
          </li>
        )}
      </ul>
    </Figure>
  );
}

function Card({ heads, head, open }: { heads: Heads; head: Summary; open: (head: string) => void }): JSX.Element {
  const findings = [...heads.findings(head)].sort(
    (one, two) => rank(two) - rank(one) || two.score.mean - one.score.mean,
  );
  return (
    <section class="atlas-block" aria-live="polite" aria-label={`Roles of ${name(head)}`}>
      <h3>
        {name(head)}: {STATUS[head.status] ?? head.status}
      </h3>
      <p class="soft">
        {head.removed && `Loss on repeated tokens without it: ${interval(head.removed.estimate, 3, signed)} nats. `}
        {head.unexplained !== null && `${percent(head.unexplained)} of its effect is by no role. `}
        {(heads.known.get(name(head)) ?? []).map((one) => `Known as ${one.called} (${tidy(one.source)}). `)}
        <button type="button" class="link" onClick={() => open(name(head))}>
          Its card
        </button>
      </p>
      <Scroll label={`Roles of ${name(head)}`}>
        <table>
          <thead>
            <tr>
              {["role", "outcome", "score, 95% interval", "control", "chance", "tests, in nats"].map((one) => (
                <th key={one} scope="col">
                  {one}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {findings.map((one) => (
              <tr key={one.role} class={one.has_score ? "" : "soft"}>
                <td title={heads.role.get(one.role)?.sentence}>
                  {heads.role.get(one.role)?.label ?? words(one.role)}
                  {one.variant && one.has_score && ` (${words(one.variant)})`}
                </td>
                <td>{one.outcome ?? "not tried"}</td>
                <td>{interval(one.score, 2)}</td>
                <td>{one.control === null ? "" : fixed(one.control)}</td>
                <td>{fixed(one.chance)}</td>
                <td>
                  {Object.entries(one.tests).map(([test, effect]) => (
                    <div key={test}>
                      {words(test)} {interval(effect.estimate, 3, signed)}
                      {effect.q_value !== null && ` q ${Math.max(effect.q_value, 1e-15).toPrecision(1)}`}
                      {effect.within_nats !== null && `, inside ±${effect.within_nats}`}
                    </div>
                  ))}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
    </section>
  );
}

function HeadTable({ heads, pick }: { heads: Heads; pick: (head: string) => void }): JSX.Element {
  const { atlas } = heads;
  const [role, setRole] = useState("");
  const [status, setStatus] = useState("");
  const [all, setAll] = useState(false);
  const kept = atlas.heads.filter(
    (one) =>
      (status === "" || one.status === status) &&
      (role === "" || heads.findings(one).some((found) => found.role === role && found.has_score)),
  );
  const published = heads.known.size > 0;
  return (
    <div class="atlas-block">
      <h3>Heads</h3>
      <p>
        <Choice
          label="With the score of"
          value={role}
          set={setRole}
          options={[["", "any role"], ...atlas.roles.map((one): [string, string] => [one.name, one.label])]}
        />{" "}
        <Choice
          label="Status"
          value={status}
          set={setStatus}
          options={[
            ["", "any"],
            ...[...new Set(atlas.heads.map((one) => one.status))].map((one): [string, string] => [one, words(one)]),
          ]}
        />{" "}
        <span class="soft">
          {kept.length} of {atlas.heads.length}
        </span>
      </p>
      <Scroll label="Heads of the atlas">
        <table class="roles">
          <thead>
            <tr>
              {[
                "head",
                "status",
                atlas.quick ? "roles by score" : "roles",
                "loss without it",
                "unexplained",
                ...(published ? ["known as"] : []),
              ].map((one) => (
                <th key={one} scope="col">
                  {one}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {kept.slice(0, all ? kept.length : LISTED).map((one) => (
              <tr key={name(one)}>
                <td>
                  <button type="button" class="link" onClick={() => pick(name(one))}>
                    {name(one)}
                  </button>
                </td>
                <td>{words(one.status)}</td>
                <td>{rolesOf(heads, one)}</td>
                <td>{one.removed && signed(one.removed.estimate.mean)}</td>
                <td>{one.unexplained === null ? "" : percent(one.unexplained)}</td>
                {published && <td>{(heads.known.get(name(one)) ?? []).map((each) => each.called).join(", ")}</td>}
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
      {kept.length > LISTED && !all && (
        <button type="button" class="link" onClick={() => setAll(true)}>
          {kept.length - LISTED} more
        </button>
      )}
    </div>
  );
}

function Choice(props: {
  label: string;
  value: string;
  set: (value: string) => void;
  options: [string, string][];
}): JSX.Element {
  return (
    <label>
      {props.label}{" "}
      <select value={props.value} onChange={(event) => props.set((event.target as HTMLSelectElement).value)}>
        {props.options.map(([value, label]) => (
          <option key={value} value={value}>
            {label}
          </option>
        ))}
      </select>
    </label>
  );
}

function Scatter({ heads, theme }: { heads: Heads; theme: Theme }): JSX.Element {
  const { atlas } = heads;
  const measures = useMemo(() => measured(heads), [heads]);
  const names = [...measures.keys()];
  const score = `score: ${atlas.roles[0]?.name ?? ""}`;
  const [across, setAcross] = useState(names.includes(score) ? score : (names[0] ?? ""));
  const [up, setUp] = useState(names.includes("loss without it") ? "loss without it" : (names[1] ?? across));
  const [block, width, known] = useWidth(560);
  // Drawn again only for what it shows, not for each card that is opened.
  const dots = useMemo(
    () =>
      atlas.heads.flatMap((one) => {
        const [x, y] = [measures.get(across)?.get(name(one)), measures.get(up)?.get(name(one))];
        return x === undefined || y === undefined
          ? []
          : [{ x, y, head: name(one), colour: heads.shown(one)?.colour ?? theme.soft, says: heads.says(one) }];
      }),
    [heads, measures, across, up, theme],
  );
  const options = names.map((one): [string, string] => [one, words(one)]);
  return (
    <Figure
      id="atlas-scatter"
      title="Two measures of every head"
      theme={theme}
      rows={() => [["head", words(across), words(up)], ...dots.map((one) => [one.head, one.x, one.y])]}
      caption={`${dots.length} of ${atlas.heads.length} heads have both measures.`}
    >
      <p>
        <Choice label="Across" value={across} set={setAcross} options={options} />{" "}
        <Choice label="Up" value={up} set={setUp} options={options} />
      </p>
      <div ref={block}>
        <Drawn
          ready={known}
          deps={[dots, width, theme]}
          make={() =>
            Plot.plot({
              width: Math.min(width, 640),
              height: 300,
              marginLeft: 52,
              style: { fontFamily: "inherit", background: "transparent", color: theme.soft },
              x: { label: words(across), nice: true },
              y: { label: words(up), nice: true },
              color: { type: "identity" },
              marks: [
                Plot.ruleY([0], { stroke: theme.line }),
                Plot.dot(dots, { x: "x", y: "y", fill: "colour", r: 4, title: "says" }),
              ],
            })
          }
        />
      </div>
    </Figure>
  );
}

function KnownTable({ known, pick }: { known: Known[]; pick: (head: string) => void }): JSX.Element {
  const count = (agreement: string) => known.filter((one) => one.agreement === agreement).length;
  return (
    <div class="atlas-block">
      <h3>What others have found</h3>
      <p>
        Agrees: {count("agrees")}; differs: {count("differs")}; not tested: {count("not_tested")}.
        {known[0]?.matched === "shape" &&
          " The model's config has the same numbers; another model of this shape has other heads."}
      </p>
      <Scroll label="What others have found">
        <table>
          <thead>
            <tr>
              {["head", "known as", "here", "why", "source"].map((one) => (
                <th key={one} scope="col">
                  {one}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {known.map((one) => (
              <tr key={`${name(one)} ${one.called} ${one.model}`}>
                <td>
                  <button type="button" class="link" onClick={() => pick(name(one))}>
                    {name(one)}
                  </button>
                </td>
                <td>{one.called}</td>
                <td>{words(one.agreement)}</td>
                <td>{tidy(one.why)}</td>
                <td>
                  {tidy(one.source)}
                  {!one.checked && ", unchecked"}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
    </div>
  );
}

function rank(one: Finding): number {
  return ["primary", "secondary", "interferer"].includes(one.outcome ?? "") ? 2 : one.has_score ? 1 : 0;
}

function rolesOf(heads: Heads, head: Summary): string {
  const held = heads.atlas.quick
    ? heads.findings(head).filter((one) => one.has_score)
    : heads.findings(head).filter((one) => head.roles.includes(one.role));
  return held
    .map(
      (one) =>
        `${heads.role.get(one.role)?.label ?? one.role}${heads.atlas.quick ? ` ${fixed(one.score.mean)}` : ` (${one.outcome})`}`,
    )
    .join(", ");
}

/** Every number that heads have, by its name and the head's. */
function measured(heads: Heads): Map<string, Map<string, number>> {
  const found = new Map<string, Map<string, number>>();
  const put = (measure: string, head: HeadRef, value: number) => {
    if (!found.has(measure)) found.set(measure, new Map());
    found.get(measure)?.set(name(head), value);
  };
  for (const one of heads.atlas.heads) {
    if (one.removed) put("loss without it", one, one.removed.estimate.mean);
    if (one.unexplained !== null) put("unexplained share", one, one.unexplained);
    for (const role of heads.findings(one)) {
      put(`score: ${role.role}`, one, role.score.mean);
      for (const [key, value] of Object.entries(role.measures)) put(`${key}: ${role.role}`, one, value);
      for (const [test, effect] of Object.entries(role.tests)) put(`${test}: ${role.role}`, one, effect.estimate.mean);
    }
  }
  return found;
}

function table(heads: Heads, shown: Summary[]): Rows {
  return [
    ["head", "status", "roles", "loss without it", "unexplained"],
    ...shown.map((one) => [
      name(one),
      one.status,
      rolesOf(heads, one),
      one.removed?.estimate.mean ?? "",
      one.unexplained ?? "",
    ]),
  ];
}

const section: Section = {
  kind: "atlas",
  title: "Atlas",
  draw: (result, { theme, open }) => <Drawing found={result as Result & Atlas} theme={theme} open={open} />,
};

export default section;
