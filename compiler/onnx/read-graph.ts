/**
 * GraphProto -> Graph. Names become links: an input of a node is the Value itself, also when it belongs
 * to a graph around. Names of subgraphs and function bodies that are taken already get a suffix, so
 * that names are unique over the model. Calls of model-local functions are replaced by their bodies.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Model } from '../ir/graph.ts';
import { Graph, Node, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';
import { readAttribute } from './attribute.ts';
import type { Functions } from './functions.ts';
import { bindAttributes, canonicalDomain, describe, resolveAttribute } from './functions.ts';
import { sortNodes } from './order.ts';
import type { FunctionProto, GraphProto, NodeProto, ValueInfoProto } from './schema.ts';
import { Scope } from './scope.ts';
import { readSparseTensor } from './sparse.ts';
import type { TensorStorage } from './tensor.ts';
import { readTensor } from './tensor.ts';
import { entriesOf, readType } from './type.ts';
import { unknownsOf } from './wire.ts';

/** Nodes that inlining may make; calls in calls multiply, and a small file must not fill memory. */
const MAX_INLINED_NODES = 1_000_000;

/** Reads the graphs of one model. */
export class GraphReader {
  private readonly model: Model;
  private readonly storage: TensorStorage;
  private readonly functions: Functions;
  private inlinedNodes = 0;

  constructor(model: Model, storage: TensorStorage, functions: Functions) {
    this.model = model;
    this.storage = storage;
    this.functions = functions;
  }

  /**
   * Fills an empty graph from a message, in the scope of the graphs around it.
   *
   * @returns names of the inputs that have a default value and became constants
   */
  read(proto: GraphProto, graph: Graph, outer?: Scope): readonly string[] {
    const scope = new Scope(outer);
    graph.docString = proto.docString ?? '';
    graph.metadata = entriesOf(proto.metadataProps);
    graph.carried = unknownsOf(proto);
    const infos = new Map<string, ValueInfoProto>();
    for (const info of [
      ...(proto.valueInfo ?? []),
      ...(proto.output ?? []),
      ...(proto.input ?? []),
    ])
      infos.set(info.name ?? '', info);
    const define = (name: string): Value => this.define(name, scope, infos.get(name));
    const weights = this.readWeights(proto);
    const constantInputs: string[] = [];
    for (const { name = '' } of proto.input ?? []) {
      if (weights.has(name)) constantInputs.push(name);
      else graph.inputs.push(define(name));
    }
    for (const [name, weight] of weights) {
      const value = define(name);
      value.weight = weight;
      value.dtype = weight.dtype;
      value.shape = weight.shape;
      graph.addConstant(value);
    }
    const nodes = sortNodes(proto.node ?? []);
    for (const node of nodes) for (const name of node.output ?? []) if (name !== '') define(name);
    for (const node of nodes) this.addNode(graph, node, scope);
    for (const { name = '' } of proto.output ?? [])
      graph.setOutput(this.lookup(name, scope, `The graph "${graph.name}" has the output`));
    return constantInputs;
  }

  private readWeights(proto: GraphProto): Map<string, Weight> {
    const weights = new Map<string, Weight>();
    const add = (name: string, read: () => Weight): void => {
      if (weights.has(name)) throw duplicate(name);
      weights.set(name, read());
    };
    for (const tensor of proto.initializer ?? []) {
      const name = tensor.name ?? '';
      add(name, () => readTensor(tensor, this.storage, { value: name }, false));
    }
    for (const tensor of proto.sparseInitializer ?? []) {
      const name = tensor.values?.name ?? '';
      add(name, () => readSparseTensor(tensor, this.storage, { value: name }));
    }
    return weights;
  }

  private define(name: string, scope: Scope, info: ValueInfoProto | undefined): Value {
    if (name === '')
      throw new FettleError('MODEL_INVALID', 'A graph input or initializer has no name.', {
        at: { value: '' },
        fix: 'Export the model again.',
      });
    if (scope.owns(name)) throw duplicate(name);
    const value = new Value(this.model.uniqueName(name));
    scope.define(name, value);
    if (info !== undefined) readType(value, info, () => this.model.freshDim());
    return value;
  }

  private lookup(name: string, scope: Scope, who: string): Value {
    const value = scope.get(name);
    if (value === undefined) throw undefinedName(name, who);
    return value;
  }

  private addNode(graph: Graph, proto: NodeProto, scope: Scope, caller?: Node): void {
    const body = this.functions.find(proto);
    if (body !== undefined) {
      this.inline(graph, proto, body, scope, caller);
      return;
    }
    const node = this.makeNode(proto, outputsOf(proto, scope), scope, caller);
    proto.input?.forEach((name, index) => {
      const absent = name === '' || (scope.has(name) && scope.get(name) === undefined);
      node.setInput(
        index,
        absent ? undefined : this.lookup(name, scope, `${node.describe()} reads`),
      );
    });
    graph.insert(node);
  }

