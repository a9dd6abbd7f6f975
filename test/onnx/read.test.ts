import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeModel } from '../../compiler/onnx/read.ts';
import type { GraphProto } from '../../compiler/onnx/schema.ts';
import { encodeMessage, fromNumber } from '../../compiler/onnx/wire.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { assertRoundTrip } from '../support/model-outline.ts';
import {
  floats,
  graphAttribute,
  modelBytes,
  node,
  nodesOf,
  reluGraph,
  value,
} from '../support/onnx.ts';

/** The field `number` with bytes as its value, as a writer of a newer schema would add it. */
function field(number: number, bytes: Uint8Array): Uint8Array {
  const tag = (number << 3) | 2;
  const head = tag < 0x80 ? [tag] : [(tag & 0x7f) | 0x80, tag >> 7];
  return Uint8Array.from([...head, bytes.length, ...bytes]);
}

test('nodes out of order are sorted, and only as far as needed', () => {
  const graph = {
    node: [
      node('Add', ['b', 'c'], ['y']),
      node('Abs', ['x'], ['c']),
      node('Neg', ['a'], ['b']),
      node('Relu', ['x'], ['a']),
    ],
    input: [value('x')],
    output: [value('y')],
  };
  const ops = nodesOf(decodeModel(modelBytes(graph))).map(({ op }) => op);
  assert.deepEqual(ops, ['Abs', 'Relu', 'Neg', 'Add']);
});

test('a node waits for what its subgraph takes from outside', () => {
  const branch = (name: string): GraphProto => ({
    name,
    node: [node('Neg', ['late'], [`${name}_out`])],
    output: [value(`${name}_out`)],
  });
  const graph = {
    node: [
      node('If', ['c'], ['y'], {
        attribute: [
          graphAttribute('then_branch', branch('then')),
          graphAttribute('else_branch', branch('else')),
        ],
      }),
      node('Relu', ['x'], ['late']),
    ],
    input: [value('c', [], 9), value('x')],
    output: [value('y')],
  };
  const model = decodeModel(modelBytes(graph));
  const [relu, choice] = nodesOf(model);
  assert.deepEqual([relu?.op, choice?.op], ['Relu', 'If']);
  const [inner] = [...(choice?.subgraph('then_branch')?.nodes() ?? [])];
  assert.equal(inner?.input(0), relu?.output(), 'the capture is the outer value itself');
  assertRoundTrip(model);
});

test('names of subgraphs become unique over the model', () => {
  const branch: GraphProto = {
    name: 'branch',
    node: [node('Relu', ['x'], ['t']), node('Neg', ['t'], ['y'])],
    initializer: [floats('k', [1])],
    output: [value('y')],
  };
  const graph = {
    node: [
      node('If', ['c'], ['y'], {
        attribute: [graphAttribute('then_branch', branch), graphAttribute('else_branch', branch)],
      }),
    ],
    input: [value('c', [], 9), value('x')],
    output: [value('y')],
  };
  const model = decodeModel(modelBytes(graph));
  const names = [...model.graph.allNodes()].flatMap((each) => each.outputs.map((v) => v?.name));
  assert.deepEqual(names, ['y', 't', 'y_1', 't_1', 'y_2']);
  assert.equal(model.uniqueName('t_1'), 't_1_1', 'inner names are claimed');
  assertRoundTrip(model);
});

test('a subgraph that returns an outer value is written with a copy of its own', () => {
  const branch: GraphProto = { name: 'branch', output: [value('x')] };
  const graph = {
    node: [
      node('If', ['c'], ['y'], {
        attribute: [graphAttribute('then_branch', branch), graphAttribute('else_branch', branch)],
      }),
    ],
    input: [value('c', [], 9), value('x')],
    output: [value('y')],
  };
  const model = decodeModel(modelBytes(graph));
  assert.equal(nodesOf(model)[0]?.subgraph('then_branch')?.outputs[0], model.graph.inputs[1]);
  const again = decodeModel(encodeModel(model));
  const [copy] = [...(nodesOf(again)[0]?.subgraph('then_branch')?.nodes() ?? [])];
  assert.equal(copy?.op, 'Identity');
  assert.equal(copy?.input(0), again.graph.inputs[1]);
});

