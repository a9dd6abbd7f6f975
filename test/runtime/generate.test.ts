/** Generation: bookkeeping of a decoder, stops, limits, abort, continuation, chat, the real tokenizer. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Manifest, OpenOptions, Session } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';
import { fakeEngine, fettleError } from '../support/fake-engine.ts';
import { nibBundle } from '../support/nib-bundle.ts';
import { needsShared } from '../support/shared.ts';
import type { BundleParts, Files } from '../support/tiny-bundle.ts';
import {
  decoderBundle,
  linearBundle,
  makeBundle,
  manifestOf,
  memorySource,
  setManifest,
} from '../support/tiny-bundle.ts';

async function using(
  files: Files,
  use: (session: Session) => Promise<void>,
  options: OpenOptions = {},
): Promise<void> {
  const session = await openBundle(memorySource(files), options);
  await use(session).finally(() => session.dispose());
}

test('ids, mask, positions and cache are fed as the contract says', () =>
  using(decoderBundle(), async (session) => {
    // logits[v] = 10 [v = sum mod 8] + mask length / 100 + position / 10000, see tiny-bundle.ts.
    const { data, shape } = await session.logits([1, 2, 3]);
    assert.deepEqual(shape, [3, 8]);
    const last = Array.from(data as Float32Array).slice(16);
    last.forEach((logit, id) => {
      const wanted = (id === 6 ? 10 : 0) + 0.03 + 0.0002;
      // f32 sums of three terms up to 10: half a unit in the last place is 5e-7.
      assert.ok(Math.abs(logit - wanted) < 2e-6, `${id}: ${logit}`);
    });
    const { tokens, finish, promptTokens } = await session.generate([1, 2]).result();
    // 1+2=3, +3=6, +6=12→4, +4=16→0 which ends it.
    assert.deepEqual(tokens, [3, 6, 4, 0]);
    assert.equal(finish, 'stop');
    assert.equal(promptTokens, 2);
  }));

test('one token at a time gives what the whole prompt gives', () =>
  using(decoderBundle(), async (session) => {
    const whole = await session.generate([5, 1, 1], { maxTokens: 1 }).result();
    await session.generate([5], { maxTokens: 1 }).result();
    await session.reset();
    for (const id of [5, 1])
      await session.generate([id], { maxTokens: 1, continue: true }).result();
    // The generated token of each call is part of the context too: 5, 5, 1, 3, 1 → sum 15 mod 8.
    const steps = await session.generate([1], { maxTokens: 1, continue: true }).result();
    assert.deepEqual(whole.tokens, [7]);
    assert.deepEqual(steps.tokens, [(5 + 5 + 1 + 3 + 1) % 8]);
  }));

test('every generation starts anew unless it continues', () =>
  using(decoderBundle(), async (session) => {
    const first = await session.generate([1, 2], { maxTokens: 3 }).result();
    assert.deepEqual(
      (await session.generate([1, 2], { maxTokens: 3 }).result()).tokens,
      first.tokens,
    );
    const more = await session.generate([1], { maxTokens: 1, continue: true }).result();
    // 1 2 | 3 6 4 | 1: the pending 4 is fed before the new prompt.
    assert.deepEqual(more.tokens, [(1 + 2 + 3 + 6 + 4 + 1) % 8]);
    assert.equal(more.promptTokens, 2);
  }));

test('limits: maxTokens, stopIds, ignoreEnd and the context length', () =>
  using(decoderBundle(), async (session) => {
    const tokens = async (options: object): Promise<unknown> => {
      const result = await session.generate([1, 2], options).result();
      return [result.tokens.length, result.finish];
    };
    assert.deepEqual(await tokens({ maxTokens: 2 }), [2, 'length']);
    assert.deepEqual(await tokens({ stopIds: [6] }), [2, 'stop']);
    assert.deepEqual(await tokens({ maxTokens: 9, ignoreEnd: true }), [9, 'length']);
    // Context 32: the prompt's 2 and 30 generated ones are fed, the 31st needs no room.
    assert.deepEqual(await tokens({ maxTokens: 100, ignoreEnd: true }), [31, 'length']);
    await assert.rejects(
      session.generate(Array.from({ length: 33 }, () => 1)).result(),
      fettleError('USAGE', /context holds 32 tokens: 0 are in it and 33/),
    );
    await assert.rejects(session.generate([]).result(), RangeError);
    await assert.rejects(session.generate([8]).result(), /token id: wanted 0 to 7, got 8/);
    assert.deepEqual(await tokens({ maxTokens: 2 }), [2, 'length']);
  }));

test('options outside their range are a RangeError at the call', () =>
  using(decoderBundle(), async (session) => {
    for (const options of [
      { maxTokens: 0 },
      { temperature: -1 },
      { temperature: NaN },
      { topK: 1.5 },
      { topP: 2 },
      { minP: -1 },
      { repetitionPenalty: 0 },
      { seed: -1 },
    ])
      assert.throws(() => session.generate([1], options), RangeError, JSON.stringify(options));
    await session.generate([1], { maxTokens: 1 }).result();
  }));

test('abort ends a generation with what there is, before and between tokens', () =>
  using(decoderBundle(), async (session) => {
    const abort = new AbortController();
    const generation = session.generate([1, 2], { ignoreEnd: true, signal: abort.signal });
    const seen: number[] = [];
    for await (const { id } of generation) if (seen.push(id) === 3) abort.abort();
    assert.deepEqual(seen, [3, 6, 4]);
    const result = await generation.result();
    assert.deepEqual([result.finish, result.tokens], ['abort', seen]);
    const none = await session.generate([1], { signal: AbortSignal.abort() }).result();
    assert.deepEqual([none.finish, none.tokens, none.decodeTokensPerSecond], ['abort', [], 0]);
    assert.deepEqual((await session.generate([1, 2]).result()).tokens, [3, 6, 4, 0]);
  }));

test('leaving the loop ends the generation and frees the session', () =>
  using(decoderBundle(), async (session) => {
    const generation = session.generate([1, 2]);
    for await (const { id } of generation) {
      assert.equal(id, 3);
      await assert.rejects(session.run({}), fettleError('USAGE', /A generation is running/));
      await assert.rejects(session.generate([1]).result(), fettleError('USAGE', /is running/));
      break;
    }
    assert.deepEqual((await generation.result()).tokens, [3]);
    assert.throws(() => generation[Symbol.asyncIterator](), fettleError('USAGE', /iterated once/));
    assert.deepEqual((await session.generate([2], { maxTokens: 1 }).result()).tokens, [2]);
  }));

test('reset and dispose end a generation that is under way', async () => {
  await using(decoderBundle(), async (session) => {
    const generation = session.generate([1, 2], { ignoreEnd: true });
    const tokens = generation[Symbol.asyncIterator]();
    await tokens.next();
    await session.reset();
    assert.deepEqual((await session.generate([1, 2]).result()).tokens, [3, 6, 4, 0]);
    assert.equal((await tokens.next()).done, true);
    assert.equal((await generation.result()).finish, 'abort');
  });
  const session = await openBundle(memorySource(decoderBundle()));
  const generation = session.generate([1, 2], { ignoreEnd: true });
  const tokens = generation[Symbol.asyncIterator]();
  await tokens.next();
  const pending = tokens.next();
  await session.dispose();
  await pending;
  assert.equal((await tokens.next()).done, true);
  assert.equal((await generation.result()).finish, 'abort');
});

test('an engine failure reaches whoever iterates and whoever awaits the result', async () => {
  const engine = fakeEngine({ run: () => Promise.reject(new Error('out of order')) });
  await using(
    decoderBundle(),
    async (session) => {
      await assert.rejects(session.generate([1]).result(), /out of order/);
      const generation = session.generate([1]);
      await assert.rejects(async () => {
        for await (const token of generation) assert.fail(`got ${token.id}`);
      }, /out of order/);
      await assert.rejects(generation.result(), /out of order/);
    },
    { engine },
  );
});

test('what a model cannot do is refused: generate, text, chat', async () => {
  await using(linearBundle(), async (session) => {
    assert.throws(() => session.generate([1]), fettleError('USAGE', /is no decoder/));
    await assert.rejects(session.logits([1]), fettleError('USAGE', /is no decoder/));
  });
  await using(decoderBundle(), async (session) => {
    await assert.rejects(session.generate('hello').result(), fettleError('USAGE', /no tokenizer/));
    await assert.rejects(
      session.generate([1], { stop: 'x' }).result(),
      fettleError('USAGE', /need a tokenizer/),
    );
    await assert.rejects(session.tokenizer(), fettleError('USAGE', /no tokenizer/));
  });
});

test('logits of another shape than the manifest says are BUNDLE_CORRUPT', async () => {
  const files = decoderBundle();
  const manifest = manifestOf(files);
  manifest.decoder.vocabulary = 9;
  await using(setManifest(files, manifest), (session) =>
    assert.rejects(
      session.generate([1]).result(),
      fettleError('BUNDLE_CORRUPT', /wanted f32 or f16 \[1, sequence, 9\], got f32 \[1, 1, 8\]/),
    ),
  );
});

test('flags, a rank-1 row and other dtypes are fed as declared', async () => {
  const fed: Record<string, unknown>[] = [];
  const engine = fakeEngine({
    run(feeds) {
      fed.push(feeds);
      const logits = {
        dtype: 'f16' as const,
        shape: [1, 1, 4],
        data: Uint16Array.of(0, 0x3c00, 0, 0),
      };
      return Promise.resolve({ outputs: { logits }, held: { kv: { bytes: 10, dispose() {} } } });
    },
  });
  const flag = (input: string, value: string): object => ({ input, value });
  const bundle = {
    graph: new Uint8Array(1),
    inputs: [
      { name: 'ids', dtype: 'i32', shape: ['sequence'] },
      { name: 'cached', dtype: 'bool', shape: [1] },
      { name: 'length', dtype: 'i32', shape: [] },
      { name: 'total', dtype: 'f16', shape: ['batch', 1] },
      { name: 'before', dtype: 'i64', shape: [1] },
      { name: 'last', dtype: 'u8', shape: [1] },
      { name: 'kv_in', dtype: 'f16', shape: ['batch', 2, 'past', 4] },
    ],
    outputs: [
      { name: 'logits', dtype: 'f16', shape: [1, 1, 4] },
      { name: 'kv', dtype: 'f16', shape: ['batch', 2, 'past', 4] },
    ],
    decoder: {
      ids: 'ids',
      flags: [
        flag('cached', 'use-cache'),
        flag('length', 'sequence-length'),
        flag('total', 'total-length'),
        flag('before', 'past-length'),
        flag('last', 'last-position'),
      ],
      logits: 'logits',
      vocabulary: 4,
      contextLength: 8,
      state: [
        { input: 'kv_in', output: 'kv', dtype: 'f16', shape: ['batch', 2, 'past', 4], axis: 2 },
      ],
      endIds: [],
    },
  } as unknown as BundleParts;
  await using(
    makeBundle(bundle),
    async (session) => {
      assert.deepEqual((await session.generate([2, 3], { maxTokens: 2 }).result()).tokens, [1, 1]);
      assert.equal(session.measure().memoryBytes.state, 10);
      await assert.rejects(session.logits([1, 2]), fettleError('USAGE', /last token only/));
    },
    { engine },
  );
  assert.deepEqual(fed[0], {
    ids: { dtype: 'i32', shape: [2], data: Int32Array.of(2, 3) },
    cached: { dtype: 'bool', shape: [1], data: Uint8Array.of(0) },
    length: { dtype: 'i32', shape: [], data: Int32Array.of(2) },
    total: { dtype: 'f16', shape: [1, 1], data: Uint16Array.of(0x4000) },
    before: { dtype: 'i64', shape: [1], data: BigInt64Array.of(0n) },
    last: { dtype: 'u8', shape: [1], data: Uint8Array.of(1) },
    kv_in: { dtype: 'f16', shape: [1, 2, 0, 4], data: new Uint16Array(0) },
  });
  assert.deepEqual(fed[1]?.['cached'], { dtype: 'bool', shape: [1], data: Uint8Array.of(1) });
  assert.deepEqual(fed[1]?.['last'], { dtype: 'u8', shape: [1], data: Uint8Array.of(2) });
});

/** A whole-word tokenizer: `a` … `g` are tokens 1 … 7, `</s>` is 0. */
function textFiles(): Record<string, Uint8Array> {
  const encode = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
  const vocab = Object.fromEntries(
    ['</s>', 'a', 'b', 'c', 'd', 'e', 'f', 'g'].map((word, id) => [word, id]),
  );
  return {
    'tokenizer.json': encode({
      added_tokens: [
        {
          id: 0,
          content: '</s>',
          special: true,
          normalized: false,
          single_word: false,
          lstrip: false,
          rstrip: false,
        },
      ],
      normalizer: null,
      pre_tokenizer: { type: 'Split', pattern: { Regex: '' }, behavior: 'Isolated', invert: false },
      post_processor: null,
      decoder: { type: 'Fuse' },
      model: { type: 'BPE', vocab, merges: [], unk_token: null, byte_fallback: false },
    }),
    'tokenizer_config.json': encode({ eos_token: { content: '</s>' }, bos_token: null }),
  };
}

