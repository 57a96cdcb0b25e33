/* The server behind a live page: what it can be asked, and what it answers. */

import type { HeadRef, Model, Report, Token } from "./data";
import { checked } from "./data";

export type Method = "mean" | "zero";

export interface About {
  model: Model;
  heads: HeadRef[];
  suggestion: string;
  examples: { title: string; text: string }[];
  max_characters: number;
  max_tokens: number;
  /** A second model that reads every prompt too. */
  against: Model | null;
}
/** A text, and the heads that are switched off while it is read. */
export interface Asked {
  text: string;
  off: string[];
  method: Method;
  /** Which model is asked: the first, where nothing is said. */
  of?: "model" | "against";
}
export interface Option {
  id: number;
  text: string | null;
  clean: number;
  ablated: number | null;
}
export interface Reading {
  tokens: Token[];
  off: HeadRef[];
  method: Method;
  clean: number[];
  ablated: number[] | null;
  mean_clean: number | null;
  delta_loss_nats: number | null;
  next: Option[][];
}
export interface Look extends HeadRef {
  attention: number;
  chance: number;
}
export interface Writes {
  heads: (HeadRef & { raises: { id: number; text: string | null; logit: number }[] })[];
  note: string | null;
  reason: string | null;
}
/** Every head on a text, in so many places a side. */
export interface Patterns {
  side: number;
  /** Query and key of every token after an earlier copy. */
  targets: [number, number][];
  heads: (HeadRef & { bytes: string; stripe: number | null; chance: number | null })[];
}
/** What the second model makes of a text, and how differently heads of both look in it. */
export interface Beside {
  reading: Reading;
  difference: number | null;
  heads: (HeadRef & { distance: number })[];
}
export interface Answers {
  against: [Asked, Beside];
  read: [Asked, Reading];
  pattern: [Asked & { head: string }, { bytes: string }];
  patterns: [Asked, Patterns];
  looks: [Asked & { query: number; key: number }, Look[]];
  writes: [Asked & { position: number }, Writes];
}
/** How far the report has come. */
export interface Step {
  what: string;
  done: number;
  total: number;
}

const PLACE = "headscope-token";

/** The token from the address, or the one that an earlier address left in this browser. It is taken out of the bar. */
export function token(): string {
  const given = new URLSearchParams(location.hash.slice(1));
  const fresh = given.get("token");
  if (fresh !== null) {
    given.delete("token");
    history.replaceState(null, "", `#${given}`);
    localStorage.setItem(PLACE, fresh);
  }
  return fresh ?? localStorage.getItem(PLACE) ?? "";
}

export class Server {
  constructor(
    private readonly base: string,
    private readonly secret: string,
  ) {}

  about(): Promise<About> {
    return this.ask<About>("model").then(({ body }) => body);
  }

  /** The report, or how far it has come. */
  async report(): Promise<Report | Step> {
    const { status, body } = await this.ask<Report | Step>("report");
    return status === 202 ? (body as Step) : checked(body as Report);
  }

  async answer<K extends keyof Answers>(what: K, asked: Answers[K][0], signal: AbortSignal): Promise<Answers[K][1]> {
    return (await this.ask<Answers[K][1]>(what, { method: "POST", body: JSON.stringify(asked), signal })).body;
  }

  private async ask<T>(path: string, request: RequestInit = {}): Promise<{ status: number; body: T }> {
    const headers = { Authorization: `Bearer ${this.secret}`, "Content-Type": "application/json" };
    let answer: Response;
    try {
      answer = await fetch(this.base + path, { ...request, headers, cache: "no-store" });
    } catch (error) {
      if (request.signal?.aborted) throw error;
      throw new Error("the server does not answer; is headscope explore still running?");
    }
    const body: unknown = await answer.json();
    if (!answer.ok) throw new Error((body as { error: string }).error);
    return { status: answer.status, body: body as T };
  }
}
