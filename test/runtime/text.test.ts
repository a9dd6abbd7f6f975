/** Sampling, stop strings, streaming text: the parts of generation that need no model. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { renderChat } from '../../runtime/text/chat.ts';
import { createRandom } from '../../runtime/text/random.ts';
import type { SamplingOptions } from '../../runtime/text/sampling.ts';
import { createSampler } from '../../runtime/text/sampling.ts';
import { StopStrings } from '../../runtime/text/stop.ts';
import { createTokenizer, TextStream } from '../../runtime/text/tokenizer.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** How often each token is drawn from the same logits. */
function frequencies(
  logits: readonly number[],
  options: SamplingOptions,
  draws = 20_000,
): number[] {
  const sampler = createSampler({ seed: 1, ...options });
  const counts = logits.map(() => 0);
  for (let i = 0; i < draws; i++) {
    const id = sampler.choose(Float32Array.from(logits), []);
    counts[id] = (counts[id] ?? 0) + 1 / draws;
  }
  return counts;
}

/** Sampling error: 20,000 draws have a standard deviation of at most 0.0036; this is over 4 of them. */
const SAMPLING_ERROR = 0.015;

function close(got: readonly number[], wanted: readonly number[]): void {
  for (const [i, value] of wanted.entries())
    assert.ok(
      Math.abs((got[i] ?? NaN) - value) < SAMPLING_ERROR,
      `${i}: got ${got}, wanted ${wanted}`,
    );
}

const logOf = (...probabilities: readonly number[]): number[] => probabilities.map(Math.log);

test('temperature 0 takes the largest logit, the first among equals, never NaN', () => {
  const choose = (...logits: number[]): number =>
    createSampler({ temperature: 0 }).choose(Float32Array.from(logits), []);
  assert.equal(choose(1, 3, 3, 2), 1);
  assert.equal(choose(NaN, -5, -4), 2);
  assert.equal(choose(-Infinity, -1e30), 1);
});

test('temperature 1 draws with the probabilities of the logits, whatever their offset', () => {
  close(frequencies(logOf(0.5, 0.3, 0.2), { temperature: 1 }), [0.5, 0.3, 0.2]);
  close(frequencies([1000, 1000, -1000], { temperature: 1 }), [0.5, 0.5, 0]);
});

test('temperature flattens and sharpens', () => {
  // p^(1/2) of 0.64, 0.36 is 0.8, 0.6; p^2 of 0.8, 0.6 is 0.64, 0.36.
  close(frequencies(logOf(0.64, 0.36), { temperature: 2 }), [0.8 / 1.4, 0.6 / 1.4]);
  close(frequencies(logOf(0.8, 0.6), { temperature: 0.5 }), [0.64, 0.36]);
});

test('top-k keeps the k likeliest, lower ids among equals', () => {
  close(frequencies(logOf(0.1, 0.4, 0.2, 0.3), { temperature: 1, topK: 2 }), [0, 4 / 7, 0, 3 / 7]);
  close(frequencies([0, 0, 0, 0], { temperature: 1, topK: 2 }), [0.5, 0.5, 0, 0]);
  close(frequencies([0, 0], { temperature: 1, topK: 9 }), [0.5, 0.5]);
});

test('top-p keeps the smallest likely set, at least one token', () => {
  const logits = logOf(0.1, 0.4, 0.2, 0.3);
  close(frequencies(logits, { temperature: 1, topP: 0.65 }), [0, 4 / 7, 0, 3 / 7]);
  close(frequencies(logits, { temperature: 1, topP: 0.75 }), [0, 4 / 9, 2 / 9, 3 / 9]);
  close(frequencies(logits, { temperature: 1, topP: 0 }), [0, 1, 0, 0]);
});

test('top-p looks past the head when the tail is heavy', () => {
  // One token of weight 1 and 10,000 of 1e-3 each: the head alone has a tenth of the probability.
  const logits = [0, ...Array.from({ length: 10_000 }, () => Math.log(1e-3))];
  const counts = frequencies(logits, { temperature: 1, topP: 0.5 }, 600);
  const reached = counts.findLastIndex((count) => count > 0);
  // 5.5 of 11 in total: the first and 4,500 of the others, in the order of their ids.
  assert.ok(reached <= 4500 && reached > 4200, `${reached}`);
});

test('min-p drops what is much less likely than the best', () => {
  const logits = logOf(0.5, 0.3, 0.15, 0.05);
  close(frequencies(logits, { temperature: 1, minP: 0.29 }), [
    0.5 / 0.95,
    0.3 / 0.95,
    0.15 / 0.95,
    0,
  ]);
  close(frequencies(logits, { temperature: 1, minP: 1 }), [1, 0, 0, 0]);
});

