/**
 * What the lowering of every op family uses: places of values, buffers, constants and steps.
 *
 * Every activation is f32 in the arena, whatever its dtype (halves gain precision, integers and bools
 * are exact below 2^24), except ids and indices, which are i32. Reshapes are views of the same bytes.
 */
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { bytesOf } from '../../runtime/tensor.ts';
import type { KernelName, ParameterName } from '../../runtime/wasm/step.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { isStatic, multiplyDims, substituteDim } from '../ir/dim.ts';
import { evaluateNode } from '../ir/evaluate.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { floatsOf } from './pack-weights.ts';
import { dequantizeBehind, unpackWeights } from './wasm-unpack.ts';
import type { Address, Buffer, Segment, Step, Word } from './plan.ts';
import { addressOf, linearOf, P, S, shifted, sizeAt, stepOf } from './plan.ts';

/** How elements of an activation are stored. */
export type ElementType = 'f32' | 'i32';

/** Where a value is. Contiguous, row-major. */
export interface Place {
  readonly address: Address;
  /** Sizes over S and P. */
  readonly shape: readonly Dim[];
  readonly type: ElementType;
  /** Segment that computes it; undefined for constants and state. */
  readonly segment: Segment | undefined;
}

/** Why a node cannot be lowered; collected, so that the user hears of all of them at once. */
export class Unsupported extends Error {}

/** Details of an emitted step. */
export interface EmitOptions {
  /** Why this kernel and this form. */
  readonly why?: string;
  /** Buffers that may share storage: [written, read]. */
  readonly inPlace?: readonly (readonly [Place, Place])[];
}

/** Sizes the plan is made for. */
export interface PlanSizes {
  /** Values of the model's named sizes over S and P. */
  readonly sizes: ReadonlyMap<string, Dim>;
  /** Most tokens of a call. */
  readonly chunk: number;
  /** Most tokens of the KV cache; the largest S of a model without one. */
  readonly context: number;
  /** Threads that working memory is reserved for. */
  readonly threads: number;
  /** Format of the KV cache. */
  readonly kv: 'source' | 'f32' | 'f16';
  /** Whether float matrices made of halves are stored as halves. */
  readonly halves: boolean;
}

/** The lowering of one model. */
export class Lowering {
  readonly steps: Step[] = [];
  /** The segment that steps are added to. */
  segment: Segment = 'body';
  /** The node being lowered. */
  node: Node | undefined;
  readonly model: Model;
  readonly decoder: DecoderSpec | undefined;
  readonly sizes: PlanSizes;
  /** KV state: bytes of every cache. */
  readonly state: Buffer[] = [];
  /** Input of a cache -> the output that holds it after the call. */
  readonly caches: ReadonlyMap<string, string>;
  readonly warnings: string[] = [];
  private readonly places = new Map<Value, Place>();
  private readonly converted = new Map<string, Place>();
  private readonly constants = new Map<string, Buffer>();
  private readonly names = new Set<string>();
  private readonly constantNodes = new Map<Node, boolean>();
  private readonly foldedWeights = new Map<Value, Weight>();
  private readonly ids = new Map<object, number>();
  private readonly unpackedBuffers = new Map<string, Buffer>();

  constructor(model: Model, decoder: DecoderSpec | undefined, sizes: PlanSizes) {
    this.model = model;
    this.decoder = decoder;
    this.sizes = sizes;
    this.caches = new Map(decoder?.state.map(({ input, output }) => [input, output]));
  }

  /** Every constant that some step reads, in the order of first use. */
  get weights(): readonly Buffer[] {
    return [...this.constants.values()].filter(({ region }) => region === 'weights');
  }

  /** A dimension of the model over S and P. */
  dim(dim: Dim): Dim {
    return substituteDim(dim, this.sizes.sizes);
  }

  /** Shape of a value over S and P. */
  shapeOf(value: Value): readonly Dim[] {
    if (value.shape === undefined)
      throw new Unsupported(`the rank of "${value.name}" is not known`);
    return value.shape.map((dim) => this.size(this.dim(dim), value.name));
  }

  /** Checks that a size can be planned. */
  size(dim: Dim, name: string): Dim {
    if (linearOf(dim) === undefined)
      throw new Unsupported(`the size ${dim} of "${name}" is not known; fix it with --shape`);
    return dim;
  }