test('initializers that are graph inputs become constants; newer files get a warning', () => {
  const graph = reluGraph({
    node: [node('Add', ['x', 'w'], ['y'])],
    input: [value('x'), value('w')],
    initializer: [floats('w', [1, 2])],
  });
  for (const [irVersion, warnings] of [
    [3, 0],
    [8, 1],
  ] as const) {
    const model = decodeModel(modelBytes(graph, { irVersion: fromNumber(irVersion) }));
    assert.deepEqual(
      model.graph.inputs.map(({ name }) => name),
      ['x'],
    );
    assert.ok(nodesOf(model)[0]?.input(1).weight !== undefined);
    assert.equal(
      model.warnings.filter((warning) => warning.includes('default value')).length,
      warnings,
    );
    assertRoundTrip(model);
  }
});

test('opsets and IR versions outside of what is known are read with a warning', () => {
  for (const [version, warned] of [
    [6, true],
    [7, false],
    [25, false],
    [26, true],
  ] as const) {
    const model = decodeModel(
      modelBytes(reluGraph(), { opsetImport: [{ version: fromNumber(version) }] }),
    );
    assert.equal(model.opset, version);
    assert.equal(
      model.warnings.some((warning) => warning.includes('opset')),
      warned,
      String(version),
    );
  }
  for (const [version, warned] of [
    [2, true],
    [3, false],
    [13, false],
    [14, true],
  ] as const) {
    const model = decodeModel(modelBytes(reluGraph(), { irVersion: fromNumber(version) }));
    assert.equal(
      model.warnings.some((warning) => warning.includes('IR version')),
      warned,
      String(version),
    );
  }
});

test('the domain ai.onnx is the empty one', () => {
  const graph = reluGraph({ node: [node('Relu', ['x'], ['y'], { domain: 'ai.onnx' })] });
  const opsetImport = [{ domain: 'ai.onnx', version: fromNumber(13) }];
  const model = decodeModel(modelBytes(graph, { opsetImport }));
  assert.equal(nodesOf(model)[0]?.domain, '');
  assert.equal(model.opset, 13);
});

test('dimensions keep their names, expressions and absence', () => {
  const dims = ['batch', 'past + sequence', 'not an expression!', '', 3, 'odd?1'];
  const model = decodeModel(modelBytes(reluGraph({ input: [value('x', dims)] })));
  const shape = model.graph.inputs[0]?.shape ?? [];
  assert.deepEqual(shape.slice(0, 3), ['batch', 'past + sequence', '`not an expression!`']);
  assert.match(String(shape[3]), /^\?\d+$/);
  assert.equal(shape[4], 3);
  assert.match(String(shape[5]), /^`/);
  assertRoundTrip(model);
});

test('a dimension name that would take long to multiply out stays a name', () => {
  const product = Array.from({ length: 16 }, (_, i) => `(a${i} + b${i} + c${i})`).join('*');
  const nested = `${'('.repeat(5000)}a${')'.repeat(5000)}`;
  const started = performance.now();
  const model = decodeModel(modelBytes(reluGraph({ input: [value('x', [product, nested])] })));
  // multiplying out gives 3^16 terms and takes minutes
  assert.ok(performance.now() - started < 1000);
  assert.deepEqual(model.graph.inputs[0]?.shape, [`\`${product}\``, `\`${nested}\``]);
});

