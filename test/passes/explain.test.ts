/** `fettle passes --why`: no rule keeps to itself why it left a node alone. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Model, Node } from '../../compiler/ir/graph.ts';
import { explainRemainders } from '../../compiler/explain-remainders.ts';
import { explainRule } from '../../compiler/explain-rule.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { passes, pipelineFrom } from '../../compiler/passes.ts';
import type { Pass } from '../../compiler/passes/pass.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { microDecoders } from '../../models/micro.ts';
import { spellings } from '../../models/spelling/index.ts';
import { fettle, fettleFails, fettleJson } from '../support/cli.ts';
import { randomNetwork } from '../support/random-network.ts';

const folder = mkdtempSync(join(tmpdir(), 'fettle-explain-'));
after(() => rmSync(folder, { recursive: true }));

const inGroups = pipelineFrom(['clean-up', 'fuse']);
const cleanUps = new Set(
  inGroups.flatMap((step) => ('passes' in step ? step.passes : []).map(nameOf)),
);
const last = inGroups.at(-1);
const fusions: readonly Pass[] = [
  ...(last !== undefined && 'passes' in last ? last.passes : []),
  ...pipelineFrom(['fuse-expression', 'fold-norm-gains', 'insert-kv-cache']),
].flatMap((step) => ('passes' in step ? [] : [step]));

function nameOf({ name }: { readonly name: string }): string {
  return name;
}

function opOf({ domain, op }: Node): string {
  return domain === '' ? op : `${domain}.${op}`;
}

/** What a pass could change about a node that stays. */
function textOf(node: Node): string {
  return (
    [...node.inputs, ...node.outputs].map((value) => value?.name).join() + node.attributes.size
  );
}

/** Nodes that a rule of the pass starts from, that are as they were, and about which nothing is said. */
async function silentNodes(model: Model, pass: Pass): Promise<readonly string[]> {
  const starts = new Set((pass.rules ?? []).flatMap((rule) => rule.starts));
  const before = [...model.graph.allNodes()].filter((node) => starts.has(opOf(node)));
  const texts = new Map(before.map((node) => [node, textOf(node)]));
  const heard = new Set<Node | undefined>();
  await runPasses(model, [pass], {
    checkChanged: true,
    trail: ({ at }) => {
      if (typeof at === 'object') heard.add('op' in at ? at : at.producer);
    },
  });
  return before
    .filter((node) => node.graph !== undefined && textOf(node) === texts.get(node))
    .filter((node) => !heard.has(node))
    .map((node) => `${pass.name} at ${node.describe()}`);
}

test('every pass of fusion lists its rules and the ops they start from', () => {
  for (const pass of fusions) {
    if (cleanUps.has(pass.name) && pass.rules === undefined) continue;
    assert.ok((pass.rules?.length ?? 0) > 0, `${pass.name} lists no rule`);
    for (const { name } of pass.rules ?? []) assert.notEqual(name, '', pass.name);
  }
});

test('every rule says of every node that it starts from what it made of it', async () => {
  const micro = Object.entries(microDecoders).slice(0, 5);
  const models = [
    ...Array.from({ length: 25 }, (_, seed) => randomNetwork(seed + 1)),
    ...micro.map(([name, config], index) =>
      buildDecoder(name, config, spellings[index % spellings.length] ?? spellings[0]),
    ),
  ];
  const silent: string[] = [];
  for (const model of models) {
    await runPasses(model, pipelineFrom(['clean-up']));
    for (let round = 0; round < 2; round++)
      for (const pass of fusions) silent.push(...(await silentNodes(model, pass)));
  }
  assert.deepEqual([...new Set(silent)].slice(0, 10), []);
});

const gated = `graph (x: f32[b, 4]) -> (y, r) {
  opset 17
  const %a: f32[4, 4] = random(1)
  const %c: f32[4, 4] = random(2)
  %p = MatMul(%x, %a) @gate
  %q = MatMul(%x, %c) @up
  %s = Relu(%p) @act
  %y = Mul(%s, %q) @product
  %r = Relu(%q) @reader
}`;

test('a rule that found everything and refused says so, and what became of the node', async () => {
  const { deadEnds, became, history } = await explainRule(parseModel(gated), 'gate-up', 'product');
  assert.deepEqual(
    deadEnds.map(({ pass, rule, why, refused }) => [pass, rule, why, refused]),
    [['fuse-gated-mlp', 'gate-up', 'one of the products is used elsewhere', true]],
  );
  assert.match(became, /"product" is now part of Mul "product"/);
  assert.deepEqual(history, []);
});

