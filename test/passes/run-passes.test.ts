/** The runner: what it reports, checks, wraps and repeats; and how a pipeline becomes passes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { printModel } from '../../compiler/ir/print.ts';
import { findPass, passes, pipelineFrom } from '../../compiler/passes.ts';
import type { Pass, PassReport } from '../../compiler/passes/pass.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { FettleError } from '../../runtime/errors.ts';
import { ModelBuilder } from '../support/model-builder.ts';

/** x -> Identity -> Relu -> y, and an Exp nobody reads. */
function small(): ModelBuilder {
  const builder = new ModelBuilder();
  const x = builder.input('x', ['n', 4]);
  builder.op('Exp', [x]);
  return builder.output('y', builder.op('Relu', [builder.op('Identity', [x])]));
}

function pass(name: string, run: Pass['run']): Pass {
  return { name, options: {}, run };
}

test('a report has sizes before and after, counts per rule and a time', async () => {
  const { model } = small();
  const [dead, identity] = await runPasses(
    model,
    pipelineFrom(['eliminate-dead', 'eliminate-identity']),
  );
  assert.ok(dead !== undefined && identity !== undefined);
  assert.equal(dead.pass, 'eliminate-dead');
  assert.equal(dead.changed, true);
  assert.deepEqual(dead.before, { nodes: 3, weightBytes: 0 });
  assert.deepEqual(dead.after, { nodes: 2, weightBytes: 0 });
  assert.deepEqual(dead.rewrites, { node: 1 });
  assert.deepEqual(identity.rewrites, { identity: 1 });
  assert.equal(identity.after.nodes, 1);
  assert.ok(dead.wallMs >= 0);
});

test('refusals and notes reach the report with the name of the pass', async () => {
  const [report] = await runPasses(small().model, [
    pass('inspect', (model, context) => {
      for (const node of model.graph.nodes()) context.refuse('rule', node, 'because');
      context.note('error', 0.5);
      return false;
    }),
  ]);
  assert.equal(report?.refusals.length, 3);
  assert.equal(report?.refusals[0]?.pass, 'inspect');
  assert.equal(report?.refusals[0]?.why, 'because');
  assert.notEqual(report?.refusals[0]?.at, '');
  assert.deepEqual(report?.notes, { error: 0.5 });
});

test('a pass that breaks is PASS_FAILED with its name, those before it and the cause', async () => {
  const cause = new Error('index out of range');
  const broken = pass('break-things', () => {
    throw cause;
  });
  await assert.rejects(
    runPasses(small().model, [...pipelineFrom(['eliminate-dead']), broken]),
    (error: unknown) => {
      assert.ok(error instanceof FettleError);
      assert.equal(error.code, 'PASS_FAILED');
      assert.deepEqual(error.at, { pass: 'break-things', after: 'eliminate-dead' });
      assert.match(error.message, /break-things.*index out of range/);
      assert.equal(error.cause, cause);
      return true;
    },
  );
});

test('an error about the user’s options keeps its code and gets the pass', async () => {
  await assert.rejects(
    runPasses(small().model, pipelineFrom([['specialize-shapes', { shapes: { z: 1 } }]])),
    (error: unknown) => {
      assert.ok(error instanceof FettleError);
      assert.equal(error.code, 'USAGE');
      assert.equal(error.at['pass'], 'specialize-shapes');
      return true;
    },
  );
});

test('a pass that leaves an invalid graph fails verification', async () => {
  const invalid = pass('duplicate-name', (model) => {
    const [first, second] = [...model.graph.nodes()].map((node) => node.output(0));
    assert.ok(first !== undefined && second !== undefined);
    first.name = second.name;
    return true;
  });
  await assert.rejects(
    runPasses(small().model, [invalid]),
    /Pass "duplicate-name" left an invalid model/,
  );
});

test('a pass that lies about having changed the model is caught when asked for', async () => {
  const silentChange = pass('silent', (model, context) => {
    const [node] = model.graph.nodes();
    if (node !== undefined) context.rewriter.remove(node);
    return false;
  });
  await assert.rejects(
    runPasses(small().model, [silentChange], { checkChanged: true }),
    /unchanged/,
  );
  const vain = pass('vain', () => true);
  await assert.rejects(
    runPasses(small().model, [vain], { checkChanged: true }),
    /vain: says changed/,
  );
});

test('an aborted signal stops the run with its reason', async () => {
  const abort = new AbortController();
  const stop = pass('stop', () => {
    abort.abort(new Error('enough'));
    return false;
  });
  const next = pass('next', () => assert.fail('must not run'));
  await assert.rejects(runPasses(small().model, [stop, next], { signal: abort.signal }), /enough/);
});

test('dumps are the input and then each change, in order', async () => {
  const { model } = small();
  const dumps: [number, string, string][] = [];
  await runPasses(model, pipelineFrom(['eliminate-dead', 'fold-constants', 'eliminate-identity']), {
    dump: (index, name, text) => dumps.push([index, name, text]),
  });
  assert.deepEqual(
    dumps.map(([index, name]) => [index, name]),
    [
      [0, 'input'],
      [1, 'eliminate-dead'],
      [2, 'eliminate-identity'],
    ],
  );
  assert.equal(dumps.at(-1)?.[2], printModel(model));
});

