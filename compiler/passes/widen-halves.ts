/**
 * Computes in f32 what a model computes in f16 or bf16, so that every later pass and kernel meets one
 * float dtype. Weights stay as small as they are: large constants are widened by a Cast where they are
 * read. A decoder's cache and logits become f32; other inputs and outputs keep their dtype.
 *
 *     Cast(x, f32) … Cast(y, f16), MatMul(y, w f16)     ->   MatMul(y, Cast(w f16))
 *
 * Numbers are only ever more exact than before, and constants of formulas (the root of 2 in a GELU) are
 * what they were before an exporter rounded them. What takes halves by its definition (quantized weights
 * with scales in f16) keeps them behind a Cast.
 */
import type { DType } from '../../runtime/tensor.ts';
import { bytesFor, dtypes, elementCount } from '../../runtime/tensor.ts';
import { analyzeDecoder } from '../analyze/decoder.ts';
import { int, tensorAttribute } from '../ir/attribute.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { castTensor } from '../ops/cast.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import type { Pass, PassContext } from './pass.ts';

/** Constants beyond this many bytes are kept in half precision. */
const SMALL_BYTES = 32_768;

/** Makes the pass. It has no options. */
export function widenHalves(): Pass {
  return {
    name: 'widen-halves',
    options: {},
    rules: [{ name: 'widen', starts: [] }],
    run(model, context) {
      const before = context.rewriter.changes;
      const [first] = model.graph.nodes();
      if (first === undefined || !computesInHalves(model)) return false;
      const branch = [...model.graph.nodes()].find(({ subgraphs }) => subgraphs.length > 0);
      if (branch === undefined) new Widening(model, context, first).run();
      else
        context.refuse('widen', branch, 'it has graphs of its own, whose halves are not followed');
      return context.rewriter.changes > before;
    },
  };
}

function isHalf(dtype: DType | undefined): dtype is 'f16' | 'bf16' {
  return dtype === 'f16' || dtype === 'bf16';
}

/** Whether some node but a widening Cast takes or gives halves. */
function computesInHalves(model: Model): boolean {
  for (const node of model.graph.allNodes())
    if (!keepsHalves(node) && !isBorder(node))
      for (const value of [...node.inputs, ...node.outputs]) if (isHalf(value?.dtype)) return true;
  return false;
}

/** A Cast between an input, a constant or an output of the graph and f32. */
function isBorder(node: Node): boolean {
  if (node.op !== 'Cast' || node.domain !== '') return false;
  const [from, to] = [node.input(0), node.output(0)];
  return (
    (to.dtype === 'f32' && from.producer === undefined) ||
    (from.dtype === 'f32' && (to.isOutput || [...to.users.keys()].every(keepsHalves))) ||
    (to.dtype === 'f32' && from.producer !== undefined && keepsHalves(from.producer))
  );
}

/** Ops whose halves are part of their definition. */
const halfOps: ReadonlySet<string> = new Set([
  'DequantizeLinear',
  'QuantizeLinear',
  'DynamicQuantizeLinear',
  'MatMulNBits',
  'GatherBlockQuantized',
  'Dequantize',
]);

function keepsHalves(node: Node): boolean {
  return (
    (halfOps.has(node.op) && (node.domain !== internalDomain || node.op === 'Dequantize')) ||
    (node.domain !== '' && node.domain !== 'com.microsoft' && node.domain !== internalDomain)
  );
}

class Widening {
  private readonly model: Model;
  private readonly context: PassContext;
  private readonly first: Node;
  /** f32 forms of values that stay halves. */
  private readonly wide = new Map<Value, Value>();

  constructor(model: Model, context: PassContext, first: Node) {
    this.model = model;
    this.context = context;
    this.first = first;
  }

  run(): void {
    const { model, context } = this;
    const nodes = [...model.graph.nodes()];
    const driven = this.drivenValues();
    const outputs = model.graph.outputs.flatMap(({ name, dtype }, index) =>
      isHalf(dtype) && !driven.has(name) ? [[index, dtype] as const] : [],
    );
    const wanted = nodes
      .filter(keepsHalves)
      .flatMap((node) =>
        node.inputs.flatMap((input, index) =>
          input !== undefined && input.weight === undefined && isHalf(input.dtype)
            ? [[node, index, input.dtype] as const]
            : [],
        ),
      );
    for (const input of model.graph.inputs)
      if (isHalf(input.dtype) && input.useCount > 0)
        if (driven.has(input.name)) input.dtype = 'f32';
        else this.wide.set(input, this.cast(input, 'f32', this.first));
    for (const node of nodes)
      if (keepsHalves(node)) this.widenBehind(node);
      else this.widen(node);
    for (const [node, index, dtype] of wanted)
      if (node.input(index).dtype === 'f32')
        context.rewriter.setInput(node, index, this.cast(node.input(index), dtype, node));
    for (const [index, dtype] of outputs) this.narrowOutput(index, dtype);
    context.count('widen');
  }

