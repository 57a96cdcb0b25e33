/* The document `headscope.report/1`: what it holds. The page computes nothing but layout. */

import type {
  BehaviorResult as Behavior,
  Circuit,
  Estimate,
  Finding,
  HeadRef,
  HeadTables,
  HeadVerdict,
  ModelInfo as Model,
  Provenance,
  TokenTables,
  VerdictMeaning,
  Verification,
} from "./records";

export type {
  BehaviorResult as Behavior,
  Copying,
  Edge,
  Estimate,
  HeadFinding as BehaviorHead,
  HeadRef,
  HeadTables,
  HeadVerdict,
  Item as BehaviorItem,
  ModelInfo as Model,
  Provenance,
  Receiver,
  Restored as Change,
  Score as BehaviorScore,
  SenderSet,
  TokenRow,
  VerdictMeaning,
} from "./records";

export interface Score extends Estimate {
  chance: number;
  control: number | null;
  selectivity: Estimate | null;
  n_prompts: number;
}
export interface Token {
  id: number;
  text: string | null;
  /** Where several tokens are the bytes of one character, which `text` then is: which of them, of how many. */
  part?: [number, number] | null;
}
/** One number of a run's curve. */
export interface At extends Estimate {
  step: number;
}
export interface Run {
  source: string;
  model: Model;
  settings: Record<string, unknown>;
  curves: Record<string, At[]>;
  changes: Record<string, { found: { step: Estimate; width: Estimate } | null; reason: string }>;
  unread: Record<string, string>;
}
export interface Tile {
  model: string;
  revision: string | null;
  family: string;
  n_parameters: number;
  n_layers: number;
  n_heads: number;
  probe: Record<string, unknown>;
  values: (number | null)[][];
  ci95: ([number, number] | null)[][];
  best: HeadRef | null;
}
/** The document `headscope.mosaic/1`, with those of other roles beside it. */
export interface Mosaic {
  schema: string;
  detector: string;
  by_depth: boolean;
  tiles: Tile[];
  failed: string[];
  others: Omit<Mosaic, "others">[];
}
export interface Report {
  schema: string;
  model: Model;
  finding: Finding;
  scan: {
    probe: Record<string, unknown>;
    detectors: { name: string; needs_control: boolean }[];
    heads: (HeadRef & { scores: Record<string, Score> })[];
    unscored: Record<string, string>;
    timing: { wall_s: number; tokens: number };
  };
  verify: Verification;
  circuit: Circuit | null;
  circuit_reason: string | null;
  example: {
    tokens: Token[];
    first: [number, number];
    second: [number, number];
    patterns: (HeadRef & { bytes: string })[];
    left_out: number;
    loss: { clean: number[]; ablated: number[] | null; without: HeadRef[] };
  };
  tables: TokenTables;
  emergence: Run[];
  behavior: Behavior[];
  /** Results of further kinds, each drawn by its section. */
  results?: Result[];
  provenance: Provenance;
}
/** A document of a kind of evidence that has a section of its own. */
export interface Result {
  kind: string;
  schema: string;
}

export const SCHEMA = "headscope.report/1";
export const MOSAIC = "headscope.mosaic/1";

/** The document that the page holds. */
export function held(element: HTMLElement): { schema: string } {
  const document = JSON.parse(element.textContent ?? "") as { schema: string };
  element.remove(); // what was parsed need not be kept twice
  return document;
}

export function checked(document: { schema: string }): Report {
  if (document.schema !== SCHEMA) throw new Error(`the document is a ${document.schema}; this page shows ${SCHEMA}`);
  return document as Report;
}

export function name(head: HeadRef): string {
  return `L${head.layer}H${head.head}${head.call ? `#${head.call}` : ""}`;
}

/** What belongs to each head, by its name. */
export class Heads {
  readonly names: string[];
  readonly refs = new Map<string, HeadRef>();
  readonly scores = new Map<string, Record<string, Score>>();
  readonly verdicts = new Map<string, HeadVerdict>();
  readonly meanings = new Map<string, VerdictMeaning>();
  readonly tables = new Map<string, HeadTables>();
  private readonly encoded = new Map<string, string>();
  private readonly decoded = new Map<string, Uint8Array>();

  constructor(report: Report) {
    for (const head of report.scan.heads) {
      this.refs.set(name(head), head);
      this.scores.set(name(head), head.scores);
    }
    for (const head of report.verify.heads) {
      if (!this.refs.has(name(head))) this.refs.set(name(head), head);
      this.verdicts.set(name(head), head);
    }
    for (const one of report.verify.head_types) this.meanings.set(one.name, one);
    for (const head of report.tables.heads) this.tables.set(name(head), head);
    for (const head of report.example.patterns) this.encoded.set(name(head), head.bytes);
    this.names = [...this.refs.keys()];
  }

  /** Whether the file holds a head's pattern. */
  has(head: string): boolean {
    return this.encoded.has(head);
  }

  /** What a head's verdict means. */
  meaning(verdict: string): VerdictMeaning {
    const found = this.meanings.get(verdict);
    if (!found) throw new Error(`the document does not say what the verdict ${verdict} means`);
    return found;
  }

  /** Attention in the example as bytes: lower triangle, row by row, 255 for 1. */
  pattern(head: string): Uint8Array | null {
    const known = this.decoded.get(head);
    if (known) return known;
    const encoded = this.encoded.get(head);
    if (encoded === undefined) return null;
    const bytes = decoded(encoded);
    this.decoded.set(head, bytes);
    return bytes;
  }
}

export function decoded(base64: string): Uint8Array {
  return Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
}

/** Where a query and a key stand in a lower triangle. */
export function place(query: number, key: number): number {
  return (query * (query + 1)) / 2 + key;
}
