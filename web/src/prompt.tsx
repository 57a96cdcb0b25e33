/* The user's own prompt: its tokens, where heads look in it, what they write, and what changes without some of them. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { AgainstPart } from "./against";
import { useAnswer } from "./answer";
import type { Theme } from "./colours";
import { Cursor, type Place, resolved, usePlace, type Way } from "./cursor";
import { decoded, name, place, type Token } from "./data";
import { Scroll } from "./figure";
import { WaySwitch } from "./glance";
import type { About, Asked, Look, Patterns, Reading, Server, Writes } from "./live";
import { Keys, Losses } from "./loss";
import { LossChange, Next } from "./next";
import { Matrix, tint } from "./pattern";
import type { State } from "./state";
import { chance, shown, signed, tidy } from "./text";
import { YourPatterns } from "./yours";

const TYPING_MS = 300;
const HOVER_MS = 120;
const LISTED = 8;

export function Prompt(props: {
  server: Server;
  about: About;
  state: State;
  stripeHeads: string[];
  theme: Theme;
  /** Whether the reader chose the head. */
  chosen: boolean;
  onState: (change: Partial<State>) => void;
  /** The head with the largest stripe on a text. */
  onFound: (head: string) => void;
  onExample: (text: string) => void;
}): JSX.Element {
  const { server, about, state, theme, chosen, onState } = props;
  const { text, head, off, method, way } = state;
  const read = useAnswer(server, "read", { text, off, method }, TYPING_MS);
  const reading = read.given?.value ?? null;
  // Everything below is about the text that was read, not the one that is being typed.
  const same: Asked | null = read.given && { text: read.given.asked.text, off, method };
  const n = reading?.tokens.length ?? 0;
  const picked = state.picked.filter((one) => one < n);
  const [low = -1, high = -1] = picked.length === 2 ? [Math.min(...picked), Math.max(...picked)] : [];
  const hold = useRef<(held: Place | null) => void>(() => {});
  hold.current = (held) => onState({ picked: held ? held.filter((one) => one >= 0).reverse() : [] });
  const cursor = useMemo(() => new Cursor([n - 1, -1], null, (held) => hold.current(held)), [n]);
  const [one = -1] = picked;
  cursor.held = high >= 0 ? [high, low] : one >= 0 ? (way === "from" ? [one, -1] : [-1, one]) : null;
  const at = usePlace(cursor);
  const pattern = useAnswer(server, "pattern", same && { ...same, head });
  const all = useAnswer(server, "patterns", same);
  const looks = useAnswer(server, "looks", same && high >= 0 ? { ...same, query: high, key: low } : null);
  const query = Math.min(n - 1, Math.max(0, at[0] >= 0 ? at[0] : at[1]));
  const writes = useAnswer(server, "writes", same && { ...same, position: query }, HOVER_MS);
  // An answer about the text before is none.
  const ofThis = <G extends { asked: Asked }>(given: G | null): G | null =>
    given?.asked.text === same?.text ? given : null;
  const [current, looked, wrote, seen] = [
    ofThis(pattern.given),
    ofThis(looks.given),
    ofThis(writes.given),
    ofThis(all.given),
  ];
  const bytes = useMemo(() => (current ? decoded(current.value.bytes) : null), [current]);
  const resolvedAt = resolved((q, k) => bytes?.[place(q, k)] ?? 0, Math.max(1, n), at, way);
  const without = reading?.off.length ? `${reading.off.map(name).join(", ")} (${reading.method})` : null;
  const busy = read.busy || pattern.busy || all.busy || looks.busy || writes.busy;
  const toggle = (heads: string[], on: boolean) =>
    onState({ off: on ? off.filter((one) => !heads.includes(one)) : [...new Set([...off, ...heads])] });
  const pick = (at: number) =>
    onState({ picked: picked.length === 1 ? (picked[0] === at ? [] : [...picked, at]) : [at] });
  // Until the reader chooses a head, it is the one with the largest stripe on this very text.
  const best = seen && largest(seen.value);
  useEffect(() => {
    if (best && !chosen) props.onFound(best);
  }, [seen?.asked.text]);
  const targets = (seen?.value.targets ?? []) as Place[];
  return (
    <section id="prompt" class="prompt-part" aria-labelledby="prompt-title" aria-busy={busy}>
      <div class="figure-head">
        <h2 id="prompt-title">Your prompt</h2>
        <Share />
      </div>
      <p class="examples">
        <span class="soft">Try</span>
        {about.examples.map((one) => (
          <button type="button" aria-pressed={one.text === text} onClick={() => props.onExample(one.text)}>
            {one.title}
          </button>
        ))}
      </p>
      <textarea
        aria-label="Your prompt"
        rows={2}
        spellcheck={false}
        maxLength={about.max_characters}
        value={text}
        onInput={(event) => onState({ text: event.currentTarget.value, picked: [] })}
      />
      {read.trouble ? (
        <p class="warn" role="alert">
          {tidy(read.trouble)}
        </p>
      ) : (
        <p class="soft hint" role="status">
          {reading
            ? `${n} of at most ${about.max_tokens} tokens${read.busy ? ", reading ..." : ""}. Rest on a token to see where ${head} looks from it; a click holds it, and a second one asks which heads look from the later to the earlier.`
            : "Reading ..."}
        </p>
      )}
      {reading && (
        <>
          <Tokens
            tokens={reading.tokens}
            query={way === "from" ? resolvedAt[0] : resolvedAt[1]}
            way={way}
            picked={picked}
            bytes={bytes}
            theme={theme}
            onHover={(at) => cursor.hover(at === null ? [n - 1, -1] : way === "from" ? [at, -1] : [-1, at])}
            onPick={pick}
          />
          <Switches {...props} toggle={toggle} />
          <LossChange reading={reading} without={without} />
          <div class="columns">
            <div>
              <Next reading={reading} at={query} without={without} theme={theme} />
              {bytes && current ? (
                <Matrix
                  id="yours"
                  title={`What ${current.asked.head} attends to in your prompt`}
                  head={current.asked.head}
                  tokens={reading.tokens}
                  bytes={bytes}
                  targets={targets}
                  theme={theme}
                  cursor={cursor}
                  way={way}
                />
              ) : (
                <p class="soft">{tidy(pattern.trouble) || "Looking ..."}</p>
              )}
            </div>
            <div>
              {looked && (
                <Looks
                  looks={looked.value}
                  reading={reading}
                  from={looked.asked.query}
                  to={looked.asked.key}
                  state={state}
                  onState={onState}
                />
              )}
              {wrote && (
                <Wrote
                  writes={wrote.value}
                  at={wrote.asked.position}
                  tokens={reading.tokens}
                  state={state}
                  onState={onState}
                />
              )}
              {(looks.trouble || writes.trouble) && <p class="warn">{tidy(looks.trouble || writes.trouble)}</p>}
            </div>
          </div>
          {seen && same && (
            <YourPatterns
              server={server}
              asked={same}
              tokens={reading.tokens}
              patterns={seen.value}
              pins={state.pins ?? next(seen.value, head)}
              way={way}
              theme={theme}
              cursor={cursor}
              onPins={(pins) => onState({ pins })}
              onHead={(head) => onState({ head })}
            />
          )}
          {about.against && same && (
            <AgainstPart
              server={server}
              model={about.model}
              second={about.against}
              asked={same}
              head={head}
              tokens={reading.tokens}
              bytes={bytes}
              targets={targets}
              at={query}
              way={way}
              theme={theme}
              cursor={cursor}
              onHead={(head) => onState({ head })}
            />
          )}
          {all.trouble && <p class="warn">{tidy(all.trouble)}</p>}
          <Losses
            id="your-loss"
            title="Loss of each token of your prompt"
            tokens={reading.tokens}
            clean={reading.clean}
            ablated={reading.ablated}
            without="those_switched_off"
            bands={[]}
            theme={theme}
            caption={
              <>
                <Keys theme={theme} without={without} />. Nats.
              </>
            }
          />
        </>
      )}
    </section>
  );
}

