/* The page: a report's parts, and on a live page the user's own prompt above them. */

import { type ComponentChildren, type JSX, render } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Behaviors } from "./behavior";
import { Card, Verdict } from "./card";
import { CircuitGraph } from "./circuit";
import { usePrinting, useTheme } from "./colours";
import { Cursor } from "./cursor";
import { checked, Heads, type HeadVerdict, held, MOSAIC, type Model, type Mosaic, name, type Report } from "./data";
import { Emergence } from "./emergence";
import { Scroll } from "./figure";
import { Glance } from "./glance";
import { type About, Server, type Step, token } from "./live";
import { TokenLoss } from "./loss";
import { HeadMap } from "./map";
import { MosaicPage } from "./mosaic";
import { Prompt } from "./prompt";
import { ProvenanceList, Quoted } from "./provenance";
import { type Part, SECTIONS } from "./section";
import { read, readView, type State, VIEW, type View, written, writtenView } from "./state";
import { fixed, interval, percent, signed, tidy } from "./text";
import { Word } from "./words";
import "./styles.css";

const LISTED = 14;
const CANDIDATES = 5;
const POLL_MS = 700;
/** Parts that are drawn with the first frame; each of the others in a task of its own after it. */
const AT_ONCE = 1;

/** The parts beneath the finding, in order. */
const PARTS: Part[] = [
  {
    id: "heads",
    title: "Heads",
    class: "columns heads",
    draw: ({ report, heads, ranked, theme, head, open, view, onView }) => (
      <>
        <div>
          <h2>Heads that matter</h2>
          <p class="soft">By what the second copy's loss does without each, whether it has a role or not.</p>
          <RoleTable ranked={ranked} heads={heads} theme={theme} selected={head} onOpen={open} />
        </div>
        <HeadMap
          report={report}
          heads={heads}
          theme={theme}
          selected={head}
          mode={view.role}
          onMode={(role) => onView({ role })}
          onOpen={open}
        />
        <EveryHead heads={heads} />
      </>
    ),
  },
  {
    id: "head",
    title: "One head",
    draw: ({ report, heads, theme, head, open, view, cursor }) =>
      head && (
        <Card report={report} heads={heads} theme={theme} head={head} cursor={cursor} way={view.way} onOpen={open} />
      ),
  },
  {
    id: "patterns",
    title: "Patterns",
    draw: ({ report, heads, theme, open, view, onView, cursor }) => (
      <Glance
        report={report}
        heads={heads}
        theme={theme}
        pins={view.pins ?? pinsOf(report)}
        way={view.way}
        cursor={cursor}
        onPins={(pins) => onView({ pins })}
        onWay={(way) => onView({ way })}
        onOpen={open}
      />
    ),
  },
  { id: "loss", title: "Loss", draw: ({ report, theme }) => <TokenLoss report={report} theme={theme} /> },
  {
    id: "circuit-part",
    title: "Circuit",
    // Without a head to explain it would be an empty card; the notes of how it was made say why there is none.
    when: (report) => report.circuit === null || report.circuit.receivers.length > 0,
    draw: ({ report, theme, open }) => <CircuitGraph report={report} theme={theme} onOpen={open} />,
  },
  {
    id: "emergence",
    title: "How it emerged",
    when: (report) => report.emergence.length > 0,
    draw: ({ report, theme }) => <Emergence runs={report.emergence} theme={theme} />,
  },
  {
    id: "behavior",
    title: "Behaviour",
    when: (report) => report.behavior.length > 0,
    draw: ({ report, theme, open }) => <Behaviors results={report.behavior} theme={theme} onOpen={open} />,
  },
  ...SECTIONS,
  {
    id: "made",
    title: "How it was made",
    draw: ({ report }) => (
      <>
        <h2>How it was made</h2>
        <ProvenanceList report={report} />
      </>
    ),
  },
];

function partsOf(report: Report): Part[] {
  return PARTS.filter((part) => part.when?.(report) ?? true);
}

/** A report that the page holds. */
function Held({ report }: { report: Report }): JSX.Element {
  const [view, setView] = useAddress<View>({ ...VIEW, head: first(report) }, readView, writtenView);
  return (
    <>
      <Top model={report.model} parts={partsOf(report)} />
      <main>
        <Parts report={report} view={view} onView={setView} />
      </main>
    </>
  );
}

