/**
 * Runs passes over a model: checks, times, counts and reports. What a pass did is data; printing it is
 * the caller's business.
 */
import type { ErrorCode } from '../runtime/errors.ts';
import { FettleError, assert } from '../runtime/errors.ts';
import type { Target } from '../targets/target.ts';
import { inferModel, inferNode } from './ir/infer.ts';
import type { Model, Node, Value } from './ir/graph.ts';
import { printModel } from './ir/print.ts';
import { Rewriter } from './ir/rewriter.ts';
import { verifyModel } from './ir/verify.ts';
import { turn } from './turn.ts';
import type {
  Log,
  ModelSize,
  Pass,
  PassContext,
  PassGroup,
  PassReport,
  Progress,
  Refusal,
  TrailStep,
} from './passes/pass.ts';

/** Options of {@link runPasses}. */
export interface RunPassesOptions {
  /** What is being compiled for. Default: nothing in particular. */
  readonly target?: Target;
  /** Most tokens the model will see. Default: not known. */
  readonly contextLength?: number;
  /** Receives messages. Default: nobody. */
  readonly log?: Log;
  /** Hears how far the run is. */
  readonly progress?: Progress;
  /** Aborts between two passes, and within those that take long. */
  readonly signal?: AbortSignal;
  /** Receives the text of the model: before the first pass as 0, `input`, then after each change. */
  readonly dump?: (index: number, name: string, text: string) => void;
  /** Hears every dead end of every rule. Default: nobody, and none is written out. */
  readonly trail?: (step: TrailStep) => void;
  /** Hears of each run of a pass, after it. */
  readonly ran?: (pass: Pass, model: Model) => void;
  /** Whether the model is verified after each pass that changed it. Default true. */
  readonly verify?: boolean;
  /**
   * Whether what a pass says is checked: having changed the model, against its text; the rules it names,
   * against those it lists. Default false.
   */
  readonly checkChanged?: boolean;
}

/**
 * Runs passes in order, on a model that is changed in place. A group is repeated until a whole round
 * changes nothing; its passes report each run that changed something or gave a new reason for a
 * refusal, and their first run.
 *
 * @param model - edited in place
 * @param passes - made by `pipelineFrom`, or one by one
 * @returns a report per run of a pass, in order
 * @throws FettleError PASS_FAILED when a pass breaks; errors about the model or the options keep their
 * code and name the pass in `at`
 */
export async function runPasses(
  model: Model,
  passes: readonly (Pass | PassGroup)[],
  options: RunPassesOptions = {},
): Promise<PassReport[]> {
  const run = new Run(model, options);
  inferModel(model, { contradictions: 'warn' });
  options.dump?.(0, 'input', printModel(model));
  for (const [index, step] of passes.entries()) {
    options.progress?.('passes', index, passes.length);
    if ('passes' in step) await run.group(step);
    else run.reports.push(await run.pass(step));
  }
  options.progress?.('passes', passes.length, passes.length);
  return run.reports;
}

function textOf({ rule, at, why }: Refusal): string {
  return `${rule}\n${at}\n${why}`;
}

class Run {
  readonly reports: PassReport[] = [];
  private readonly model: Model;
  private readonly options: RunPassesOptions;
  private dumped = 0;

  constructor(model: Model, options: RunPassesOptions) {
    this.model = model;
    this.options = options;
  }

  async group(group: PassGroup): Promise<void> {
    // a pass that changed nothing is not asked again before something else has changed
    const settled = new Set<Pass>();
    for (let round = 0; round < group.rounds; round++) {
      for (const pass of group.passes) {
        if (settled.has(pass)) continue;
        const report = await this.pass(pass);
        if (report.changed) settled.clear();
        // what a pass did may be work for itself, so it only settles when it did nothing
        else settled.add(pass);
        if (report.changed || round === 0 || this.saysMore(report)) this.reports.push(report);
      }
      if (settled.size === group.passes.length) return;
    }
    this.options.log?.warn(
      `"${group.name}" still found something to do after ${group.rounds} rounds.`,
    );
  }

  /** Whether a pass gives a reason that it has not given before. */
  private saysMore({ pass, refusals }: PassReport): boolean {
    const known = this.reports.filter((report) => report.pass === pass);
    const said = new Set(known.flatMap((report) => report.refusals.map(textOf)));
    return refusals.some((refusal) => !said.has(textOf(refusal)));
  }

  async pass(pass: Pass): Promise<PassReport> {
    const { model, options } = this;
    await turn(options.signal);
    const rewriter = new Rewriter(model, inferNode);
    const tally = new Tally(pass, options);
    const context: PassContext = {
      target: options.target,
      contextLength: options.contextLength,
      rewriter,
      log: options.log ?? silent,
      progress: options.progress ?? ((): void => {}),
      signal: options.signal,
      refuse: (rule, at, why) => tally.refuse(rule, at, why),
      miss: (rule, at, why) => tally.miss(rule, at, why),
      count: (rule, times = 1) => tally.count(rule, times),
      note: (key, value) => tally.note(key, value),
    };
    const before = sizeOfModel(model);
    const text = options.checkChanged === true ? printModel(model) : undefined;
    const start = performance.now();
    let changed: boolean;
    try {
      pass.requires?.(model, context);
      changed = await pass.run(model, context);
      if (changed) {
        inferModel(model, { contradictions: 'warn' });
        nameApart(model);
      }
      pass.ensures?.(model, context);
    } catch (error) {
      throw this.wrapped(pass, error);
    }
    if (changed && options.verify !== false) this.verified(pass);
    options.ran?.(pass, model);
    const wallMs = performance.now() - start;
    if (text !== undefined) {
      const differs = printModel(model) !== text;
      assert(differs === changed, `${pass.name}: says ${changed ? '' : 'un'}changed, and is not`);
    }
    if (changed && options.dump !== undefined)
      options.dump(++this.dumped, pass.name, printModel(model));
    return {
      pass: pass.name,
      changed,
      before,
      after: changed ? sizeOfModel(model) : before,
      wallMs,
      ...tally.results(),
    };
  }