/** The head with the largest stripe; none where no token comes twice. */
function largest({ heads }: Patterns): string | null {
  const first = heads.reduce<Patterns["heads"][number] | null>(
    (best, one) => (one.stripe !== null && one.stripe > (best?.stripe ?? -1) ? one : best),
    null,
  );
  return first && name(first);
}

/** The two heads with the largest stripes, but for the one that is looked through. */
function next({ heads }: Patterns, head: string): string[] {
  const others = heads.filter((one) => one.stripe !== null && name(one) !== head);
  return others
    .sort((a, b) => (b.stripe ?? 0) - (a.stripe ?? 0))
    .slice(0, 2)
    .map(name);
}

/** The address bar holds the state, and no secret. */
function Share(): JSX.Element {
  const [done, set] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(location.href);
    set(true);
    setTimeout(() => set(false), 2000);
  };
  return (
    <span class="files">
      <button type="button" onClick={copy} title="It opens this state in this browser while the server runs.">
        {done ? "Copied" : "Copy link"}
      </button>
    </span>
  );
}

function Tokens(props: {
  tokens: Token[];
  query: number;
  way: Way;
  picked: number[];
  bytes: Uint8Array | null;
  theme: Theme;
  onHover: (at: number | null) => void;
  onPick: (at: number) => void;
}): JSX.Element {
  const { tokens, query, picked, bytes, theme, way } = props;
  const block = useRef<HTMLDivElement>(null);
  const [focused, setFocused] = useState(-1);
  const move = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    const to = step ? focused + step : { Home: 0, End: tokens.length - 1 }[event.key];
    const chip = to === undefined ? null : block.current?.querySelectorAll("button")[to];
    if (!chip) return;
    event.preventDefault();
    chip.focus();
  };
  const reached = Math.min(focused < 0 ? query : focused, tokens.length - 1);
  return (
    <div
      ref={block}
      class="tokens"
      role="group"
      aria-label="Tokens; arrow keys move, Enter picks"
      onKeyDown={move}
      onPointerLeave={() => props.onHover(null)}
    >
      {tokens.map((token, i) => (
        <button
          type="button"
          class={`chip${i === query ? " query" : ""}${picked.includes(i) ? " picked" : ""}${token.part ? " part" : ""}`}
          style={bytes ? tint(bytes, query, i, theme, way) : {}}
          title={`token ${i}, id ${token.id}${token.part ? `, byte ${token.part[0]} of ${token.part[1]} of one character` : ""}`}
          tabIndex={i === reached ? 0 : -1}
          aria-pressed={picked.includes(i)}
          onPointerEnter={() => props.onHover(i)}
          onFocus={() => {
            setFocused(i);
            props.onHover(i);
          }}
          onBlur={() => props.onHover(null)}
          onClick={() => props.onPick(i)}
        >
          <bdi>{shown(token)}</bdi>
        </button>
      ))}
    </div>
  );
}

