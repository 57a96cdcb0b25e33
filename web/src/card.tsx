/* One head: its verdict and why, what it attends to, what breaks without it, what it copies, and who feeds it. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { NOT_ASKED, route, setText, together } from "./circuit";
import { onTop, rgb, type Theme, verdictColour } from "./colours";
import type { Cursor, Way } from "./cursor";
import { type Heads, name, type Report, type TokenRow, type VerdictMeaning } from "./data";
import { Effects } from "./effects";
import { Scroll } from "./figure";
import { Pattern } from "./pattern";
import { fixed, interval, percent, shown, signed, tidy, words } from "./text";
import { Word } from "./words";

export function Verdict({ verdict, theme }: { verdict: VerdictMeaning; theme: Theme }): JSX.Element {
  const colour = verdictColour(verdict, theme);
  return (
    <span class="verdict" title={verdict.sentence}>
      <span class="swatch" aria-hidden="true" style={{ background: colour, color: onTop(rgb(colour)) }}>
        {verdict.letter}
      </span>
      {verdict.label}
    </span>
  );
}

export function Card(props: {
  report: Report;
  heads: Heads;
  theme: Theme;
  head: string;
  cursor: Cursor;
  way: Way;
  onOpen: (head: string) => void;
}): JSX.Element {
  const { report, heads, theme, head, cursor, way } = props;
  const verdict = heads.verdicts.get(head);
  const scores = heads.scores.get(head);
  const tables = heads.tables.get(head);
  const feeds = report.circuit?.edges.filter((one) => name(one.receiver) === head) ?? [];
  const fed = report.circuit?.edges.filter((one) => name(one.sender) === head) ?? [];
  const sets = report.circuit?.sets.filter((one) => name(one.receiver) === head) ?? [];
  const receiver = report.circuit?.receivers.find((one) => name(one) === head);
  const copying = verdict?.copying;
  const link = (other: string) => (
    <button type="button" class="link" onClick={() => props.onOpen(other)}>
      {other}
    </button>
  );
  return (
    <article class="card" aria-labelledby="card-title">
      <header>
        <h2 id="card-title" tabIndex={-1}>
          {head}
        </h2>
        {verdict && <Verdict verdict={heads.meaning(verdict.verdict)} theme={theme} />}
        <label class="choose">
          <span>Another head</span>
          <select onChange={(event) => props.onOpen(event.currentTarget.value)}>
            <Options names={heads.names} chosen={head} />
          </select>
        </label>
      </header>
      <div class="columns">
        <div>
          <Pattern key={head} report={report} heads={heads} head={head} theme={theme} cursor={cursor} way={way} />
          {tables ? (
            <div class="tables">
              <TokenTable
                title="Writes when it attends to ..."
                first="attends to"
                then="raises most"
                rows={tables.ov}
              />
              {tables.qk && (
                <TokenTable
                  title={
                    tables.sender
                      ? `Looks for, in what ${name(tables.sender)} wrote ...`
                      : "Looks for, in embeddings ..."
                  }
                  first="reading"
                  then="keys that match best"
                  rows={tables.qk}
                />
              )}
            </div>
          ) : (
            <p class="soft">
              {report.tables.reason ??
                `What it writes and looks for, token by token, is in this file for the ${report.tables.heads.length} heads with a role or the largest effect.`}
            </p>
          )}
        </div>
        <div>
          <section>
            <h3>Why this verdict</h3>
            <ul class="reasons">
              {verdict?.reasons.map((one) => <li>{tidy(one)}</li>) ?? <li>It was not judged.</li>}
            </ul>
          </section>
          {verdict && <Effects key={`${head}-effects`} head={verdict} id={head} theme={theme} />}
          <section>
            <h3>Attention, over {String(report.scan.probe["n_prompts"] ?? "all")} prompts</h3>
            <Scroll label="Attention by role">
              <table>
                <thead>
                  <tr>
                    <th scope="col">role</th>
                    <th scope="col">
                      score and 95% <Word of="interval" />
                    </th>
                    <th scope="col">
                      <Word of="chance" />
                    </th>
                    <th scope="col">
                      <Word of="control" />
                    </th>
                  </tr>
                </thead>
                <tbody>
                  {Object.entries(scores ?? {}).map(([role, score]) => (
                    <tr>
                      <th scope="row">{words(role)}</th>
                      <td>{interval(score)}</td>
                      <td>{fixed(score.chance, 3)}</td>
                      <td>{score.control === null ? "" : fixed(score.control, 3)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </Scroll>
          </section>
          <section>
            <h3>What it copies</h3>
            {copying ? (
              <p>
                Direct <Word of="copying" /> {interval(copying.direct, 2, signed)}, <Word of="eigenvalue score" />{" "}
                {copying.eigenvalue === null ? "none" : signed(copying.eigenvalue, 2)}; it raises the token it attends
                to above all others for {percent(copying.top1)} of tokens.
              </p>
            ) : (
              <p class="soft">Not known: the model's weights cannot be assigned to heads.</p>
            )}
          </section>
          <section>
            <h3>Who feeds it</h3>
            {receiver && (
              <ul class="reasons">
                {feeds.map((one) => (
                  <li>
                    {link(name(one.sender))} {one.any_of.length ? "shares in" : "carries"} {percent(one.share)} of its
                    stripe, through its {route(one)}: {interval(one.effect)}
                    {together(one)}
                    {one.input !== "q" && `; through its query ${signed(one.query_effect.mean)}`}
                  </li>
                ))}
                {sets.map((one) => (
                  <li>{setText(one)}</li>
                ))}
                {!receiver.asked && <li>{NOT_ASKED}</li>}
                {receiver.asked && !feeds.length && (
                  <li>No sender carries a tenth of its stripe, alone or in a set.</li>
                )}
                {receiver.offset > 0 && (
                  <li>Traced was its attention to the key {receiver.offset} after its stripe's.</li>
                )}
                {receiver.restored && receiver.unexplained !== null && (
                  <li>
                    patched into the corrupt prompt, they restore {interval(receiver.restored, 2)}; unexplained{" "}
                    {signed(receiver.unexplained, 2)}
                  </li>
                )}
              </ul>
            )}
            {fed.length > 0 && (
              <p>
                It feeds{" "}
                {fed.map((one, i) => (
                  <>
                    {i > 0 && ", "}
                    {link(name(one.receiver))} (its {route(one)}, {percent(one.share)}
                    {together(one)})
                  </>
                ))}
                .
              </p>
            )}
            {!receiver && !fed.length && <p class="soft">No path to or from it was traced.</p>}
          </section>
        </div>
      </div>
    </article>
  );
}

/** The heads to choose from: at first the chosen one alone, since 1,024 take longer than all else in a card. */
function Options({ names, chosen }: { names: string[]; chosen: string }): JSX.Element {
  const [all, setAll] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setAll(true));
    return () => clearTimeout(timer);
  }, []);
  return (
    <>
      {(all ? names : [chosen]).map((one) => (
        <option value={one} selected={one === chosen}>
          {one}
        </option>
      ))}
    </>
  );
}

function TokenTable(props: { title: string; first: string; then: string; rows: TokenRow[] }): JSX.Element {
  return (
    <section>
      <h3>{props.title}</h3>
      <Scroll label={props.title}>
        <table class="token-table">
          <thead>
            <tr>
              <th scope="col">{props.first}</th>
              <th scope="col">{props.then}</th>
              <th scope="col">its own rank</th>
            </tr>
          </thead>
          <tbody>
            {props.rows.map((row) => (
              <tr>
                <th scope="row">
                  <bdi class="token">{shown(row, true)}</bdi>
                </th>
                <td>
                  {row.best.map(([token, text, value]) => (
                    <>
                      <bdi class={`token${token === row.token ? " own" : ""}`} title={fixed(value, 3)}>
                        {shown({ id: token, text }, true)}
                      </bdi>{" "}
                    </>
                  ))}
                </td>
                <td>{row.own_rank}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
    </section>
  );
}