  private wrapped(pass: Pass, error: unknown): unknown {
    if (this.options.signal?.aborted === true) return error;
    if (error instanceof FettleError && aboutTheUser.has(error.code))
      return new FettleError(error.code, error.message, {
        at: { ...error.at, pass: pass.name },
        ...(error.fix === undefined ? {} : { fix: error.fix }),
        cause: error,
      });
    return this.failure(pass, 'failed', error);
  }

  private failure(pass: Pass, what: string, cause: unknown): FettleError {
    const done = this.reports.map((report) => report.pass).join(', ');
    const message = cause instanceof Error ? cause.message : String(cause);
    return new FettleError('PASS_FAILED', `Pass "${pass.name}" ${what}: ${message}`, {
      at: { pass: pass.name, after: done === '' ? 'no other pass' : done },
      fix: 'Please report this with the model, or leave the pass out of the pipeline.',
      cause,
    });
  }

  private verified(pass: Pass): void {
    try {
      verifyModel(this.model);
    } catch (error) {
      throw this.failure(pass, 'left an invalid model', error);
    }
  }
}

/** Errors that say what is wrong with a model or an option, wherever they are found. */
const aboutTheUser: ReadonlySet<string> = new Set<ErrorCode>([
  'MODEL_INVALID',
  'OP_UNSUPPORTED',
  'SHAPE_UNKNOWN',
  'USAGE',
  'BUDGET_EXCEEDED',
  'IO_FAILED',
]);

const silent: Log = { info: () => {}, warn: () => {} };

/** What one run of a pass reported. */
class Tally {
  private readonly pass: string;
  private readonly options: RunPassesOptions;
  private readonly known: ReadonlySet<string> | undefined;
  private readonly rewrites = new Map<string, number>();
  private readonly refusals: Refusal[] = [];
  private readonly notes = new Map<string, unknown>();

  constructor({ name, rules }: Pass, options: RunPassesOptions) {
    this.pass = name;
    this.options = options;
    this.known =
      options.checkChanged === true && rules !== undefined
        ? new Set([name, ...rules.map((rule) => rule.name)])
        : undefined;
  }

  refuse(rule: string, at: Node | Value | string, why: string): void {
    this.check(rule);
    const place = typeof at === 'string' ? at : placeOf(at);
    this.refusals.push({ pass: this.pass, rule, at: place, why });
    this.options.trail?.({ pass: this.pass, rule, at, why, refused: true });
  }

  miss(rule: string, at: Node, why: string | (() => string)): void {
    this.check(rule);
    const { trail } = this.options;
    if (trail === undefined) return;
    const sentence = typeof why === 'string' ? why : why();
    trail({ pass: this.pass, rule, at, why: sentence, refused: false });
  }

  private check(rule: string): void {
    assert(this.known?.has(rule) !== false, `${this.pass}: "${rule}" is not among its rules`);
  }

  count(rule: string, times: number): void {
    this.check(rule);
    this.rewrites.set(rule, (this.rewrites.get(rule) ?? 0) + times);
  }

  note(key: string, value: unknown): void {
    this.notes.set(key, value);
  }

  results(): Pick<PassReport, 'rewrites' | 'refusals' | 'notes'> {
    return {
      rewrites: Object.fromEntries(this.rewrites),
      refusals: this.refusals,
      notes: Object.fromEntries(this.notes),
    };
  }
}

/**
 * Gives nodes that share a name names of their own. Nodes that a rewrite added have the name of the one
 * they replace, and onnxruntime refuses a graph in which two nodes have one name.
 */
function nameApart(model: Model): void {
  const taken = new Set<string>();
  const again: Node[] = [];
  for (const node of model.graph.allNodes()) {
    if (taken.has(node.name)) again.push(node);
    else if (node.name !== '') taken.add(node.name);
  }
  for (const node of again) {
    let name = node.name;
    for (let suffix = 1; taken.has(name); suffix++) name = `${node.name}_${suffix}`;
    taken.add(name);
    node.name = name;
  }
}

/** The name a user knows a node by: its own, or that of what it computes. */
function placeOf(at: Node | Value): string {
  if (at.name !== '' || !('op' in at)) return at.name;
  return at.outputs.find((output) => output !== undefined)?.name ?? at.op;
}

/** Nodes of all graphs, and bytes of the constants that something uses. */
export function sizeOfModel(model: Model): ModelSize {
  let nodes = 0;
  let weightBytes = 0;
  for (const node of model.graph.allNodes()) {
    nodes++;
    for (const attribute of node.attributes.values())
      if (attribute.kind === 'tensor') weightBytes += attribute.value.byteLength;
  }
  for (const graph of model.graph.allGraphs())
    for (const value of graph.constants)
      if (value.useCount > 0) weightBytes += value.weight?.byteLength ?? 0;
  return { nodes, weightBytes };
}
