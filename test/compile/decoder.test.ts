import assert, { deepEqual, equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { analyzeDecoder } from '../../compiler/analyze/decoder.ts';
import { int } from '../../compiler/ir/attribute.ts';
import type { Dim } from '../../compiler/ir/dim.ts';
import { parseDim } from '../../compiler/ir/dim.ts';
import { Graph, Model, Node, Value } from '../../compiler/ir/graph.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { hubConfig } from '../../models/hub-config.ts';
import { generatedDecoders, generatedModel } from '../../models/index.ts';
import { spellings } from '../../models/spelling/index.ts';
import type { DType } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';

/** Builds a signature `name: dtype[dims]`, with no computation unless a case adds some. */
function modelOf(inputs: readonly string[], outputs: readonly string[]): Model {
  const model = new Model(new Graph('test'), new Map([['', 21]]));
  for (const text of inputs) model.graph.inputs.push(valueOf(text));
  for (const text of outputs) {
    const value = valueOf(text);
    model.graph.insert(new Node('Source', [value], { name: `make ${value.name}` }));
    model.graph.setOutput(value);
  }
  return model;
}

function valueOf(text: string): Value {
  const [, name, dtype, dims] = /^(\S+): (\w+)\[(.*)\]$/.exec(text) ?? [];
  const shape = (dims ?? '').split(',').map((dim): Dim => parseDim(dim.trim()));
  return new Value(name ?? '', { dtype: dtype as DType, shape: dims === '' ? [] : shape });
}

const optimum = [
  'input_ids: i64[batch, sequence]',
  'attention_mask: i64[batch, past + sequence]',
  'position_ids: i64[batch, sequence]',
  'past_key_values.0.key: f32[batch, 2, past, 32]',
  'past_key_values.0.value: f32[batch, 2, past, 32]',
];
const present = [
  'logits: f32[batch, sequence, 4096]',
  'present.0.key: f32[batch, 2, past + sequence, 32]',
  'present.0.value: f32[batch, 2, past + sequence, 32]',
];
const config = { config: { max_position_embeddings: 1024, eos_token_id: 7 } };

test('a decoder in the Optimum spelling is recognised completely', () => {
  const { decoder, reasons, warnings } = analyzeDecoder(modelOf(optimum, present), config);
  deepEqual(decoder, {
    ids: 'input_ids',
    mask: 'attention_mask',
    positions: 'position_ids',
    logits: 'logits',
    vocabulary: 4096,
    contextLength: 1024,
    state: ['key', 'value'].map((half) => ({
      input: `past_key_values.0.${half}`,
      output: `present.0.${half}`,
      dtype: 'f32',
      shape: ['batch', 2, 'past', 32],
      axis: 2,
    })),
    endIds: [7],
  });
  deepEqual([reasons, warnings], [[], []]);
});

test('cache names of other exporters pair up, whatever the order of the outputs', () => {
  const spellings: readonly (readonly [past: string, present: string])[] = [
    ['past_key_{n}', 'present_key_{n}'],
    ['past_value_{n}', 'present_value_{n}'],
    ['past_key_values.{n}.decoder.key', 'present_key_values.{n}.decoder.key'],
    ['past_key_values_{n}_v', 'present_{n}_value'],
    ['cache_k_{n}', 'new_cache_k_{n}'],
    ['past_{n}', 'present_{n}'],
    ['pastKey{n}', 'presentKey{n}'],
    ['past.{n}', 'present.{n}'],
  ];
  for (const [past, now] of spellings) {
    const layers = [0, 1, 11];
    const model = modelOf(
      ['ids: i64[b, s]', ...layers.map((n) => `${past.replace('{n}', `${n}`)}: f16[b, 4, p, 8]`)],
      [
        ...layers.toReversed().map((n) => `${now.replace('{n}', `${n}`)}: f16[b, 4, p + s, 8]`),
        'logits: f16[b, s, 100]',
      ],
    );
    const { decoder, reasons } = analyzeDecoder(model, config);
    deepEqual(reasons, [], past);
    deepEqual(
      decoder?.state.map(({ input, output, axis }) => [input, output, axis]),
      layers.map((n) => [past.replace('{n}', `${n}`), now.replace('{n}', `${n}`), 2]),
    );
  }
});

test('the graph decides over names: a Concat of past and new shows pair and axis', () => {
  const model = modelOf(
    ['input_ids: i64[b, s]', 'a: f32[b, p, 64]', 'c: f32[b, p, 64]'],
    ['logits: f32[b, s, 10]', 'fresh_a: f32[b, s, 64]', 'fresh_c: f32[b, s, 64]'],
  );
  const { graph } = model;
  for (const [past, fresh] of [
    [1, 2],
    [2, 1],
  ] as const) {
    // outputs lost their sizes, as after an exporter that does not infer shapes
    const grown = new Value(`grown_${past}`, { dtype: 'f32', shape: ['?1', '?2', 64] });
    const node = new Node('Concat', [grown], { attributes: { axis: int(-2) } });
    [graph.inputs[past], graph.outputs[fresh]].forEach((value, i) => node.setInput(i, value));
    graph.insert(node);
    graph.setOutput(grown);
  }
  graph.removeOutput(2);
  graph.removeOutput(1);
  const { decoder, reasons } = analyzeDecoder(model, config);
  deepEqual(reasons, []);
  deepEqual(
    decoder?.state.map(({ input, output, axis }) => [input, output, axis]),
    [
      ['a', 'grown_1', 1],
      ['c', 'grown_2', 1],
    ],
  );
});

test('cache slots of fused attention pair inputs and outputs', () => {
  const model = modelOf(
    ['input_ids: i64[b, s]', 'x: f32[b, 2, p, 8]', 'y: f32[b, 2, p, 8]'],
    ['logits: f32[b, s, 10]'],
  );
  const { graph } = model;
  const outs = ['o', 'k', 'v'].map((name) => new Value(name, { dtype: 'f32' }));
  const node = new Node('GroupQueryAttention', outs, { domain: 'com.microsoft' });
  node.setInput(3, graph.inputs[1]);
  node.setInput(4, graph.inputs[2]);
  graph.insert(node);
  for (const out of outs.slice(1)) {
    out.shape = ['b', 2, 't', 8];
    graph.setOutput(out);
  }
  const { decoder } = analyzeDecoder(model, config);
  deepEqual(
    decoder?.state.map(({ input, output, axis }) => [input, output, axis]),
    [
      ['x', 'k', 2],
      ['y', 'v', 2],
    ],
  );
});

test('where the exporter lost the sizes of the outputs, the open inner axis of the input grows', () => {
  const lost = present.map((text) => text.replace('batch, 2, past + sequence', 'q, 2, r'));
  const { decoder } = analyzeDecoder(modelOf(optimum, lost), config);
  equal(decoder?.state[0]?.axis, 2);
});

test('bookkeeping scalars become flags', () => {
  const flags = ['use_cache_branch: bool[1]', 'past_length: i64[]', 'seqlens_k: i32[batch]'];
  const model = modelOf([...optimum, ...flags], present);
  deepEqual(analyzeDecoder(model, config).decoder?.flags, [
    { input: 'use_cache_branch', value: 'use-cache' },
    { input: 'past_length', value: 'past-length' },
    { input: 'seqlens_k', value: 'last-position' },
  ]);
});

test('ids without a telling name are found by the table they index', () => {
  const inputs = ['tokens_in: i64[b, s]', 'cache.0: f32[2, b, 4, p, 8]'];
  const model = modelOf(inputs, ['out: f32[b, s, 10]', 'cache_next.0: f32[2, b, 4, p + s, 8]']);
  equal(analyzeDecoder(model, config).decoder, undefined);
  const table = new Value('table', { dtype: 'f32', shape: [10, 4] });
  table.weight = Weight.of(tensor('f32', [10, 4], new Float32Array(40)));
  model.graph.addConstant(table);
  const node = new Node('Gather', [new Value('rows')]);
  node.setInput(0, table);
  node.setInput(1, model.graph.inputs[0]);
  model.graph.insert(node);
  const { decoder } = analyzeDecoder(model, config);
  equal(decoder?.ids, 'tokens_in');
  equal(decoder?.logits, 'out');
  equal(decoder?.state[0]?.axis, 3);
});

test('what is ambiguous or unknown is refused with the reason', () => {
  const cases: readonly (readonly [string, string[], string[], RegExp])[] = [
    [
      'unknown input',
      [...optimum, 'token_type_ids: i64[batch, sequence]'],
      present,
      /token_type_ids/,
    ],
    ['no cache', optimum.slice(0, 3), present.slice(0, 1), /no cache inputs/],
    ['missing output', optimum, present.slice(0, 2), /no output holds the cache.*0\.value/],
    [
      'two candidates',
      optimum.slice(0, 4),
      [...present.slice(0, 2), 'new_cache.0.key: f32[batch, 2, past + sequence, 32]'],
      /several outputs could hold/,
    ],
    [
      'two inputs for one output',
      [...optimum.slice(0, 4), 'cache.0.key: f32[batch, 2, past, 32]'],
      present.slice(0, 2),
      /would both pair/,
    ],
    [
      'static cache',
      optimum.map((text) => text.replace(', past,', ', 512,')),
      present.map((text) => text.replace('past + sequence', '512')),
      /along which axis .* grows is not known/,
    ],
    [
      'another dtype',
      optimum,
      present.map((text) => text.replace('present.0.key: f32', 'present.0.key: f16')),
      /is f32, but "present.0.key" is f16/,
    ],
    [
      'mask of the present tokens only',
      optimum.map((text) => text.replace('[batch, past + sequence]', '[batch, sequence]')),
      present,
      /"attention_mask" \[batch, sequence\] is not known/,
    ],
    ['no ids', optimum.slice(1), present, /which input takes token ids/],
    [
      'open vocabulary',
      optimum,
      present.map((text) => text.replace('4096', 'vocab')),
      /vocabulary size/,
    ],
    [
      'open heads',
      optimum.map((text) => text.replace('batch, 2, past, 32', 'batch, h, past, 32')),
      present.map((text) => text.replace('batch, 2,', 'batch, h,')),
      /more than one open size/,
    ],
  ];
  for (const [name, inputs, outputs, reason] of cases) {
    const analysis = analyzeDecoder(modelOf(inputs, outputs), config);
    equal(analysis.decoder, undefined, name);
    match(analysis.reasons.join('; '), reason, name);
  }
});

test('a model that does not look like a decoder is none, without a word', () => {
  for (const [inputs, outputs] of [
    [['image: f32[batch, 3, 224, 224]'], ['logits: f32[batch, 1000]']],
    [['input_ids: i64[b, s]', 'attention_mask: i64[b, s]'], ['embedding: f32[b, 384]']],
  ] as const)
    deepEqual(analyzeDecoder(modelOf(inputs, outputs)).reasons, []);
});

test('context length, end and start ids come from the files in order, and defaults are named', () => {
  const of = (files: object) => analyzeDecoder(modelOf(optimum, present), files);
  const bare = of({});
  equal(bare.decoder?.contextLength, 2048);
  deepEqual(bare.decoder?.endIds, []);
  equal(bare.warnings.length, 2);
  const full = of({
    config: { text_config: { max_position_embeddings: 77 }, eos_token_id: 1, bos_token_id: 5 },
    generationConfig: { eos_token_id: [3, 4] },
    tokenizerConfig: { add_bos_token: true, model_max_length: 1e30 },
  });
  equal(full.decoder?.contextLength, 77);
  deepEqual(full.decoder?.endIds, [3, 4]);
  equal(full.decoder?.startId, 5);
  const adding = of({
    config: { bos_token_id: 5 },
    tokenizerConfig: { add_bos_token: true, model_max_length: 512 },
    tokenizer: { post_processor: { single: [{ SpecialToken: { id: '<s>' } }] } },
  });
  equal(adding.decoder?.startId, undefined);
  equal(adding.decoder?.contextLength, 512);
});

test('every generated micro decoder in every spelling is recognised', () => {
  const names = [...generatedDecoders.keys()].filter((name) => name.startsWith('micro:'));
  assert.ok(names.length * spellings.length > 20);
  for (const name of names)
    for (const spelling of spellings) {
      const reference = `${name}@${spelling.name}`;
      const generated = generatedModel(reference);
      const model = generated.build();
      inferModel(model, { contradictions: 'warn' });
      const { decoder, reasons } = analyzeDecoder(model, { config: hubConfig(generated.config) });
      deepEqual(reasons, [], reference);
      equal(decoder?.state.length, 2 * generated.config.layers, reference);
      deepEqual(new Set(decoder?.state.map(({ axis }) => axis)), new Set([2]), reference);
      equal(decoder?.vocabulary, generated.config.vocabulary, reference);
      equal(decoder?.contextLength, generated.config.contextLength, reference);
    }
});