  /** The largest value of a size over all calls. */
  largest(dim: Dim): number {
    const { chunk, context } = this.sizes;
    const corners: readonly (readonly [number, number])[] = [
      [1, 0],
      [chunk, 0],
      [chunk, context - chunk],
      [1, context - 1],
    ];
    return Math.max(...corners.map(([s, p]) => sizeAt(dim, s, p) ?? 0));
  }

  /** A size that must be a number. */
  fixed(dim: Dim | undefined, what: string): number {
    if (typeof dim !== 'number') throw new Unsupported(`${what} is not fixed (${dim})`);
    return dim;
  }

  /** Where a value is as f32. */
  floats(value: Value): Place {
    return this.as(value, 'f32');
  }

  /** Where a value is as i32. */
  ints(value: Value): Place {
    return this.as(value, 'i32');
  }

  /** Where an optional value is as f32; address 0 when it is absent. */
  optional(value: Value | undefined): Word {
    return value === undefined ? 0 : this.floats(value).address;
  }

  /** Where a value is, in the type it was computed in. */
  placeOf(value: Value): Place {
    return this.crossing(this.stored(value));
  }

  /** Gives a value a place. */
  define(value: Value, place: Place): void {
    this.places.set(value, place);
  }

  /** A view: the same bytes under another shape. */
  alias(value: Value, place: Place, shape: readonly Dim[] = this.shapeOf(value)): void {
    this.places.set(value, { ...place, shape });
  }

  /** A new activation for output `index` of the node being lowered. */
  output(node: Node, index = 0, type: ElementType = 'f32'): Place {
    const value = node.output(index);
    const place = this.fresh(value.name, this.shapeOf(value), type);
    this.places.set(value, place);
    return place;
  }

  /** A new activation that is no value of the graph. */
  fresh(name: string, shape: readonly Dim[], type: ElementType = 'f32'): Place {
    const buffer = this.arena(name, multiplyDims(4, ...shape));
    return { address: addressOf(buffer), shape, type, segment: this.segment };
  }

  /** A new run of bytes in the arena. */
  arena(name: string, bytes: Dim): Buffer {
    this.size(bytes, name);
    return { name, region: 'arena', bytes, segment: this.segment };
  }

  /** An input of the model, written by the caller. */
  input(value: Value, type: ElementType): Buffer {
    const shape = this.shapeOf(value);
    const bytes = this.size(multiplyDims(4, ...shape), value.name);
    const buffer: Buffer = {
      name: value.name,
      region: 'arena',
      bytes,
      segment: 'body',
      input: true,
    };
    this.places.set(value, { address: addressOf(buffer), shape, type, segment: 'body' });
    return buffer;
  }

  /** Bytes of KV cache. */
  cache(name: string, bytes: number): Buffer {
    const buffer: Buffer = { name, region: 'state', bytes, segment: 'body' };
    this.state.push(buffer);
    return buffer;
  }

  /** Working memory of the plan's threads for one step. */
  panel(bytesPerThread: number): Buffer {
    return this.arena('panel', bytesPerThread * this.sizes.threads);
  }

  /** Adds a step. */
  emit<K extends KernelName>(
    kernel: K,
    parameters: Readonly<Record<ParameterName<K>, Word>>,
    options: EmitOptions = {},
  ): Step {
    return this.push(kernel, stepOf(kernel, parameters), options);
  }

  /** Adds a step whose words are given in order. */
  push(kernel: Step['kernel'], words: Word[], { why = '', inPlace = [] }: EmitOptions = {}): Step {
    const step: Step = {
      kernel,
      segment: this.segment,
      words,
      node: this.node === undefined ? '' : this.node.name || this.node.op,
      why,
      // a view into the middle of a buffer does not start where the result would
      inPlace: inPlace
        .filter(([to, from]) => to.address.offset === 0 && from.address.offset === 0)
        .map(([to, from]) => [to.address.buffer, from.address.buffer]),
    };
    for (const word of words)
      if (typeof word !== 'object') this.size(word, `${kernel} of ${step.node}`);
    this.steps.push(step);
    return step;
  }

  /** A constant in the weights, made once for each key. */
  weight(
    key: string,
    name: string,
    make: () => { readonly weight: Weight; readonly format?: string },
  ): Buffer {
    let buffer = this.constants.get(key);
    if (buffer === undefined) {
      const { weight, format } = make();
      buffer = {
        name: this.unique(name),
        region: 'weights',
        bytes: weight.byteLength,
        segment: 'body',
        weight,
        ...(format === undefined ? {} : { format }),
      };
      this.constants.set(key, buffer);
    }
    return buffer;
  }