test('top-k then top-p then min-p, as transformers does', () => {
  // top-k 3 leaves .4 .3 .2 of .9; top-p .7 takes .4 and .3 (.78 of .9); min-p .8 drops .3 (.75 of .4).
  const logits = logOf(0.1, 0.4, 0.2, 0.3);
  close(frequencies(logits, { temperature: 1, topK: 3, topP: 0.7 }), [0, 4 / 7, 0, 3 / 7]);
  close(frequencies(logits, { temperature: 1, topK: 3, topP: 0.7, minP: 0.8 }), [0, 1, 0, 0]);
});

test('repetition penalty divides positive and multiplies negative logits, once per token', () => {
  const sampler = createSampler({ temperature: 0, repetitionPenalty: 2 });
  assert.equal(sampler.choose(Float32Array.of(3, 2, -1), [0, 0]), 1);
  assert.equal(sampler.choose(Float32Array.of(3, 1, -1), [0, 0]), 0);
  assert.equal(sampler.choose(Float32Array.of(-1, -1.5), [0]), 1);
});

test('the same seed draws the same tokens, another seed others', () => {
  const draws = (seed: number): string => {
    const sampler = createSampler({ temperature: 1, seed });
    const logits = Array.from({ length: 50 }, () => 0);
    return Array.from({ length: 20 }, () => sampler.choose(Float32Array.from(logits), [])).join();
  };
  assert.equal(draws(7), draws(7));
  assert.notEqual(draws(7), draws(8));
  assert.notEqual(draws(7), draws(7 + 2 ** 32));
  const { seed } = createSampler({});
  assert.ok(Number.isSafeInteger(seed) && seed >= 0);
});

test('the generator is sfc32 and uniform', () => {
  const random = createRandom(42);
  const values = Array.from({ length: 40_000 }, random);
  assert.ok(values.every((value) => value >= 0 && value < 1));
  const buckets = Array.from({ length: 16 }, () => 0);
  for (const value of values)
    buckets[Math.floor(value * 16)] = (buckets[Math.floor(value * 16)] ?? 0) + 1;
  // Chi-square with 15 degrees of freedom: below 37.7 with probability 0.999; the seed is fixed.
  const chi = buckets.reduce((sum, count) => sum + (count - 2500) ** 2 / 2500, 0);
  assert.ok(chi < 37.7, `${chi}`);
});

test('stop strings never leak, whatever the pieces', () => {
  const text = 'one two END three';
  for (let size = 1; size <= text.length; size++) {
    const stops = new StopStrings(['END', 'enough', '']);
    let shown = '';
    for (let i = 0; i < text.length && !stops.stopped; i += size)
      shown += stops.push(text.slice(i, i + size));
    assert.equal(shown + stops.flush(), 'one two ', `pieces of ${size}`);
    assert.ok(stops.stopped);
    assert.equal(stops.push('more'), '');
  }
});

test('the first of several stop strings counts, and a false start is given back', () => {
  const stops = new StopStrings(['bc', 'abcd']);
  assert.equal(stops.push('xabc'), 'xa');
  const partial = new StopStrings(['aab']);
  assert.equal(partial.push('aa'), '');
  assert.equal(partial.push('a'), 'a');
  assert.equal(partial.push('c'), 'aac');
  assert.equal(partial.flush(), '');
});

test(
  'streamed text equals the whole text, with characters of several tokens',
  needsShared('models/nib'),
  async () => {
    const read = (name: string): object =>
      JSON.parse(readFileSync(sharedPath('models/nib', name), 'utf8'));
    const tokenizer = await createTokenizer(read('tokenizer.json'), read('tokenizer_config.json'));
    // Byte-level: each of these characters is several tokens.
    const text = 'Naïve café — 東京 😀👩‍👩‍👧 end.';
    const ids = tokenizer.encode(text);
    assert.equal(tokenizer.decode(ids), text);
    const stream = new TextStream(tokenizer);
    const pieces = ids.map((id) => stream.push(id));
    assert.equal(pieces.join('') + stream.flush(), text);
    assert.ok(pieces.includes(''), 'some tokens complete no character');
    assert.ok(pieces.every((piece) => !piece.includes('\ufffd')));
    // Cut inside a character: the rest is shown as U+FFFD at the end, not before.
    const cut = new TextStream(tokenizer);
    const emoji = tokenizer.encode('a😀');
    const shown = emoji.slice(0, -1).map((id) => cut.push(id));
    assert.equal(shown.join(''), 'a');
    assert.match(cut.flush(), /^\ufffd+$/);
    assert.equal(tokenizer.decode([0]), '', 'special tokens are left out');
  },
);

test('chat templates see messages, special tokens and add_generation_prompt', async () => {
  const template =
    '{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}' +
    '{% if add_generation_prompt %}[assistant]{% endif %}';
  const text = await renderChat(template, [{ role: 'user', content: 'hi' }], {
    bos_token: '<s>',
    eos_token: { content: '</s>', lstrip: false },
    model_max_length: 5,
  });
  assert.equal(text, '<s>[user]hi</s>[assistant]');
});