test('a rule that does not start at a node says what it found at the nearest one', async () => {
  const { deadEnds, nearest, rules } = await explainRule(parseModel(gated), 'gate-up', 'gate');
  assert.deepEqual(deadEnds, []);
  assert.deepEqual(rules[0]?.starts, ['Mul']);
  assert.equal(nearest?.node, 'product');
  assert.match(nearest.deadEnds[0]?.why ?? '', /used elsewhere/);
});

test('a pattern says how far it matched and what it wanted there', async () => {
  const text = `graph (x: f32[b, 4, 6, 6], z: f32[b, 4, 6, 6]) -> (y, r) {
    opset 17
    const %w: f32[4, 4, 1, 1] = random(1)
    %c = Conv(%x, %w) @conv
    %y = Add(%c, %z) @sum
    %r = Relu(%z) @other
  }`;
  const { deadEnds } = await explainRule(parseModel(text), 'activation', 'other');
  assert.match(
    deadEnds.map(({ why }) => why).join('\n'),
    /after 1 matched at "z": wanted a convolution without an activation, saw a graph input/,
  );
  const residual = await explainRule(parseModel(text), 'residual', 'sum');
  assert.deepEqual(residual.history.at(-1)?.pass, 'fuse-conv');
  assert.match(residual.became, /part of fettle\.Conv "conv"/);
});

test('the command says why, in words and as JSON', async () => {
  const { exitCode, stdout } = await fettle(
    'passes',
    'builtin:nib',
    '--why',
    'fuse-gated-mlp',
    'logits',
  );
  assert.equal(exitCode, 0);
  assert.match(stdout, /does not start there; it starts from Mul/);
  const told = await fettleJson('passes', 'builtin:nib', '--why', 'fuse-conv', 'logits');
  assert.deepEqual(told.deadEnds, []);
  assert.ok(told.rules.every(({ pass }: { pass: string }) => pass === 'fuse-conv'));
});

test('rules and nodes that do not exist are answered with the nearest name', async () => {
  const rule = await fettleFails(
    ['passes', 'builtin:nib', '--why', 'fuse-cov', 'logits'],
    2,
    'USAGE',
  );
  assert.match(rule.fix, /"fuse-conv"/);
  const node = await fettleFails(
    ['passes', 'builtin:nib', '--why', 'fuse-conv', 'logitz'],
    2,
    'USAGE',
  );
  assert.match(node.fix, /"logits"/);
  const model = await fettleFails(['passes', '--why', 'fuse-conv', 'logits'], 2, 'USAGE');
  assert.match(model.fix, /fettle passes <model> --why/);
});

test('the list of passes names the rules', async () => {
  const { passes: rows } = await fettleJson('passes');
  assert.equal(rows.length, passes.length);
  const conv = rows.find((row: { name: string }) => row.name === 'fuse-conv');
  assert.deepEqual(conv.rules, ['activation', 'residual']);
});

test('whatever fusion leaves is explained', async () => {
  const text = `graph (x: f32[b, 4, 6, 6], z: f32[b, 4, 1, 1]) -> (y, p) {
    opset 17
    const %w: f32[4, 4, 3, 3] = random(1)
    const %c: f32[] = {0.5}
    %a = Relu(%x) @act
    %s = Add(%a, %c) @shift
    %y = Conv(%s, %w) {pads = [1, 1, 1, 1]} @conv
    %p = MaxPool(%x) {kernel_shape = [2, 2]} @pool
  }`;
  const remainders = await explainRemainders(parseModel(text));
  const of = (op: string): readonly string[] =>
    remainders.find((one) => one.op === op)?.reasons ?? [];
  assert.match(of('MaxPool').join(), /there is no Pad in front/);
  assert.ok(remainders.every(({ reasons }) => reasons.length > 0));
  const out = join(folder, 'nib');
  const options = ['--target', 'ort-wasm', '--no-canaries', '--explain', '--out', out];
  const { exitCode, stdout } = await fettle('compile', 'builtin:nib', ...options);
  assert.equal(exitCode, 0);
  assert.match(
    stdout,
    /not fused:\n[^]*1 x Gather, such as .*\n {4}no rule of fusion starts from it/,
  );
});