  /** A number that stands for an object in keys. */
  idOf(object: object): number {
    let id = this.ids.get(object);
    if (id === undefined) {
      id = this.ids.size;
      this.ids.set(object, id);
    }
    return id;
  }

  /** Words that steps point to: expression code. Made once for equal words. */
  code(words: Int32Array<ArrayBuffer>): Address {
    const key = `code ${words.join(' ')}`;
    let buffer = this.constants.get(key);
    if (buffer === undefined) {
      buffer = { name: 'code', region: 'plan', bytes: words.byteLength, segment: 'body', words };
      this.constants.set(key, buffer);
    }
    return addressOf(buffer);
  }

  /** Every run of words that steps point to. */
  get codes(): readonly Buffer[] {
    return [...this.constants.values()].filter(({ region }) => region === 'plan');
  }

  /** Integers 0, 1, …, `count` - 1 as f32 along one axis, the others 1. */
  numbers(count: number, rank = 1, axis = 0): Place {
    const values = Float32Array.from({ length: count }, (_, index) => index);
    const shape = Array.from({ length: rank }, (_, at) => (at === axis ? count : 1));
    const address = this.table(`0 to ${count - 1}`, values);
    return { address, shape, type: 'f32', segment: undefined };
  }

  /** Values written by hand, for what the graph does not hold as a tensor. */
  table(name: string, values: Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>): Address {
    const dtype = values instanceof Float32Array ? 'f32' : 'i32';
    const key = `table ${dtype} ${values.join(' ')}`;
    const weight = (): Weight => Weight.of({ dtype, shape: [values.length], data: values });
    return addressOf(this.weight(key, name, () => ({ weight: weight() })));
  }

  private unique(name: string): string {
    let free = name;
    for (let suffix = 1; this.names.has(free); suffix++) free = `${name}_${suffix}`;
    this.names.add(free);
    return free;
  }

  private as(value: Value, type: ElementType): Place {
    const codes = type === 'f32' ? this.unpacked(value) : undefined;
    if (codes !== undefined) return codes;
    const constant = value.weight ?? this.folded(value);
    if (constant !== undefined) return this.constantPlace(value, constant, type);
    const found = this.stored(value);
    if (found.type === type) return this.crossing(found);
    const key = `${this.idOf(found.address.buffer)} ${found.address.offset} ${type}`;
    let place = this.converted.get(key);
    if (place === undefined || place.segment !== this.segment) {
      const from = this.crossing(found);
      place = this.fresh(`${value.name} as ${type}`, found.shape, type);
      this.emit('CONVERT', {
        X: from.address,
        Y: place.address,
        COUNT: multiplyDims(...found.shape),
        FROM: from.type === 'f32' ? abi.TYPE_F32 : abi.TYPE_I32,
        TO: type === 'f32' ? abi.TYPE_F32 : abi.TYPE_I32,
      });
      this.converted.set(key, place);
    }
    return place;
  }

  private constantPlace(value: Value, weight: Weight, type: ElementType): Place {
    const key = `raw ${type} ${this.idOf(weight)}`;
    const buffer = this.weight(key, value.name, () => ({ weight: rawWeight(weight, type) }));
    return { address: addressOf(buffer), shape: weight.shape, type, segment: undefined };
  }

  private stored(value: Value): Place {
    const place = this.places.get(value);
    if (place !== undefined) return place;
    if (value.weight !== undefined) return this.constantPlace(value, value.weight, 'f32');
    const codes = this.unpacked(value);
    if (codes !== undefined) return codes;
    const folded = this.folded(value);
    if (folded !== undefined) return this.constantPlace(value, folded, 'f32');
    const { elements } = value;
    if (elements === undefined) throw new Unsupported(`"${value.name}" has not been computed`);
    const made = this.materialize(value, elements);
    this.places.set(value, made);
    return made;
  }

  /** A matrix of codes as f32, unpacked when the plan is loaded; undefined when the value is none. */
  private unpacked(value: Value): Place | undefined {
    const known = this.places.get(value);
    if (known !== undefined) return undefined;
    const node = dequantizeBehind(value);
    const { shape } = value;
    if (node === undefined || !isStatic(shape ?? ['open'])) return undefined;
    const buffer = this.unpackedCodes(node, false);
    return { address: addressOf(buffer), shape: shape ?? [], type: 'f32', segment: undefined };
  }

  /** The values of a Dequantize node in the other orientation, unpacked when the plan is loaded. */
  unpackedTurned(node: Node): Address {
    return addressOf(this.unpackedCodes(node, true));
  }