  /** Names of a decoder's cache and logits. */
  private drivenValues(): ReadonlySet<string> {
    const { decoder } = analyzeDecoder(this.model);
    if (decoder === undefined) return new Set();
    return new Set([
      decoder.logits,
      ...decoder.state.flatMap(({ input, output }) => [input, output]),
    ]);
  }

  private cast(value: Value, dtype: DType, anchor: Node | undefined): Value {
    const { rewriter } = this.context;
    if (anchor === undefined) rewriter.atEnd();
    else rewriter.before(anchor);
    return rewriter.op('Cast', [value], { to: int(dtypes[dtype].onnx) }, { name: value.name });
  }

  private widen(node: Node): void {
    const { rewriter } = this.context;
    node.inputs.forEach((input, index) => {
      const wide = input === undefined ? undefined : this.widened(input);
      if (wide !== undefined) rewriter.setInput(node, index, wide);
    });
    for (const name of ['to', 'dtype'])
      if (halfCodes.has(node.int(name, 0))) rewriter.setAttribute(node, name, int(dtypes.f32.onnx));
    for (const [name, attribute] of node.attributes)
      if (attribute.kind === 'tensor' && isHalf(attribute.value.dtype))
        rewriter.setAttribute(node, name, tensorAttribute(wideWeight(attribute.value)));
    rewriter.refresh(node);
    for (const output of node.outputs)
      if (output !== undefined && isHalf(output.dtype)) output.dtype = 'f32';
  }

  /** What a value that stays a half is for others. */
  private widenBehind(node: Node): void {
    for (const output of node.outputs)
      if (output !== undefined && isHalf(output.dtype) && output.users.size > 0)
        this.wide.set(output, this.cast(output, 'f32', node.next));
  }

  /** The f32 form of a half that no widened node computes. */
  private widened(value: Value): Value | undefined {
    const known = this.wide.get(value);
    if (known !== undefined) return known;
    const { weight } = value;
    if (weight === undefined || !isHalf(weight.dtype)) return undefined;
    const isSmall = bytesFor(weight.dtype, elementCount(weight.shape)) <= SMALL_BYTES;
    const wide = isSmall
      ? this.context.rewriter.constant(`${value.name}_f32`, wideWeight(weight))
      : this.cast(value, 'f32', this.first);
    this.wide.set(value, wide);
    return wide;
  }

  /** Gives the user what the model promises. */
  private narrowOutput(index: number, dtype: DType): void {
    const { graph } = this.model;
    const output = graph.outputs[index];
    if (output === undefined || output.dtype !== 'f32') return;
    const narrow = this.cast(output, dtype, undefined);
    [output.name, narrow.name] = [narrow.name, output.name];
    graph.setOutput(narrow, index);
  }
}

/** ONNX's numbers of the half dtypes. */
const halfCodes: ReadonlySet<number> = new Set([dtypes.f16.onnx, dtypes.bf16.onnx]);

/** Numbers that formulas are made of; a half that is one of them rounded stands for the number itself. */
const familiar: readonly number[] = [
  Math.SQRT2,
  Math.SQRT1_2,
  Math.sqrt(2 / Math.PI),
  0.044715,
  1.702,
  1 / 3,
  1 / 6,
];

function wideWeight(weight: Weight): Weight {
  const wide = castTensor(weight.tensor(), 'f32');
  if (elementCount(weight.shape) !== 1) return Weight.of(wide);
  const [value = 0] = readNumbers(wide);
  const meant = familiar.find((number) => {
    const rounded = castTensor(writeNumbers('f32', [], Float64Array.of(number)), weight.dtype);
    return readNumbers(rounded)[0] === Math.abs(value);
  });
  if (meant === undefined) return Weight.of(wide);
  return Weight.of(writeNumbers('f32', weight.shape, Float64Array.of(Math.sign(value) * meant)));
}
