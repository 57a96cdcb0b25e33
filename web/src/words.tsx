/* Words of the field, explained where they are used: their definition comes on hover and on focus. */

import type { ComponentChildren, JSX } from "preact";
import { useRef, useState } from "preact/hooks";
import WORDS from "./words.json";

export type Known = keyof typeof WORDS;

const WIDE = 320;
let count = 0;

/** A word of the glossary; `children` is how it reads here, where that is not the word itself. */
export function Word({ of, children }: { of: Known; children?: ComponentChildren }): JSX.Element {
  const word = useRef<HTMLButtonElement>(null);
  const id = useRef(`word-${count++}`).current;
  const [at, set] = useState<{ left: string; top: string } | null>(null);
  const show = () => {
    const box = word.current?.getBoundingClientRect();
    if (!box) return;
    const left = Math.max(8, Math.min(box.left, innerWidth - WIDE - 8));
    set({ left: `${left}px`, top: `${box.bottom + 4}px` });
  };
  const hide = () => set(null);
  return (
    <span class="word" onPointerEnter={show} onPointerLeave={hide}>
      <button
        ref={word}
        type="button"
        class="link"
        aria-describedby={id}
        onFocus={show}
        onBlur={hide}
        onClick={show}
        onKeyDown={(event) => event.key === "Escape" && hide()}
      >
        {children ?? of}
      </button>
      <span id={id} role="tooltip" class="tip" hidden={at === null} style={at ?? {}}>
        {WORDS[of]}
      </span>
    </span>
  );
}

/** All words with their definitions. */
export function Glossary(): JSX.Element {
  return (
    <details class="glossary">
      <summary>Words</summary>
      <dl class="provenance">
        {Object.entries(WORDS).map(([word, says]) => (
          <>
            <dt>{word}</dt>
            <dd>{says}</dd>
          </>
        ))}
      </dl>
    </details>
  );
}
