import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryFiles } from '../../compiler/files.ts';
import { Value } from '../../compiler/ir/graph.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { decodeModel, readModel } from '../../compiler/onnx/read.ts';
import type {
  FunctionProto,
  GraphProto,
  ModelProto,
  TensorProto,
} from '../../compiler/onnx/schema.ts';
import { fromNumber } from '../../compiler/onnx/wire.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { assertFails } from '../support/errors.ts';
import { floats, graphAttribute, modelBytes, node, reluGraph, value } from '../support/onnx.ts';

function assertInvalid(graph: GraphProto, message: RegExp, more: Partial<ModelProto> = {}): void {
  assertFails(() => decodeModel(modelBytes(graph, more)), 'MODEL_INVALID', message);
}

function withTensor(tensor: TensorProto): GraphProto {
  return reluGraph({
    node: [node('Add', ['x', 'w'], ['y'])],
    initializer: [{ name: 'w', dataType: 1, ...tensor }],
  });
}

test('a truncated file fails with the byte where it ends', () => {
  const bytes = modelBytes(reluGraph({ initializer: [floats('w', [1, 2, 3])] }));
  for (const length of [1, 10, 30, bytes.length - 1]) {
    const error = assertFails(() => decodeModel(bytes.subarray(0, length)), 'MODEL_INVALID', /./);
    assert.ok('offset' in error.at, error.message);
  }
  const files = new MemoryFiles({ 'm.onnx': bytes.subarray(0, 30) });
  const error = assertFails(() => readModel(files, 'm.onnx'), 'MODEL_INVALID', /m\.onnx/);
  assert.equal(error.at['file'], 'm.onnx');
});

test('garbage and files of other formats are refused by name', () => {
  const text = (start: string): Uint8Array => new TextEncoder().encode(start.padEnd(100));
  const cases: [Uint8Array, RegExp][] = [
    [new Uint8Array(0), /empty/],
    [new Uint8Array(64), /./],
    [new Uint8Array(64).fill(0xff), /./],
    [text('version https://git-lfs.github.com/spec/v1'), /LFS/],
    [text('<!DOCTYPE html>'), /HTML/],
    [text('{"model": 1}'), /JSON/],
    [text('PK\u0003\u0004'), /ZIP/],
    [text('GGUF'), /GGUF/],
    [text('\u0018\u0000\u0000\u0000ORTM'), /ORT/],
    [text('\u001c\u0000\u0000\u0000TFL3'), /TensorFlow Lite/],
  ];
  for (const [bytes, message] of cases)
    assertFails(() => decodeModel(bytes), 'MODEL_INVALID', message);
});

test('a missing file and a directory are IO_FAILED', () => {
  const files = new MemoryFiles({ 'dir/m.onnx': new Uint8Array(0) });
  assertFails(() => readModel(files, 'nowhere.onnx'), 'IO_FAILED', /nothing is there/);
  assertFails(() => readModel(files, 'dir'), 'IO_FAILED', /directory/);
});

test('a protobuf above 2 GB is refused before it is read', () => {
  const huge = Object.assign(new MemoryFiles(), {
    stat: () => ({ bytes: 2 ** 31, kind: 'file' as const }),
  });
  const error = assertFails(
    () => readModel(huge as unknown as MemoryFiles, 'm.onnx'),
    'MODEL_INVALID',
    /2 GB/,
  );
  assert.match(error.fix ?? '', /external data/);
});

test('a model above 2 GB is not written into one file', () => {
  const model = decodeModel(modelBytes(reluGraph()));
  const constant = new Value('w', { dtype: 'u8', shape: [2 ** 31] });
  constant.weight = Weight.lazy('u8', [2 ** 31], () => assert.fail('the weight was read'));
  model.graph.addConstant(constant);
  const error = assertFails(() => encodeModel(model), 'MODEL_INVALID', /2 GB/);
  assert.match(error.fix ?? '', /externalData/);
  const place = { location: 'w.bin', offset: 0, length: 2 ** 31 };
  assert.ok(encodeModel(model, { external: () => place }).length < 1000);
});