/** A page whose server reads the user's own prompt, and makes the report meanwhile. */
function Live({ server, about }: { server: Server; about: About }): JSX.Element {
  const theme = useTheme();
  const start: State = {
    ...VIEW,
    text: about.suggestion,
    head: name(about.heads[0] ?? { layer: 0, head: 0 }),
    off: [],
    method: "mean",
    picked: [],
  };
  const [state, setState] = useAddress<State>(start, read, written);
  const [chosen, setChosen] = useState(() => location.hash.includes("head="));
  const made = useReport(server);
  const report = made !== null && typeof made === "object" && "schema" in made ? made : null;
  const change = (parts: Partial<State>) => {
    if (parts.head !== undefined) setChosen(true);
    setState(parts);
  };
  const stripeHeads = report?.verify.sets[0]?.heads.map(name) ?? [];
  const parts = [{ id: "prompt", title: "Your prompt" }, ...(report ? partsOf(report) : [])];
  return (
    <>
      <Top model={about.model} parts={parts} />
      <main>
        <Prompt
          server={server}
          about={about}
          state={state}
          stripeHeads={stripeHeads}
          theme={theme}
          chosen={chosen}
          onState={change}
          onFound={(head) => setState({ head })}
          onExample={(text) => {
            setChosen(false);
            setState({ text, picked: [], pins: null });
          }}
        />
        {report ? (
          <Parts report={report} view={state} onView={change} />
        ) : (
          <section class="waiting">
            <h2>The report of {tidy(about.model.id)}</h2>
            {typeof made === "string" ? (
              <p class="warn">It cannot be made: {tidy(made)}</p>
            ) : (
              <Waiting step={made as Step | null} />
            )}
          </section>
        )}
      </main>
    </>
  );
}

function Waiting({ step }: { step: Step | null }): JSX.Element {
  const share = step && step.total > 0 ? step.done / step.total : 0;
  return (
    <p class="soft" role="status">
      It is being made, and will be shown here: {step?.what ?? "starting"} {percent(share)}{" "}
      <progress value={share} aria-label="How far it has come" />
    </p>
  );
}

/** The report, or how far it has come, or why there is none. */
function useReport(server: Server): Report | Step | string | null {
  const [made, set] = useState<Report | Step | string | null>(null);
  useEffect(() => {
    let timer = 0;
    const ask = async () => {
      try {
        const found = await server.report();
        set(found);
        if (!("schema" in found)) timer = window.setTimeout(ask, POLL_MS);
      } catch (error) {
        set((error as Error).message);
      }
    };
    void ask();
    return () => clearTimeout(timer);
  }, []);
  return made;
}