test('attributes of every kind survive, also strings that are not UTF-8', () => {
  const tensor = { ...floats('inner name', [1, 2]), $unknowns: [field(12, Buffer.from('doc'))] };
  const attribute = [
    { name: 'f', f: 1.5, type: 1 },
    { name: 'i', i: { low: -1, high: 0x7fffffff }, type: 2 },
    { name: 's', s: Uint8Array.of(0xff, 0xfe, 0x41, 0xed, 0xa0, 0x80), type: 3 },
    { name: 't', t: tensor, type: 4, $unknowns: [field(13, Buffer.from('about t'))] },
    { name: 'fs', floats: [1, 2], type: 6 },
    { name: 'is', ints: [fromNumber(1), { low: -2, high: -1 }], type: 7 },
    { name: 'ss', strings: [Buffer.from('a'), Uint8Array.of(0x80)], type: 8 },
    { name: 'ts', tensors: [tensor, tensor], type: 9 },
    {
      name: 'gs',
      graphs: [reluGraph({ input: [value('p')], node: [node('Relu', ['p'], ['y'])] })],
      type: 10,
    },
    { name: 'none', ints: [], type: 7 },
    { name: 'sparse', type: 11, $unknowns: [field(22, Buffer.of(0x18, 3))] },
    { name: 'proto', type: 13, $unknowns: [field(14, Buffer.of(0x0a, 0))] },
    { name: '__proto__', f: 2, type: 1 },
  ];
  const graph = reluGraph({
    node: [node('Custom', ['x'], ['y'], { domain: 'com.example', attribute })],
  });
  const model = decodeModel(modelBytes(graph));
  const [custom] = nodesOf(model);
  assert.deepEqual(custom?.attributes.get('i'), { kind: 'int', value: 2n ** 63n - 1n });
  assert.deepEqual(custom?.attributes.get('is'), { kind: 'ints', value: [1n, -2n] });
  assert.equal(custom?.attributes.get('sparse')?.kind, 'opaque');
  assert.equal(custom?.attributes.size, attribute.length);
  assertRoundTrip(model);
});

test('an attribute without a declared type is read by the field that is set', () => {
  const graph = reluGraph({
    node: [node('Elu', ['x'], ['y'], { attribute: [{ name: 'alpha', f: 2 }] })],
  });
  assert.equal(nodesOf(decodeModel(modelBytes(graph)))[0]?.float('alpha'), 2);
});

test('metadata, documentation, denotations and unknown fields survive a round trip', () => {
  const metadataProps = [{ key: 'k', value: 'v' }];
  const docString = 'text';
  const extra = { $unknowns: [field(200, Buffer.of(1, 2, 3))] };
  const typed = value('x', ['n', 2]);
  const graph: GraphProto = {
    node: [
      node('Add', ['x', 'w'], ['t'], { name: 'n', docString, metadataProps, ...extra }),
      node('Relu', ['t'], ['y']),
    ],
    initializer: [
      {
        ...floats('w', [1, 2]),
        $unknowns: [field(12, Buffer.from('doc')), field(16, Buffer.of(0x0a, 0))],
      },
    ],
    input: [
      {
        ...typed,
        docString,
        metadataProps,
        type: { ...typed.type, denotation: 'IMAGE' },
        ...extra,
      },
    ],
    output: [value('y')],
    valueInfo: [value('t', ['n', 2]), { ...value('w'), docString }],
    docString,
    metadataProps,
    // quantization_annotation
    $unknowns: [field(14, Buffer.of(0x0a, 1, 0x77))],
  };
  const bytes = modelBytes(graph, {
    producerName: 'p',
    producerVersion: '1',
    domain: 'd',
    modelVersion: fromNumber(5),
    docString,
    metadataProps,
    // training_info and configuration
    $unknowns: [field(20, Buffer.of(0x0a, 0)), field(26, Buffer.of(0x0a, 0))],
  });
  const model = decodeModel(bytes);
  assert.equal(model.metadata.get('k'), 'v');
  assert.equal(model.graph.inputs[0]?.denotations?.[0], 'IMAGE');
  for (const part of [model, model.graph, nodesOf(model)[0], model.graph.inputs[0]])
    assert.ok((part?.carried?.length ?? 0) > 0);
  assertRoundTrip(model);
  assert.deepEqual(
    Buffer.from(encodeModel(model)),
    Buffer.from(encodeModel(decodeModel(encodeModel(model)))),
  );
});