  private unpackedCodes(node: Node, turned: boolean): Buffer {
    const key = `${this.idOf(node)} ${turned}`;
    let buffer = this.unpackedBuffers.get(key);
    if (buffer === undefined) {
      buffer = unpackWeights(this, node, turned);
      this.unpackedBuffers.set(key, buffer);
    }
    return buffer;
  }

  /** Adds steps that run once, when the plan is loaded. */
  once<T>(emit: () => T): T {
    const { segment } = this;
    this.segment = 'init';
    const result = emit();
    this.segment = segment;
    return result;
  }

  /** Whether a value depends on constants alone. */
  isConstant(value: Value | undefined): boolean {
    if (value === undefined || value.weight !== undefined) return true;
    const { producer } = value;
    if (producer === undefined || producer.subgraphs.length > 0) return false;
    let known = this.constantNodes.get(producer);
    if (known === undefined) {
      known =
        producer.inputs.length > 0 && producer.inputs.every((input) => this.isConstant(input));
      this.constantNodes.set(producer, known);
    }
    return known;
  }

  /** A value that depends on constants alone, computed when it is written. */
  private folded(value: Value): Weight | undefined {
    const { producer, shape } = value;
    if (producer === undefined || !this.isConstant(value)) return undefined;
    if (shape === undefined || !isStatic(shape)) return undefined;
    const make = (of: Value): Tensor | undefined => {
      if (of.producer === undefined) return of.constant();
      const inputs = of.producer.inputs.map((input) => input && make(input));
      return evaluateNode(of.producer, this.model, inputs)[of.producer.outputs.indexOf(of)];
    };
    let weight = this.foldedWeights.get(value);
    if (weight === undefined) {
      weight = Weight.lazy(value.dtype ?? 'f32', shape, (start, length) => {
        const tensor = make(value);
        if (tensor === undefined) throw new Unsupported(`"${value.name}" cannot be computed`);
        return bytesOf(tensor.data).subarray(start, start + length);
      });
      this.foldedWeights.set(value, weight);
    }
    return weight;
  }

  /** Shape arithmetic whose result some step needs as data. */
  private materialize(value: Value, elements: readonly Dim[]): Place {
    const shape = this.shapeOf(value);
    const sizes = elements.map((dim) => this.size(this.dim(dim), value.name));
    if (sizes.every((size) => typeof size === 'number')) {
      const address = this.table(value.name, Float32Array.from(sizes as number[]));
      return { address, shape, type: 'f32', segment: undefined };
    }
    const place = this.fresh(value.name, shape, 'i32');
    sizes.forEach((size, index) =>
      this.emit('FILL', {
        Y: shifted(place.address, index * 4),
        COUNT: 1,
        ELEMENT: 4,
        VALUE: size,
        HIGH: 0,
      }),
    );
    return place;
  }

  /** Rows P.. of a value that the body computed, for a step of the head. */
  private crossing(place: Place): Place {
    if (this.segment !== 'head' || place.segment !== 'body') return place;
    const axis = place.shape.findIndex((dim) => dim === S);
    if (axis < 0) return place;
    // the head may run several times over what the body left
    place.address.buffer.output = true;
    const rowBytes = multiplyDims(4, ...place.shape.slice(axis + 1));
    return { ...place, address: shifted(place.address, multiplyDims(P, rowBytes)) };
  }
}

/** The f32 word of a number. */
export function f32(value: number): number {
  return floatBits(value);
}

/** Number of rows before the last axis, and the size of the last axis. */
export function rowsOf(shape: readonly Dim[]): readonly [rows: Dim, columns: Dim] {
  return [multiplyDims(...shape.slice(0, -1)), shape.at(-1) ?? 1];
}

function rawWeight(weight: Weight, type: ElementType): Weight {
  if (weight.dtype === type) return weight;
  return Weight.lazy(type, weight.shape, (start, length) => {
    const values = type === 'f32' ? floatsOf(weight) : Int32Array.from(intsOf(weight));
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength).subarray(
      start,
      start + length,
    );
  });
}

/** Integers of a constant; those outside i32 (a Slice's "to the end") become its ends. */
function intsOf(weight: Weight): number[] {
  return Array.from(weight.tensor().data as ArrayLike<number | bigint>, (value) =>
    Math.min(2 ** 31 - 1, Math.max(-(2 ** 31), Math.trunc(Number(value)))),
  );
}
