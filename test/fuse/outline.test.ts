/** The outline of a fused model: parts that are no blocks, and what was not recognised and why. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspectBlocks } from '../../compiler/inspect-blocks.ts';
import { parseModel } from '../../compiler/ir/parse.ts';

test('an attention that is not recognised is named with the reason', async () => {
  const { outline } = await inspectBlocks(
    parseModel(`graph (x: f32[b, s, 4]) -> (y) {
  opset 17
  const %shape: i64[4] = {0, 0, 2, 2}
  %q4 = Reshape(%x, %shape)
  %q = Transpose(%q4) {perm = [0, 2, 1, 3]}
  %k = Transpose(%q4) {perm = [0, 2, 3, 1]}
  %m = MatMul(%q, %k)
  %mm = Mul(%m, %m)
  %p = Softmax(%mm) {axis = -1}
  %y = MatMul(%p, %q)
}`),
  );
  const line = outline.find((one) => one.includes('not recognised'));
  assert.match(
    line ?? '',
    /an attention not recognised at ".+": its scores are multiplied by no constant/,
  );
});

test('a softmax at the end of a classifier is no attention', async () => {
  const { outline } = await inspectBlocks(
    parseModel(`graph (x: f32[b, 4]) -> (y) {
  opset 17
  const %w: f32[4, 3] = {1, 0, 2, 1, 0, 1, -1, 0, 1, 1, 0, 2}
  %h = MatMul(%x, %w)
  %p = Softmax(%h) {axis = -1}
  %y = ArgMax(%p) {axis = -1}
}`),
  );
  assert.ok(outline.every((one) => !one.includes('not recognised')));
  assert.ok(outline.includes('ends in ArgMax'));
});

test('embeddings that are summed and normed, and channel shuffles, are named', async () => {
  const bert = await inspectBlocks(
    parseModel(`graph (input_ids: i64[b, s], token_type_ids: i64[b, s], position_ids: i64[b, s]) -> (y) {
  opset 17
  const %words: f32[5, 4] = {1, 2, -1, 0, 0.5, 1, 2, -1, 0, 1, 1, 0, -2, 1, 0, 1, 1, -1, 0.5, 2}
  const %places: f32[3, 4] = {1, 2, -1, 0, 0.5, 1, 2, -1, 0, 1, 1, 0}
  const %types: f32[2, 4] = {1, 2, -1, 0, 0.5, 1, 2, -1}
  const %gain: f32[4] = {1, 2, 3, 4}
  const %bias: f32[4] = {1, 0, 0, 1}
  %w = Gather(%words, %input_ids)
  %t = Gather(%types, %token_type_ids)
  %p = Gather(%places, %position_ids)
  %wt = Add(%w, %t)
  %wp = Add(%wt, %p)
  %y = LayerNormalization(%wp, %gain, %bias) {axis = -1}
}`),
  );
  assert.ok(bert.outline.includes('embeddings: 5 x 4 + 2 x 4 + 3 x 4, layer norm'));
  const shuffle = await inspectBlocks(
    parseModel(`graph (x: f32[1, 6, 2, 2]) -> (y) {
  opset 17
  const %groups: i64[5] = {1, 2, 3, 2, 2}
  const %whole: i64[4] = {1, 6, 2, 2}
  %g = Reshape(%x, %groups)
  %t = Transpose(%g) {perm = [0, 2, 1, 3, 4]}
  %y = Reshape(%t, %whole)
}`),
  );
  assert.ok(shuffle.outline.includes('1 channel shuffle'));
});
