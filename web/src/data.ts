/* The document `headscope.report/1`: what it holds. The page computes nothing but layout. */

export interface Estimate {
  mean: number;
  ci95: [number, number] | null;
}
export interface HeadRef {
  layer: number;
  head: number;
  call?: number;
}
export interface Score extends Estimate {
  chance: number;
  control: number | null;
  selectivity: Estimate | null;
  n_prompts: number;
}
export interface Change {
  delta_loss_nats: Estimate;
  q_value: number;
}
export interface Copying {
  heads: HeadRef[];
  eigenvalue: number | null;
  direct: Estimate;
  top1: number;
}
/** What a verdict means and how it is shown; it comes with the document. */
export interface VerdictMeaning {
  name: string;
  label: string;
  letter: string;
  colour: string;
  colour_dark: string;
  order: number;
  sentence: string;
  is_induction: boolean;
  has_role: boolean;
}
export interface HeadVerdict extends HeadRef {
  verdict: string;
  reasons: string[];
  attention: Record<string, number>;
  delta_loss_nats: Estimate | null;
  exact: boolean;
  q_value: number | null;
  first_copy: Estimate | null;
  natural: Estimate | null;
  over_random: Estimate | null;
  put_back: Change | null;
  copying: Copying | null;
  offset: { offset: number; mean: number } | null;
  behind: HeadRef[];
  interchangeable: HeadRef[];
}
export interface Edge {
  sender: HeadRef;
  receiver: HeadRef;
  input: string;
  effect: Estimate;
  share: number;
  share_ci95: [number, number] | null;
  q_value: number;
  mlps_held: Estimate | null;
  loss_nats: Record<string, Estimate>;
  query_effect: Estimate;
  previous_token: number | null;
  weights: { score: number; ratio: number; z: number | null; rank: number; of: number; margin: number | null } | null;
  /** The set that the sender belongs to, whose numbers these are; empty for one that is needed by itself. */
  any_of: HeadRef[];
  /** Which token differs in the corrupt prompts. */
  changed: string;
}
/** Senders that replace each other. */
export interface SenderSet {
  receiver: HeadRef;
  input: string;
  senders: HeadRef[];
  effect: Estimate;
  share: number;
  singles: number;
  alone: Estimate[];
  any_one_is_enough: boolean;
}
export interface Receiver extends HeadRef {
  verdict: string | null;
  stripe: Estimate;
  corrupt: Estimate;
  restored: Estimate | null;
  /** Null where `asked` is false. */
  unexplained: number | null;
  strongest_other: Estimate | null;
  strongest_query: Estimate | null;
  weights_agree: boolean | null;
  /** Whether the corrupt prompts take enough of the stripe to ask who carries it. */
  asked: boolean;
  offset: number;
  context: Record<string, Estimate> | null;
}
export interface Token {
  id: number;
  text: string | null;
  /** Where several tokens are the bytes of one character, which `text` then is: which of them, of how many. */
  part?: [number, number] | null;
}
export interface TokenRow {
  token: number;
  text: string | null;
  best: [number, string | null, number][];
  own_rank: number;
}
export interface HeadTables extends HeadRef {
  ov: TokenRow[];
  qk: TokenRow[] | null;
  sender: HeadRef | null;
}
export interface Provenance {
  dtype: string;
  device: string;
  kernels: string[];
  seed: number | null;
  versions: Record<string, string>;
  command: string;
}
export interface Model {
  id: string;
  revision: string | null;
  family: string;
  n_layers: number;
  n_heads: number;
  n_kv_heads: number | null;
  support: string;
  reason: string;
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
export interface BehaviorScore {
  n_pairs?: number;
  n_known?: number;
  claimed_minus_true?: Estimate;
  claim_minus_neutral?: Estimate | null;
  claim_minus_twin?: Estimate | null;
  flips?: Estimate | null;
  neutral_accuracy?: Estimate;
}
export interface BehaviorHead extends HeadRef {
  removed?: Estimate;
  q_value?: number;
  patched?: Estimate;
  patched_q_value?: number;
  share?: number | null;
  attention?: Estimate;
  direct?: Estimate | null;
  induction?: number | null;
  carries?: boolean;
  named?: boolean;
}
export interface BehaviorItem {
  id: string;
  topic?: string;
  form?: string;
  verbatim?: boolean;
  prompt: string;
  answer: string;
  other: string;
  differences?: Record<string, number>;
}
/** The document `headscope.behavior/1`; what it lacks is left out of the page. */
export interface Behavior {
  model: Model;
  behavior: string;
  contrast?: string;
  conclusion: string;
  reasons?: string[];
  score?: BehaviorScore;
  forms?: Record<string, BehaviorScore>;
  verbatim?: BehaviorScore | null;
  paraphrase?: BehaviorScore | null;
  heads?: BehaviorHead[];
  head_set?: {
    heads: HeadRef[];
    removed?: Estimate;
    q_value?: number;
    patched?: Estimate;
    patched_q_value?: number;
    share?: number | null;
    paraphrase_share?: number | null;
    flips_before?: Estimate | null;
    flips_after?: Estimate | null;
    accuracy_before?: Estimate;
    accuracy_after?: Estimate;
    text_loss_nats?: Estimate;
  } | null;
  controls?: {
    draws?: { kind: string; heads: HeadRef[]; removed?: Estimate }[];
    induction?: {
      heads: HeadRef[];
      common: HeadRef[];
      p_value?: number;
      share?: number | null;
      others_share?: number | null;
    } | null;
    others?: { name: string; score?: BehaviorScore; share?: number | null }[];
    search_pairs?: number;
    held_out_pairs?: number;
    tests?: number;
  };
  items?: BehaviorItem[];
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
  finding: { sentence: string; details: string[] };
  scan: {
    probe: Record<string, unknown>;
    detectors: { name: string; needs_control: boolean }[];
    heads: (HeadRef & { scores: Record<string, Score> })[];
    unscored: Record<string, string>;
    timing: { wall_s: number; tokens: number };
  };
  verify: {
    heads: HeadVerdict[];
    sets: { heads: HeadRef[]; relation: string; delta_loss_nats: Estimate }[];
    controls: { held_out_prompts: number; tests: number };
    ablation: { method: string };
    probe: Record<string, unknown>;
    timing: { wall_s: number };
    head_types: VerdictMeaning[];
  };
  circuit: {
    receivers: Receiver[];
    edges: Edge[];
    sets: SenderSet[];
    context: Edge[];
    senders_tried: number;
    notes: string[];
    probe: Record<string, unknown>;
    timing: { wall_s: number };
  } | null;
  circuit_reason: string | null;
  example: {
    tokens: Token[];
    first: [number, number];
    second: [number, number];
    patterns: (HeadRef & { bytes: string })[];
    left_out: number;
    loss: { clean: number[]; ablated: number[] | null; without: HeadRef[] };
  };
  tables: { heads: HeadTables[]; reason: string | null };
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
