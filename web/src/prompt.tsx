/* The user's own prompt: its tokens, where heads look in it, what they write, and what changes without some of them. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Theme } from "./colours";
import { decoded, name, type Token } from "./data";
import { Scroll } from "./figure";
import type { About, Answers, Asked, Look, Reading, Server, Writes } from "./live";
import { Keys, Losses } from "./loss";
import { LossChange, Next } from "./next";
import { Matrix, tint } from "./pattern";
import type { State } from "./state";
import { chance, shown, signed, tidy } from "./text";

const TYPING_MS = 300;
const HOVER_MS = 120;
const LISTED = 8;

interface Given<K extends keyof Answers> {
  asked: Answers[K][0];
  value: Answers[K][1];
}

/** What the server says to the last question; earlier ones are called back. */
function useAnswer<K extends keyof Answers>(
  server: Server,
  what: K,
  asked: Answers[K][0] | null,
  wait = 0,
): { given: Given<K> | null; trouble: string; busy: boolean } {
  const [found, set] = useState<{ key: string; given: Given<K> | null; trouble: string }>({ key: "null", given: null, trouble: "" });
  const key = JSON.stringify(asked);
  useEffect(() => {
    if (asked === null) return set({ key, given: null, trouble: "" });
    const control = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const value = await server.answer(what, asked, control.signal);
        if (!control.signal.aborted) set({ key, given: { asked, value }, trouble: "" });
      } catch (error) {
        if (!control.signal.aborted) set({ key, given: null, trouble: (error as Error).message });
      }
    }, wait);
    return () => {
      clearTimeout(timer);
      control.abort();
    };
  }, [key]);
  return { ...found, busy: found.key !== key };
}

export function Prompt(props: {
  server: Server;
  about: About;
  state: State;
  team: string[];
  theme: Theme;
  onState: (change: Partial<State>) => void;
}): JSX.Element {
  const { server, about, state, theme, onState } = props;
  const { text, head, off, method } = state;
  const [hovered, setHovered] = useState<number | null>(null);
  const [cell, setCell] = useState(-1);
  const read = useAnswer(server, "read", { text, off, method }, TYPING_MS);
  const reading = read.given?.value ?? null;
  // Everything below is about the text that was read, not the one that is being typed.
  const same: Asked | null = read.given && { text: read.given.asked.text, off, method };
  const n = reading?.tokens.length ?? 0;
  const picked = state.picked.filter((one) => one < n);
  const query = Math.min(n - 1, hovered ?? (picked.length ? Math.max(...picked) : n - 1));
  const [low = -1, high = -1] = picked.length === 2 ? [Math.min(...picked), Math.max(...picked)] : [];
  const pattern = useAnswer(server, "pattern", same && { ...same, head });
  const looks = useAnswer(server, "looks", same && high >= 0 ? { ...same, query: high, key: low } : null);
  const writes = useAnswer(server, "writes", same && { ...same, position: query }, HOVER_MS);
  // An answer about the text before is none.
  const ofThis = <K extends keyof Answers>(given: Given<K> | null) => (given?.asked.text === same?.text ? given : null);
  const [current, looked, wrote] = [ofThis(pattern.given), ofThis(looks.given), ofThis(writes.given)];
  const bytes = useMemo(() => (current ? decoded(current.value.bytes) : null), [current]);
  const without = reading?.off.length ? `${reading.off.map(name).join(", ")} (${reading.method})` : null;
  const busy = read.busy || pattern.busy || looks.busy || writes.busy;
  const toggle = (heads: string[], on: boolean) =>
    onState({ off: on ? off.filter((one) => !heads.includes(one)) : [...new Set([...off, ...heads])] });
  const pick = (at: number) => onState({ picked: picked.length === 1 ? [...picked, at] : [at] });
  return (
    <section id="prompt" class="prompt-part" aria-labelledby="prompt-title" aria-busy={busy}>
      <div class="figure-head">
        <h2 id="prompt-title">Your prompt</h2>
        <Share />
      </div>
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
            ? `${n} of at most ${about.max_tokens} tokens${read.busy ? ", reading ..." : ""}. Rest on a token to see where ${head} looks from it; click two to see which heads look from the later to the earlier.`
            : "Reading ..."}
        </p>
      )}
      {reading && (
        <>
          <Tokens
            tokens={reading.tokens}
            query={query}
            picked={picked}
            bytes={bytes}
            theme={theme}
            onHover={(at) => {
              setHovered(at);
              setCell(-1);
            }}
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
                  stripe={[]}
                  theme={theme}
                  at={[query, cell]}
                  onAt={([q, k]) => {
                    setHovered(q);
                    setCell(k);
                  }}
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
  picked: number[];
  bytes: Uint8Array | null;
  theme: Theme;
  onHover: (at: number | null) => void;
  onPick: (at: number) => void;
}): JSX.Element {
  const { tokens, query, picked, bytes, theme } = props;
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
          class={`chip${i === query ? " query" : ""}${picked.includes(i) ? " picked" : ""}`}
          style={bytes ? tint(bytes, query, i, theme) : {}}
          title={`token ${i}, id ${token.id}`}
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
  team: string[];
  onState: (change: Partial<State>) => void;
  toggle: (heads: string[], on: boolean) => void;
}): JSX.Element {
  const { state, team, toggle, onState } = props;
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
      {team.length > 1 && team.some((one) => !off.includes(one)) && (
        <button type="button" onClick={() => toggle(team, false)}>
          Switch the {team.length} induction heads off
        </button>
      )}
      <fieldset class="modes">
        <legend>In its place</legend>
        {(["mean", "zero"] as const).map((one) => (
          <label class={one === state.method ? "on" : ""} title={one === "mean" ? "what it writes at this position on average, over random tokens" : "nothing"}>
            <input type="radio" name="method" value={one} checked={one === state.method} onChange={() => onState({ method: one })} />
            {one}
          </label>
        ))}
      </fieldset>
      {off.length > 0 && (
        <span class="off" role="group" aria-label="Switched off">
          <span class="soft">Off</span>
          {off.map((one) => (
            <button type="button" aria-label={`Switch ${tidy(one)} on again`} onClick={() => toggle([one], true)}>
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

function HeadLink({ head, state, onState }: { head: string; state: State; onState: (change: Partial<State>) => void }): JSX.Element {
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