test('a cycle names a node that is on it', () => {
  const cycle = [
    node('Add', ['x', 'b'], ['a']),
    node('Relu', ['a'], ['b'], { name: 'back' }),
    node('Neg', ['b'], ['y']),
  ];
  assertInvalid(reluGraph({ node: cycle }), /cycle: (Add "a"|Relu "back")/);
  assertInvalid(reluGraph({ node: [node('Add', ['x', 'y'], ['y'])] }), /cycle: Add "y"/);
  const branch = { node: [node('Neg', ['y'], ['n'])], output: [value('n')] };
  const own = node('If', ['x'], ['y'], { attribute: [graphAttribute('then_branch', branch)] });
  assertInvalid(reluGraph({ node: [own] }), /cycle: If "y"/);
});

test('names defined twice or not at all are refused', () => {
  assertInvalid(
    reluGraph({ node: [node('Relu', ['x'], ['y']), node('Neg', ['x'], ['y'])] }),
    /"y" is defined twice/,
  );
  assertInvalid(reluGraph({ node: [node('Relu', ['x'], ['x'])] }), /twice|cycle/);
  assertInvalid(reluGraph({ input: [value('x'), value('x')] }), /"x" is defined twice/);
  assertInvalid(
    reluGraph({ initializer: [floats('w', [1]), floats('w', [1])] }),
    /"w" is defined twice/,
  );
  assertInvalid(reluGraph({ initializer: [floats('y', [1])] }), /"y" is defined twice/);
  assertInvalid(reluGraph({ initializer: [floats('', [1])] }), /no name/);
  assertInvalid(reluGraph({ node: [node('Relu', ['ghost'], ['y'])] }), /reads "ghost"/);
  assertInvalid(reluGraph({ output: [value('ghost')] }), /output "ghost"/);
  const twice = [
    { name: 'a', f: 1, type: 1 },
    { name: 'a', f: 2, type: 1 },
  ];
  assertInvalid(
    reluGraph({ node: [node('Elu', ['x'], ['y'], { attribute: twice })] }),
    /attribute "a" twice/,
  );
});

test('an attribute without its value is refused', () => {
  for (const type of [4, 5]) {
    const attribute = [{ name: 'a', type }];
    assertInvalid(reluGraph({ node: [node('Op', ['x'], ['y'], { attribute })] }), /no such value/);
  }
});

test('a value of an inner graph is not visible outside', () => {
  const branch = { node: [node('Neg', ['x'], ['n'])], output: [value('n')] };
  const choice = node('If', ['x'], ['t'], { attribute: [graphAttribute('then_branch', branch)] });
  assertInvalid(reluGraph({ node: [choice, node('Relu', ['n'], ['y'])] }), /reads "n"/);
});

test('an empty graph is refused', () => {
  assertInvalid({}, /no outputs/);
  assertFails(
    () => decodeModel(modelBytes(reluGraph()).subarray(0, 2)),
    'MODEL_INVALID',
    /no ONNX graph/,
  );
});

test('absurd dimensions are refused before anything is allocated', () => {
  const negative = { low: -1, high: -1 };
  const cases: [TensorProto, RegExp][] = [
    [{ dims: [negative], rawData: new Uint8Array(4) }, /is -1; wanted/],
    [{ dims: [{ low: 0, high: 0x7fffffff }] }, /wanted 0 to 2\^53/],
    [{ dims: [fromNumber(2 ** 40), fromNumber(2 ** 40)] }, /beyond 2\^53/],
    [{ dims: [fromNumber(2 ** 31)] }, /has no data/],
    [{ dims: [fromNumber(2 ** 31)], rawData: new Uint8Array(8) }, /8 bytes of raw data/],
    [{ dims: [fromNumber(2 ** 31)], dataType: 8 }, /0 strings/],
    [
      { dims: [fromNumber(2 ** 31)], dataType: 7, int64Data: [Uint8Array.of(1, 2)] },
      /2 stored elements/,
    ],
    [{ dims: [fromNumber(2)], floatData: [new Uint8Array(12)] }, /3 stored elements/],
    [{ dims: [fromNumber(2)], rawData: new Uint8Array(7) }, /7 bytes of raw data/],
    [{ dims: [fromNumber(2)], dataType: 99, rawData: new Uint8Array(8) }, /data type 99/],
    [{ dims: [], dataType: 8, rawData: new Uint8Array(8) }, /strings as raw/],
    [{ dims: [], rawData: new Uint8Array(4), $unknowns: [Uint8Array.of(0x1a, 0)] }, /segments/],
  ];
  for (const [tensor, message] of cases) assertInvalid(withTensor(tensor), message);
  const shape = { dim: [{ dimValue: negative }] };
  assertInvalid(
    reluGraph({ input: [{ name: 'x', type: { tensorType: { elemType: 1, shape } } }] }),
    /is -1/,
  );
  assertInvalid(reluGraph({ input: [value('x', [1], 77)] }), /data type 77/);
});