/** What is shown, in the address too, and followed as either changes. */
function useAddress<S extends View>(
  start: S,
  read: (fragment: string, before: S) => S,
  written: (state: S) => string,
): [S, (change: Partial<S>) => void] {
  const [state, set] = useState(() => read(location.hash, start));
  const drawn = useRef(false);
  useEffect(() => {
    // A page that was opened without a state keeps its plain address until something is chosen.
    // In a notebook the page is in a frame without an address.
    const addressed = location.protocol !== "about:";
    if (addressed && (drawn.current || location.hash.includes("="))) history.replaceState(null, "", written(state));
    drawn.current = true;
  }, [state]);
  useEffect(() => {
    const follow = () => set((before) => read(location.hash, before));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return [state, (change) => set((before) => ({ ...before, ...change }))];
}

/** The page's head. Its links move the window and leave the address, which holds the state. */
function Top({ model, parts }: { model: Model; parts: { id: string; title: string }[] }): JSX.Element {
  const move = (event: MouseEvent) => {
    const target = (event.target as Element).closest("a")?.getAttribute("href")?.slice(1);
    if (!target) return;
    event.preventDefault();
    document.getElementById(target)?.scrollIntoView({ block: "start" });
  };
  return (
    <header class="top" onClick={move}>
      <a class="skip" href={`#${parts[0]?.id}`}>
        To the content
      </a>
      <h1 class="brand">
        headscope<span class="hidden"> of {tidy(model.id)}</span>
      </h1>
      <p class="soft">
        <bdi>{tidy(model.id)}</bdi> · {model.family} · {model.n_layers} layers of {model.n_heads} heads
      </p>
      <nav aria-label="Parts of the page">
        {parts.map((one) => (
          <a href={`#${one.id}`}>{one.title}</a>
        ))}
      </nav>
    </header>
  );
}

/** The finding and all parts of a report. */
function Parts(props: { report: Report; view: View; onView: (change: Partial<View>) => void }): JSX.Element {
  const { report, view, onView } = props;
  const theme = useTheme();
  const { heads, ranked } = order(report);
  const head = heads.refs.has(view.head) ? view.head : first(report);
  const cursor = useMemo(() => {
    const [start, end] = report.example.second;
    const n = report.example.tokens.length;
    const on = view.on?.every((one) => one < n) ? view.on : null;
    return new Cursor([start + Math.floor((end - start) / 2), -1], on, (held) => onView({ on: held }));
  }, [report]);
  const open = (chosen: string) => {
    onView({ head: chosen });
    requestAnimationFrame(() => {
      const title = document.getElementById("card-title");
      title?.closest("article")?.scrollIntoView({ block: "start" });
      title?.focus({ preventScroll: true });
    });
  };
  const { model } = report;
  return (
    <>
      <section class="finding" aria-label="The finding">
        <Quoted text={tidy(report.finding.sentence)} />
        {report.finding.details.length > 0 && (
          <ul>
            {report.finding.details.map((one) => (
              <li>{tidy(one)}</li>
            ))}
          </ul>
        )}
        {(model.support !== "exact" || model.unread) && (
          <p class="warn">
            Support is {model.support}: {tidy(model.reason)}.
          </p>
        )}
      </section>
      {partsOf(report).map((part, i) => (
        <section id={part.id} class={part.class}>
          <InTurn turn={i - AT_ONCE}>
            {() => part.draw({ report, heads, ranked, theme, head, open, view, onView, cursor })}
          </InTurn>
        </section>
      ))}
    </>
  );
}

/** Drawn in a task of its own after so many others, so that a large report is seen, and answers, while it opens. */
function InTurn({ turn, children }: { turn: number; children: () => ComponentChildren }): JSX.Element | null {
  const printing = usePrinting();
  const [due, set] = useState(turn < 0);
  useEffect(() => {
    let timer = 0;
    const wait = (left: number) => {
      timer = window.setTimeout(() => (left > 0 ? wait(left - 1) : set(true)));
    };
    if (!due) wait(turn);
    return () => clearTimeout(timer);
  }, []);
  return due || printing ? <>{children()}</> : null;
}

function RoleTable(props: {
  ranked: HeadVerdict[];
  heads: Heads;
  theme: ReturnType<typeof useTheme>;
  selected: string;
  onOpen: (head: string) => void;
}): JSX.Element {
  const named = props.ranked.filter((one) => props.heads.meaning(one.verdict).has_role);
  const [all, setAll] = useState(false);
  if (!named.length) return <Candidates {...props} />;
  return (
    <>
      <Scroll label="Heads that matter">
        <table class="roles">
          <thead>
            <tr>
              <th scope="col">head</th>
              <th scope="col">verdict</th>
              <th scope="col">
                loss without it, <Word of="nats" />
              </th>
              <th scope="col">
                <Word of="stripe" />
              </th>
              <th scope="col">
                <Word of="copying" />
              </th>
            </tr>
          </thead>
          <tbody>
            {named.map((one, i) => (
              <tr class={`${name(one) === props.selected ? "on" : ""}${i < LISTED || all ? "" : " more"}`}>
                <th scope="row">
                  <button type="button" class="link" onClick={() => props.onOpen(name(one))}>
                    {name(one)}
                  </button>
                </th>
                <td>
                  <Verdict verdict={props.heads.meaning(one.verdict)} theme={props.theme} />
                </td>
                <td>{one.delta_loss_nats ? interval(one.delta_loss_nats, 2, signed) : ""}</td>
                <td>{one.attention["induction"] === undefined ? "" : fixed(one.attention["induction"], 2)}</td>
                <td>{one.copying ? signed(one.copying.direct.mean, 2) : ""}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
      {named.length > LISTED && (
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "Fewer" : `${named.length - LISTED} more`}
        </button>
      )}
    </>
  );
}

/** Where no head has a role: those that come nearest, against chance and their controls. */
function Candidates({ heads, onOpen }: { heads: Heads; onOpen: (head: string) => void }): JSX.Element {
  const best = heads.names
    .flatMap((head) => {
      const score = heads.scores.get(head)?.["induction"];
      return score ? [{ head, score }] : [];
    })
    .sort((a, b) => b.score.mean - a.score.mean)
    .slice(0, CANDIDATES);
  return (
    <>
      <p>None: no head has a role, and the loss depends on no single one. The best candidates for induction:</p>
      <Scroll label="Best candidates">
        <table class="roles">
          <thead>
            <tr>
              <th scope="col">head</th>
              <th scope="col">
                <Word of="stripe" /> and 95% <Word of="interval" />
              </th>
              <th scope="col">
                <Word of="chance" />
              </th>
              <th scope="col">
                <Word of="control" />
              </th>
              <th scope="col">
                loss without it, <Word of="nats" />
              </th>
            </tr>
          </thead>
          <tbody>
            {best.map(({ head, score }) => {
              const delta = heads.verdicts.get(head)?.delta_loss_nats;
              return (
                <tr>
                  <th scope="row">
                    <button type="button" class="link" onClick={() => onOpen(head)}>
                      {head}
                    </button>
                  </th>
                  <td>{interval(score)}</td>
                  <td>{fixed(score.chance, 3)}</td>
                  <td>{score.control === null ? "" : fixed(score.control, 3)}</td>
                  <td>{delta ? interval(delta, 3, signed) : ""}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </Scroll>
    </>
  );
}

/** On paper: each head of the model with its verdict and effect, since no card can be opened there. */
function EveryHead({ heads }: { heads: Heads }): JSX.Element | null {
  if (!usePrinting()) return null;
  return (
    <div class="every">
      <h3>Every head: verdict, and loss without it in nats</h3>
      <ul>
        {heads.names.map((one) => {
          const verdict = heads.verdicts.get(one);
          const delta = verdict?.delta_loss_nats;
          return (
            <li>
              {one} {verdict ? heads.meaning(verdict.verdict).label : "not judged"}
              {delta ? ` ${signed(delta.mean)}` : ""}
            </li>
          );
        })}
      </ul>
    </div>
  );
}

interface Order {
  heads: Heads;
  ranked: HeadVerdict[];
}
const orders = new WeakMap<Report, Order>();

/** A report's heads, by name and by effect, worked out once. */
function order(report: Report): Order {
  const known = orders.get(report);
  if (known) return known;
  const heads = new Heads(report);
  const made = { heads, ranked: byEffect(report, heads) };
  orders.set(report, made);
  return made;
}

/** The head to open first: the induction head with the largest effect, or the first of all. */
function first(report: Report): string {
  const { heads, ranked } = order(report);
  const best = ranked.find((one) => heads.meaning(one.verdict).is_induction) ?? ranked[0] ?? report.scan.heads[0];
  return best ? name(best) : "";
}

/** Heads whose patterns are side by side at first: the one that is opened, and the strongest sender to it. */
function pinsOf(report: Report): string[] {
  const head = first(report);
  const feeds = report.circuit?.edges.find((one) => name(one.receiver) === head);
  return feeds ? [head, name(feeds.sender)] : head ? [head] : [];
}

/** Heads with a role or an effect, then the rest; each the largest effect first, up or down. */
function byEffect(report: Report, heads: Heads): HeadVerdict[] {
  const rank = (one: HeadVerdict) => (heads.meaning(one.verdict).has_role ? 0 : 1);
  const effect = (one: HeadVerdict) => (one.delta_loss_nats ? Math.abs(one.delta_loss_nats.mean) : -1);
  return [...report.verify.heads].sort(
    (a, b) => rank(a) - rank(b) || effect(b) - effect(a) || a.layer - b.layer || a.head - b.head,
  );
}

async function start(): Promise<void> {
  const root = document.getElementById("page");
  const element = document.getElementById("document");
  if (!root || !element) return;
  try {
    await rest(); // the script is read in one task,
    const page = await opened(element); // the document in another,
    await rest(); // and the page drawn in a third, so that the window answers in between
    root.replaceChildren();
    render(page, root);
  } catch (error) {
    root.textContent = `This page cannot be shown: ${error instanceof Error ? error.message : String(error)}`;
    throw error;
  }
}

function rest(): Promise<void> {
  return new Promise((done) => setTimeout(done));
}

/** The page of the document that is held, or of the server that is named in its place. */
async function opened(element: HTMLElement): Promise<JSX.Element> {
  const source = element.dataset["source"];
  if (source === undefined) {
    const document = held(element);
    return document.schema === MOSAIC ? (
      <MosaicPage mosaic={document as Mosaic} />
    ) : (
      <Held report={checked(document)} />
    );
  }
  const server = new Server(source, token());
  return <Live server={server} about={await server.about()} />;
}

void start();
