/* What the server says to the last question; earlier ones are called back. */

import { useEffect, useState } from "preact/hooks";
import type { Answers, Server } from "./live";

export interface Given<K extends keyof Answers> {
  asked: Answers[K][0];
  value: Answers[K][1];
}

export function useAnswer<K extends keyof Answers>(
  server: Server,
  what: K,
  asked: Answers[K][0] | null,
  wait = 0,
): { given: Given<K> | null; trouble: string; busy: boolean } {
  const [found, set] = useState<{ key: string; given: Given<K> | null; trouble: string }>({
    key: "null",
    given: null,
    trouble: "",
  });
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
