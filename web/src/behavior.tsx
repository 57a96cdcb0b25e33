/* Behaviours: what was concluded and why, how strong it is, which heads carry it, and the controls. */

import type { JSX } from "preact";
import type { Theme } from "./colours";
import { type Behavior, type BehaviorScore, type Estimate, name } from "./data";
import { Points, type Row } from "./effects";
import { Figure, Scroll } from "./figure";
import type { Rows } from "./save";
import { fixed, interval, percent, shown, signed, tidy, words } from "./text";

const ITEMS = 8;
const LABEL = 24;
const MEANINGS: Record<string, string> = {
  localised: "a small set of heads carries it",
  diffuse: "single heads carry some of it, and no small set carries most",
  "copying (induction heads)": "the answer is copied from the prompt",
  "no localised heads found": "it is there, and no heads were found that carry it",
};

interface Drawing {
  result: Behavior;
  id: string;
  theme: Theme;
  onOpen: (head: string) => void;
}

export function Behaviors(props: { results: Behavior[]; theme: Theme; onOpen: (head: string) => void }): JSX.Element {
  return (
    <>
      {props.results.map((result, i) => (
        <One result={result} id={`behavior-${i + 1}`} theme={props.theme} onOpen={props.onOpen} />
      ))}
    </>
  );
}

function One(drawing: Drawing): JSX.Element {
  const { result } = drawing;
  return (
    <article class="behavior" id={drawing.id}>
      <h2>
        Behaviour: <bdi>{tidy(words(result.behavior))}</bdi>
      </h2>
      <p class="conclusion">
        <bdi>{tidy(result.conclusion)}</bdi>
        {MEANINGS[result.conclusion] && `: ${MEANINGS[result.conclusion]}`}
      </p>
      <Strength {...drawing} />
      {(result.reasons ?? []).length > 0 && (
        <section>
          <h3>Why this is concluded</h3>
          <ul class="reasons">
            {result.reasons?.map((one) => (
              <li>{tidy(one)}</li>
            ))}
          </ul>
        </section>
      )}
      <Carriers {...drawing} />
      <Kept result={result} />
      <Copies result={result} />
      <Items {...drawing} />
    </article>
  );
}

