/**
 * Model-local functions, found by domain, name and overload.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { BoundAttribute } from './scope.ts';
import { Scope } from './scope.ts';
import type { AttributeProto, FunctionProto, NodeProto } from './schema.ts';

/** Deepest chain of calls; real models stay below ten, and each level takes stack. */
const MAX_CALL_DEPTH = 100;

/** The functions of a model, without recursion. */
export class Functions {
  private readonly byKey = new Map<string, FunctionProto>();
  private readonly sizes = new Map<FunctionProto, number>();

  constructor(functions: readonly FunctionProto[]) {
    for (const body of functions) {
      const key = keyOf(body.domain, body.name, body.overload);
      if (this.byKey.has(key))
        throw new FettleError('MODEL_INVALID', `Function ${describe(body)} is defined twice.`, {
          at: { function: describe(body) },
          fix: 'Export the model again.',
        });
      this.byKey.set(key, body);
    }
    for (const body of functions) this.measure(body, new Set());
  }

  /** The function a node calls, or undefined when it is an op. */
  find(node: NodeProto): FunctionProto | undefined {
    return this.byKey.get(keyOf(node.domain, node.opType, node.overload));
  }

  /** Nodes that one call becomes, calls in its body included. */
  sizeOf(body: FunctionProto): number {
    return this.sizes.get(body) ?? 0;
  }

  /** Computes the size of a body. Throws when the calls go round in a circle. */
  private measure(body: FunctionProto, open: Set<FunctionProto>): number {
    const known = this.sizes.get(body);
    if (known !== undefined) return known;
    if (open.has(body))
      throw new FettleError('MODEL_INVALID', `Function ${describe(body)} calls itself.`, {
        at: { function: describe(body) },
        fix: 'Export the model again; ONNX functions cannot be recursive.',
      });
    if (open.size >= MAX_CALL_DEPTH)
      throw new FettleError(
        'MODEL_INVALID',
        `Functions call each other more than ${MAX_CALL_DEPTH} levels deep.`,
        { at: { function: describe(body) }, fix: 'Export the model without functions.' },
      );
    open.add(body);
    let size = 0;
    for (const node of nestedNodes(body.node ?? [])) {
      const callee = this.find(node);
      size += callee === undefined ? 1 : this.measure(callee, open);
    }
    open.delete(body);
    this.sizes.set(body, size);
    return size;
  }
}

/** The attributes a function body sees: those of the call, then the function's defaults. */
export function bindAttributes(
  body: FunctionProto,
  call: NodeProto,
  scope: Scope,
): Map<string, BoundAttribute> {
  const bound = new Map<string, BoundAttribute>();
  for (const proto of body.attributeProto ?? [])
    bound.set(proto.name ?? '', { proto, scope: new Scope(undefined, new Map()) });
  for (const proto of call.attribute ?? []) {
    const resolved = resolveAttribute(proto, scope);
    if (resolved !== undefined) bound.set(proto.name ?? '', resolved);
  }
  return bound;
}

/** Follows a reference to an attribute of the enclosing function; undefined when the call omits it. */
export function resolveAttribute(proto: AttributeProto, scope: Scope): BoundAttribute | undefined {
  const reference = proto.refAttrName ?? '';
  if (reference === '') return { proto, scope };
  return scope.bindings?.get(reference);
}

/** `domain.name` of a function, with its overload. */
export function describe(body: FunctionProto): string {
  const overload = (body.overload ?? '') === '' ? '' : `:${body.overload}`;
  return `"${body.domain ?? ''}.${body.name ?? ''}${overload}"`;
}

/** The one spelling of a domain: `ai.onnx` is the empty one. */
export function canonicalDomain(domain: string | undefined): string {
  return domain === undefined || domain === 'ai.onnx' ? '' : domain;
}

function keyOf(
  domain: string | undefined,
  name: string | undefined,
  overload: string | undefined,
): string {
  return JSON.stringify([canonicalDomain(domain), name ?? '', overload ?? '']);
}

function* nestedNodes(nodes: readonly NodeProto[]): Generator<NodeProto, void> {
  for (const node of nodes) {
    yield node;
    for (const { g, graphs } of node.attribute ?? [])
      for (const graph of [...(g ? [g] : []), ...(graphs ?? [])])
        yield* nestedNodes(graph.node ?? []);
  }
}