function textBundle(text: Partial<NonNullable<Manifest['text']>> = {}): Files {
  return decoderBundle({
    files: textFiles(),
    text: { tokenizer: 'tokenizer.json', tokenizerConfig: 'tokenizer_config.json', ...text },
  });
}

test('text goes through the tokenizer, and stop strings across tokens are cut', () =>
  using(textBundle(), async (session) => {
    // "ab" = 1 2 → 3 6 4 0 = "cfd" and the end.
    const whole = await session.generate('ab').result();
    assert.deepEqual([whole.text, whole.tokens, whole.finish], ['cfd', [3, 6, 4, 0], 'stop']);
    const pieces: string[] = [];
    const generation = session.generate('ab', { stop: ['zz', 'fd'] });
    for await (const { text } of generation) pieces.push(text);
    // "f" is held back until "d" shows that it began a stop string.
    assert.deepEqual(pieces, ['c', '', '']);
    const { text, finish, tokens } = await generation.result();
    assert.deepEqual([text, finish, tokens], ['c', 'stop', [3, 6, 4]]);
    // Held-back text is handed out when the generation ends without the rest of the stop string.
    const cut = await session.generate('ab', { stop: 'fx', maxTokens: 2 }).result();
    assert.deepEqual([cut.text, cut.finish], ['cf', 'length']);
  }));

