/* The page: the finding, the map of all heads, one head's card, a prompt's losses, the circuit, and how it was made. */

import { type JSX, render } from "preact";
import { useMemo, useState } from "preact/hooks";
import { Card, Verdict } from "./card";
import { CircuitGraph } from "./circuit";
import { useTheme } from "./colours";
import { Heads, type HeadVerdict, load, name, type Report } from "./data";
import { TokenLoss } from "./loss";
import { HeadMap } from "./map";
import { ProvenanceList, Quoted } from "./provenance";
import { fixed, interval, signed, tidy } from "./text";
import "./styles.css";

const LISTED = 14;

function Page({ report }: { report: Report }): JSX.Element {
  const theme = useTheme();
  const heads = useMemo(() => new Heads(report), [report]);
  const ranked = useMemo(() => byInterest(report), [report]);
  const [head, setHead] = useState(() => (ranked[0] ? name(ranked[0]) : (heads.names[0] ?? "")));
  const open = (chosen: string) => {
    setHead(chosen);
    requestAnimationFrame(() => {
      const title = document.getElementById("card-title");
      title?.closest("article")?.scrollIntoView({ block: "start" });
      title?.focus({ preventScroll: true });
    });
  };
  const { model } = report;
  return (
    <>
      <header class="top">
        <a class="skip" href="#heads">
          To the map
        </a>
        <p class="brand">headscope</p>
        <p class="soft">
          <bdi>{tidy(model.id)}</bdi> · {model.family} · {model.n_layers} layers of {model.n_heads} heads
        </p>
        <nav aria-label="Parts of the page">
          <a href="#heads">Heads</a>
          <a href="#head">One head</a>
          <a href="#loss">Loss</a>
          <a href="#circuit-part">Circuit</a>
          <a href="#made">How it was made</a>
        </nav>
      </header>
      <main>
        <section class="finding" aria-label="The finding">
          <Quoted text={tidy(report.finding.sentence)} />
          {report.finding.details.length > 0 && (
            <ul>
              {report.finding.details.map((one) => (
                <li>{tidy(one)}</li>
              ))}
            </ul>
          )}
          {model.support !== "exact" && (
            <p class="warn">
              Support is {model.support}: {tidy(model.reason)}.
            </p>
          )}
        </section>
        <section id="heads" class="columns heads">
          <HeadMap report={report} heads={heads} theme={theme} selected={head} onOpen={open} />
          <div>
            <h3>Heads with a role</h3>
            <RoleTable heads={ranked} theme={theme} selected={head} onOpen={open} />
          </div>
        </section>
        <section id="head">{head && <Card report={report} heads={heads} theme={theme} head={head} onOpen={open} />}</section>
        <section id="loss">
          <TokenLoss report={report} theme={theme} />
        </section>
        <section id="circuit-part">
          <CircuitGraph report={report} theme={theme} onOpen={open} />
        </section>
        <section id="made">
          <h2>How it was made</h2>
          <ProvenanceList report={report} />
        </section>
      </main>
    </>
  );
}

function RoleTable(props: {
  heads: HeadVerdict[];
  theme: ReturnType<typeof useTheme>;
  selected: string;
  onOpen: (head: string) => void;
}): JSX.Element {
  const named = props.heads.filter((one) => hasRole(one));
  const [all, setAll] = useState(false);
  if (!named.length) return <p class="soft">None has one.</p>;
  return (
    <>
      <div class="scroll">
        <table class="roles">
          <thead>
            <tr>
              <th scope="col">head</th>
              <th scope="col">verdict</th>
              <th scope="col">loss without it, nats</th>
              <th scope="col">stripe</th>
              <th scope="col">copying</th>
            </tr>
          </thead>
          <tbody>
            {named.slice(0, all ? undefined : LISTED).map((one) => (
              <tr class={name(one) === props.selected ? "on" : ""}>
                <th scope="row">
                  <button type="button" class="link" onClick={() => props.onOpen(name(one))}>
                    {name(one)}
                  </button>
                </th>
                <td>
                  <Verdict verdict={one.verdict} theme={props.theme} />
                </td>
                <td>{one.delta_loss_nats ? interval(one.delta_loss_nats, 2, signed) : ""}</td>
                <td>{one.attention["induction"] === undefined ? "" : fixed(one.attention["induction"], 2)}</td>
                <td>{one.copying ? signed(one.copying.direct.mean, 2) : ""}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {named.length > LISTED && (
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "Fewer" : `${named.length - LISTED} more`}
        </button>
      )}
    </>
  );
}

function hasRole(one: HeadVerdict): boolean {
  return one.verdict !== "none" && one.verdict !== "first_token";
}

/** Induction heads first, then other roles, then the rest; each by effect. */
function byInterest(report: Report): HeadVerdict[] {
  const rank = (one: HeadVerdict) => (one.verdict.endsWith("induction") ? 0 : hasRole(one) ? 1 : 2);
  const effect = (one: HeadVerdict) => one.delta_loss_nats?.mean ?? -Infinity;
  return [...report.verify.heads].sort((a, b) => rank(a) - rank(b) || effect(b) - effect(a) || a.layer - b.layer || a.head - b.head);
}

async function start(): Promise<void> {
  const root = document.getElementById("page");
  if (!root) return;
  try {
    const report = await load();
    await new Promise((done) => setTimeout(done)); // a task of its own, so that the window answers in between
    root.replaceChildren();
    render(<Page report={report} />, root);
  } catch (error) {
    root.textContent = `This page cannot be shown: ${error instanceof Error ? error.message : String(error)}`;
    throw error;
  }
}

void start();