function Switches(props: {
  about: About;
  state: State;
  stripeHeads: string[];
  onState: (change: Partial<State>) => void;
  toggle: (heads: string[], on: boolean) => void;
}): JSX.Element {
  const { state, stripeHeads, toggle, onState } = props;
  const { head, off } = state;
  const gone = off.includes(head);
  return (
    <div class="switches">
      <label>
        <span>Head</span>
        <select aria-label="Head" value={head} onChange={(event) => onState({ head: event.currentTarget.value })}>
          {props.about.heads.map((one) => (
            <option value={name(one)}>{name(one)}</option>
          ))}
        </select>
      </label>
      <button type="button" aria-pressed={gone} onClick={() => toggle([head], gone)}>
        Switch {head} {gone ? "on" : "off"}
      </button>
      {stripeHeads.length > 1 && stripeHeads.some((one) => !off.includes(one)) && (
        <button type="button" onClick={() => toggle(stripeHeads, false)}>
          Switch the {stripeHeads.length} induction heads off
        </button>
      )}
      <fieldset class="modes">
        <legend>In its place</legend>
        {(["mean", "zero"] as const).map((one) => (
          <label
            class={one === state.method ? "on" : ""}
            title={one === "mean" ? "what it writes at this position on average, over random tokens" : "nothing"}
          >
            <input
              type="radio"
              name="method"
              value={one}
              checked={one === state.method}
              onChange={() => onState({ method: one })}
            />
            {one}
          </label>
        ))}
      </fieldset>
      <WaySwitch way={state.way} onWay={(way) => onState({ way })} name="your-way" />
      {off.length > 0 && (
        <span class="off" role="group" aria-label="Switched off">
          <span class="soft">Off</span>
          {off.map((one) => (
            <button type="button" aria-label={`${tidy(one)} ×: switch it on again`} onClick={() => toggle([one], true)}>
              {tidy(one)} ×
            </button>
          ))}
          {off.length > 1 && (
            <button type="button" onClick={() => toggle(off, true)}>
              All on
            </button>
          )}
        </span>
      )}
    </div>
  );
}

