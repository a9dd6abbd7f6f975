/**
 * The shape of a pass. A pass is made by a factory with options, edits the model in place and says
 * honestly whether it changed it; the runner (`run-passes.ts`) does the verifying, timing and reporting.
 */
import type { Target } from '../../targets/target.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';

/** Messages for the user; silent unless the caller passes something. */
export interface Log {
  /** Something went as planned. */
  info(message: string): void;
  /** Something the user should know. */
  warn(message: string): void;
}

/** How far a long step is: `done` of `total` units of `what`. */
export type Progress = (what: string, done: number, total: number) => void;

/** Why a rule that matched was not applied. */
export interface Refusal {
  /** The pass. */
  readonly pass: string;
  /** The rule within it; the pass itself when it has only one. */
  readonly rule: string;
  /** Where: the name of a node or value. */
  readonly at: string;
  /** Why, as a sentence. */
  readonly why: string;
}

/** A rule of a pass, for lists and for those who ask why it did not fire. */
export interface PassRule {
  /** Kebab-case or the name of what is recognised; what `--explain` and the report print. */
  readonly name: string;
  /** Op types of the nodes it starts from, with the domain in front unless it is ONNX's; none for any. */
  readonly starts: readonly string[];
}

/** A dead end of a rule: where it started, and what was missing. */
export interface TrailStep {
  /** The pass. */
  readonly pass: string;
  /** The rule. */
  readonly rule: string;
  /** Where it started, or what it refused. */
  readonly at: Node | Value | string;
  /** What was in the way, as a sentence. */
  readonly why: string;
  /** Whether everything had been found and the rule was not applied all the same: a refusal. */
  readonly refused: boolean;
}

/** What a pass is given besides the model. */
export interface PassContext {
  /** What is being compiled for; undefined when only cleaning up. */
  readonly target: Target | undefined;
  /** Most tokens the model will see, when the files beside it say so. */
  readonly contextLength: number | undefined;
  /** The only way to edit. */
  readonly rewriter: Rewriter;
  /** Messages. */
  readonly log: Log;
  /** Progress of long work. */
  readonly progress: Progress;
  /** Aborts between steps. */
  readonly signal: AbortSignal | undefined;
  /** Records why something that matched was left alone. */
  refuse(rule: string, at: Node | Value | string, why: string): void;
  /**
   * Says that a rule found nothing at a node it starts from. Only who asks for the trail hears it, so it
   * costs next to nothing; a sentence that takes work to make is given as a function.
   */
  miss(rule: string, at: Node, why: string | (() => string)): void;
  /** Counts one application of a rule. */
  count(rule: string, times?: number): void;
  /** Attaches a figure to the report, for example the error of a quantized tensor. */
  note(key: string, value: unknown): void;
}

/** A named rewrite of the model. */
export interface Pass {
  /** Pass id = file = CLI name = report row. */
  readonly name: string;
  /** Options with defaults filled in; part of the recipe. */
  readonly options: Readonly<Record<string, unknown>>;
  /**
   * Its rules: every name it counts, refuses and misses under, besides its own name, which is for all
   * of them. Absent: it has no rules to ask about.
   */
  readonly rules?: readonly PassRule[];
  /** Throws before anything is changed. */
  requires?(model: Model, context: PassContext): void;
  /** Rewrites in place; true when anything changed. */
  run(model: Model, context: PassContext): boolean | Promise<boolean>;
  /** Throws when the result breaks what the pass promises. */
  ensures?(model: Model, context: PassContext): void;
}

/** Passes that are repeated until none of them changes anything. */
export interface PassGroup {
  /** Name in a pipeline. */
  readonly name: string;
  /** The passes, in order. */
  readonly passes: readonly Pass[];
  /** Most rounds; a group that is still changing things then is reported, not an error. */
  readonly rounds: number;
}

/** What one pass did. */
export interface PassReport {
  /** Pass id. */
  readonly pass: string;
  /** Whether it changed the model. */
  readonly changed: boolean;
  /** Size before. */
  readonly before: ModelSize;
  /** Size after. */
  readonly after: ModelSize;
  /** Wall time. Left out of bundles, which must be identical from run to run. */
  readonly wallMs: number;
  /** Applications per rule. */
  readonly rewrites: Readonly<Record<string, number>>;
  /** What matched and was left alone. */
  readonly refusals: readonly Refusal[];
  /** Figures the pass attached. */
  readonly notes: Readonly<Record<string, unknown>>;
}

/** How large a model is. */
export interface ModelSize {
  /** Nodes, subgraphs included. */
  readonly nodes: number;
  /** Bytes of the constants that something uses. */
  readonly weightBytes: number;
}