test('progress counts the passes', async () => {
  const seen: string[] = [];
  await runPasses(small().model, pipelineFrom(['eliminate-dead', 'fold-constants']), {
    progress: (what, done, total) => seen.push(`${what} ${done}/${total}`),
  });
  assert.deepEqual(seen, ['passes 0/2', 'passes 1/2', 'passes 2/2']);
});

test('a group repeats until a round changes nothing, and asks a settled pass only once', async () => {
  let left = 3;
  const calls: string[] = [];
  const countdown = pass('countdown', (model, context) => {
    calls.push('countdown');
    if (left-- <= 0) return false;
    const [node] = model.graph.nodes();
    if (node !== undefined) context.rewriter.op('Neg', [node.input(0)]);
    return true;
  });
  const idle = pass('idle', () => {
    calls.push('idle');
    return false;
  });
  const group = { name: 'group', passes: [countdown, idle], rounds: 10 };
  const reports = await runPasses(small().model, [group]);
  assert.deepEqual(
    reports.map((report) => [report.pass, report.changed]),
    [
      ['countdown', true],
      ['idle', false],
      ['countdown', true],
      ['countdown', true],
    ],
  );
  assert.equal(calls.filter((call) => call === 'countdown').length, 4);
});

test('a group that never settles stops at its bound and says so', async () => {
  const warnings: string[] = [];
  const restless = pass('restless', (model, context) => {
    const [node] = model.graph.nodes();
    if (node !== undefined) context.rewriter.op('Neg', [node.input(0)]);
    return true;
  });
  const reports = await runPasses(
    small().model,
    [{ name: 'group', passes: [restless], rounds: 3 }],
    { log: { info: () => {}, warn: (message) => warnings.push(message) } },
  );
  assert.equal(reports.length, 3);
  assert.match(warnings.join(), /"group" still found something to do after 3 rounds/);
});

test('two runs give the same text and the same reports', async () => {
  const first = small().model;
  const second = cloneModel(first);
  const untimed = (reports: readonly PassReport[]): unknown =>
    reports.map((report) => ({ ...report, wallMs: 0 }));
  const a = await runPasses(first, pipelineFrom(['clean-up']));
  const b = await runPasses(second, pipelineFrom(['clean-up']));
  assert.equal(printModel(first), printModel(second));
  assert.deepEqual(untimed(a), untimed(b));
});

test('an unknown pass is USAGE with the nearest name', () => {
  assert.throws(
    () => pipelineFrom(['fold-constant']),
    (error: unknown) =>
      error instanceof FettleError &&
      error.code === 'USAGE' &&
      error.fix === 'Did you mean "fold-constants"?',
  );
});

test('an unknown option is USAGE with the nearest name, one of a wrong type names the right one', () => {
  assert.throws(
    () => pipelineFrom([['fold-constants', { maxByte: 1 }]]),
    (error: unknown) => error instanceof FettleError && error.fix === 'Did you mean "maxBytes"?',
  );
  assert.throws(
    () => pipelineFrom([['fold-constants', { maxBytes: '1' }]]),
    /Option "maxBytes" of "fold-constants" is a string, not a number/,
  );
  assert.throws(() => pipelineFrom([['eliminate-dead', { x: 1 }]]), /has no option "x"/);
  assert.throws(() => pipelineFrom([['clean-up', { x: 1 }]]), /takes no options/);
});

test('options of a step reach the pass, with defaults for the others', () => {
  const [step] = pipelineFrom([['fold-constants', { maxBytes: 8 }]]);
  assert.ok(step !== undefined && 'options' in step);
  assert.equal(step.options['maxBytes'], 8);
  assert.equal(step.options['maxGrowthBytes'], 1024 * 1024);
});

test('every pass is listed under its own name, alphabetically, with a summary', () => {
  const names = passes.map((entry) => entry.name);
  assert.deepEqual(names, [...names].sort());
  for (const entry of passes) {
    assert.equal(findPass(entry.name), entry);
    assert.match(entry.summary, /^[A-Z].*\.$/);
    assert.equal(entry.create().name, entry.name);
  }
});

test('nodes that a rewrite gave one name get names of their own', async () => {
  const { model } = small();
  const twice = pass('twice', (edited, context) => {
    const [anchor] = edited.graph.nodes();
    assert.ok(anchor !== undefined);
    anchor.name = 'exp';
    context.rewriter.before(anchor);
    context.rewriter.op('Neg', [context.rewriter.op('Abs', [anchor.input(0)])]);
    return true;
  });
  await runPasses(model, [twice]);
  const names = [...model.graph.nodes()].map((node) => node.name).filter((name) => name !== '');
  assert.deepEqual(names, ['exp', 'exp_1', 'exp_2']);
});
