/**
 * Computes at compile time what depends on constants only.
 *
 *     Constant(value)                  ->   a constant of the graph
 *     Add(Shape-like constants …)      ->   its value
 *     If(true, a(), b())               ->   what a() does, in place
 *
 * Left alone: random ops, what would grow the model (a mask filled from its size, a table computed
 * from a range, f16 weights cast to f32), and dequantized weights, which are packed on purpose.
 * Integer and moving ops are exact. Floats are computed in doubles and rounded once, which an engine
 * that computes in f32 can differ from in the last bit.
 */
import { FettleError, assert, throwIfAborted } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { bytesFor, bytesOf, elementCount } from '../../runtime/tensor.ts';
import { isStatic } from '../ir/dim.ts';
import { evaluateNode } from '../ir/evaluate.ts';
import type { Node, Value } from '../ir/graph.ts';
import { Graph, Model } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { definitionOf } from '../ops/index.ts';
import { uniformValueOf } from './constants.ts';
import { inlineBranch } from './inline-branch.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByConstant } from './replace.ts';

/** Options of {@link foldConstants}. */
export interface FoldConstantsOptions {
  /** Largest result of one op, in bytes. Default 256 MiB. */
  readonly maxBytes?: number;
  /** By how many bytes a result may exceed the constants it replaces. Default 1 MiB. */
  readonly maxGrowthBytes?: number;
  /**
   * Whether constants that are cast to a wider dtype are stored that way, however large. For engines
   * that choose how weights are stored themselves. Default false.
   */
  readonly widen?: boolean;
}

/** Defaults of {@link FoldConstantsOptions}. */
export const foldConstantsDefaults: Required<FoldConstantsOptions> = {
  maxBytes: 256 * 1024 * 1024,
  maxGrowthBytes: 1024 * 1024,
  widen: false,
};

/** Makes the pass. */
export function foldConstants(options: FoldConstantsOptions = {}): Pass {
  const settings = { ...foldConstantsDefaults, ...options };
  return {
    name: 'fold-constants',
    options: settings,
    run(model, context) {
      const before = context.rewriter.changes;
      const recent: Recent = {};
      for (const node of model.graph.allNodes()) visit(node, settings, context, recent);
      return context.rewriter.changes > before;
    },
  };
}

function visit(
  node: Node,
  limits: Required<FoldConstantsOptions>,
  context: PassContext,
  recent: Recent,
): void {
  const { rewriter } = context;
  throwIfAborted(context.signal);
  if (node.graph === undefined) return;
  if (node.op === 'If' && node.domain === '') {
    inlineKnownBranch(node, context);
    return;
  }
  if (node.subgraphs.length > 0) return;
  if (!node.inputs.every((input) => input === undefined || input.weight !== undefined)) return;
  const definition = definitionOf(node);
  if (definition?.nondeterministic === true) return;
  if (definition?.evaluate === undefined && storedValue(node) === undefined) return;
  const rule = node.op === 'Constant' ? 'constant-node' : 'fold';
  const why = reasonToKeep(node, limits, rewriter.model.graph);
  if (why !== undefined) {
    context.refuse(rule, node, why);
    return;
  }
  const results = weightsOf(node, limits, context, recent);
  if (results === undefined) return;
  rewriter.before(node);
  node.outputs.forEach((output, index) => {
    const weight = results[index];
    if (output !== undefined && weight !== undefined) replaceByConstant(rewriter, output, weight);
  });
  removeIfUnused(rewriter, node);
  context.count(rule);
}

/** Why a node whose inputs are constants is not folded, or undefined. */
function reasonToKeep(
  node: Node,
  limits: Required<FoldConstantsOptions>,
  main: Graph,
): string | undefined {
  const outputs = node.outputs.filter((output) => output !== undefined);
  if (node.graph !== main && outputs.some((output) => output.isOutput))
    return 'a subgraph cannot hand out a value from outside of it';
  if (outputs.some((output) => output.opaqueType !== undefined)) return 'its result is no tensor';
  if (node.op === 'Constant') return undefined;
  if (packedOps.has(node.op)) return 'it would undo a quantization';
  const [x] = node.inputs;
  if (
    node.op === 'Transpose' &&
    x !== undefined &&
    x.users.size > 1 &&
    bytesOfValue(x) >= TIED_BYTES
  )
    return 'its input is used in both orders';
  const bytes = outputs.reduce((sum, output) => sum + bytesOfValue(output), 0);
  return sizeProblem(bytes, node, limits);
}

/** Constants of this size are kept once, even when an op wants them transposed. */
const TIED_BYTES = 65_536;

const packedOps: ReadonlySet<string> = new Set(['DequantizeLinear', 'Dequantize']);

