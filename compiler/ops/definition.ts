/**
 * What Fettle knows about an op: its arity, types and shapes, its reference evaluation and its cost.
 * One file per family; `index.ts` lists the families. Passes, engines and reports ask here and nowhere
 * else, so an op is added in two places: its family and its cases in the tests.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { Graph, Node, Value, ValueType } from '../ir/graph.ts';

/** What shape inference may ask about one node. */
export interface InferContext {
  /** The node itself, for its attributes. */
  readonly node: Node;
  /** Opset version of the node's domain. */
  readonly opset: number;
  /** Type of input `index`; an empty object when absent or unknown. */
  input(index: number): Readonly<ValueType>;
  /** Whether input `index` is given. */
  has(index: number): boolean;
  /** Contents of input `index` when it is a constant. */
  constant(index: number): Tensor | undefined;
  /** Contents of a small integer input as dimensions (constants included), when known. */
  elements(index: number): readonly Dim[] | undefined;
  /** An anonymous size, different from every other. */
  fresh(): Dim;
  /** Infers a subgraph with the given input types and returns its output types. */
  graph(graph: Graph, inputs: readonly Readonly<ValueType>[]): readonly ValueType[];
  /** Tells the user something that is no error, once. */
  warn(message: string): void;
}

/** What an evaluation may ask about one node. */
export interface EvaluateContext {
  /** The node itself, for its attributes. */
  readonly node: Node;
  /** Opset version of the node's domain. */
  readonly opset: number;
  /** Input tensors; undefined where absent. */
  readonly inputs: readonly (Tensor | undefined)[];
  /** Input `index`; throws when it is absent. */
  input(index: number): Tensor;
  /** Runs a subgraph, which may use values of the graphs around it. */
  graph(graph: Graph, inputs: readonly (Tensor | undefined)[]): readonly Tensor[];
  /** Deterministic uniform numbers in [0, 1), for the random ops. */
  random(seed: number): () => number;
}

/** Arithmetic and traffic of one execution, for reports and the cost model. */
export interface Cost {
  /** Multiply-accumulates count as 2. */
  readonly flops: number;
  /** Bytes read and written. */
  readonly bytes: number;
}

/** An op of one domain. */
export interface OpDefinition {
  /** Op type. */
  readonly op: string;
  /** '' for ONNX. */
  readonly domain: string;
  /** Fewest and most inputs. */
  readonly inputs: readonly [min: number, max: number];
  /** Fewest and most outputs. */
  readonly outputs: readonly [min: number, max: number];
  /** Whether equal inputs may give different outputs (random ops). Default false. */
  readonly nondeterministic?: boolean;
  /** Whether inputs 0 and 1 may change places. Default false. */
  readonly commutative?: boolean;
  /** Types of the outputs; leave out what is not known. Throws FettleError MODEL_INVALID on a contradiction. */
  infer(context: InferContext): readonly ValueType[];
  /** Reference evaluation, correctness first. Absent: the op cannot be folded or evaluated. */
  evaluate?(context: EvaluateContext): readonly (Tensor | undefined)[];
  /** Cost with all sizes known. Absent: bytes of inputs and outputs, one operation per element. */
  cost?(node: Node, shapeOf: (value: Value) => readonly number[]): Cost;
}