/** The score of all pairs and of each kind of pair, before any head is named. */
function Strength({ result, id, theme }: Drawing): JSX.Element | null {
  const groups: [string, BehaviorScore][] = [];
  const add = (label: string, score: BehaviorScore | null | undefined) => score && groups.push([label, score]);
  add("all pairs", result.score);
  add("answer in the prompt", result.verbatim);
  add("answer not in it", result.paraphrase);
  for (const [form, score] of Object.entries(result.forms ?? {})) add(`form: ${words(form)}`, score);
  for (const other of result.controls?.others ?? []) add(words(other.name), other.score);
  const rows = groups.flatMap(([label, score], i): Row[] => {
    const value = score.claim_minus_twin ?? score.claim_minus_neutral;
    return value ? [{ label: shown({ text: label }, false, LABEL), main: i === 0, value }] : [];
  });
  if (!groups.length) return null;
  return (
    <Figure
      id={`${id}-score`}
      title="How far the claim moves the answer"
      theme={theme}
      rows={() => [
        ["pairs", "n_pairs", "n_known", ...PARTS.flatMap((one) => [one, `${one}_low`, `${one}_high`])],
        ...groups.map(([label, score]) => [
          label,
          score.n_pairs,
          score.n_known,
          ...PARTS.flatMap((one) => spread(score[one])),
        ]),
      ]}
      caption="Log probability of the claimed answer minus that of the true one, in nats: with the false claim minus with the true one, or minus with no claim where there is no true one. Mean and 95% interval over pairs; no head has been chosen or touched."
    >
      <div class="columns">
        <Points rows={rows} least={[-0.1, 0.1]} theme={theme} />
        <Scroll label="The scores">
          <table>
            <thead>
              <tr>
                <th scope="col">pairs</th>
                <th scope="col">how many</th>
                <th scope="col">
                  {result.score?.claim_minus_neutral ? "right with no claim" : "right with the true claim"}
                </th>
                <th scope="col">turned by it</th>
              </tr>
            </thead>
            <tbody>
              {groups.map(([label, score]) => (
                <tr>
                  <th scope="row">
                    <bdi>{shown({ text: label }, false, LABEL)}</bdi>
                  </th>
                  <td>{score.n_pairs}</td>
                  <td>{share(score.neutral_accuracy)}</td>
                  <td>{share(score.flips)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      </div>
    </Figure>
  );
}

const PARTS = ["claimed_minus_true", "claim_minus_neutral", "claim_minus_twin", "flips", "neutral_accuracy"] as const;

/** The set, single heads, and other heads taken out in their place. */
function Carriers({ result, id, theme, onOpen }: Drawing): JSX.Element | null {
  const { heads = [], head_set: set, controls } = result;
  const draws = controls?.draws ?? [];
  if (!set && !heads.length) return null;
  const rows: Row[] = [];
  const add = (label: string, value: Estimate | undefined, main = false) => value && rows.push({ label, main, value });
  add(set ? `the set, ${set.heads.length} head${set.heads.length === 1 ? "" : "s"}` : "", set?.removed, true);
  for (const one of heads) add(name(one), one.removed, one.named === true);
  for (const one of draws) add(`control: ${one.kind}`, one.removed);
  const table: Rows = [
    [
      "what",
      "heads",
      "removed_nats",
      "low",
      "high",
      "q_value",
      "patched_nats",
      "patched_low",
      "patched_high",
      "patched_q_value",
      "share",
    ],
    ...(set
      ? [
          [
            "set",
            set.heads.map(name).join(" "),
            ...spread(set.removed),
            set.q_value,
            ...spread(set.patched),
            set.patched_q_value,
            set.share,
          ],
        ]
      : []),
    ...heads.map((one) => [
      "head",
      name(one),
      ...spread(one.removed),
      one.q_value,
      ...spread(one.patched),
      one.patched_q_value,
      one.share,
    ]),
    ...draws.map((one) => [`control: ${one.kind}`, one.heads.map(name).join(" "), ...spread(one.removed)]),
  ];
  return (
    <>
      <Figure
        id={`${id}-heads`}
        title="How much of the effect is lost without them"
        theme={theme}
        rows={() => table}
        caption={
          <>
            Nats of the effect that mean ablation removes, mean and 95% interval over{" "}
            {controls?.held_out_pairs ?? "the"} held-out pairs
            {controls?.search_pairs !== undefined && `; ${controls.search_pairs} others chose the heads`}. Controls:
            sets of the same size, a dot each: any heads, of the same layers, or with output weights of the same size.
            {set && (
              <>
                {" "}
                The set: {set.heads.map(name).join(", ")}
                {set.share !== null &&
                  set.share !== undefined &&
                  `, without which ${percent(set.share)} of the effect is gone`}
                .
              </>
            )}
          </>
        }
      >
        <Points rows={rows} least={[-0.05, 0.05]} theme={theme} />
      </Figure>
      {heads.length > 0 && (
        <Scroll label="The heads">
          <table class="roles">
            <thead>
              <tr>
                {[
                  "head",
                  "removed by ablation",
                  "q",
                  "removed by patching",
                  "q",
                  "share",
                  "attention on the claim",
                  "direct push",
                  "induction score",
                  "carries it",
                ].map((one) => (
                  <th scope="col">{one}</th>
                ))}
              </tr>
            </thead>
            <tbody>
              {heads.map((one) => (
                <tr class={one.named ? "on" : ""}>
                  <th scope="row">
                    <button type="button" class="link" onClick={() => onOpen(name(one))}>
                      {name(one)}
                    </button>
                  </th>
                  <td>{one.removed && interval(one.removed, 3, signed)}</td>
                  <td>{one.q_value !== undefined && small(one.q_value)}</td>
                  <td>{one.patched && interval(one.patched, 3, signed)}</td>
                  <td>{one.patched_q_value !== undefined && small(one.patched_q_value)}</td>
                  <td>{typeof one.share === "number" && percent(one.share)}</td>
                  <td>{one.attention && fixed(one.attention.mean, 2)}</td>
                  <td>{one.direct && signed(one.direct.mean, 2)}</td>
                  <td>{typeof one.induction === "number" && fixed(one.induction, 2)}</td>
                  <td>{one.named ? "yes, in the set" : one.carries ? "some, alone" : "no"}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      )}
    </>
  );
}

/** Whether the model still knows what it knew. */
function Kept({ result }: { result: Behavior }): JSX.Element | null {
  const set = result.head_set;
  if (!set?.accuracy_before || !set.accuracy_after) return null;
  return (
    <section>
      <h3>What the model keeps without the set</h3>
      <p>
        Right where nothing is claimed: {share(set.accuracy_after)}, with the set {share(set.accuracy_before)}.
        {set.flips_before && set.flips_after && (
          <>
            {" "}
            Known answers that the claim turns: {share(set.flips_after)}, with the set {share(set.flips_before)}.
          </>
        )}
        {set.text_loss_nats && <> Loss on the words of the prompts: {interval(set.text_loss_nats, 3, signed)} nats.</>}
      </p>
    </section>
  );
}

/** Whether they are merely copying. */
function Copies({ result }: { result: Behavior }): JSX.Element | null {
  const found = result.controls?.induction;
  if (!found) return null;
  const named = result.heads?.some((one) => one.named);
  return (
    <section>
      <h3>Induction heads among them</h3>
      <p>
        {found.heads.length
          ? `The model's induction heads: ${found.heads.map(name).join(", ")}. `
          : "The model has no induction head. "}
        {found.common.length
          ? `Named too: ${found.common.map(name).join(", ")}${found.p_value === undefined ? "" : `; so many by chance with p ${small(found.p_value)}`}.`
          : named && found.heads.length > 0 && "None of them is among the named heads."}
        {typeof found.share === "number" &&
          ` Patching them removes ${percent(found.share)} of the effect where the answer can be copied` +
            (typeof found.others_share === "number"
              ? `, patching as many others ${percent(found.others_share)}.`
              : ".")}
      </p>
    </section>
  );
}

function Items({ result, id, theme }: Drawing): JSX.Element | null {
  const items = result.items ?? [];
  if (!items.length) return null;
  const kinds = [...new Set(items.flatMap((one) => Object.keys(one.differences ?? {})))];
  return (
    <Figure
      id={`${id}-items`}
      title={items.length > ITEMS ? `${ITEMS} of ${items.length} pairs` : "The pairs"}
      table
      theme={theme}
      rows={() => [
        ["id", "topic", "form", "verbatim", "prompt", "claimed", "true", ...kinds],
        ...items.map((one) => [
          one.id,
          one.topic,
          one.form,
          String(one.verbatim),
          one.prompt,
          one.answer,
          one.other,
          ...kinds.map((kind) => one.differences?.[kind]),
        ]),
      ]}
      caption="The numbers are the log probability of the claimed answer minus that of the true one, in nats, by kind of prompt; above 0 the model prefers what is claimed."
    >
      <Scroll label="The pairs">
        <table class="items">
          <thead>
            <tr>
              <th scope="col">prompt with the false claim</th>
              <th scope="col">claimed</th>
              <th scope="col">true</th>
              {kinds.map((kind) => (
                <th scope="col">
                  <bdi>{tidy(words(kind))}</bdi>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {items.slice(0, ITEMS).map((one) => (
              <tr>
                <td>
                  <bdi>{shown({ text: one.prompt }, false, 600)}</bdi>
                </td>
                <td>
                  <bdi class="token">{shown({ text: one.answer }, false, 80)}</bdi>
                </td>
                <td>
                  <bdi class="token">{shown({ text: one.other }, false, 80)}</bdi>
                </td>
                {kinds.map((kind) => (
                  <td>{one.differences?.[kind] === undefined ? "" : signed(one.differences[kind], 2)}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
    </Figure>
  );
}

function spread(value: Estimate | null | undefined): (number | undefined)[] {
  return [value?.mean, value?.ci95?.[0], value?.ci95?.[1]];
}

function share(value: Estimate | null | undefined): string {
  return value ? interval(value, 0, percent) : "";
}

function small(value: number): string {
  return value < 0.001 ? "<0.001" : fixed(value, 3);
}