function HeadLink({
  head,
  state,
  onState,
}: {
  head: string;
  state: State;
  onState: (change: Partial<State>) => void;
}): JSX.Element {
  return (
    <button type="button" class="link" aria-pressed={head === state.head} onClick={() => onState({ head })}>
      {head}
      {state.off.includes(head) ? " (off)" : ""}
    </button>
  );
}

function Looks(props: {
  looks: Look[];
  reading: Reading;
  from: number;
  to: number;
  state: State;
  onState: (change: Partial<State>) => void;
}): JSX.Element {
  const [all, setAll] = useState(false);
  const token = (at: number) => (
    <>
      <bdi class="token">{shown(props.reading.tokens[at] as Token, true)}</bdi> at {at}
    </>
  );
  return (
    <section id="looks">
      <h3>
        Who looks from {token(props.from)} to {token(props.to)}?
      </h3>
      <Scroll label="Who looks there">
        <table>
          <thead>
            <tr>
              <th scope="col">head</th>
              <th scope="col">attention</th>
              <th scope="col">chance</th>
            </tr>
          </thead>
          <tbody>
            {props.looks.slice(0, all ? undefined : LISTED).map((one) => (
              <tr class={name(one) === props.state.head ? "on" : ""}>
                <th scope="row">
                  <HeadLink head={name(one)} {...props} />
                </th>
                <td>
                  <span class="bar" aria-hidden="true">
                    <span style={{ width: `${100 * one.attention}%` }} />
                  </span>
                  {chance(one.attention)}
                </td>
                <td class="soft">{chance(one.chance)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
      {props.looks.length > LISTED && (
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "Fewer" : `${props.looks.length - LISTED} more`}
        </button>
      )}
    </section>
  );
}

function Wrote(props: {
  writes: Writes;
  at: number;
  tokens: Token[];
  state: State;
  onState: (change: Partial<State>) => void;
}): JSX.Element {
  const { writes, at, tokens, state } = props;
  const [all, setAll] = useState(false);
  const comes = tokens[at + 1];
  const rows = all ? writes.heads : writes.heads.filter((one, i) => i < LISTED || name(one) === state.head);
  return (
    <section id="writes">
      <h3>
        What each head writes at <bdi class="token">{shown(tokens[at] as Token, true)}</bdi>
      </h3>
      {writes.reason !== null ? (
        <p class="soft">Not known: {tidy(writes.reason)}</p>
      ) : (
        <Scroll label="What heads write">
          <table class="token-table">
            <thead>
              <tr>
                <th scope="col">head</th>
                <th scope="col">raises most, in logits</th>
              </tr>
            </thead>
            <tbody>
              {rows.map((one) => (
                <tr class={name(one) === state.head ? "on" : ""}>
                  <th scope="row">
                    <HeadLink head={name(one)} {...props} />
                  </th>
                  <td>
                    {one.raises.map((raised) => (
                      <span class="raised">
                        <bdi class={`token${raised.id === comes?.id ? " own" : ""}`}>{shown(raised, true, 14)}</bdi>
                        <span class="soft">{signed(raised.logit, 1)}</span>{" "}
                      </span>
                    ))}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      )}
      {writes.heads.length > rows.length || all ? (
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "Fewer" : `${writes.heads.length - rows.length} more`}
        </button>
      ) : null}
      {writes.note !== null && <p class="soft">These numbers are {writes.note}.</p>}
    </section>
  );
}
