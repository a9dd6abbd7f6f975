/**
 * Names and attributes in force while a graph or function body is read.
 */
import type { Value } from '../ir/graph.ts';
import type { AttributeProto } from './schema.ts';

/** Values by name, with those of the graphs around. */
export class Scope {
  /** Attributes of the call, inside a function body. */
  readonly bindings: Bindings | undefined;
  private readonly parent: Scope | undefined;
  private readonly values = new Map<string, Value | undefined>();

  constructor(parent?: Scope, bindings: Bindings | undefined = parent?.bindings) {
    this.parent = parent;
    this.bindings = bindings;
  }

  /** Whether this scope, not the ones around it, has the name. */
  owns(name: string): boolean {
    return this.values.has(name);
  }

  /** Adds a name; undefined is an optional function input that the call leaves out. */
  define(name: string, value: Value | undefined): void {
    this.values.set(name, value);
  }

  /** Whether the name is defined here or around. */
  has(name: string): boolean {
    return this.values.has(name) || (this.parent?.has(name) ?? false);
  }

  /** What a name stands for. */
  get(name: string): Value | undefined {
    return this.values.has(name) ? this.values.get(name) : this.parent?.get(name);
  }
}

/** An attribute of a call with the scope its subgraphs see. */
export interface BoundAttribute {
  readonly proto: AttributeProto;
  readonly scope: Scope;
}

/** Attributes of a function call by name, defaults filled in. */
export type Bindings = ReadonlyMap<string, BoundAttribute>;
