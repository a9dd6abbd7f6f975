/**
 * Computes once what is computed twice.
 *
 *     a = Shape(x); b = Shape(x)            ->   a = Shape(x); uses of b read a
 *     p = Add(x, y); q = Add(y, x)          ->   p
 *     u = Mul(x, 2.0); v = Mul(x, 2.0)      ->   u            two constants with equal contents
 *
 * Two nodes are the same when op, attributes and inputs are; small constants count as equal when
 * their contents are. A node of a subgraph may be the same as one of the graphs around it, never the
 * other way round. Random ops and ops with subgraphs are left alone.
 */
import type { Attribute } from '../ir/attribute.ts';
import type { Graph, Node, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';
import { definitionOf } from '../ops/index.ts';
import type { Pass, PassContext } from './pass.ts';
import { obstacle, replaceValue } from './replace.ts';

/** Constants up to this size are compared by content; larger ones are `deduplicate-weights`' work. */
const SMALL_BYTES = 256;

/** Makes the pass. It has no options. */
export function eliminateCommonSubexpressions(): Pass {
  return {
    name: 'eliminate-common-subexpressions',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      walk(model.graph, new Map(), new Identities(), context);
      return context.rewriter.changes > before;
    },
  };
}

/** Small numbers that stand for values and contents within keys. */
class Identities {
  private readonly values = new Map<Value | Weight, number>();

  of(value: Value): string {
    const { weight } = value;
    if (weight !== undefined && weight.byteLength <= SMALL_BYTES && weight.dtype !== 'string')
      return contents(weight);
    return this.number(value);
  }

  number(object: Value | Weight): string {
    let id = this.values.get(object);
    if (id === undefined) this.values.set(object, (id = this.values.size));
    return `#${id}`;
  }
}

function contents(weight: Weight): string {
  let text = `${weight.dtype}[${weight.shape}]`;
  for (const byte of weight.bytes()) text += byte.toString(16).padStart(2, '0');
  return text;
}

/** `seen`: key -> the first node with it, in this graph or one around it. */
function walk(
  graph: Graph,
  seen: Map<string, Node>,
  identities: Identities,
  context: PassContext,
): void {
  for (const node of graph.nodes()) {
    const subgraphs = node.subgraphs;
    for (const subgraph of subgraphs) walk(subgraph, new Map(seen), identities, context);
    if (subgraphs.length > 0) continue;
    const definition = definitionOf(node);
    if (definition === undefined || definition.nondeterministic === true) continue;
    if (mayDraw(node)) continue;
    const key = keyOf(node, definition.commutative === true, identities);
    const first = seen.get(key);
    if (first === undefined) seen.set(key, node);
    else merge(first, node, context);
  }
}

/** A Dropout in training mode draws random numbers; one of inference is left to eliminate-identity. */
function mayDraw(node: Node): boolean {
  return node.op === 'Dropout';
}

function merge(first: Node, again: Node, context: PassContext): void {
  const { rewriter } = context;
  const { graph } = rewriter.model;
  const pairs = again.outputs.flatMap((output, index) => {
    const twin = first.outputs[index];
    return output === undefined || twin === undefined ? [] : ([[output, twin]] as const);
  });
  for (const [output, twin] of pairs) {
    const why = obstacle(graph, output, twin);
    if (why === undefined) continue;
    context.refuse('node', again, why);
    return;
  }
  rewriter.before(again);
  for (const [output, twin] of pairs) replaceValue(rewriter, output, twin);
  context.count('node');
}

function keyOf(node: Node, commutative: boolean, identities: Identities): string {
  const inputs = node.inputs.map((input) => (input === undefined ? '' : identities.of(input)));
  if (commutative && inputs.length >= 2) {
    const [a = '', b = ''] = inputs;
    if (b < a) [inputs[0], inputs[1]] = [b, a];
  }
  const attributes = [...node.attributes]
    .map(([name, attribute]) => `${name}=${textOf(attribute, identities)}`)
    .sort();
  const outputs = node.outputs.map((output) => (output === undefined ? '-' : '+')).join('');
  return [node.domain, node.op, node.overload, outputs, ...inputs, ...attributes].join('\u0000');
}

function textOf(attribute: Attribute, identities: Identities): string {
  switch (attribute.kind) {
    case 'tensor':
      return attribute.value.byteLength <= SMALL_BYTES && attribute.value.dtype !== 'string'
        ? contents(attribute.value)
        : identities.number(attribute.value);
    case 'tensors':
      return attribute.value.map((weight) => identities.number(weight)).join();
    case 'float':
      return `f${floatText(attribute.value)}`;
    case 'floats':
      return `f${attribute.value.map(floatText).join()}`;
    case 'string':
      return JSON.stringify(attribute.value);
    case 'strings':
      return JSON.stringify(attribute.value);
    case 'int':
      return `i${attribute.value}`;
    case 'ints':
      return `i${attribute.value.join()}`;
    case 'opaque':
      return attribute.value.join();
    default:
      return attribute.kind; // a graph: nodes with subgraphs have no key
  }
}

/** -0 and 0 print alike, and are not. */
function floatText(value: number): string {
  return Object.is(value, -0) ? '-0' : String(value);
}
