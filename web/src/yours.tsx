/* All heads on the user's own prompt: small, and up to four of them large, side by side. */

import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import { useAnswer } from "./answer";
import type { Theme } from "./colours";
import type { Cursor, Place, Way } from "./cursor";
import { decoded, name, type Token } from "./data";
import { PinHead, repinned } from "./glance";
import type { Asked, Patterns, Server } from "./live";
import { Matrix } from "./pattern";
import { fixed, tidy } from "./text";
import { Thumbs } from "./thumbs";
import { Word } from "./words";

interface Yours {
  server: Server;
  asked: Asked;
  tokens: Token[];
  patterns: Patterns;
  pins: string[];
  way: Way;
  theme: Theme;
  cursor: Cursor;
  onPins: (pins: string[]) => void;
  onHead: (head: string) => void;
}

export function YourPatterns(props: Yours): JSX.Element {
  const { patterns, pins, onPins } = props;
  const thumbs = useMemo(
    () =>
      patterns.heads.map((one) => {
        const bytes = decoded(one.bytes);
        const stripe =
          one.stripe === null ? "" : `: stripe ${fixed(one.stripe, 2)}, by chance ${fixed(one.chance ?? 0, 2)}`;
        return { name: name(one), layer: one.layer, bytes: () => bytes, note: `${name(one)}${stripe}` };
      }),
    [patterns],
  );
  return (
    <section class="all-yours">
      <h3>Every head on your prompt</h3>
      <p class="soft">
        {patterns.targets.length > 0 ? (
          <>
            A bright line beside the diagonal is the <Word of="stripe" />. A click puts a head beside the others, at
            most four.
          </>
        ) : (
          "No token occurs twice in this prompt, so no head can do induction on it."
        )}
      </p>
      <Thumbs
        id="thumbs-yours"
        label="Patterns of all heads on your prompt"
        thumbs={thumbs}
        n={patterns.side}
        theme={props.theme}
        pins={pins}
        onPin={(head) => onPins(repinned(pins, head))}
      />
      <div class="beside">
        {pins.map((head) => (
          <Pin key={head} {...props} head={head} />
        ))}
      </div>
    </section>
  );
}

function Pin(props: Yours & { head: string }): JSX.Element {
  const { head, tokens } = props;
  const answer = useAnswer(props.server, "pattern", { ...props.asked, head });
  const bytes = useMemo(() => (answer.given ? decoded(answer.given.value.bytes) : null), [answer.given]);
  return (
    <div>
      <PinHead
        head={head}
        label={`Look through ${head}`}
        onOpen={props.onHead}
        onPins={() => props.onPins(repinned(props.pins, head))}
      />
      {bytes && bytes.length === (tokens.length * (tokens.length + 1)) / 2 ? (
        <Matrix
          id={`yours-${head}`}
          title={`${head} on your prompt`}
          head={head}
          tokens={tokens}
          bytes={bytes}
          targets={props.patterns.targets as Place[]}
          theme={props.theme}
          cursor={props.cursor}
          way={props.way}
          small
        />
      ) : (
        <p class="soft">{tidy(answer.trouble) || "Looking ..."}</p>
      )}
    </div>
  );
}
