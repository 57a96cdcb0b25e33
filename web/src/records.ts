/* Made by `python -m scripts.records`. The page's documents, as the records that write them say. */

export interface HeadRef {
  layer: number;
  head: number;
  call?: number;
}
export interface Atlas {
  model: ModelInfo;
  fingerprint: string;
  quick: boolean;
  roles: RoleMeaning[];
  not_asked: Record<string, string>;
  heads: HeadSummary[];
  findings: RoleFinding[];
  rule: OutcomeRule;
  settings: Record<string, unknown>;
  provenance: Provenance;
  timing: Timing;
  known: KnownHead[];
}
export interface BehaviorControls {
  draws: DrawnSet[];
  set_removed: Estimate | null;
  induction: Induction | null;
  others: Other[];
  search_pairs: number;
  held_out_pairs: number;
  tests: number;
}
export interface BehaviorResult {
  model: ModelInfo;
  behavior: string;
  contrast: string;
  score: Score;
  forms: Record<string, Score>;
  verbatim: Score | null;
  paraphrase: Score | null;
  heads: HeadFinding[];
  head_set: SetFinding | null;
  controls: BehaviorControls;
  conclusion: string;
  reasons: string[];
  rule: ConclusionRule;
  items: Item[];
  left_out: Record<string, string>;
  problems: string[];
  cost: Cost;
  provenance: Provenance;
}
export interface BestOffset {
  offset: number;
  mean: number;
}
export interface Circuit {
  model: ModelInfo;
  receivers: Receiver[];
  edges: Edge[];
  senders_tried: number;
  grouped: boolean;
  notes: string[];
  rule: CircuitRule;
  probe: Record<string, unknown>;
  provenance: Provenance;
  timing: Timing;
  sets: SenderSet[];
  context: Edge[];
}
export interface CircuitRule {
  share: number;
  false_discovery: number;
  z: number;
  margin: number;
  context: number;
  set_size: number;
}
export interface CompareRule {
  difference: number;
  false_discovery: number;
  agreement: number;
  similarity: number;
  delta_loss_nats: number;
  share: number;
}
export interface Comparison {
  sides: Side[];
  pairs: PairChange[];
  nearest: Likeness[];
  rule: CompareRule;
  timing: Timing;
}
export interface ConclusionRule {
  flips: number;
  paraphrase: number;
  removed: number;
  named: number;
  set_size: number;
  set_least: number;
  accuracy_lost: number;
  false_discovery: number;
}
export interface Controls {
  random_heads: Draw[];
  norm_matched: boolean;
  held_out_prompts: number;
  tests: number;
}
export interface Copying {
  heads: HeadRef[];
  eigenvalue: number | null;
  direct: Estimate;
  top1: number;
}
export interface Cost {
  forwards: number;
  exhaustive: number;
  wall_s: number;
}
export interface Draw {
  heads: HeadRef[];
  delta_loss_nats: Estimate;
  random_heads: HeadRef[];
  random_delta_loss_nats: Estimate;
  random_first_copy: Estimate;
}
export interface DrawnSet {
  kind: "random" | "same layers" | "same size";
  heads: HeadRef[];
  removed: Estimate;
  flips: Estimate | null;
}
export interface Edge {
  sender: HeadRef;
  receiver: HeadRef;
  input: "q" | "k" | "v";
  effect: Estimate;
  share: number;
  q_value: number;
  mlps_held: Estimate | null;
  loss_nats: Record<string, Estimate>;
  query_effect: Estimate;
  previous_token: number | null;
  weights: PairComposition | null;
  any_of: HeadRef[];
  share_ci95: [number, number] | null;
  changed: "before_key" | "two_before_key" | "before_query";
}
export interface EdgeChange {
  sender: HeadRef;
  receiver: HeadRef;
  input: string;
  share_a: number | null;
  share_b: number | null;
  status: "gained" | "lost" | "kept" | "none" | "undecided";
}
export interface Effect {
  estimate: Estimate;
  p_value: number;
  q_value: number | null;
  within_nats: number | null;
}
export interface Estimate {
  mean: number;
  ci95: [number, number] | null;
}
export interface Finding {
  sentence: string;
  details: string[];
}
export interface HeadChange extends HeadRef {
  counterpart: HeadRef | null;
  how: "number" | "pattern" | "last" | null;
  match: Match | null;
  roles: RoleChange[];
}
export interface HeadFinding extends HeadRef {
  triage: Record<string, number>;
  removed: Estimate;
  q_value: number;
  patched: Estimate;
  patched_q_value: number;
  share: number | null;
  attention: Estimate;
  direct: Estimate | null;
  induction: number | null;
  carries: boolean;
  named: boolean;
}
export interface HeadPatterns extends HeadRef {
  counterpart: HeadRef;
  a: string;
  b: string;
}
export interface HeadRoles extends HeadRef {
  scores: Record<string, number>;
}
export interface HeadSet {
  heads: HeadRef[];
  relation: "single" | "redundant" | "complementary" | "independent";
  delta_loss_nats: Estimate;
  first_copy: Estimate;
  natural: Estimate | null;
  sum_of_singles: Estimate;
  copying: Copying | null;
}
export interface HeadSummary extends HeadRef {
  status: "unexplained" | "held" | "idle" | "not_tested";
  strongest: string | null;
  roles: string[];
  correlates: string[];
  removed: Effect | null;
  unexplained: number | null;
}
export interface HeadSwap extends HeadRef {
  restores: Estimate;
  transfers: Estimate;
  q_value: number;
  carries: boolean;
  adds: Estimate | null;
  source: boolean;
}
export interface HeadTables extends HeadRef {
  ov: TokenRow[];
  qk: TokenRow[] | null;
  sender: HeadRef | null;
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
  put_back: Restored | null;
  copying: Copying | null;
  offset: BestOffset | null;
  behind: HeadRef[];
  interchangeable: HeadRef[];
}
export interface Induction {
  heads: HeadRef[];
  common: HeadRef[];
  p_value: number;
  patched: Estimate | null;
  share: number | null;
  others_share: number | null;
}
export interface Item {
  id: string;
  topic: string;
  form: string;
  verbatim: boolean;
  prompt: string;
  answer: string;
  other: string;
  differences: Record<string, number>;
}
export interface KnownHead extends HeadRef {
  model: string;
  role: string;
  called: string;
  source: string;
  checked: boolean;
  variant: string | null;
  matched: "id" | "weights" | "shape" | null;
  agreement: "agrees" | "differs" | "not_tested";
  why: string;
}
export interface Likeness {
  a: string;
  b: string;
  similarity: number;
  by: "pattern" | "scores";
}
export interface Match {
  similarity: number;
  agreement: number;
  q_value: number;
  next_best: number | null;
}
export interface ModelInfo {
  id: string;
  revision: string | null;
  family: string;
  n_layers: number;
  n_heads: number;
  n_kv_heads: number | null;
  support: "exact" | "degraded" | "unsupported";
  reason: string;
  path: "interface" | "hooks" | "module" | null;
  d_model: number | null;
  n_embeddings: number | null;
  embedding_corner: number[][] | null;
  unread: Unread | null;
}
export interface Other {
  name: string;
  score: Score;
  removed: Estimate | null;
  share: number | null;
}
export interface OutcomeChange extends HeadRef {
  counterpart: HeadRef;
  role: string;
  a: "primary" | "secondary" | "correlate" | "interferer" | "null" | null;
  b: "primary" | "secondary" | "correlate" | "interferer" | "null" | null;
  score_a: Estimate;
  score_b: Estimate;
  status: "gained" | "lost" | "kept" | "none" | "undecided";
  apart: boolean;
}
export interface OutcomeRule {
  false_discovery: number;
  effect_nats: number;
  within_nats: number;
  lost_on_control: number;
}
export interface PairChange {
  a: string;
  b: string;
  paired: boolean;
  why: string;
  differ: string[];
  similarity: number | null;
  heads: HeadChange[];
  unmatched: HeadRef[];
  finding: string;
  bound: number | null;
  verdicts: VerdictChange[] | null;
  edges: EdgeChange[] | null;
  swap: SwapTest | null;
  outcomes: OutcomeChange[] | null;
  patterns: PairPatterns | null;
}
export interface PairComposition {
  score: number;
  ratio: number;
  z: number | null;
  rank: number;
  of: number;
  margin: number | null;
}
export interface PairPatterns {
  tokens: PromptToken[];
  heads: HeadPatterns[];
}
export interface PromptToken {
  id: number;
  text: string | null;
}
export interface Provenance {
  dtype: string;
  device: string;
  kernels: string[];
  seed: number | null;
  versions: Record<string, string>;
  command: string;
}
export interface Receiver extends HeadRef {
  verdict: string | null;
  stripe: Estimate;
  corrupt: Estimate;
  restored: Estimate | null;
  restored_mlps_held: Estimate | null;
  unexplained: number | null;
  strongest_other: Estimate | null;
  strongest_query: Estimate | null;
  weights_agree: boolean | null;
  asked: boolean;
  offset: number;
  context: Record<string, Estimate> | null;
}
export interface Restored {
  delta_loss_nats: Estimate;
  q_value: number;
}
export interface RoleChange {
  role: string;
  a: number;
  b: number;
  difference: Estimate;
  q_value: number;
  changed: boolean;
  status: "gained" | "lost" | "kept" | "none" | "undecided";
}
export interface RoleFinding extends HeadRef {
  role: string;
  score: Estimate;
  chance: number;
  control: number | null;
  selectivity: Estimate | null;
  p_score: number;
  by_score: boolean;
  q_score: number | null;
  measures: Record<string, number>;
  has_score: boolean;
  tests: Record<string, Effect>;
  outcome: "primary" | "secondary" | "correlate" | "interferer" | "null" | null;
  variant: string | null;
  reasons: string[];
}
export interface RoleMeaning {
  name: string;
  label: string;
  letter: string;
  colour: string;
  order: number;
  sentence: string;
  look_alike: string;
  least: number;
  probe: Record<string, unknown>;
}
export interface Score {
  n_pairs: number;
  n_known: number;
  claimed_minus_true: Estimate;
  claim_minus_neutral: Estimate | null;
  claim_minus_twin: Estimate | null;
  flips: Estimate | null;
  neutral_accuracy: Estimate;
}
export interface SenderSet {
  receiver: HeadRef;
  input: "q" | "k" | "v";
  senders: HeadRef[];
  effect: Estimate;
  share: number;
  singles: number;
  alone: Estimate[];
  any_one_is_enough: boolean;
}
export interface SetFinding {
  heads: HeadRef[];
  removed: Estimate;
  q_value: number;
  patched: Estimate;
  patched_q_value: number;
  share: number | null;
  neutral_share: number | null;
  paraphrase_removed: Estimate | null;
  paraphrase_share: number | null;
  flips_before: Estimate | null;
  flips_after: Estimate | null;
  accuracy_before: Estimate | null;
  accuracy_after: Estimate | null;
  text_loss_nats: Estimate;
  carries: boolean;
}
export interface SetSwap {
  heads: HeadRef[];
  restores: Estimate;
  transfers: Estimate;
}
export interface Side {
  label: string;
  model: ModelInfo;
  provenance: Provenance;
  probe: Record<string, unknown>;
  heads: HeadRoles[];
  roles: Record<string, HeadRef[]>;
}
export interface SwapTest {
  loss_a: Estimate;
  loss_b: Estimate;
  difference: Estimate;
  asked: boolean;
  reason: string;
  heads: HeadSwap[];
  everything: SetSwap | null;
  sources: SetSwap | null;
  random: SetSwap[];
}
export interface Timing {
  wall_s: number;
  tokens: number;
}
export interface TokenRow {
  token: number;
  text: string | null;
  best: [number, string | null, number][];
  own_rank: number;
}
export interface TokenTables {
  heads: HeadTables[];
  reason: string | null;
}
export interface Unread {
  layers: number[];
  outside: string[];
}
export interface VerdictChange extends HeadRef {
  counterpart: HeadRef;
  a: string;
  b: string;
  changed: boolean;
  delta_a: Estimate | null;
  delta_b: Estimate | null;
  apart: boolean;
  reasons_a: string[];
  reasons_b: string[];
}
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
export interface VerdictRule {
  attention: number;
  lost_on_control: number;
  copying: number;
  delta_loss_nats: number;
  false_discovery: number;
  partial_stripe: number;
  suffices: number;
}
export interface Verification {
  model: ModelInfo;
  heads: HeadVerdict[];
  sets: HeadSet[];
  controls: Controls;
  clean: Record<string, Estimate>;
  rule: VerdictRule;
  probe: Record<string, unknown>;
  ablation: Record<string, unknown>;
  provenance: Provenance;
  timing: Timing;
  head_types: VerdictMeaning[];
}