test('the model’s own sampling defaults apply, and options override them', () =>
  using(
    textBundle({ generation: { do_sample: true, temperature: 1000, top_k: 8 } }),
    async (session) => {
      const texts = new Set<string>();
      for (let seed = 0; seed < 6; seed++)
        texts.add(
          (await session.generate('ab', { seed, maxTokens: 8, ignoreEnd: true }).result()).text,
        );
      assert.ok(texts.size > 3, 'sampled');
      const again = async (): Promise<readonly number[]> =>
        (await session.generate('ab', { seed: 3, maxTokens: 8 }).result()).tokens;
      assert.deepEqual(await again(), await again());
      assert.equal((await session.generate('ab', { temperature: 0 }).result()).text, 'cfd');
      assert.equal((await session.generate('ab', { topK: 1 }).result()).text, 'cfd');
      const { seed } = await session.generate('ab', { maxTokens: 1 }).result();
      assert.ok(Number.isSafeInteger(seed));
    },
  ));

test('chat renders the template and computes only what is new', () => {
  const chatTemplate = '{% for m in messages %}{{ m.content }}{% endfor %}';
  return using(textBundle({ chatTemplate }), async (session) => {
    const first = await session.chat([{ role: 'user', content: 'ab' }], { maxTokens: 2 }).result();
    assert.deepEqual([first.text, first.promptTokens], ['cf', 2]);
    const turns = [
      { role: 'user', content: 'ab' },
      { role: 'assistant', content: 'cf' },
      { role: 'user', content: 'a' },
    ];
    // Seen: a b c. The last token, f, was sampled but not fed.
    const second = await session.chat(turns, { maxTokens: 1 }).result();
    assert.deepEqual([second.promptTokens, second.tokens], [2, [(1 + 2 + 3 + 6 + 1) % 8]]);
    const fresh = await session.chat([{ role: 'user', content: 'ba' }], { maxTokens: 1 }).result();
    assert.deepEqual([fresh.promptTokens, fresh.tokens], [2, [3]]);
  });
});

