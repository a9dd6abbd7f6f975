/**
 * Parts of a fused model that are no blocks and have a name all the same: tables of embeddings with what is
 * summed and normed behind them, channel shuffles, and heads that choose.
 *
 * Source: channel shuffle https://arxiv.org/abs/1707.01083.
 */
import type { Node, Value } from '../ir/graph.ts';
import { isNorm, normKind } from '../ops/fused-norm.ts';
import { isDequantize } from '../ops/quantized.ts';
import { isTranspose, isView, permutationOf } from '../passes/views.ts';

/** One line for each kind of part. */
export function describeParts(nodes: readonly Node[]): string[] {
  const text: string[] = [];
  const tables = nodes.filter(isEmbedding);
  if (tables.length > 0) text.push(`embeddings: ${describeEmbeddings(tables)}`);
  const shuffles = nodes.filter(isChannelShuffle).length;
  if (shuffles > 0) text.push(`${shuffles} channel ${shuffles === 1 ? 'shuffle' : 'shuffles'}`);
  const choices = nodes.filter(
    (node) => choosing.has(node.op) && node.domain === '' && node.output(0).isOutput,
  );
  if (choices.length > 0) text.push(`ends in ${choices.map(({ op }) => op).join(', ')}`);
  return text;
}

const choosing: ReadonlySet<string> = new Set(['ArgMax', 'ArgMin', 'TopK']);

/** Whether a node looks up rows of a matrix by integers. */
function isEmbedding(node: Node): boolean {
  if (node.op !== 'Gather' || node.domain !== '' || node.int('axis', 0) !== 0) return false;
  const table = node.input(0);
  const { producer } = table;
  const isWidened = producer?.op === 'Cast' && producer.inputs[0]?.weight !== undefined;
  const isTable = table.weight !== undefined || isWidened || isDequantize(producer);
  return isTable && table.shape?.length === 2 && table.dtype !== 'i64' && table.dtype !== 'i32';
}

function describeEmbeddings(tables: readonly Node[]): string {
  const sizes = tables.map((node) => `${node.input(0).shape?.join(' x ')}`);
  const norm = normBehind(tables);
  return norm === undefined ? sizes.join(' + ') : `${sizes.join(' + ')}, ${norm} norm`;
}

/** The norm of the sum of all looked-up rows. */
function normBehind(tables: readonly Node[]): 'rms' | 'layer' | undefined {
  let work = tables.map((node) => node.output(0));
  for (let step = 0; step < 3 && work.length > 0; step++) {
    const next: Value[] = [];
    for (const value of work)
      for (const user of value.users.keys()) {
        if (isNorm(user)) return tables.length > 1 || step === 0 ? normKind(user) : undefined;
        if (user.op === 'Add' && user.domain === '') next.push(user.output(0));
      }
    work = next;
  }
  return undefined;
}

/** Whether a Transpose trades groups of channels and channels of a group, between two views. */
function isChannelShuffle(node: Node): boolean {
  if (!isTranspose(node) || !isView(node.input(0).producer)) return false;
  const perm = permutationOf(node);
  const rank = perm?.length ?? 0;
  // images have two axes behind their channels
  const trades =
    rank === 5 && perm?.every((from, to) => from === (to === 1 ? 2 : to === 2 ? 1 : to));
  const behind = node.output(0).onlyUser;
  const source = node.input(0).producer?.input(0);
  return (
    trades === true &&
    isView(behind) &&
    [source, behind.output(0)].every((value) => value?.shape?.length === rank - 1)
  );
}