test('a sparse tensor with indices outside, or that disagree with its values, is refused', () => {
  const i64 = (values: bigint[], dims: number[]): TensorProto => ({
    dataType: 7,
    dims: dims.map(fromNumber),
    rawData: new Uint8Array(BigInt64Array.from(values).buffer),
  });
  for (const indices of [
    i64([6n], [1]),
    i64([-1n], [1]),
    i64([0n, 3n], [1, 2]),
    i64([1n, 2n], [2]),
  ]) {
    const sparseInitializer = [
      { values: floats('w', [7]), indices, dims: [fromNumber(2), fromNumber(3)] },
    ];
    assertInvalid(reluGraph({ sparseInitializer }), /sparse index|disagree/);
  }
  assertInvalid(
    reluGraph({ sparseInitializer: [{ values: floats('w', [1]) }] }),
    /without values or indices/,
  );
});

test('functions that call themselves, each other in circles, or multiply without end are refused', () => {
  const body = (name: string, ...callees: string[]): FunctionProto => ({
    domain: 'local',
    name,
    input: ['a'],
    output: ['b'],
    node: callees.map((callee, i) =>
      node(callee, ['a'], [i === 0 ? 'b' : `b${i}`], { domain: 'local' }),
    ),
  });
  const graph = reluGraph({ node: [node('F0', ['x'], ['y'], { domain: 'local' })] });
  const refused = (functions: FunctionProto[], message: RegExp): void =>
    assertInvalid(graph, message, { functions });
  refused([body('F0', 'F0')], /calls itself/);
  refused([body('F0', 'F1'), body('F1', 'F0')], /calls itself/);
  refused([body('F0', 'Relu'), body('F0', 'Relu')], /defined twice/);
  // 8 calls in each of 12 levels would be 8^12 nodes
  const bomb = Array.from({ length: 12 }, (_, i) =>
    body(`F${i}`, ...Array.from({ length: 8 }, () => `F${i + 1}`)),
  );
  const started = performance.now();
  refused(bomb, /more than .* nodes/);
  // counted, not built: a millisecond, where building would never end
  assert.ok(performance.now() - started < 2000);
  refused(
    Array.from({ length: 5000 }, (_, i) => body(`F${i}`, `F${i + 1}`)),
    /levels deep/,
  );
  refused([{ ...body('F0', 'Relu'), output: ['nothing'] }], /returns "nothing"/);
  refused([{ ...body('F0', 'Relu'), node: [node('Relu', ['y'], ['b'])] }], /reads "y"/);
});

test('subgraphs nested beyond reason are refused', () => {
  let graph: GraphProto = { node: [node('Neg', ['x'], ['y'])], output: [value('y')] };
  for (let i = 0; i < 30; i++)
    graph = {
      node: [node('If', ['x'], ['y'], { attribute: [graphAttribute('then_branch', graph)] })],
      output: [value('y')],
    };
  assert.ok(decodeModel(modelBytes({ ...graph, input: [value('x')] })).graph.nodeCount === 1);
  // deeper than protobuf allows: the bytes are made by hand, since no encoder writes them
  const levels = [0x3a, 0x0a, 0x2a, 0x32];
  let bytes = new Uint8Array(0);
  for (let i = 0; i < 2000; i++) {
    const tag = levels[(2000 - i) % 4] ?? 0;
    const size = bytes.length;
    bytes = Uint8Array.from([
      tag,
      (size & 0x7f) | 0x80,
      ((size >> 7) & 0x7f) | 0x80,
      size >> 14,
      ...bytes,
    ]);
  }
  assertFails(
    () => decodeModel(Uint8Array.from([0x3a, ...lengthOf(bytes), ...bytes])),
    'MODEL_INVALID',
    /./,
  );
});

function lengthOf(bytes: Uint8Array): number[] {
  const size = bytes.length;
  return [(size & 0x7f) | 0x80, ((size >> 7) & 0x7f) | 0x80, size >> 14];
}

test('two versions of one opset, and absurd versions, are refused', () => {
  const versions = (...list: number[]): Partial<ModelProto> => ({
    opsetImport: list.map((version) => ({ version: fromNumber(version) })),
  });
  assertInvalid(reluGraph(), /opset 13 and 17/, versions(13, 17));
  assertInvalid(reluGraph(), /absurd/, versions(2 ** 40));
});