/** Bytes of a value of known type; 0 when the type is not known. */
function bytesOfValue({ dtype, shape }: Value): number {
  if (dtype === undefined || !isStatic(shape)) return 0;
  return bytesFor(dtype, elementCount(shape));
}

function sizeProblem(
  bytes: number,
  node: Node,
  limits: Required<FoldConstantsOptions>,
): string | undefined {
  if (limits.widen && node.op === 'Cast') return undefined;
  if (bytes > limits.maxBytes) return `its result has ${bytes} bytes`;
  const freed = [...new Set(node.inputs)].reduce(
    (sum, input) => sum + (input !== undefined && input.users.size === 1 ? bytesOfValue(input) : 0),
    0,
  );
  const growth = bytes - freed;
  if (growth > limits.maxGrowthBytes) return `its result would add ${growth} bytes to the model`;
  if (node.op === 'Cast' && growth > TIED_BYTES)
    return `the narrower constant is ${growth} bytes smaller`;
  return undefined;
}

/** The folded outputs, or undefined after saying why not. */
function weightsOf(
  node: Node,
  limits: Required<FoldConstantsOptions>,
  context: PassContext,
  recent: Recent,
): readonly (Weight | undefined)[] | undefined {
  const stored = storedValue(node);
  if (stored !== undefined) return [stored];
  let results: readonly (Tensor | undefined)[];
  const inputs = node.inputs.map((input) => input?.weight);
  try {
    results = evaluateNode(
      node,
      context.rewriter.model,
      inputs.map((input) => input?.tensor()),
    );
  } catch (error) {
    if (!(error instanceof FettleError)) throw error;
    context.refuse('fold', node, error.message);
    return undefined;
  }
  const bytes = results.reduce((sum, result) => sum + bytesOfTensor(result), 0);
  const why = node.op === 'Constant' ? undefined : sizeProblem(bytes, node, limits);
  if (why !== undefined) {
    context.refuse('fold', node, why);
    return undefined;
  }
  const complete = node.outputs.every(
    (output, index) => output === undefined || results[index] !== undefined,
  );
  if (!complete) return undefined;
  const { opsets } = context.rewriter.model;
  return results.map(
    (result, index) => result && folded(result, new Recipe(node, index, inputs, opsets), recent),
  );
}

function bytesOfTensor(result: Tensor | undefined): number {
  return result === undefined || result.dtype === 'string'
    ? 0
    : bytesFor(result.dtype, elementCount(result.shape));
}

/** Larger results are computed again when they are read, so that they are not all in memory. */
const HELD_BYTES = 4 * 1024 * 1024;

/** The result read last. */
interface Recent {
  recipe?: Recipe;
  bytes?: Uint8Array;
}

/** How to compute a folded result again, whatever becomes of the model. */
class Recipe {
  private readonly node: Node;
  private readonly index: number;
  private readonly inputs: readonly (Weight | undefined)[];
  private readonly model: Model;

  constructor(
    node: Node,
    index: number,
    inputs: readonly (Weight | undefined)[],
    opsets: ReadonlyMap<string, number>,
  ) {
    this.node = node;
    this.index = index;
    this.inputs = inputs;
    // a model of its own: the opset of the edited one may change later
    this.model = new Model(new Graph(''), opsets);
  }

  bytes(): Uint8Array {
    const inputs = this.inputs.map((input) => input?.tensor());
    const result = evaluateNode(this.node, this.model, inputs)[this.index];
    assert(result !== undefined, `${this.node.describe()} no longer gives output ${this.index}`);
    return bytesOf(result.data);
  }
}

function folded(result: Tensor, recipe: Recipe, recent: Recent): Weight {
  if (bytesOfTensor(result) <= HELD_BYTES) return Weight.of(result);
  return Weight.lazy(result.dtype, result.shape, (start, length) => {
    if (recent.recipe !== recipe) [recent.recipe, recent.bytes] = [recipe, recipe.bytes()];
    return (recent.bytes ?? new Uint8Array(0)).subarray(start, start + length);
  });
}

/** The tensor of a Constant node; its contents stay where they are until somebody needs them. */
function storedValue(node: Node): Weight | undefined {
  const value = node.op === 'Constant' ? node.attributes.get('value') : undefined;
  return value?.kind === 'tensor' ? value.value : undefined;
}

function inlineKnownBranch(node: Node, context: PassContext): void {
  const condition = uniformValueOf(node.inputs[0]);
  if (condition === undefined) return;
  const branch = node.subgraph(condition === 0 ? 'else_branch' : 'then_branch');
  if (branch === undefined) return;
  inlineBranch(context.rewriter, node, branch);
  context.count('if');
}