test('the name an attribute tensor had does not stick to a constant made of it', () => {
  const attribute = [{ name: 'value', t: floats('inner', [1, 2]), type: 4 }];
  const graph = reluGraph({
    node: [node('Constant', [], ['c'], { attribute }), node('Add', ['x', 'c'], ['y'])],
  });
  const model = decodeModel(modelBytes(graph));
  const content = nodesOf(model)[0]?.attributes.get('value');
  assert.ok(content?.kind === 'tensor');
  const [input] = model.graph.inputs;
  assert.ok(input !== undefined);
  model.graph.inputs.pop();
  input.weight = content.value;
  model.graph.addConstant(input);
  assert.deepEqual(
    [...decodeModel(encodeModel(model)).graph.constants].map(({ name }) => name),
    ['x'],
  );
});

test('types that are no tensor are kept', () => {
  // sequence_type { elem_type { tensor_type { elem_type: 1 } } }
  const sequence = { $unknowns: [field(4, Buffer.of(0x0a, 4, 0x0a, 2, 0x08, 1))] };
  const graph = reluGraph({
    node: [node('SequenceAt', ['s', 'i'], ['y'])],
    input: [{ name: 's', type: sequence }, value('i', [], 7)],
  });
  const model = decodeModel(modelBytes(graph));
  assert.ok(model.graph.inputs[0]?.opaqueType !== undefined);
  assert.equal(model.graph.inputs[0]?.dtype, undefined);
  assertRoundTrip(model);
});

test('a sparse initializer is a constant, and is written sparse again', () => {
  const i64 = (values: bigint[], dims: number[]) => ({
    dataType: 7,
    dims: dims.map(fromNumber),
    rawData: new Uint8Array(BigInt64Array.from(values).buffer),
  });
  for (const indices of [i64([1n, 5n], [2]), i64([0n, 1n, 1n, 2n], [2, 2])]) {
    const sparseInitializer = [
      { values: floats('w', [7, 9]), indices, dims: [fromNumber(2), fromNumber(3)] },
    ];
    const graph = reluGraph({ node: [node('Add', ['x', 'w'], ['y'])], sparseInitializer });
    const model = decodeModel(modelBytes(graph));
    const weight = nodesOf(model)[0]?.input(1).weight;
    assert.deepEqual([...((weight?.tensor().data ?? []) as Float32Array)], [0, 7, 0, 0, 0, 9]);
    assert.deepEqual(
      [...new Float32Array(weight?.bytes(20, 4).slice().buffer ?? [])],
      [9],
      'a range',
    );
    assertRoundTrip(model);
  }
});

test('a graph without nodes is legal when its outputs are inputs or constants', () => {
  const model = decodeModel(
    modelBytes({
      input: [value('x')],
      initializer: [floats('w', [1])],
      output: [value('x'), { name: 'w' }],
    }),
  );
  assert.equal(model.graph.nodeCount, 0);
  assertRoundTrip(model);
});

test('one value may be listed as several outputs', () => {
  const model = decodeModel(modelBytes(reluGraph({ output: [value('y'), value('y')] })));
  assert.equal(model.graph.outputs[0]?.outputCount, 2);
});

test('NaN and infinite weights are kept bit for bit', () => {
  const bits = Uint32Array.of(0x7fc00001, 0xff800000, 0xffffffff);
  const initializer = [
    { name: 'w', dims: [fromNumber(3)], dataType: 1, rawData: new Uint8Array(bits.buffer) },
  ];
  const model = decodeModel(
    modelBytes(reluGraph({ node: [node('Add', ['x', 'w'], ['y'])], initializer })),
  );
  const [constant] = decodeModel(encodeModel(model)).graph.constants;
  assert.deepEqual([...new Uint32Array(constant?.weight?.bytes().slice().buffer ?? [])], [...bits]);
});

test('encoding the same model twice gives the same bytes', () => {
  const bytes = encodeMessage('ModelProto', { irVersion: fromNumber(8), graph: reluGraph() });
  assert.deepEqual(encodeModel(decodeModel(bytes)), encodeModel(decodeModel(bytes)));
});