  private makeNode(
    proto: NodeProto,
    outputs: readonly (Value | undefined)[],
    scope: Scope,
    caller: Node | undefined,
  ): Node {
    const own = proto.name ?? '';
    const name =
      caller === undefined ? own : `${caller.name}/${own === '' ? (proto.opType ?? '') : own}`;
    const node = new Node(proto.opType ?? '', outputs, {
      domain: canonicalDomain(proto.domain),
      overload: proto.overload ?? '',
      name,
      ...(caller === undefined ? {} : { from: caller.from }),
    });
    node.docString = proto.docString ?? '';
    node.metadata = entriesOf(proto.metadataProps);
    node.carried = unknownsOf(proto);
    for (const attribute of proto.attribute ?? []) {
      const attributeName = attribute.name ?? '';
      if (node.attributes.has(attributeName))
        throw new FettleError(
          'MODEL_INVALID',
          `${node.describe()} has the attribute "${attributeName}" twice.`,
          { at: { node: name }, fix: 'Export the model again.' },
        );
      const bound = resolveAttribute(attribute, scope);
      // an attribute of the function that the call leaves out is left out here too
      if (bound === undefined) continue;
      const read = readAttribute(attributeName, bound.proto, this.storage, name, (subgraph) => {
        const inner = new Graph(subgraph.name ?? '');
        this.read(subgraph, inner, bound.scope);
        return inner;
      });
      node.setAttribute(attributeName, read);
    }
    return node;
  }

  private inline(
    graph: Graph,
    call: NodeProto,
    body: FunctionProto,
    scope: Scope,
    caller: Node | undefined,
  ): void {
    const nodes = sortNodes(body.node ?? []);
    // a call inside a body was counted with the body
    if (scope.bindings === undefined) this.inlinedNodes += this.functions.sizeOf(body);
    if (this.inlinedNodes > MAX_INLINED_NODES)
      throw new FettleError(
        'MODEL_INVALID',
        `Inlining the model's functions makes more than ${MAX_INLINED_NODES} nodes.`,
        { at: { function: describe(body) }, fix: 'Export the model without functions.' },
      );
    const name = (call.name ?? '') === '' ? (body.name ?? '') : (call.name ?? '');
    // never inserted: it gives the body's nodes their names and provenance
    const frame = new Node(body.name ?? '', [], {
      name: caller === undefined ? name : `${caller.name}/${name}`,
      ...(caller === undefined ? {} : { from: caller.from }),
    });
    const inner = new Scope(undefined, bindAttributes(body, call, scope));
    body.input?.forEach((formal, i) => {
      const actual = call.input?.[i] ?? '';
      const absent = actual === '' || (scope.has(actual) && scope.get(actual) === undefined);
      if (inner.owns(formal)) throw duplicate(formal);
      inner.define(
        formal,
        absent ? undefined : this.lookup(actual, scope, `${frame.describe()} reads`),
      );
    });
    const results = outputsOf(call, scope);
    const copies: [formal: string, result: Value][] = [];
    const taken = new Map<string, Value>();
    body.output?.forEach((formal, i) => {
      const result = results[i];
      if (result === undefined) return;
      // an output that is an input, or is listed twice, needs a node of its own
      if (inner.owns(formal) || taken.has(formal)) copies.push([formal, result]);
      else taken.set(formal, result);
    });
    for (const node of nodes)
      for (const output of node.output ?? []) {
        if (output === '') continue;
        if (inner.owns(output)) throw duplicate(output);
        const unique = (): Value => new Value(this.model.uniqueName(`${frame.name}/${output}`));
        inner.define(output, taken.get(output) ?? unique());
      }
    for (const node of nodes) this.addNode(graph, node, inner, frame);
    for (const [formal, result] of copies) {
      const copy = new Node('Identity', [result], { name: frame.name, from: frame.from });
      copy.setInput(0, this.lookup(formal, inner, `Function ${describe(body)} returns`));
      graph.insert(copy);
    }
    for (const [formal, result] of taken)
      if (result.producer === undefined)
        throw undefinedName(formal, `Function ${describe(body)} returns`);
  }
}

function outputsOf(proto: NodeProto, scope: Scope): (Value | undefined)[] {
  return (proto.output ?? []).map((name) => (name === '' ? undefined : scope.get(name)));
}

function undefinedName(name: string, who: string): FettleError {
  return new FettleError('MODEL_INVALID', `${who} "${name}", which nothing defines.`, {
    at: { value: name },
    fix: 'Export the model again.',
  });
}

function duplicate(name: string): FettleError {
  return new FettleError(
    'MODEL_INVALID',
    `"${name}" is defined twice; values have one definition.`,
    {
      at: { value: name },
      fix: 'Export the model again.',
    },
  );
}
