/* The same prompt through a second model: its loss and predictions, one head in both, and the heads that look elsewhere. */

import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import { useAnswer } from "./answer";
import type { Theme } from "./colours";
import type { Cursor, Place, Way } from "./cursor";
import { decoded, type Model, name, type Token } from "./data";
import { Scroll } from "./figure";
import type { Asked, Beside, Server } from "./live";
import { Next } from "./next";
import { Matrix } from "./pattern";
import { fixed, signed, tidy } from "./text";

const LISTED = 8;

interface Both {
  server: Server;
  model: Model;
  second: Model;
  asked: Asked;
  head: string;
  /** The first model's tokens and its pattern of the head. */
  tokens: Token[];
  bytes: Uint8Array | null;
  targets: Place[];
  at: number;
  way: Way;
  theme: Theme;
  cursor: Cursor;
  onHead: (head: string) => void;
}

export function AgainstPart(props: Both): JSX.Element {
  const { server, second, asked, head, bytes, theme } = props;
  const beside = useAnswer(server, "against", asked);
  const pattern = useAnswer(server, "pattern", { ...asked, head, of: "against" });
  const theirs = useMemo(() => (pattern.given ? decoded(pattern.given.value.bytes) : null), [pattern.given]);
  const found = beside.given?.asked.text === asked.text ? beside.given.value : null;
  const trouble = beside.trouble || pattern.trouble;
  const places = (props.tokens.length * (props.tokens.length + 1)) / 2;
  const drawn: [string, string, Uint8Array | null][] = [
    ["first", tidy(props.model.id), bytes],
    ["second", tidy(second.id), theirs],
  ];
  return (
    <section id="against" aria-busy={beside.busy || pattern.busy}>
      <h3>{tidy(second.id)}, on the same prompt</h3>
      {trouble && <p class="warn">{tidy(trouble)}</p>}
      {found && <Change found={found} />}
      <div class="beside">
        {drawn.map(([id, title, part]) => (
          <div key={id}>
            <p class="soft">
              {head} of {title}
            </p>
            {part && part.length === places ? (
              <Matrix
                id={`against-${id}`}
                title={`${head} of ${title} on your prompt`}
                head={head}
                tokens={props.tokens}
                bytes={part}
                targets={props.targets}
                theme={theme}
                cursor={props.cursor}
                way={props.way}
                small
              />
            ) : (
              <p class="soft">Looking ...</p>
            )}
          </div>
        ))}
      </div>
      {found && (
        <Next
          id="against-next"
          title={`What comes next in ${tidy(second.id)}, by probability`}
          reading={found.reading}
          at={props.at}
          without={null}
          theme={theme}
        />
      )}
      {found && <Apart found={found} head={head} onHead={props.onHead} />}
    </section>
  );
}

function Change({ found }: { found: Beside }): JSX.Element {
  const { reading, difference } = found;
  if (reading.mean_clean === null || difference === null) return <p>One token: nothing is predictable.</p>;
  const loss = reading.mean_clean + (reading.delta_loss_nats ?? 0);
  return (
    <p>
      Its loss of the text: {fixed(loss, 2)} nats a token, <strong>{signed(difference, 2)}</strong> beside the first
      model.
    </p>
  );
}

function Apart({ found, head, onHead }: { found: Beside; head: string; onHead: (head: string) => void }): JSX.Element {
  return (
    <Scroll label="Heads by how differently they look">
      <table>
        <thead>
          <tr>
            <th scope="col">head</th>
            <th
              scope="col"
              title="mean over queries of half the sum of |difference| over keys: 0 alike, 1 nowhere alike"
            >
              looks elsewhere
            </th>
          </tr>
        </thead>
        <tbody>
          {found.heads.slice(0, LISTED).map((one) => (
            <tr class={name(one) === head ? "on" : ""}>
              <th scope="row">
                <button type="button" class="link" aria-pressed={name(one) === head} onClick={() => onHead(name(one))}>
                  {name(one)}
                </button>
              </th>
              <td>{fixed(one.distance, 3)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Scroll>
  );
}