test('a chat without template, and a template that refuses, are USAGE', async () => {
  await using(textBundle(), (session) =>
    assert.rejects(session.chat([]).result(), fettleError('USAGE', /no chat template/)),
  );
  const chatTemplate = "{{ raise_exception('roles must alternate') }}";
  await using(textBundle({ chatTemplate }), (session) =>
    assert.rejects(session.chat([]).result(), fettleError('USAGE', /roles must alternate/)),
  );
});

test('files that make no tokenizer are BUNDLE_CORRUPT, a missing package ENGINE_UNAVAILABLE', async () => {
  const files = { ...textFiles(), 'tokenizer.json': new TextEncoder().encode('{"model":5}') };
  await using(decoderBundle({ files, text: { tokenizer: 'tokenizer.json' } }), (session) =>
    assert.rejects(
      session.generate('a').result(),
      fettleError('BUNDLE_CORRUPT', /do not make a tokenizer/),
    ),
  );
  await using(
    textBundle(),
    async (session) => {
      await assert.rejects(
        session.generate('a').result(),
        fettleError('ENGINE_UNAVAILABLE', /tokenizers/),
      );
      // Ids still work: only text needs the package.
      const { tokens, text } = await session.generate([1, 2]).result();
      assert.deepEqual([tokens, text], [[3, 6, 4, 0], '']);
    },
    { text: { tokenizers: () => Promise.reject(new Error('not installed')) } },
  );
});

test(
  'the trained model writes the same text from the cache as from the whole prompt',
  needsShared('models/nib'),
  () => {
    return using(nibBundle(), async (session) => {
      const prompt = 'The old man walked down to the';
      const { text, tokens, finish } = await session.generate(prompt, { maxTokens: 12 }).result();
      assert.equal(finish, 'length');
      assert.match(text, /^ [a-z]/);
      const { encode, decode } = await session.tokenizer();
      assert.equal(decode(tokens), text);
      // Greedy tokens from the cache are the argmax of the logits of the whole text.
      const start = encode(prompt);
      const { data } = await session.logits([...start, ...tokens.slice(0, -1)]);
      const rows = data as Float32Array;
      tokens.forEach((id, i) => {
        const row = rows.subarray((start.length - 1 + i) * 4096, (start.length + i) * 4096);
        assert.equal(row.indexOf(Math.max(...row)), id, `token ${i}`);
      });
      const { decodeTokensPerSecond, firstTokenMs, memoryBytes } = session.measure();
      assert.ok((decodeTokensPerSecond ?? 0) > 0 && (firstTokenMs ?? 0) > 0);
      assert.equal(memoryBytes.state, 0);
    });
  },
);
